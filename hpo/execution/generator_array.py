"""The array that runs custom objectives: each slot holds a generator."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, Objective, Seen, TrialCheckpoint, TrialSpec


class GeneratorArray:
    """An array whose slots hold the generators of a custom objective.

    Args:
        objective: Yields the scores of a trial, or returns one.
        slots: How many trials run at once, one step of each in turn.
    """

    def __init__(self, objective: Objective, slots: int = 1) -> None:
        self.objective = objective
        self.slots = slots
        self.segment = 1
        self.horizon: int | None = None
        self.facts: Mapping[str, Any] = {}
        self.notes: Sequence[str] = ()
        self.stop_request = StopRequest()
        self._numbers: dict[int, int] = {}  # slot -> number of its trial
        self._running: dict[int, Generator[Any, None, Any]] = {}
        self._paused: dict[int, Generator[Any, None, Any]] = {}  # by trial
        self._seen: dict[int, Seen] = {}  # by trial, from its last evaluation

    def resume_with(self, facts: Mapping[str, Any]) -> None:
        """Nothing to take over: a custom objective chooses nothing anew."""

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into a slot; the objective starts, or goes on if it was paused, at the next `advance`."""
        paused = self._paused.pop(trial.number, None)
        self._running[slot] = paused or _evaluations(self.objective, trial.params)
        self._numbers[slot] = trial.number
        self._seen.setdefault(trial.number, (0, None))

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Run every generator to its next `yield`; a stop request has no effect within one."""
        outcomes: dict[int, Evaluation | Exception] = {}
        for slot, generator in self._running.items():
            if self.stop_request.is_set():
                break
            try:
                outcomes[slot] = evaluation = _evaluation(next(generator))
                self._seen[self._numbers[slot]] = evaluation.at or 0, evaluation.of
            except Exception as error:  # the runner decides what it means for the trial
                outcomes[slot] = error
            except SystemExit as error:  # ends the trial, not the study
                outcomes[slot] = RuntimeError(f"the objective called sys.exit({error.code!r})")
        return outcomes

    def seen(self, slot: int) -> Seen | None:
        """Return how far the slot's trial was at its last evaluation."""
        return self._seen.get(self._numbers.get(slot, -1))

    def save(self, slot: int) -> TrialCheckpoint | None:
        """Return None: a generator cannot be saved."""
        return None

    def pause(self, slot: int) -> bool:
        """Put the slot's generator aside."""
        self._paused[self._numbers.pop(slot)] = self._running.pop(slot)
        return True

    def save_weights(self, slot: int, folder: Path) -> bool:
        """Return False: a custom objective saves its weights itself, if at all."""
        return False

    def unload(self, slot: int) -> None:
        """Close the generator, so that its `finally` cleans up."""
        if slot in self._running:
            del self._seen[self._numbers.pop(slot)]
            self._running.pop(slot).close()


def _evaluations(objective: Objective, params: Mapping[str, Any]) -> Generator[Any, None, Any]:
    """Return the objective as a generator; a plain function yields once."""
    result = objective(params)
    if isinstance(result, Iterator):
        return (yield from result)
    yield replace(_evaluation(result), last=True)
    return None


def _evaluation(score: Any) -> Evaluation:
    """Return a score as an evaluation.

    Raises:
        TypeError: It is neither an `Evaluation` nor a number.
    """
    if isinstance(score, Evaluation):
        return score
    try:
        if isinstance(score, str | bytes | bool) or score is None:
            raise TypeError
        return Evaluation(float(score))
    except (TypeError, ValueError):
        raise TypeError(
            f"the objective gave {score!r}, a {type(score).__name__}; yield or return a number or an Evaluation"
        ) from None
