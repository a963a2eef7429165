"""A trial in a slot, with its evaluations so far."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from hpo.core.trainer import Evaluation, TrialCheckpoint, TrialSpec
from hpo.execution.trial_outcomes import finite_score
from hpo.search.stopping import best_index
from hpo.storage.criteria import DEVICE_SECONDS

HISTORY = "history"  # key of the evaluations in a checkpoint's state, beside the keys of the array


@dataclass
class ActiveTrial:
    """A trial in a slot.

    Attributes:
        trial: The trial of the study.
        spec: The trial as the array gets it.
        started: When it was put into the slot, by the monotonic clock.
        evaluations: All so far, those before a checkpoint too.
        device_seconds: Of its training since then, times the devices used, divided by the trials on them.
        returned: Whether the objective returned the last evaluation: then it is the trial's value, even if another is
            better.
        unwritten: Attributes that are written with the next evaluation, so that they need no transaction of their own.
    """

    trial: Trial
    spec: TrialSpec
    started: float = field(default_factory=time.monotonic)
    evaluations: list[Evaluation] = field(default_factory=list)
    device_seconds: float = 0.0
    returned: bool = False
    unwritten: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self.trial.number

    @property
    def values(self) -> list[float]:
        """The scores so far."""
        return [evaluation.value for evaluation in self.evaluations]

    def step(self, index: int = -1) -> int:
        """Return the step of an evaluation: the examples seen, or its position, counted from 1."""
        at = self.evaluations[index].at
        return index % len(self.evaluations) + 1 if at is None else at

    def record(self, evaluation: Evaluation) -> Evaluation:
        """Add an evaluation and return it, with plain numbers.

        Raises:
            DivergedError: Its score is not finite.
            TypeError: A score is not a number.
            ValueError: A metric is not a number.
        """
        metrics = {name: float(value) for name, value in evaluation.metrics.items()}
        of_best = {name: float(value) for name, value in evaluation.of_best.items()}
        value = finite_score(evaluation.value)
        self.evaluations.append(replace(evaluation, value=value, metrics=metrics, of_best=of_best))
        return self.evaluations[-1]

    def record_returned(self, value: Any) -> None:
        """Add what the objective returned; None adds nothing.

        Raises:
            DivergedError: It is not finite.
            TypeError: It is not a number.
            ValueError: It is None, and there was no evaluation before.
        """
        if value is not None:
            given = value if isinstance(value, Evaluation) else Evaluation(value)
            last = self.evaluations[-1].at if self.evaluations else None
            self.record(replace(given, at=last if given.at is None else given.at))
            self.returned = True
        if not self.evaluations:
            raise ValueError("the objective ended without yielding or returning a score")

    def facts(self, direction: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of the trial: of the evaluation that counts, the best one.

        Args:
            direction: `maximize` or `minimize`.
            before: The trial's attributes, as they were written when it paused. A note of an evaluation that does not
                count any more is set to None, as attributes cannot be deleted.
        """
        seconds = round(before.get("seconds", 0.0) + time.monotonic() - self.started, 3)
        facts: dict[str, Any] = {"seconds": seconds, **self.so_far(before)}
        if self.evaluations:
            index = len(self.evaluations) - 1 if self.returned else best_index(self.values, direction)
            best, last = self.evaluations[index], self.evaluations[-1]
            noted = {name for evaluation in self.evaluations for name in evaluation.notes}
            facts |= {name: None for name in noted if name in before}
            facts |= {"best_value": best.value, "best_at": self.step(index), **best.notes, **last.at_end}
            if (metrics := {**best.metrics, **last.of_best}) or "metrics" in before:
                facts["metrics"] = metrics
        return facts

    def so_far(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of an unfinished trial: its device seconds with those `before`, and `unwritten`."""
        seconds = round(before.get(DEVICE_SECONDS, 0.0) + self.device_seconds, 3)
        return {DEVICE_SECONDS: seconds, **self.unwritten}

    def with_history(self, checkpoint: TrialCheckpoint) -> TrialCheckpoint:
        """Return a checkpoint of the trial with the evaluations so far added to its state."""
        return replace(checkpoint, state={**checkpoint.state, HISTORY: [asdict(e) for e in self.evaluations]})


def as_completed(row: FrozenTrial, facts: Mapping[str, Any]) -> FrozenTrial:
    """Return a trial's row as it will be once the trial is told that it is complete, with the given facts."""
    completed = copy.copy(row)
    completed.state, completed.values = TrialState.COMPLETE, [facts["best_value"]]
    completed.user_attrs = {**row.user_attrs, **facts}
    return completed


@contextmanager
def timed(trials: Iterable[ActiveTrial], devices: int) -> Iterator[None]:
    """Divide the seconds that a block takes, times the devices, among trials that train together in it."""
    together, began = list(trials), time.monotonic()
    try:
        yield
    finally:
        for trial in together:
            trial.device_seconds += (time.monotonic() - began) * devices / len(together)


def history(checkpoint: TrialCheckpoint) -> list[Evaluation]:
    """Return the evaluations that `ActiveTrial.with_history` added.

    Raises:
        KeyError, TypeError: There are none, or they are not evaluations.
    """
    return [Evaluation(**fields) for fields in checkpoint.state[HISTORY]]
