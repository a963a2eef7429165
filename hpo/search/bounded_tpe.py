"""TPE with a bounded history: the time of a draw does not grow with the study.

TPE compares a density near the better trials with one near all others. The better ones are a tenth of the trials, at
most 25, so that in a large study nearly all of the time goes into the others, of which the last 25 weigh most. Here the
better ones are those of all trials, and the others are the most recent ones. Up to `HISTORY` ended trials, draws are
those of Optuna's sampler to the bit.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.kept_trials import BestAndRecent, ended_trials

HISTORY = 1000
"""Ended trials that TPE learns from at most: the better ones and the most recent others."""

BETTER = 25
"""The most trials that TPE takes as the better ones."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class BoundedTpe(optuna.samplers.TPESampler):
    """TPE that learns from at most `HISTORY` ended trials, and from those that run. The arguments are those of TPE."""

    _kept: tuple[int, optuna.Study] | None = None  # number of a trial, and what it is drawn from

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that the trials have in common."""
        return super().infer_relative_search_space(self._bounded(study, trial), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the parameters that the trials have in common."""
        return super().sample_relative(self._bounded(study, trial), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the other parameters."""
        return super().sample_independent(self._bounded(study, trial), trial, param_name, param_distribution)

    def _bounded(self, study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
        if len(study.directions) > 1:
            return study
        if self._kept is None or self._kept[0] != trial.number:
            some = recent(study)
            self._kept = trial.number, study if some is None else _Some(study, some)
        return self._kept[1]


class _Some(optuna.Study):
    """A study of which only some trials are seen."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self.__dict__.update(study.__dict__)
        self._seen = trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._seen if states is None or trial.state in states]


def recent(study: optuna.Study) -> Sequence[FrozenTrial] | None:
    """Return the trials that TPE learns from: of the ended ones the `BETTER` best and the most recent others.

    Returns:
        The trials by number; None for all, if at most `HISTORY` have ended.
    """
    ended, others = ended_trials(study, BestAndRecent, BETTER, HISTORY, study.direction == StudyDirection.MAXIMIZE)
    seeming = [trial for trial in others if trial.state in ENDED]  # those that wait at a rung
    if ended.count + len(seeming) <= HISTORY:
        return None
    left = [trial for trial in others if trial.state not in ENDED]
    return sorted([*ended.chosen(seeming), *left], key=lambda trial: trial.number)
