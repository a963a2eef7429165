"""The verdict: scores the best trial, the published default and cheap baselines on the test split, and stores it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hpo.analysis import baselines, predictions
from hpo.analysis.bootstrap import CONFIDENCE, RESAMPLES, intervals
from hpo.analysis.breakdown import by_class
from hpo.storage.snapshot import LOOK, Results, read
from hpo.tasks.classification import Outputs
from hpo.tasks.metrics import score, worst_group

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
OutputsOf = Callable[[int, str], Outputs]  # (trial, split) -> outputs of the trial's saved weights on the split


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
        - `best`, and `baseline` (the published default) or None: `number`, `score`;
        - where there are two, `difference`, and `low`, `high` and `shown` (whether the interval leaves out zero) or, in
          their place, `untold`: why no interval can be given;
        - `references`: `majority` and `tfidf`, each with `says` (its name in words), `score`, and the best trial's
          difference from it, as above;
        - `classes`: see `hpo.analysis.breakdown.by_class`; `worst_group`: `hpo.tasks.metrics.GroupScore`, or None.

        Rows of a group, and rows with equal texts, are resampled together.

    Raises:
        HpoError: The predictions cannot be written; the look is stored.
    """
    results = read(study)
    trials = [t.number for t in (results.best, results.baseline) if t and (folder / str(t.number)).is_dir()]
    if results.best is None or results.best.number not in trials:
        return None

    @cache
    def outputs_of(number: int, split: str) -> Outputs:
        log.info("scoring trial %d on the %s split", number, split)
        return array.outputs_of(folder / str(number), split)

    look, compared = results.verdict, results.baseline is not None and results.baseline.number in trials
    # Looks of former versions have no references. The published default may have ended after the look.
    if look is None or "references" not in look or (compared and not look["baseline"]):
        look = _look(results, array, folder.parent, outputs_of, list(dict.fromkeys(trials)))
        study.set_user_attr(f"{LOOK}:{results.best.number}", look)
    for number in trials:
        for split in ("validation", "test"):
            path = folder.parent / "predictions" / f"trial_{number}_{split}.csv"
            _write_predictions(path, array, number, split, outputs_of)
    return dict(look)


def _look(
    results: Results, array: ScorableArray, folder: Path, outputs_of: OutputsOf, trials: list[int]
) -> dict[str, Any]:
    """Return a new look; the first of `trials` is the best one, the second, if any, the published default."""
    data, metric, test = array.setup.data, array.setup.metric, array.setup.data.splits["test"]
    outputs = [outputs_of(number, "test") for number in trials]
    names, references = _references(array, folder)
    log.info("comparing them on %s resamples of the test rows", f"{RESAMPLES:,}")
    found = intervals(metric, [*outputs, *references], data.labels, test.groups)
    scores = [score(metric, each) for each in (*outputs, *references)]  # defined: `metrics.chosen` checked the data
    against = [
        {"score": other} | _compared(scores[0], other, interval)
        for other, interval in zip(scores[1:], found, strict=True)
    ]
    baseline: dict[str, Any] | None = None
    compared: dict[str, Any] = {"shown": False}
    if len(trials) > 1:
        compared = against.pop(0)
        baseline = {"number": trials[1], "score": compared.pop("score")}
    elif results.baseline is not None and results.baseline.number == trials[0]:
        baseline = {"number": trials[0], "score": scores[0]}
        compared |= {"difference": 0.0}
    words = baselines.names_in_words(data)
    worst = worst_group(metric, outputs[0], test.members) if test.members else None
    return {
        "metric": metric,
        "examples": len(outputs[0].targets),
        "confidence": CONFIDENCE,
        "trials": sum(trial.state.is_finished() for trial in results.trials),
        "best": {"number": trials[0], "score": scores[0]},
        "baseline": baseline,
        **compared,
        "references": {
            "majority": {"says": words["majority"], **against[names.index("majority")]},
            "tfidf": None
            if "tfidf" not in names
            else {"says": words["tfidf"], "bounded": baselines.sample_in_words(data), **against[names.index("tfidf")]},
        },
        "classes": by_class(outputs[0], data.labels),
        "worst_group": asdict(worst) if worst else None,
    }


def _compared(best: float, other: float, interval: tuple[float, float] | str) -> dict[str, Any]:
    """Return the difference of two scores, with its interval or the reason why there is none."""
    if isinstance(interval, str):
        return {"difference": best - other, "untold": interval, "shown": False}
    low, high = interval
    return {"difference": best - other, "low": low, "high": high, "shown": low > 0 or high < 0}


def _references(array: ScorableArray, folder: Path) -> tuple[list[str], list[Outputs]]:
    """Return the names of the baselines and their outputs on the test split.

    The outputs of TF-IDF are stored in the study's folder, under the digest of the data, for later looks.
    """
    data = array.setup.data
    test = data.splits["test"]
    found = [baselines.majority(data)(test)]
    path = folder / "baselines" / f"tfidf_{array.setup.metric}_{data.digest[:16]}.safetensors"
    logits = _stored_logits(path, (len(test), max(1, len(data.labels))))
    if logits is None:
        log.info("fitting the TF-IDF baseline")
        predict = baselines.tfidf(data, array.setup.metric)
        if predict is None:
            return ["majority"], found
        logits = predict(test).logits
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"logits": np.ascontiguousarray(logits)}, path)
    return ["majority", "tfidf"], [*found, Outputs(data.task, test.targets, logits)]


def _stored_logits(path: Path, shape: tuple[int, int]) -> Array | None:
    try:
        logits: Array = load_file(path)["logits"]
    except (OSError, KeyError, SafetensorError):  # missing or damaged: the caller computes them
        return None
    return logits if logits.shape == shape and logits.dtype.kind == "f" else None


def _write_predictions(path: Path, array: ScorableArray, number: int, split: str, outputs_of: OutputsOf) -> None:
    """Write a trial's predictions for a split, beside texts and labels, unless the file exists."""
    if path.is_file():
        return
    rows, outputs = array.setup.data.splits[split], outputs_of(number, split)
    texts: list[Mapping[str, Any]] = [{"row": row, "text": text} for row, text in enumerate(rows.texts, 1)]
    if rows.pairs is not None:
        texts = [{**row, "text_pair": pair} for row, pair in zip(texts, rows.pairs, strict=True)]
    labels = _labels(outputs, array.setup.data.labels)
    predicted = predictions.prediction_rows(outputs, array.setup.data.labels)
    merged = [{**text, "label": label, **found} for text, label, found in zip(texts, labels, predicted, strict=True)]
    predictions.write(merged, path)


def _labels(outputs: Outputs, names: tuple[str, ...]) -> list[Any]:
    """Return the true labels in the form in which `predictions.prediction_rows` returns the predicted ones."""
    if outputs.task == "regression":
        return [float(value) for value in outputs.targets]
    if outputs.task == "multi_label":
        return [[name for name, yes in zip(names, row, strict=True) if yes] for row in outputs.targets]
    return [names[index] for index in outputs.targets]
