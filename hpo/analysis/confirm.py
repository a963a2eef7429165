"""What a confirmation shows: scores of fresh runs on the test split, and whether one configuration is better.

The configuration that is compared is chosen by its mean validation score over the fresh seeds, before the test split is
looked at: its interval is not flattered by the choice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hpo.analysis.bootstrap import CONFIDENCE, RESAMPLES, resampled, too_few
from hpo.analysis.confirm_generated import of_runs, way_of, with_texts, writes
from hpo.analysis.seed_interval import interval
from hpo.core.numbers import finite_or_none
from hpo.execution.confirmation import DEFAULT, Configuration, Confirmed
from hpo.execution.retrain import retrain
from hpo.storage.snapshot import CONFIRMATION, Results
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.metrics import score
from hpo.tasks.task import Predictions

if TYPE_CHECKING:
    from hpo.config.schema import Decoding
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


def take_confirmation(
    study: optuna.Study,
    results: Results,
    chosen: Sequence[Configuration],
    confirmed: Confirmed,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Score the runs of a confirmation, store what they show in the study, and delete weights that are not needed.

    The weights of each configuration's run of median validation score stay, to be exported.

    Args:
        study: The study that is confirmed, where the result is stored.
        results: A snapshot of it.
        chosen: The configurations.
        confirmed: Their runs, all ended.
        note: Told of runs that are trained again because their weights are missing.

    Returns:
        - `study` (name of the confirmation), `metric`, `direction`, `split` (`test`, or `validation` where a custom
          objective has no test split), `examples`, `seeds`, `confidence`, `trials` (of the search, that had ended);
        - `configurations`: see `_described`;
        - `best` (name of the configuration of the best mean validation score), `winner` (its name if it is shown to be
          better than the published default, or than all others where there is none; else None);
        - `generated`: see `hpo.analysis.confirm_generated.of_runs`; None if the study generates nothing;
        - `before`: (configurations, seeds) of former confirmations of the study, which looked at the test split too.

    Raises:
        StudyError: A run cannot be trained again.
    """
    custom = confirmed.study.config.objective is not None
    predicted = {} if custom else _predicted(results, chosen, confirmed, note)

    def compared(metric: str) -> dict[str, Any]:
        scores, resamples, reason = (None, None, None) if custom else _test_scores(confirmed, metric, predicted)
        return Comparison(results.direction, chosen, confirmed.runs, scores, resamples, reason).facts()

    facts = compared("" if custom else _array(confirmed).setup.metric)
    before = results.attrs.get(CONFIRMATION) or {}
    former = [*before.get("before", []), *([_size(before)] if before else [])]
    size = _size(facts)
    found = {
        "study": confirmed.study.config.name,
        "metric": confirmed.study.config.metric or "value",
        "trials": sum(trial.state.is_finished() for trial in results.trials),
        "examples": None if custom else len(_array(confirmed).setup.data.splits["test"]),
        **facts,
        "generated": of_runs(results, chosen, confirmed, compared) if writes(confirmed) and predicted else None,
        "before": [each for each in former if each != size],
    }
    study.set_user_attr(CONFIRMATION, found)
    if not custom:
        _leave_medians(confirmed, found, note)
    return found


def _size(found: Mapping[str, Any]) -> list[int]:
    return [len(found["configurations"]), found["seeds"]]


def _array(confirmed: Confirmed) -> ScorableArray:
    return cast("ScorableArray", confirmed.done.array)


# ---------------------------------------------------------------- scoring


def _predicted(
    results: Results, chosen: Sequence[Configuration], confirmed: Confirmed, note: Callable[[str], None]
) -> dict[int, Predictions]:
    """Return the predictions for the test split of each run that completed, by its number."""
    found = {}
    for configuration, runs in zip(chosen, confirmed.runs, strict=True):
        way = way_of(results, configuration, confirmed)
        for run in runs:
            if run.state == TrialState.COMPLETE:
                found[run.number] = _predictions(confirmed, run, way, note)
    return found


def _test_scores(
    confirmed: Confirmed, metric: str, found: Mapping[int, Predictions]
) -> tuple[Array, Array | None, str | None]:
    """Return the scores of all runs on the test split [configurations, S], NaN for a run that did not complete.

    Args:
        confirmed: The runs.
        metric: Name in `METRICS`.
        found: Number of a run -> its predictions.

    Returns:
        The scores; the same on resamples of the rows [R, configurations, S]; why there are none, if there are too few
        rows.
    """
    data = _array(confirmed).setup.data
    test = data.splits["test"]
    flat = [run for runs in confirmed.runs for run in runs]
    shape = (len(confirmed.runs), len(confirmed.runs[0]))
    scores = np.full(len(flat), np.nan)
    for index, run in enumerate(flat):
        if run.number in found:
            scores[index] = score(metric, found[run.number])
    if not found:
        return scores.reshape(shape), None, None
    every = list(found.values())
    if reason := too_few(metric, every[0], data.labels, test.groups):
        return scores.reshape(shape), None, reason
    log.info("comparing the %s of %d runs on %s resamples of the test rows", metric, len(every), f"{RESAMPLES:,}")
    drawn = resampled(metric, every, test.groups)
    columns = dict(zip(found, drawn.T, strict=True))
    nothing = np.full(len(drawn), np.nan)
    stacked = np.stack([columns.get(run.number, nothing) for run in flat], axis=1)
    return scores.reshape(shape), stacked.reshape(-1, *shape), None


