"""The verdict: scores the best trial, the published default and cheap baselines on the test split, and stores it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import optuna

from hpo.analysis import by_task, decoding, generated
from hpo.analysis.bootstrap import CONFIDENCE, RESAMPLES, intervals
from hpo.analysis.predictions import GROUP, counts_of, write
from hpo.storage.snapshot import LOOK, Results, read
from hpo.tasks.metrics import METRICS, score, worst_group
from hpo.tasks.task import Predictions, Reference

if TYPE_CHECKING:
    from hpo.config.schema import Decoding
    from hpo.finetune.scorable import OneModelArray, ScorableArray
    from hpo.tasks.language.task import GeneratingTask

log = logging.getLogger(__name__)

PredictionsOf = Callable[[int, str], Predictions]
"""(trial, split) -> predictions of the trial's saved weights for the split."""


def take_verdict(study: optuna.Study, array: ScorableArray, folder: Path) -> dict[str, Any] | None:
    """Score the saved weights on the test split; store the look in the study and the predictions in files.

    A look is taken once per best trial. If the study runs again and the best trial is the same, the stored look is
    returned. Looks at former best trials stay in the study.

    Args:
        study: A study of which no trial runs.
        array: The array that trained it.
        folder: Folder of the saved weights, one folder a trial; predictions go to `predictions` beside it.

    Returns:
        None if no trial completed or the best trial's weights are missing; else

        - `metric`, `examples`, `confidence`, `trials` (how many had ended);
        - `best`, and `baseline` (the published default) or None: `number`, `score`; of several models `model` too;
        - `baseline_without_value`: number of the published default if it ended without a value, else None;
        - where there are two, `difference`, and `low`, `high` and `shown` (whether the interval leaves out zero) or, in
          their place, `untold`: why no interval can be given;
        - `references`: the task's baselines, each with `says` (its name in words), `score`, and the best trial's
          difference from it, as above;
        - `as_trained`: in a study with `base_weights`, the best trial on the base it was trained on: `base`, `score`,
          and how what is exported differs from it, as above; else None;
        - `classes`: see `hpo.tasks.classification.breakdown.by_class`;
        - `worst_group`: `hpo.tasks.metrics.GroupScore`, or None;
        - `tasks`: see `hpo.analysis.by_task.of_models`;
        - `generated`: see `hpo.analysis.generated.of_models`; None if the study generates nothing;
        - `decoding`: for the best trial and the published default, see `hpo.analysis.decoding.choice_of`; empty where
          there is one way of decoding. The model untuned decodes as the best trial does.

        Rows of a group, and rows with equal texts, are resampled together.

    Raises:
        HpoError: The predictions cannot be written; the look is stored.
    """
    results = read(study)
    known = {t.number: t for t in (results.best, results.baseline) if t and (folder / str(t.number)).is_dir()}
    trials = list(known)
    if results.best is None or results.best.number not in trials:
        return None

    @cache
    def predictions_of(number: int, split: str) -> Predictions:
        log.info("scoring trial %d on the %s split", number, split)
        way = ways[number] if split == "test" else None
        return array.of(known[number].params).predictions_of(folder / str(number), split, decoding=way)

    def choice_of(number: int) -> dict[str, Any] | None:
        one, weights = array.of(known[number].params), folder / str(number)
        return decoding.choice_of(study, one, number, weights, lambda: predictions_of(number, "validation"))

    choices, generate = {number: choice_of(number) for number in trials}, array.setup.config.generate
    ways = {n: decoding.in_use(generate, choice) if generate else None for n, choice in choices.items()}
    look, compared = results.verdict, results.baseline is not None and results.baseline.number in trials
    # Looks of former versions have no references. The published default may have ended after the look.
    if look is None or "references" not in look or (compared and not look["baseline"]):
        look = _look(results, array, folder, predictions_of, trials, ways[trials[0]])
        look["decoding"] = [choice for choice in choices.values() if choice is not None]
        study.set_user_attr(f"{LOOK}:{results.best.number}", look)
    for number in trials:
        for split in ("validation", "test"):
            path = folder.parent / "predictions" / f"trial_{number}_{split}.csv"
            _write_predictions(path, array, number, split, predictions_of)
    return dict(look)


