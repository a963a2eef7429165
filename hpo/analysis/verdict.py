"""Looks at the test split: the best trial beside the published default and cheap baselines, each look kept."""

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
Said = Callable[[int, str], Outputs]  # (trial, split) -> what its kept weights say of it


def take_verdict(study: optuna.Study, array: ScorableArray, folder: Path) -> dict[str, Any] | None:
    """Score the kept weights on the test split, and keep the look with the study and its predictions in files.

    A look is taken once for a best trial: running the study again with nothing new does not look again. Looks at
    former best trials stay.

    Args:
        study: A study at rest.
        array: What trained it.
        folder: Folder of the kept weights, one folder a trial; predictions go to `predictions` beside it.

    Returns:
        None if no trial completed, or its weights are not there; else

        - `metric`, `examples`, `confidence`, `trials` (how many had ended);
        - `best`, and `baseline` (the published default) or None: `number`, `score`;
        - where there are two, `difference`, and `low`, `high` and `shown` (whether the interval leaves out zero) or, in
          their place, `untold`: why no interval can be told;
        - `references`: `majority` and `tfidf`, `says`, `score` and the same of the best trial's difference from it;
        - `classes`: see `hpo.analysis.breakdown.by_class`; `worst_group`: `hpo.tasks.metrics.GroupScore`, or None.

        Rows of a group, and rows with equal texts, are resampled together.

    Raises:
        HpoError: The predictions cannot be written; the look is kept.
    """
    results = read(study)
    trials = [t.number for t in (results.best, results.baseline) if t and (folder / str(t.number)).is_dir()]
    if results.best is None or results.best.number not in trials:
        return None

    @cache
    def said(number: int, split: str) -> Outputs:
        log.info("scoring trial %d on the %s split", number, split)
        return array.outputs_of(folder / str(number), split)

    look, compared = results.verdict, results.baseline is not None and results.baseline.number in trials
    # A former version had no references; the published default may have ended since.
    if look is None or "references" not in look or (compared and not look["baseline"]):
        look = _look(results, array, folder.parent, said, list(dict.fromkeys(trials)))
        study.set_user_attr(f"{LOOK}:{results.best.number}", look)
    for number in trials:
        for split in ("validation", "test"):
            _keep(folder.parent / "predictions" / f"trial_{number}_{split}.csv", array, number, split, said)
    return dict(look)


def _look(results: Results, array: ScorableArray, folder: Path, said: Said, trials: list[int]) -> dict[str, Any]:
    """Return a new look; the first of `trials` is the best one, the second, if any, the published default."""
    data, metric, test = array.setup.data, array.setup.metric, array.setup.data.splits["test"]
    outputs = [said(number, "test") for number in trials]
    names, references = _references(array, folder)
    log.info("comparing them on %s resamples of the test rows", f"{RESAMPLES:,}")
    told = intervals(metric, [*outputs, *references], data.labels, test.groups)
    scores = [score(metric, each) for each in (*outputs, *references)]  # defined: `metrics.chosen` has looked
    against = [
        {"score": found} | _compared(scores[0], found, interval)
        for found, interval in zip(scores[1:], told, strict=True)
    ]
    baseline: dict[str, Any] | None = None
    compared: dict[str, Any] = {"shown": False}
    if len(trials) > 1:
        compared = against.pop(0)
        baseline = {"number": trials[1], "score": compared.pop("score")}
    elif results.baseline is not None and results.baseline.number == trials[0]:
        baseline = {"number": trials[0], "score": scores[0]}
        compared |= {"difference": 0.0}
    says = baselines.says(data)
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
            "majority": {"says": says["majority"], **against[names.index("majority")]},
            "tfidf": None
            if "tfidf" not in names
            else {"says": says["tfidf"], "bounded": baselines.bounded(data), **against[names.index("tfidf")]},
        },
        "classes": by_class(outputs[0], data.labels),
        "worst_group": asdict(worst) if worst else None,
    }


def _compared(best: float, other: float, interval: tuple[float, float] | str) -> dict[str, Any]:
    """Return the difference of two scores, with its interval or why there is none."""
    if isinstance(interval, str):
        return {"difference": best - other, "untold": interval, "shown": False}
    low, high = interval
    return {"difference": best - other, "low": low, "high": high, "shown": low > 0 or high < 0}


def _references(array: ScorableArray, folder: Path) -> tuple[list[str], list[Outputs]]:
    """Return the names of the baselines and what they say of the test split.

    TF-IDF's answers are kept in the study's folder, under the digest of the data, for the next best trial.
    """
    data = array.setup.data
    test = data.splits["test"]
    found = [baselines.majority(data)(test)]
    kept = folder / "baselines" / f"tfidf_{array.setup.metric}_{data.digest[:16]}.safetensors"
    logits = _loaded(kept, (len(test), max(1, len(data.labels))))
    if logits is None:
        log.info("fitting the TF-IDF baseline")
        predict = baselines.tfidf(data, array.setup.metric)
        if predict is None:
            return ["majority"], found
        logits = predict(test).logits
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_file({"logits": np.ascontiguousarray(logits)}, kept)
    return ["majority", "tfidf"], [*found, Outputs(data.task, test.targets, logits)]


def _loaded(path: Path, shape: tuple[int, int]) -> Array | None:
    try:
        logits: Array = load_file(path)["logits"]
    except (OSError, KeyError, SafetensorError):  # not there, or damaged: it is computed again
        return None
    return logits if logits.shape == shape and logits.dtype.kind == "f" else None


def _keep(path: Path, array: ScorableArray, number: int, split: str, said: Said) -> None:
    """Write what a trial says of a split's rows, beside their texts and labels, unless it is there."""
    if path.is_file():
        return
    rows, outputs = array.setup.data.splits[split], said(number, split)
    texts: list[Mapping[str, Any]] = [{"row": row, "text": text} for row, text in enumerate(rows.texts, 1)]
    if rows.pairs is not None:
        texts = [{**row, "text_pair": pair} for row, pair in zip(texts, rows.pairs, strict=True)]
    labels = _labels(outputs, array.setup.data.labels)
    answers = predictions.answers(outputs, array.setup.data.labels)
    merged = [{**text, "label": label, **answer} for text, label, answer in zip(texts, labels, answers, strict=True)]
    predictions.write(merged, path)


def _labels(outputs: Outputs, names: tuple[str, ...]) -> list[Any]:
    """Return the true labels as `predictions.answers` returns the predicted ones."""
    if outputs.task == "regression":
        return [float(value) for value in outputs.targets]
    if outputs.task == "multi_label":
        return [[name for name, yes in zip(names, row, strict=True) if yes] for row in outputs.targets]
    return [names[index] for index in outputs.targets]
