"""The loop: take, load, advance, report, prune or stop or go on, tell.

while a row is unfinished:
    fill the free slots             a row whose turn it is; the sampler draws what it lacks; duplicates are told
    advance the array one segment
    settle each slot's outcome      report -> last? patience? pruner? -> tell, keep the weights, free the slot
    offer a checkpoint              written in the background; what it lacks is computed again

Any number of processes run this loop on one study: a trial belongs to whoever holds its lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo.core.errors import ArrayShrankError, HpoError, LostTrialError, StorageAwayError
from hpo.core.events import Observer, Silent
from hpo.core.interrupts import StopRequest, handling_signals, watchdog
from hpo.core.trainer import Evaluation, Seen, TrialArray
from hpo.execution.active_trial import ActiveTrial, history
from hpo.execution.best_weights import Weights
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.slot_checkpoints import SlotCheckpoints
from hpo.execution.trial_outcomes import RETRIED, retries, state_of
from hpo.search.comparison import Comparison
from hpo.search.halving import Decision
from hpo.search.stopping import Rules, out_of_patience
from hpo.search.trial_order import PAUSED, TrialOrder
from hpo.search.trial_source import TrialSource
from hpo.space.search_space import SearchSpace
from hpo.storage.study_cache import StudyCache

log = logging.getLogger(__name__)

POLL = 0.25  # seconds between two looks at what other processes do


class Runner:
    """Runs the unfinished rows of a study through an array.

    Args:
        study: An open study, its rows planned, its pruner and sampler set.
        space: What its trials are made of.
        array: What trains them.
        rules: When things end.
        watch: Told of everything.
        url: URL of the storage; None if no other process sees it.
        weights: Where the weights of the best trials are kept; None keeps none.
        checkpoints: Where trials are kept that have not ended; None computes again what is lost.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        array: TrialArray,
        rules: Rules,
        watch: Observer | None = None,
        url: str | None = None,
        weights: Weights | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.space, self.array, self.rules = space, array, rules
        self.watch: Observer = watch or Silent()
        self.weights = weights
        self.stop_request = self.array.stop_request = StopRequest()
        self.ledger = StudyCache(study, url, self.stop_request, self._note)
        self.study = optuna.Study(study.study_name, self.ledger, sampler=study.sampler, pruner=study.pruner)
        self.direction = study.direction.name.lower()
        self.compared = rules.compared or Comparison(self.direction)
        self.turns = TrialOrder(self.study, space, rules.budget, rules.round_size, array.segment, self.compared)
        self.intake = TrialSource(self.study, self.turns, space, rules.seed, self._tell)
        self.stopped: str | None = None
        self._slots: dict[int, ActiveTrial] = {}
        self._keeper = SlotCheckpoints(array, self._slots, checkpoints)
        self._held: dict[int, ActiveTrial] = {}  # paused, and kept by the array outside its slots
        self._failures = self._told = 0
        self._settled = True  # whether all is told of where the array is; else a checkpoint would leave a gap
        self._noted = ""

    def run(self) -> str | None:
        """Run until every row has ended.

        Returns:
            Why the study stopped early, or None.

        Raises:
            KeyboardInterrupt: After the first SIGINT or SIGTERM everything has been put back; at the second, nothing.
        """
        self.watch.follow(self.seen)
        deadline = math.inf if self.rules.timeout is None else time.monotonic() + self.rules.timeout
        with handling_signals(self.stop_request), watchdog(self.stop_request, self.rules.stall_timeout):
            try:
                self._loop(deadline)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and self.stop_request.is_set():
                    self.ledger.close()  # the second signal: what ran is adopted by others
                    raise
                if isinstance(error, StorageAwayError):
                    self.stop_request.set()  # it has been waited for long enough
                self._close()
                raise
            self._close()
        if self.stop_request.is_set():
            raise KeyboardInterrupt
        self._note_exhausted()
        return self.stopped

    def _loop(self, deadline: float) -> None:
        while self._stop(deadline) is None:
            told = self._told
            self._fill()
            if not self._slots:  # as far as was known
                self.ledger.refresh()
                self._fill()
            if self._slots:
                self._advance()
            elif self._told > told:
                continue  # which may be what the next ones waited for
            elif self.turns.unfinished():
                log.info("waiting for the trials that other processes run")
                time.sleep(max(POLL, 4 * self.ledger.took))  # others run what is left
            else:
                return

    def seen(self) -> dict[int, Seen]:
        """Return how far each trial is that is in a slot, by its number. Any thread may ask at any time."""
        told = {running.number: self.array.seen(slot) for slot, running in list(self._slots.items())}
        return {number: seen for number, seen in told.items() if seen is not None}

    def _close(self) -> None:
        """Put back what runs here, and leave nothing that nobody needs."""
        self._put_all_back()
        self.ledger.close()
        self._keeper.close({row.number for row in self.turns.rows() if not row.state.is_finished()})

    @property
    def failed(self) -> bool:
        """Whether trials failed in a row until the study had to stop."""
        return self._failures >= self.rules.max_consecutive_failures

    def _stop(self, deadline: float) -> str | None:
        """Return, and keep, why no more is to be done."""
        if self.stop_request.is_set():
            self.stopped = "stopped by a signal; run the same command again to go on"
        elif self.failed:
            last = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.FAIL][-1].user_attrs
            self.stopped = (
                f"{self._failures} trials failed in a row, the last with {last['reason']}: {last['detail']}. Its "
                f"attribute `traceback` says where (hpo trials {self.study.study_name} --json). Mend the cause and run "
                "the same study again"
            )
        elif time.monotonic() >= deadline:
            self.stopped = "the time is up; run the same command again to go on"
        return self.stopped

    def _note(self, message: str) -> None:
        """Say something once, however often it comes in a row."""
        if message != self._noted:
            self.watch.note(message)
        self._noted = message

    def _note_exhausted(self) -> None:
        rows = self.study.get_trials(deepcopy=False)
        if sum(row.state.is_finished() for row in rows) < self.rules.budget and self.turns.used_up(rows):
            self.watch.note(f"the search space is exhausted: all of its {self.space.size:g} points have been tried")

    # ------------------------------------------------------------ filling slots

    def _fill(self) -> None:
        self.ledger.refresh(now=False)
        self.intake.draw_round()
        self._resume_held()
        while (slot := self._free()) is not None and (given := self.intake.next(self._numbers())) is not None:
            self._load(slot, ActiveTrial(*given))

    def _free(self) -> int | None:
        """Return an empty slot; there may be fewer slots after a load than before."""
        return next((slot for slot in range(self.array.slots) if slot not in self._slots), None)

    def _numbers(self) -> list[int]:
        return [running.number for running in self._slots.values()]

    def _load(self, slot: int, running: ActiveTrial) -> None:
        """Put a trial into a slot: from its checkpoint if there is one that serves, else from its seeds."""
        self._slots[slot] = running
        self.watch.started(running.number, running.spec.params)
        if (kept := self._keeper.of(running.number)) is not None:
            try:
                evaluations = history(kept)
                self.array.load(slot, replace(running.spec, checkpoint=kept))
            except ArrayShrankError as error:
                self._settle(slot, error)
                return
            except Exception as error:  # a checkpoint is a cache
                self._note(f"trial {running.number} begins anew: its checkpoint is of no use ({error})")
            else:
                running.evaluations = evaluations
                self._settle(slot, None)  # its owner may have died between the evaluation and what followed from it
                return
        try:
            self.array.load(slot, running.spec)
        except Exception as error:  # the trial's, not the study's
            self._settle(slot, error)

    # ------------------------------------------------------------ a segment

    def _advance(self) -> None:
        self._settled = False
        outcomes = {slot: self._heard(self._slots[slot], outcome) for slot, outcome in self.array.advance().items()}
        self.ledger.refresh(now=False)
        with suppress(LostTrialError), self.ledger.together():  # who is lost meets that again when its slot is settled
            for slot, outcome in outcomes.items():
                if isinstance(outcome, Evaluation):
                    self._report(self._slots[slot])
        for slot, outcome in outcomes.items():
            self._settle(slot, outcome)
        self._settled = True
        if not self.stop_request.is_set():
            self._keeper.offer()
        if self._keeper.problem:
            self._note(self._keeper.problem)

    def _heard(self, running: ActiveTrial, outcome: Evaluation | Exception) -> Evaluation | Exception:
        """Keep an evaluation, and return it; or what is wrong with it."""
        if isinstance(outcome, Exception):
            return outcome
        try:
            heard = running.hear(outcome)
            if not heard.last:  # else there is nothing left to prune
                self.compared.require(heard.metrics)
            self.watch.evaluated(running.number, heard)
        except Exception as error:
            return error
        return heard

    def _settle(self, slot: int, outcome: Evaluation | Exception | None) -> None:
        """Do with a slot what its outcome means, or its last evaluation; a lost trial leaves it without a word."""
        try:
            if isinstance(outcome, ArrayShrankError):
                self._note(str(outcome))
                self._put_back(slot)
            else:
                self._judge(slot, outcome)
        except LostTrialError as error:
            self.watch.note(f"{error}, and is dropped here")
            self._unload(slot)

    def _judge(self, slot: int, outcome: Evaluation | Exception | None) -> None:
        running = self._slots[slot]
        try:
            ended = self._state_after(running, outcome)
        except (HpoError, LostTrialError):  # of the storage, not of the trial
            raise
        except Exception as error:  # what training raised, as the state that it means
            if not self._retried(slot, error):
                self._end(slot, *state_of(error))
            return
        if isinstance(ended, Decision):  # to wait
            self._pause(slot)
        elif ended is not None:
            self._end(slot, *ended)

    def _state_after(
        self, running: ActiveTrial, outcome: Evaluation | Exception | None
    ) -> tuple[TrialState, dict[str, Any]] | Decision | None:
        """Return the state a trial ends with, and attributes; None if it goes on, WAIT if it has to pause."""
        if isinstance(outcome, StopIteration):
            running.hear_returned(outcome.value)
            return TrialState.COMPLETE, {}
        if isinstance(outcome, Exception):
            raise outcome
        return self._state_at(running) if running.evaluations else None

    def _state_at(self, running: ActiveTrial) -> tuple[TrialState, dict[str, Any]] | Decision | None:
        """Return what follows from the last evaluation, which is reported if it has not been yet."""
        last = running.evaluations[-1]
        step = self._report(running)
        if last.last:
            return TrialState.COMPLETE, {}
        if out_of_patience(running.values, self.rules.patience, self.direction):
            return TrialState.COMPLETE, {"stopped_early_at": step}
        decision = self.turns.pruned(self._row(running.trial), step)
        if decision is Decision.WAIT:
            return decision
        self.ledger.note(running.number, self.turns.tied(self._row(running.trial), step))
        return (TrialState.PRUNED, {"reason": "pruner"}) if decision is Decision.PRUNE else None

    def _report(self, running: ActiveTrial) -> int:
        """Report the last evaluation, and return its step; one that a former owner has reported must be the same."""
        value, step = running.values[-1], running.step()
        before = self._row(running.trial).intermediate_values.get(step)
        if before is not None and before != value:
            self.watch.note(
                f"trial {running.number} was trained again and has {value!r} where it had {before!r} (at {step}): "
                "the objective is not a function of its parameters and seed alone"
            )
        self.ledger.report(running.number, step, value, self.compared.kept(running.evaluations[-1].metrics))
        return step

    # ------------------------------------------------------------ pausing, in rounds

    def _pause(self, slot: int) -> None:
        """Take a trial out of its slot until its round has reached its rung."""
        running = self._slots[slot]
        trial = running.trial
        # Before the checkpoint: who went on from that one alone would be past the rung without having met it.
        with self.ledger.together():
            self.ledger.note(trial.number, self._facts(running))
            self.ledger.set_trial_system_attr(trial._trial_id, PAUSED, self._row(trial).last_step)
        if self.array.pause(slot):
            self._held[running.number] = running
            del self._slots[slot]
            return
        self._keeper.part(slot)
        self._put_back(slot)

    def _resume_held(self) -> None:
        """Let trials that the array holds go on, or be pruned, now that their rungs are decided."""
        for number, running in sorted(self._held.items()):
            row = self.ledger.row(number)
            decision = self.turns.paused(row)
            if decision is Decision.WAIT or (free := self._free()) is None:
                continue
            del self._held[number]
            running.started = time.monotonic()
            self._slots[free] = running
            self.array.load(free, running.spec)
            with suppress(LostTrialError):  # who is lost meets that again when its slot is settled
                self.ledger.note(running.number, self.turns.tied(row, running.step()))
            if decision is Decision.PRUNE:
                self._settle(free, optuna.TrialPruned())

    # ------------------------------------------------------------ ending

    def _end(self, slot: int, state: TrialState, attrs: Mapping[str, Any]) -> None:
        """Tell a trial, keep its weights if they are among the best, and free the slot."""
        running = self._slots[slot]
        facts = {**self._facts(running), **attrs}
        value = facts.get("best_value")
        if state == TrialState.COMPLETE and self.weights is not None:
            assert value is not None
            rows = self.study.get_trials(deepcopy=False)
            self.weights.keep(self._row(running.trial), value, rows, lambda folder: self.array.keep(slot, folder))
        self._tell(running.trial, state, facts, value if state == TrialState.COMPLETE else None)
        self._failures = self._failures + 1 if state == TrialState.FAIL else 0
        self._unload(slot)

    def _facts(self, running: ActiveTrial) -> dict[str, Any]:
        """Return what is said of a trial besides its curve."""
        return running.facts(self.direction, self._row(running.trial).user_attrs)

    def _tell(self, trial: Trial, state: TrialState, attrs: Mapping[str, Any], value: float | None = None) -> None:
        """Tell a trial, give it up, and forget what was kept of it."""
        with self.ledger.together():
            self.ledger.note(trial.number, attrs)
            self.study.tell(trial, value, state)
        self._told += 1
        self.ledger.release(trial.number)
        if self.weights is not None:
            self.weights.sweep(self.study.get_trials(deepcopy=False))
        self._keeper.drop(trial.number)
        self.watch.ended(self._row(trial))

    def _retried(self, slot: int, error: Exception) -> bool:
        """Put a trial back whose failure may pass; False if it may not, or has been met too often."""
        running = self._slots[slot]
        before = self._row(running.trial).system_attrs.get(RETRIED, 0)
        if before >= retries(error):
            return False
        self.ledger.set_trial_system_attr(running.trial._trial_id, RETRIED, before + 1)
        self.watch.note(f"trial {running.number} is run again: {type(error).__name__}: {error}")
        self._put_back(slot)
        return True

    def _put_back(self, slot: int) -> None:
        """Let a trial wait again, with its parameters; it begins anew, or from its checkpoint."""
        number = self._slots[slot].number
        self._unload(slot, give_up=False)
        self.ledger.put_back(number)

    def _put_all_back(self) -> None:
        """Let all that runs here wait again, from where it is; what cannot be said is found by whoever comes next."""
        with suppress(Exception):  # a checkpoint is a cache
            if self._settled:
                self._keeper.flush()
        for slot in list(self._slots):
            self._unload(slot, give_up=False)
        for running in self._held.values():
            self.array.load(0, running.spec)
            self.array.unload(0)  # so that its `finally` cleans up
        self._held.clear()
        for number in self.ledger.owned:  # also what is held, or was being drawn
            try:
                self.ledger.put_back(number)
            except StorageAwayError:  # none of the others would fare better
                return
            except (LostTrialError, HpoError):
                continue

    def _unload(self, slot: int, *, give_up: bool = True) -> None:
        running = self._slots.pop(slot)
        try:
            self.array.unload(slot)
        except Exception as error:  # an objective's `finally`; its trial has ended, the study goes on
            self.watch.note(f"cleaning up after a trial raised {type(error).__name__}: {error}")
        if give_up:
            self.ledger.release(running.number)

    def _row(self, trial: Trial) -> FrozenTrial:
        return self.ledger.row(trial.number)