def _predictions(
    confirmed: Confirmed, run: FrozenTrial, way: Decoding | None, note: Callable[[str], None]
) -> Predictions:
    """Return a run's predictions for the test split; of a classifier they are stored, as texts are, and computed once.

    Args:
        confirmed: The confirmation.
        run: A run that completed.
        way: How it decodes; None if the study generates nothing.
        note: Told if it has to be trained again.
    """
    array, folder = _array(confirmed), confirmed.done.folder
    data = array.setup.data
    path = folder / "outputs" / f"{run.number}-{_identity(confirmed, run)}.safetensors"
    with suppress(OSError, KeyError, SafetensorError):  # missing or damaged: computed again
        logits = load_file(path)["logits"]
        return LabelPredictions(data.task, data.splits["test"].targets, logits)
    weights = _weights(confirmed, run, note)
    predictions = array.of(run.params).predictions_of(weights, "test")
    log.info("run %d of %s is scored on the test split", run.number, confirmed.study.config.name)
    if way is not None:
        predictions = with_texts(predictions, array.of(run.params), weights, way, path.with_suffix(".json"))
    if isinstance(predictions, LabelPredictions):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"logits": np.ascontiguousarray(predictions.logits)}, path)
    return predictions


def _identity(confirmed: Confirmed, run: FrozenTrial) -> str:
    """Return a digest of what a run's outputs depend on: another study of the same name has other files."""
    fingerprint = confirmed.done.study.user_attrs["fingerprint"]
    facts = [fingerprint, run.params, run.system_attrs, run.values]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _weights(confirmed: Confirmed, run: FrozenTrial, note: Callable[[str], None]) -> Path:
    """Return the folder of a run's weights; train it again if they are missing."""
    folder = confirmed.done.folder / "trials" / str(run.number)
    if not folder.is_dir():
        retrain(confirmed.study, confirmed.done.array, run, folder, note)
    return folder