def _look(
    results: Results,
    array: ScorableArray,
    folder: Path,
    predictions_of: PredictionsOf,
    trials: list[int],
    way: Decoding | None,
) -> dict[str, Any]:
    """Return a new look; the first of `trials` is the best one, the second, if any, the published default.

    `way` is how the best one decodes; None if the study generates nothing.
    """
    setup = array.setup
    data, metric, task, test = setup.data, setup.metric, setup.task, setup.data.splits["test"]
    found = [predictions_of(number, "test") for number in trials]
    references = task.references(data, metric, folder.parent / "baselines")
    assert results.best is not None
    of_best = array.of(results.best.params)
    if (untuned := _untuned(of_best, way)) is not None:
        references = {**references, "untuned": untuned}
    known = {name: reference for name, reference in references.items() if reference is not None}
    log.info("comparing them on %s resamples of the test rows", f"{RESAMPLES:,}")
    models = [*found, *(reference.predictions for reference in known.values())]
    if (trained := of_best.as_trained(folder / str(trials[0]), "test")) is not None:
        models.append(trained)
    scores = [score(metric, model) for model in models]  # defined: `refuse_metric` checked the data
    against = [
        {"score": other} | _compared(scores[0], other, interval)
        for other, interval in zip(scores[1:], intervals(metric, models, data.labels, test.groups), strict=True)
    ]
    as_trained = None if trained is None else {"base": setup.config.base_weights, **against.pop()}
    baseline: dict[str, Any] | None = None
    compared: dict[str, Any] = {"shown": False}
    if len(trials) > 1:
        compared = against.pop(0)
        baseline = _scored(results, trials[1], compared.pop("score"))
    elif results.baseline is not None and results.baseline.number == trials[0]:
        baseline = _scored(results, trials[0], scores[0])
        compared |= {"difference": 0.0}
    worst = worst_group(metric, found[0], test.members) if test.members else None
    results_of = dict(zip(known, against, strict=True))
    return {
        "metric": metric,
        "examples": len(found[0]),
        "confidence": CONFIDENCE,
        "trials": sum(trial.state.is_finished() for trial in results.trials),
        "best": _scored(results, trials[0], scores[0]),
        "baseline": baseline,
        "baseline_without_value": None if baseline else _without_value(results),
        **compared,
        "references": {name: _described(known.get(name), results_of.get(name)) for name in references},
        "as_trained": as_trained,
        "classes": task.breakdown(found[0], data.labels),
        "worst_group": asdict(worst) if worst else None,
        "tasks": by_task.of_models(found, test.groups),
        "generated": _generated(found, untuned, array) if setup.config.generate else None,
    }


def _untuned(array: OneModelArray, way: Decoding | None) -> Reference | None:
    """Return the model of the best trial as a baseline; None if it lacks parameters that a trial draws."""
    log.info("scoring the model untuned on the test split")
    predictions = array.untuned("test", decoding=way)
    return None if predictions is None else Reference("The model untuned", predictions)


def _generated(models: list[Predictions], untuned: Reference | None, array: ScorableArray) -> dict[str, Any]:
    """Return the scores of what the models have generated, beside what was made without training."""
    setup = array.setup
    task, test = cast("GeneratingTask", setup.task), setup.data.splits["test"]
    baselines = generated.without_model(task.texts_without_model(test), models[0])
    if untuned is not None:
        baselines[untuned.says] = untuned.predictions
    return generated.of_models(models, baselines, test.groups, setup.config.seed)


def _scored(results: Results, number: int, score: float) -> dict[str, Any]:
    """Return a trial with its score and, in a study of several models, its model."""
    model = {"model": results.model(results.trials[number])} if results.several_models else {}
    return {"number": number, **model, "score": score}


def _without_value(results: Results) -> int | None:
    """Return the number of the published default if it ended without a value; None if it has one, or there is none."""
    baseline = results.baseline
    ended = baseline is not None and baseline.state.is_finished() and baseline not in results.complete
    return baseline.number if ended and baseline is not None else None


def _described(reference: Reference | None, compared: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a baseline as JSON values; None if there is none for this data."""
    if reference is None or compared is None:
        return None
    return {"says": reference.says, "bounded": reference.bounded or None, **compared}


def _compared(best: float, other: float, interval: tuple[float, float] | str) -> dict[str, Any]:
    """Return the difference of two scores, with its interval or the reason why there is none."""
    if isinstance(interval, str):
        return {"difference": best - other, "untold": interval, "shown": False}
    low, high = interval
    return {"difference": best - other, "low": low, "high": high, "shown": low > 0 or high < 0}


def _write_predictions(
    path: Path, array: ScorableArray, number: int, split: str, predictions_of: PredictionsOf
) -> None:
    """Write a trial's predictions for a split, beside texts and labels, unless the file exists."""
    if path.is_file():
        return
    task, data = array.setup.task, array.setup.data
    own, predictions = data.splits[split], predictions_of(number, split)
    rows: list[dict[str, Any]] = [
        {"row": i, **row, **found, GROUP: int(group)}
        for i, (row, found, group) in enumerate(
            zip(own.as_rows(data.labels), task.predicted_rows(predictions, data.labels), own.groups, strict=True), 1
        )
    ]
    if task.reread is None and METRICS[array.setup.metric].counts is not None:
        counts = counts_of(array.setup.metric, predictions)
        rows = [row | more for row, more in zip(rows, counts, strict=True)]
    write(rows, path)
