"""The loop that runs the trials of a study in the slots of an array.

while a trial is unfinished:
    fill the free slots             with trials that may start; the sampler draws parameters; duplicates end at once
    train one segment               all slots together
    act on each slot's outcome      report; last, out of patience or pruned: tell, save the weights, free the slot
    offer a checkpoint              written in the background; work since the last one is repeated after a crash

Any number of processes run this loop on one study: a trial belongs to the process that holds its lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo.core.errors import ArrayShrankError, HpoError, LostTrialError, StorageAwayError
from hpo.core.events import Observer, Silent
from hpo.core.interrupts import StopRequest, handling_signals, watchdog
from hpo.core.trainer import Evaluation, Seen, TrialArray
from hpo.execution.active_trial import ActiveTrial, as_completed, history, timed
from hpo.execution.best_weights import Weights
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.slot_checkpoints import SlotCheckpoints
from hpo.execution.trial_decisions import TrialDecisions
from hpo.execution.trial_outcomes import RETRIED, failed_in_a_row, retries, state_of
from hpo.search.comparison import Comparison
from hpo.search.decisions import Decision
from hpo.search.stopping import NO_LIMITS, STOPPED, Rules
from hpo.search.trial_marks import PAUSED
from hpo.search.trial_order import TrialOrder
from hpo.search.trial_source import TrialSource
from hpo.space.search_space import SearchSpace
from hpo.storage.study_cache import StudyCache

log = logging.getLogger(__name__)

POLL = 0.25  # seconds between two checks of what other processes have done


class Runner:
    """Runs the unfinished trials of a study through an array.

    Args:
        study: An open study, its trials planned, its pruner and sampler set.
        space: The study's search space.
        array: Trains the trials.
        rules: The budget, and when trials and the study stop.
        watch: Told of all events.
        url: URL of the storage; None if no other process sees it.
        weights: Saves the weights of the best trials; None saves none.
        checkpoints: The checkpoints of unfinished trials; without them an interrupted trial restarts.
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
        self.cache = StudyCache(study, url, self.stop_request, self._note_once)
        self.study = optuna.Study(study.study_name, self.cache, sampler=study.sampler, pruner=study.pruner)
        self.direction = study.direction.name.lower()
        self.compared = rules.compared or Comparison(self.direction)
        size, wave = rules.round_size, rules.wave
        self.order = TrialOrder(self.study, space, rules.budget, size, array.segment, self.compared, wave)
        self.source = TrialSource(self.study, self.order, space, rules.seed, self._tell)
        self.decisions = TrialDecisions(
            self.cache, self.order, rules, self.compared, self.direction, lambda message: self.watch.note(message)
        )
        self.stopped: str | None = None
        self._slots: dict[int, ActiveTrial] = {}
        self._checkpoints = SlotCheckpoints(array, self._slots, checkpoints)
        self._paused: dict[int, ActiveTrial] = {}  # by number; the array holds them outside its slots
        self._failures = self._told = 0
        self._all_recorded = True  # whether every outcome is recorded; if not, a checkpoint would lack evaluations
        self._last_note = ""

    def run(self) -> str | None:
        """Run until every trial has ended.

        Returns:
            Why the study stopped early, or None.

        Raises:
            KeyboardInterrupt: After the first SIGINT or SIGTERM, once all trials are put back; at the second, at once.
        """
        self.watch.follow(self.seen)
        self.stop_request.deadline = time.monotonic() + self.rules.seconds
        with handling_signals(self.stop_request), watchdog(self.stop_request, self.rules.stall_timeout):
            try:
                if self._stop_reason() is None:
                    self._store_reason()
                self._loop()
                self._store_reason()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and self.stop_request.is_set():
                    self.cache.close()  # the second signal: other processes adopt the trials
                    raise
                if isinstance(error, StorageAwayError):
                    self.stop_request.set()  # so that closing does not wait for the storage once more
                self._close()
                raise
            self._close()
        if self.stop_request.is_set():
            raise KeyboardInterrupt
        self._note_exhausted()
        return self.stopped

    def _loop(self) -> None:
        while self._stop_reason() is None:
            told = self._told
            self._fill_slots()
            if not self._slots:  # by what was last read of the study
                self.cache.refresh()
                self._fill_slots()
            if self._slots:
                self._train_segment()
            elif self._told > told:
                continue  # other trials may have waited for the ones told
            elif self.order.unfinished():
                log.info("waiting for the trials that other processes run")
                time.sleep(max(POLL, 4 * self.cache.took))
            else:
                return

    def seen(self) -> dict[int, Seen]:
        """Return how far each trial in a slot is, by its number. Any thread may call this at any time."""
        every = {active.number: self.array.seen(slot) for slot, active in list(self._slots.items())}
        return {number: seen for number, seen in every.items() if seen is not None}

    def _close(self) -> None:
        """Put back all trials of this process, and delete unneeded checkpoints."""
        self._put_all_back()
        self.cache.close()
        self._checkpoints.close({row.number for row in self.order.rows() if not row.state.is_finished()})

    @property
    def failed(self) -> bool:
        """Whether so many trials failed in a row that the study had to stop."""
        return self._failures >= self.rules.max_consecutive_failures

    def _stop_reason(self) -> str | None:
        """Return why the study has to stop now, and store it in `stopped`; None if it goes on."""
        if self.stop_request.is_set():
            self.stopped = "stopped by a signal; run the same command again to go on"
        elif self.failed:
            self.stopped = failed_in_a_row(self.study, self._failures)
        elif time.monotonic() >= self.stop_request.deadline:
            self.stopped = "the time is up; run the same command again to go on"
        elif self.rules.limits != NO_LIMITS:
            running = sum(active.device_seconds for active in self._slots.values())
            self.stopped = self.rules.limits.reached(self.order.decided(), self.direction, running)
        return self.stopped

    def _store_reason(self) -> None:
        """Store why the study stopped, or None; a signal is not its own reason."""
        known = self.cache.get_study_user_attrs(0).get(STOPPED)
        if known != self.stopped and not self.stop_request.is_set():
            self.cache.set_study_user_attr(0, STOPPED, self.stopped)

    def _note_once(self, message: str) -> None:
        """Pass a message on, unless it is the same as the last one."""
        if message != self._last_note:
            self.watch.note(message)
        self._last_note = message

    def _note_exhausted(self) -> None:
        rows = self.study.get_trials(deepcopy=False)
        if sum(row.state.is_finished() for row in rows) < self.rules.budget and self.order.used_up(rows):
            self.watch.note(f"the search space is exhausted: all of its {self.space.size:g} points have been tried")

    # ------------------------------------------------------------ filling slots

    def _fill_slots(self) -> None:
        self.cache.refresh(now=False)
        self.source.draw_round()
        self._resume_paused()
        while (slot := self._free_slot()) is not None and (given := self.source.next(self._numbers())) is not None:
            self._load(slot, ActiveTrial(*given))

    def _free_slot(self) -> int | None:
        """Return an empty slot. The array may have fewer slots after a load than before."""
        return next((slot for slot in range(self.array.slots) if slot not in self._slots), None)

    def _numbers(self) -> list[int]:
        return [active.number for active in self._slots.values()]

    def _load(self, slot: int, active: ActiveTrial) -> None:
        """Put a trial into a slot: from its checkpoint if that can be used, else from its seed."""
        self._slots[slot] = active
        self.watch.started(active.number, active.spec.params)
        if (checkpoint := self._checkpoints.of(active.number)) is not None:
            try:
                evaluations = history(checkpoint)
                self.array.load(slot, replace(active.spec, checkpoint=checkpoint))
            except ArrayShrankError as error:
                self._act_on(slot, error)
                return
            except Exception as error:  # a checkpoint is a cache
                self._note_once(f"trial {active.number} begins anew: its checkpoint cannot be used ({error})")
            else:
                active.evaluations = evaluations
                self._act_on(slot, None)  # the former owner may have died between the evaluation and its consequences
                return
        try:
            self.array.load(slot, active.spec)
        except Exception as error:  # ends the trial, not the study
            self._act_on(slot, error)

    # ------------------------------------------------------------ training a segment

    def _train_segment(self) -> None:
        self._all_recorded = False
        with timed(self._slots.values(), self.rules.devices):
            advanced = self.array.advance()
        outcomes = {slot: self._recorded(self._slots[slot], outcome) for slot, outcome in advanced.items()}
        self.cache.refresh(now=False)
        with suppress(LostTrialError), self.cache.together():  # a lost trial raises again when its slot is acted on
            for slot, outcome in outcomes.items():
                if isinstance(outcome, Evaluation):
                    self.decisions.report(self._slots[slot])
        for slot, outcome in outcomes.items():
            self._act_on(slot, outcome)
        self._all_recorded = True
        if not self.stop_request.is_set():
            self._checkpoints.offer()
        if self._checkpoints.problem:
            self._note_once(self._checkpoints.problem)

    def _recorded(self, active: ActiveTrial, outcome: Evaluation | Exception) -> Evaluation | Exception:
        """Record an evaluation, and return it; if it is invalid, return the error."""
        if isinstance(outcome, Exception):
            return outcome
        try:
            evaluation = active.record(outcome)
            if not evaluation.last:  # the last one cannot be pruned
                self.compared.require(evaluation.metrics)
            self.rules.criteria.require(evaluation.metrics)
            self.watch.evaluated(active.number, evaluation)
        except Exception as error:
            return error
        return evaluation

    def _act_on(self, slot: int, outcome: Evaluation | Exception | None) -> None:
        """End, pause, retry or go on with the trial of a slot; drop it if another process owns it by now."""
        try:
            if isinstance(outcome, ArrayShrankError):
                self._note_once(str(outcome))
                self._put_back(slot)
            else:
                self._decide(slot, outcome)
        except LostTrialError as error:
            self.watch.note(f"{error}, and is dropped here")
            self._unload(slot)

    def _decide(self, slot: int, outcome: Evaluation | Exception | None) -> None:
        try:
            decision = self.decisions.after(self._slots[slot], outcome)
        except (HpoError, LostTrialError):  # of the storage, not of the trial
            raise
        except Exception as error:  # raised in training
            if not self._retried(slot, error):
                self._end(slot, *state_of(error))
            return
        if isinstance(decision, Decision):  # WAIT
            self._pause(slot)
        elif decision is not None:
            self._end(slot, *decision)

    # ------------------------------------------------------------ pausing

    def _pause(self, slot: int) -> None:
        """Take a trial out of its slot until its rung is decided."""
        active = self._slots[slot]
        trial = active.trial
        # Before the checkpoint: a process that resumed from a checkpoint alone would skip the rung's decision.
        with self.cache.together():
            self.cache.note(trial.number, active.facts(self.direction, self._row(active.trial).user_attrs))
            self.cache.set_trial_system_attr(trial._trial_id, PAUSED, self._row(trial).last_step)
        active.device_seconds, active.unwritten = 0.0, {}  # they are in the row now
        if self.array.pause(slot):
            self._paused[active.number] = active
            del self._slots[slot]
            return
        self._checkpoints.write_paused(slot)
        self._put_back(slot)

    def _resume_paused(self) -> None:
        """Resume or prune the paused trials that the array holds and whose rungs are decided."""
        numbers = [] if self._free_slot() is None else list(self._paused)
        for number, judged in self.order.resumable(numbers).items():
            if (free := self._free_slot()) is None:
                return
            active = self._paused.pop(number)
            active.started = time.monotonic()
            self._slots[free] = active
            self.array.load(free, active.spec)
            with suppress(LostTrialError):  # a lost trial raises again when its slot is acted on
                self.decisions.resume(active, judged)
            if judged is not None and judged.decision is Decision.PRUNE:
                self._act_on(free, optuna.TrialPruned())

    # ------------------------------------------------------------ ending

    def _end(self, slot: int, state: TrialState, attrs: Mapping[str, Any]) -> None:
        """Tell a trial, save its weights if they are among the best, and free the slot."""
        active = self._slots[slot]
        facts = {**active.facts(self.direction, self._row(active.trial).user_attrs), **attrs}
        value = facts.get("best_value")
        if state == TrialState.COMPLETE and self.weights is not None:
            completed = as_completed(self._row(active.trial), facts)
            self.weights.save(completed, self.study.get_trials(deepcopy=False), partial(self.array.save_weights, slot))
        self._tell(active.trial, state, facts, value if state == TrialState.COMPLETE else None)
        self._failures = self._failures + 1 if state == TrialState.FAIL else 0
        self._unload(slot)

    def _tell(self, trial: Trial, state: TrialState, attrs: Mapping[str, Any], value: float | None = None) -> None:
        """Tell a trial that is not lost, release its lock, and delete weights and checkpoints that are not needed."""
        if self._row(trial).state.is_finished():  # another process has adopted and told it, which was read since
            raise LostTrialError(trial.number)
        with self.cache.together():
            self.cache.note(trial.number, attrs)
            if state != TrialState.FAIL:
                self.cache.constrain(trial.number, self.rules.criteria)
            self.study.tell(trial, value, state)
        self._told += 1
        self.cache.release(trial.number)
        if self.weights is not None:
            self.weights.delete_unneeded(self.study.get_trials(deepcopy=False))
        self._checkpoints.drop(trial.number)
        self.watch.ended(self._row(trial))

    def _retried(self, slot: int, error: Exception) -> bool:
        """Put a failed trial back to be retried; False if its error is final, or its retries are used up."""
        active = self._slots[slot]
        before = self._row(active.trial).system_attrs.get(RETRIED, 0)
        if before >= retries(error):
            return False
        self.cache.set_trial_system_attr(active.trial._trial_id, RETRIED, before + 1)
        self.watch.note(f"trial {active.number} is run again: {type(error).__name__}: {error}")
        self._put_back(slot)
        return True

    def _put_back(self, slot: int) -> None:
        """Set the trial of a slot WAITING, with its parameters; it starts again from its checkpoint or its seed."""
        number = self._slots[slot].number
        self._unload(slot, release=False)
        self.cache.put_back(number)

    def _put_all_back(self) -> None:
        """Write a checkpoint, and set all trials of this process WAITING; those that fail to be are adopted later."""
        with suppress(Exception):  # a checkpoint is a cache
            if self._all_recorded:
                self._checkpoints.flush()
        trained = {active.number: active for active in self._slots.values()}
        for slot in list(self._slots):
            self._unload(slot, release=False)
        for active in self._paused.values():
            self.array.load(0, active.spec)
            self.array.unload(0)  # runs the `finally` of its generator
        self._paused.clear()
        for number in self.cache.owned:  # also paused trials, and one that was being drawn
            try:
                if number in trained:
                    self.cache.note(number, trained[number].so_far(self.cache.row(number).user_attrs))
                self.cache.put_back(number)
            except StorageAwayError:  # the storage cannot be reached: the others would fail too
                return
            except (LostTrialError, HpoError):
                continue

    def _unload(self, slot: int, *, release: bool = True) -> None:
        active = self._slots.pop(slot)
        try:
            self.array.unload(slot)
        except Exception as error:  # raised by an objective's `finally`; the study goes on
            self.watch.note(f"cleaning up after a trial raised {type(error).__name__}: {error}")
        if release:
            self.cache.release(active.number)

    def _row(self, trial: Trial) -> FrozenTrial:
        return self.cache.row(trial.number)