def _leave_medians(confirmed: Confirmed, found: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Delete all weights but those of the runs of median validation score."""
    medians = {each["median_run"] for each in found["configurations"]}
    for run in (run for runs in confirmed.runs for run in runs):
        if run.number in medians:
            _weights(confirmed, run, note)
        else:
            shutil.rmtree(confirmed.done.folder / "trials" / str(run.number), ignore_errors=True)


# ---------------------------------------------------------------- comparing


class Comparison:
    """Compares configurations over seeds and rows.

    Args:
        direction: `maximize` or `minimize`.
        chosen: k configurations.
        runs: Their runs, S each.
        scores: [k, S] scores on the test split; None compares the values, as there is no test split.
        resamples: [R, k, S] scores on resamples of the rows.
        reason: Why there are no resamples, although there are rows.
    """

    def __init__(
        self,
        direction: str,
        chosen: Sequence[Configuration],
        runs: Sequence[Sequence[FrozenTrial]],
        scores: Array | None,
        resamples: Array | None,
        reason: str | None,
    ) -> None:
        self._sign = 1 if direction == "maximize" else -1
        self._direction, self._chosen, self._runs, self._reason = direction, chosen, runs, reason
        self._validation = np.array([[_value(run) for run in each] for each in runs])
        self._has_test = scores is not None
        self._scores = self._validation if scores is None else scores
        self._resamples = resamples
        self._default = next((index for index, each in enumerate(chosen) if each.name == DEFAULT), None)
        self._best = self._best_by_validation()
        # Without a test split the best one is chosen by the values that are compared (Bonferroni).
        compared = max(1, len(chosen) - 1)
        self._confidence = CONFIDENCE if self._has_test else 1 - (1 - CONFIDENCE) / compared

    def facts(self) -> dict[str, Any]:
        """Return what the comparison shows, see `take_confirmation`."""
        best = None if self._best is None else self._chosen[self._best].name
        described = [self._described(index) for index in range(len(self._chosen))]
        return {
            "direction": self._direction,
            "split": "test" if self._has_test else "validation",
            "seeds": len(self._runs[0]),
            "confidence": self._confidence,
            "configurations": described,
            "best": best,
            "winner": best if self._wins(described) else None,
        }

    def _best_by_validation(self) -> int | None:
        """Return the configuration of the best mean validation score; those with a run that lacks one are left out."""
        means = {index: each.mean() for index, each in enumerate(self._validation) if np.isfinite(each).all()}
        return max(means, key=lambda index: self._sign * means[index], default=None)

    def _described(self, index: int) -> dict[str, Any]:
        """Return a configuration's scores.

        Returns:
            `name`, `trial`, `params`; `searched`, what the search gave it; `validation` and `scores`, one a run;
            `mean`, `sd` (over the runs that completed); its interval, `low` and `high`, or `untold`; `optimism`: how
            much better the search said it is, as `difference` with its interval; `ended`: reason -> count of the runs
            that did not complete; `collapsed`, how many give every row one answer; `runs`, their trials, and
            `median_run`, the one of median validation score;
            `to_default` and `to_best`: its differences, each with interval and `shown`, or None.
        """
        each, scores = self._chosen[index], self._scores[index]
        complete = scores[np.isfinite(scores)]
        found = self._interval(scores, self._resampled(index))
        return {
            "name": each.name,
            "trial": each.trial,
            "params": dict(each.params),
            "searched": each.value,
            "validation": [finite_or_none(value) for value in self._validation[index].tolist()],
            "scores": [finite_or_none(value) for value in scores.tolist()],
            "mean": float(complete.mean()) if len(complete) else None,
            "sd": float(complete.std(ddof=1)) if len(complete) > 1 else None,
            **found,
            "optimism": self._optimism(each.value, scores, found),
            "ended": dict(Counter(_ending(run) for run in self._runs[index] if run.state != TrialState.COMPLETE)),
            "collapsed": sum(run.user_attrs.get("collapsed") is True for run in self._runs[index]),
            "runs": [run.number for run in self._runs[index]],
            "median_run": self._median_run(index),
            "to_default": self._difference(index, self._default),
            "to_best": self._difference(index, self._best),
        }

    def _optimism(self, searched: float | None, scores: Array, found: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return how much better the search's value is than the mean of the fresh runs."""
        if searched is None or not np.isfinite(scores).all():
            return None
        gap = {"difference": self._sign * (searched - float(scores.mean()))}
        if "low" not in found:
            return gap | {"untold": found["untold"]}
        low, high = sorted(self._sign * (searched - found[end]) for end in ("low", "high"))
        return gap | {"low": low, "high": high}

    def _difference(self, index: int, other: int | None) -> dict[str, Any] | None:
        """Return the difference to another configuration, paired by repetition and row."""
        if other is None or other == index:
            return None
        scores = self._scores[index] - self._scores[other]
        both = scores[np.isfinite(scores)]
        if not len(both):
            return None
        resamples = None if self._resamples is None else self._resamples[:, index] - self._resamples[:, other]
        found = self._interval(scores, resamples)
        shown = "low" in found and (found["low"] > 0 or found["high"] < 0)
        return {"difference": float(both.mean()), **found, "shown": shown}

    def _interval(self, scores: Array, resamples: Array | None) -> dict[str, Any]:
        """Return `low` and `high`, or `untold`. Runs that diverged are no random selection: the others tell little."""
        if lacking := int((~np.isfinite(scores)).sum()):
            return {"untold": f"{lacking} of {len(scores)} runs did not complete"}
        if self._reason is not None:
            return {"untold": self._reason}
        found = interval(scores, resamples, self._confidence)
        return {"untold": found} if isinstance(found, str) else {"low": found[0], "high": found[1]}

    def _resampled(self, index: int) -> Array | None:
        return None if self._resamples is None else self._resamples[:, index]

    def _median_run(self, index: int) -> int | None:
        """Return the run of median validation score, of an even number the lower one.

        The mean and the interval describe such a run. They would not describe the luckiest of the runs.
        """
        complete = [run for run in self._runs[index] if run.state == TrialState.COMPLETE]
        ranked = sorted(complete, key=lambda run: (self._sign * _value(run), run.number))
        return ranked[(len(ranked) - 1) // 2].number if ranked else None

    def _wins(self, described: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the best configuration is shown to be better than the default, or else than all others."""
        if self._best is None or self._best == self._default:
            return False
        if self._default is not None:
            return _is_better(described[self._best]["to_default"], self._sign)
        others = [each["to_best"] for index, each in enumerate(described) if index != self._best]
        return bool(others) and all(_is_better(other, -self._sign) for other in others)


def _is_better(difference: Mapping[str, Any] | None, sign: int) -> bool:
    return difference is not None and difference["shown"] and sign * difference["difference"] > 0


def _value(run: FrozenTrial) -> float:
    return run.value if run.state == TrialState.COMPLETE and run.value is not None else float("nan")


def _ending(run: FrozenTrial) -> str:
    return str(run.user_attrs.get("reason") or run.state.name.lower())
