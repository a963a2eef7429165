"""What samplers and pruners keep of the ended trials, each trial added once: `StudyCache.kept`."""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.criteria import violation
from hpo.storage.ended_trials import Kept
from hpo.storage.study_cache import StudyCache


def ended_trials(
    study: optuna.Study, kind: Callable[..., Kept], *arguments: Hashable
) -> tuple[Kept, Sequence[FrozenTrial]]:
    """Return what a class keeps of a study's ended trials, and the other trials by number.

    Of a study in another storage than a `StudyCache`, all trials are read.

    Args:
        study: The study.
        kind: The class.
        arguments: Its arguments.
    """
    if isinstance(study._storage, StudyCache):
        return study._storage.kept(kind, *arguments), study._storage.unfinished()
    kept, others = kind(*arguments), []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            kept.add(trial)
        else:
            others.append(trial)
    return kept, others


class ByParams:
    """The ended trials by their hyperparameters, without those that have none."""

    def __init__(self) -> None:
        self._found: dict[int, list[FrozenTrial]] = defaultdict(list)

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""
        if trial.params:
            self._found[_hash(trial.params)].append(trial)

    def alike(self, params: Mapping[str, Any]) -> list[FrozenTrial]:
        """Return the trials with the given hyperparameters, by number."""
        same = [trial for trial in self._found.get(_hash(params), ()) if trial.params == params]
        return sorted(same, key=lambda trial: trial.number)


def _hash(params: Mapping[str, Any]) -> int:
    return hash(frozenset(params.items()))


class BestAndRecent:
    """The best of the completed and pruned trials, and the most recent ones.

    Args:
        better: How many of the best are kept.
        history: How many of the most recent ones, by number.
        maximize: Whether higher values are better.

    Attributes:
        count: Completed and pruned trials in all.
    """

    def __init__(self, better: int, history: int, maximize: bool) -> None:
        self._better, self._history, self._sign = better, history, -1 if maximize else 1
        self.count = 0
        self._best: list[tuple[tuple[int, float, float], int, FrozenTrial]] = []
        self._recent: list[tuple[int, FrozenTrial]] = []

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return
        self.count += 1
        insort(self._best, (place(trial, self._sign), trial.number, trial))
        insort(self._recent, (trial.number, trial))
        del self._best[self._better :]
        del self._recent[: -self._history]

    def chosen(self, others: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the best trials and the most recent others, at most `history` in all, by number.

        Args:
            others: Trials that are to be seen as ended too.
        """
        ranked = heapq.nsmallest(
            self._better, [*self._best, *((place(other, self._sign), other.number, other) for other in others)]
        )
        best = {number: trial for _, number, trial in ranked}
        recent = sorted([*self._recent, *((other.number, other) for other in others)])
        rest = [(number, trial) for number, trial in recent if number not in best]
        return [trial for _, trial in sorted([*best.items(), *rest[-(self._history - self._better) :]])]


def place(trial: FrozenTrial, sign: int) -> tuple[int, float, float]:
    """Return what orders trials as TPE does: completed, pruned (the longer the better), beyond a limit.

    Args:
        trial: A completed or pruned trial.
        sign: 1 if lower values are better, -1 if higher ones are.
    """
    if (beyond := violation(trial)) > 0:
        return 2, beyond, 0.0
    if trial.state == TrialState.COMPLETE:
        return 0, sign * (trial.value or 0.0), 0.0
    if trial.last_step is None:
        return 1, 1.0, 0.0
    last = trial.intermediate_values[trial.last_step]
    return 1, -trial.last_step, math.inf if math.isnan(last) else sign * last


class IntermediateValues:
    """The intermediate values of the completed trials, by step.

    Attributes:
        count: Completed trials.
        at: Step -> the values there, in any order.
    """

    def __init__(self) -> None:
        self.count = 0
        self.at: dict[int, array[float]] = defaultdict(lambda: array("d"))

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""
        if trial.state != TrialState.COMPLETE:
            return
        self.count += 1
        for step, value in trial.intermediate_values.items():
            self.at[step].append(value)
