"""When trials and the study end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.core.formatting import number
from hpo.search.comparison import Comparison
from hpo.storage.criteria import DEVICE_SECONDS, NO_CRITERIA, Criteria, violation

STOPPED = "stopped"
"""User attribute of a study: why it stopped before its trials were used up; None, or absent, if it has not."""


@dataclass(frozen=True)
class StudyLimits:
    """What a study has to reach to end before its trials are used up; None for what does not end it.

    Attributes:
        examples: Examples that all trials have trained on.
        device_hours: Hours of training, times the devices used.
        target: The value of a completed trial.
        plateau: Trials in a row, by number, that ended without a better value.
    """

    examples: int | None = None
    device_hours: float | None = None
    target: float | None = None
    plateau: int | None = None

    def reached(self, trials: Sequence[FrozenTrial], direction: str, device_seconds: float = 0.0) -> str | None:
        """Return which limit the trials have reached, as a sentence; None if none.

        Duplicates, which are not trained, count for nothing. A trial that is beyond its constraints reaches no target,
        and is not better than another.

        Args:
            trials: The trials so far, by number.
            direction: `maximize` or `minimize`.
            device_seconds: Of trials that run, as far as their attributes do not have them yet.
        """
        trained = [trial for trial in trials if "duplicate_of" not in trial.user_attrs]
        if self.examples is not None:
            examples = sum(trial.last_step or 0 for trial in trained)
            if examples >= self.examples:
                return _limit("examples", self.examples, f"the trials have trained on {examples:,} examples")
        if self.device_hours is not None:
            hours = (sum(trial.user_attrs.get(DEVICE_SECONDS, 0.0) for trial in trained) + device_seconds) / 3600
            if hours >= self.device_hours:
                return _limit("device_hours", self.device_hours, f"training has taken {number(hours)} device hours")
        return self._reached_by_scores(trained, direction)

    def _reached_by_scores(self, trials: Sequence[FrozenTrial], direction: str) -> str | None:
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and not violation(trial)]
        if not complete:
            return None
        best = complete[best_index([trial.value or 0.0 for trial in complete], direction)]
        value = best.value or 0.0
        if self.target is not None and (value >= self.target if direction == "maximize" else value <= self.target):
            return _limit("target", self.target, f"trial {best.number} has reached {number(value)}")
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        since = sum(trial.number > best.number and trial.state in ended for trial in trials)
        if self.plateau is not None and since >= self.plateau:
            return _limit("plateau", self.plateau, f"none of {since} trials after trial {best.number} was better")
        return None


NO_LIMITS = StudyLimits()


def _limit(key: str, limit: float, reached: str) -> str:
    return f"{reached}, and stop.{key} is {limit:,}; to go on, change it and run the study again"


STOP = "hpo:stop"
"""System attribute of a running trial that a user has asked to end, at its next evaluation."""

STOPPED_BY_USER = "stopped_by_the_user"
"""The reason with which such a trial is told."""


@dataclass(frozen=True)
class Rules:
    """When trials and the study end.

    Attributes:
        budget: Trials of the study.
        seed: The study's seed.
        timeout: Seconds after which running trials return to waiting.
        patience: Evaluations without improvement after which a trial ends.
        max_consecutive_failures: Failed trials in a row after which the study stops.
        round_size: Trials of a round; None runs without rounds.
        stall_timeout: Seconds without a step of training after which the process ends itself.
        compared: What the pruner compares. None compares the values, and the loss where they are equal.
        limits: What ends the study before its trials are used up.
        devices: Devices that train a slot's trial together.
        wave: Trials of a round that are drawn together; None draws a round at once.
        criteria: The limits that the best trial has to meet, and the second metric.
    """

    budget: int
    seed: int = 0
    timeout: float | None = None
    patience: int | None = None
    max_consecutive_failures: int = 3
    round_size: int | None = None
    stall_timeout: float | None = None
    compared: Comparison | None = None
    limits: StudyLimits = NO_LIMITS
    devices: int = 1
    wave: int | None = None
    criteria: Criteria = NO_CRITERIA

    @property
    def seconds(self) -> float:
        """Seconds that a run may take; infinite without `timeout`."""
        return math.inf if self.timeout is None else self.timeout


def best_index(values: Sequence[float], direction: str) -> int:
    """Return the position of the best score; the first of equals."""
    choose = max if direction == "maximize" else min
    return choose(range(len(values)), key=values.__getitem__)


def out_of_patience(values: Sequence[float], patience: int | None, direction: str) -> bool:
    """Return whether the last `patience` evaluations brought no better score.

    Args:
        values: The trial's scores so far.
        patience: Evaluations to wait; None never runs out.
        direction: `maximize` or `minimize`.
    """
    if patience is None or not values:
        return False
    return len(values) - 1 - best_index(values, direction) >= patience
