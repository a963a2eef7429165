"""The loop: ask, load, advance, report, prune or stop or go on, tell.

while there is a slot to fill or a trial in one:
    fill the free slots             a waiting row; the sampler draws what it lacks; duplicates are told at once
    advance the array one segment
    settle each slot's outcome      report -> last? patience? pruner? -> tell, keep the weights, free the slot
"""

from __future__ import annotations

import math
import shutil
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from hpo.errors import DivergedError, GaveWayError, HpoError, StudyError, TrialEndedError
from hpo.objective import Evaluation, TrialArray, TrialSpec
from hpo.samplers import derived_seed
from hpo.space import Params, SearchSpace
from hpo.stopping import best_index, out_of_patience
from hpo.study import put_back, put_back_orphans


class Watcher(Protocol):
    """What is told about a study while it runs; what a subclass leaves out is not listened to."""

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """The study is open; `finished` are the rows that ended in earlier runs."""
        return

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial has been loaded."""
        return

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """A trial has been scored."""
        return

    def ended(self, trial: FrozenTrial) -> None:
        """A trial has been told."""
        return

    def note(self, message: str) -> None:
        """Something the user should read."""
        return

    def closed(self) -> None:
        """The study is at rest."""
        return


class Silent(Watcher):
    """A watcher that looks away."""


@dataclass(frozen=True)
class Rules:
    """When trials and the study end.

    Attributes:
        budget: Rows of the study.
        seed: The study's seed.
        timeout: Seconds after which running trials are put back.
        patience: Evaluations without a better one after which a trial ends.
        max_consecutive_failures: Failed trials in a row after which the study stops.
    """

    budget: int
    seed: int = 0
    timeout: float | None = None
    patience: int | None = None
    max_consecutive_failures: int = 3


@dataclass
class _Running:
    """A trial in a slot."""

    trial: Trial
    started: float
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        return [evaluation.value for evaluation in self.evaluations]


class Runner:
    """Runs the waiting rows of a study through an array.

    One runner at a time: the caller holds the study's lock, so that a running row is this runner's.

    Args:
        study: An open study, its pruner and sampler set.
        space: What its trials are made of.
        array: What trains them.
        rules: When things end.
        watch: Told of everything.
        weights: Folder for the weights of the best trial and of the published default; None keeps none.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        array: TrialArray,
        rules: Rules,
        watch: Watcher | None = None,
        weights: Path | None = None,
    ) -> None:
        self.study, self.space, self.array, self.rules = study, space, array, rules
        self.watch: Watcher = watch or Silent()
        self.weights = weights
        self.direction = study.direction.name.lower()
        self._slots: dict[int, _Running] = {}
        self._twins: list[tuple[Trial, int]] = []  # duplicates of a trial that still runs
        self._failures = 0
        self._last_reason = ""
        self.stopped: str | None = None

    def run(self) -> str | None:
        """Run until no row is left.

        Returns:
            Why the study stopped early, or None.
        """
        deadline = math.inf if self.rules.timeout is None else time.monotonic() + self.rules.timeout
        try:
            while (stop := self._stop(deadline)) is None:
                self._fill()
                if not self._slots:
                    self._note_exhausted()
                    return None
                for slot, outcome in self.array.advance().items():
                    self._settle(slot, outcome)
            self.stopped = stop
            return stop
        finally:  # after a stop, an interrupt or an error, what still runs goes back with its parameters
            for slot in list(self._slots):
                self._unload(slot)
            put_back_orphans(self.study)  # of every row: an interrupt may fall between its start and its slot
            self._slots.clear()

    @property
    def failed(self) -> bool:
        """Whether trials failed in a row until the study had to stop."""
        return self._failures >= self.rules.max_consecutive_failures

    def _stop(self, deadline: float) -> str | None:
        if self.failed:
            last = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.FAIL][-1].user_attrs
            return (
                f"{self._failures} trials failed in a row, the last with {last['reason']}: {last['detail']}. The rest "
                "is left waiting; mend the cause and run the same study again"
            )
        if time.monotonic() >= deadline:
            return "the time is up; run the same command again to go on"
        return None

    # ------------------------------------------------------------ filling slots

    def _fill(self) -> None:
        for slot in range(self.array.slots):
            while slot not in self._slots and (trial := self._next()) is not None:
                params = self._drawn(trial)
                earlier = self._earlier(trial)
                if earlier is None:
                    self._load(slot, trial, params)
                elif earlier.state == TrialState.RUNNING:
                    self._twins.append((trial, earlier.number))
                else:
                    self._tell_duplicate(trial, earlier)

    def _drawn(self, trial: Trial) -> Params:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Fixed parameter")  # the published default may lie outside
                return self.space.suggest(trial)
        except (HpoError, OSError, SQLAlchemyError, StorageInternalError):
            raise
        except Exception as error:  # of a sampler with arguments or a space that it cannot work with
            kind = type(error).__name__
            raise StudyError(
                f"the sampler cannot draw trial {trial.number} ({kind}: {error}); see `sampler`"
            ) from error

    def _next(self) -> Trial | None:
        """Return the first waiting row within the budget; plan one more where duplicates used rows up."""
        rows = self.study.get_trials(deepcopy=False)
        waiting = next((row for row in rows if row.state == TrialState.WAITING), None)
        if waiting is None:
            if len(rows) >= self.rules.budget or self._used_up(rows):
                return None
            self.study.enqueue_trial({})
        elif waiting.number >= self.rules.budget or (not _decided(waiting) and self._used_up(rows)):
            return None
        return self.study.ask()

    def _used_up(self, rows: Sequence[FrozenTrial]) -> bool:
        """Return whether every point of a finite space has had its trial."""
        return self.space.size <= len(rows) and self._distinct(rows) >= self.space.size

    def _distinct(self, rows: Sequence[FrozenTrial]) -> int:
        inside = {tuple(sorted(row.params.items())) for row in rows if row.params and self.space.contains(row.params)}
        return len(inside)

    def _note_exhausted(self) -> None:
        rows = self.study.get_trials(deepcopy=False)
        tried = sum(row.state != TrialState.WAITING for row in rows)
        if tried < self.rules.budget and self._used_up(rows):
            self.watch.note(f"the search space is exhausted: all of its {self.space.size:g} points have been tried")

    def _load(self, slot: int, trial: Trial, params: Params) -> None:
        self._slots[slot] = _Running(trial, time.monotonic())
        self.watch.started(trial.number, params)
        seed = derived_seed(self.rules.seed, trial.number, "trial")
        try:
            self.array.load(slot, TrialSpec(trial.number, params, seed))
        except Exception as error:  # the trial's, not the study's
            self._settle(slot, error)

    # ------------------------------------------------------------ duplicates

    def _earlier(self, trial: Trial) -> FrozenTrial | None:
        """Return the first trial with the same parameters that ran or runs; a failed one does not count."""
        for row in self.study._get_trials(deepcopy=False, use_cache=True):  # as it was when this trial was asked
            same = row.number != trial.number and row.params == trial.params
            if same and row.state in (TrialState.COMPLETE, TrialState.PRUNED):
                return row
            if same and any(running.trial.number == row.number for running in self._slots.values()):
                return row
        return None

    def _tell_duplicate(self, trial: Trial, earlier: FrozenTrial) -> None:
        """Tell a duplicate its original's value; one of a pruned trial is pruned too, or it would look complete."""
        trial.set_user_attr("duplicate_of", earlier.number)
        if earlier.state == TrialState.COMPLETE:
            self.study.tell(trial, earlier.value)
        else:
            if earlier.value is not None and earlier.last_step is not None:
                trial.report(earlier.value, earlier.last_step)
            self.study.tell(trial, state=TrialState.PRUNED)
        self.watch.ended(self._row(trial))

    def _settle_twins(self, original: FrozenTrial) -> None:
        for twin, number in [pair for pair in self._twins if pair[1] == original.number]:
            self._twins.remove((twin, number))
            if original.state == TrialState.FAIL:
                put_back(self.study, twin)
            else:
                self._tell_duplicate(twin, original)

    # ------------------------------------------------------------ settling outcomes

    def _settle(self, slot: int, outcome: Evaluation | Exception) -> None:
        running = self._slots[slot]
        if isinstance(outcome, GaveWayError):
            self._give_way(slot, outcome)
            return
        try:
            ended = self._judge(running, outcome)
        except Exception as error:  # what training raised, as the state that it means
            self._end(slot, *_state_of(error))
            return
        if ended is not None:
            self._end(slot, *ended)

    def _judge(self, running: _Running, outcome: Evaluation | Exception) -> tuple[TrialState, dict[str, Any]] | None:
        """Return the state a trial ends with, and attributes; None if it goes on."""
        if isinstance(outcome, StopIteration):
            if outcome.value is not None:
                given = outcome.value if isinstance(outcome.value, Evaluation) else Evaluation(outcome.value)
                last = running.evaluations[-1].at if running.evaluations else None
                at = last if given.at is None else given.at
                running.evaluations.append(replace(given, value=_finite(given.value), at=at))
            if not running.evaluations:
                raise ValueError("the objective ended without yielding or returning a score")
            return TrialState.COMPLETE, {"returned": True} if outcome.value is not None else {}
        if isinstance(outcome, Exception):
            raise outcome
        metrics = {name: float(value) for name, value in outcome.metrics.items()}
        outcome = replace(outcome, value=_finite(outcome.value), metrics=metrics)
        step = len(running.evaluations) + 1 if outcome.at is None else outcome.at
        running.evaluations.append(outcome)
        trial = running.trial
        if step not in self._row(trial).intermediate_values:  # a resumed trial has reported it already
            trial.report(outcome.value, step)
        self.watch.evaluated(trial.number, outcome)
        if outcome.last:
            return TrialState.COMPLETE, {}
        if out_of_patience(running.values, self.rules.patience, self.direction):
            return TrialState.COMPLETE, {"stopped_early_at": step}
        if trial.should_prune():
            return TrialState.PRUNED, {"reason": "pruner"}
        return None

    def _end(self, slot: int, state: TrialState, attrs: Mapping[str, Any]) -> None:
        """Tell a trial, keep its weights if they are the best, and free the slot."""
        running = self._slots[slot]
        trial, value = running.trial, None
        facts: dict[str, Any] = {"seconds": round(time.monotonic() - running.started, 3), **attrs}
        returned = facts.pop("returned", False)
        if running.evaluations:
            index = len(running.evaluations) - 1 if returned else best_index(running.values, self.direction)
            best = running.evaluations[index]
            value = best.value
            facts |= {"best_value": value, "best_at": index + 1 if best.at is None else best.at, **best.notes}
            if best.metrics:
                facts["metrics"] = dict(best.metrics)
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        if state == TrialState.COMPLETE:
            assert value is not None
            self._keep(slot, trial, value)
        self.study.tell(trial, value if state == TrialState.COMPLETE else None, state)
        self._failures = self._failures + 1 if state == TrialState.FAIL else 0
        del self._slots[slot]  # told: whatever unloading raises, the trial is not put back
        self._unload(slot)
        row = self._row(trial)
        self.watch.ended(row)
        self._settle_twins(row)

    def _give_way(self, slot: int, reason: GaveWayError) -> None:
        """Put a trial back that the array has no room for; it starts again, from its seed, when there is a slot."""
        trial = self._slots.pop(slot).trial
        self._unload(slot)
        put_back(self.study, trial)
        if str(reason) != self._last_reason:
            self.watch.note(str(reason))
        self._last_reason = str(reason)

    def _unload(self, slot: int) -> None:
        try:
            self.array.unload(slot)
        except Exception as error:  # an objective's `finally`; its trial has ended, the study goes on
            self.watch.note(f"cleaning up after a trial raised {type(error).__name__}: {error}")

    def _keep(self, slot: int, trial: Trial, value: float) -> None:
        """Keep the weights of the published default and of the best trial so far; drop the former best's."""
        if self.weights is None:
            return
        rows = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1 if self.direction == "maximize" else 1
        rank = (sign * value, trial.number)  # as `Results.best`: of equals the lowest number, whoever ends first
        better = all(rank < (sign * row.value, row.number) for row in rows if row.value is not None)
        baseline = bool(self._row(trial).user_attrs.get("baseline"))
        if not better and not baseline:
            return
        target, unfinished = self.weights / str(trial.number), self.weights / f".{trial.number}"
        shutil.rmtree(unfinished, ignore_errors=True)
        if not self.array.keep(slot, unfinished):
            return
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        if better:
            protected = {
                str(trial.number),
                *(str(row.number) for row in rows if row.user_attrs.get("baseline")),
            }
            for folder in self.weights.iterdir():
                if folder.is_dir() and folder.name not in protected:
                    shutil.rmtree(folder)

    def _row(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)


def _decided(row: FrozenTrial) -> bool:
    """Return whether a waiting row has its parameters already."""
    return bool(row.params or row.system_attrs.get("fixed_params"))


def _finite(value: Any) -> float:
    """Return a score as a float.

    Raises:
        DivergedError: It is NaN or infinite; Optuna would make -inf the best value of a loss.
        TypeError: It is not a number.
    """
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"a score must be a number, not {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise DivergedError(f"the score is {number}")
    return number


def _state_of(error: Exception) -> tuple[TrialState, dict[str, Any]]:
    """Return the state and the attributes that an exception in training means."""
    if isinstance(error, TrialEndedError):
        return TrialState.PRUNED, {"reason": error.reason, "detail": str(error)}
    if isinstance(error, optuna.TrialPruned):
        return TrialState.PRUNED, {"reason": "pruner"}
    text = "".join(traceback.format_exception(error))
    return TrialState.FAIL, {"reason": type(error).__name__, "detail": str(error), "traceback": text}
