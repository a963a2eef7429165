"""A study as this process knows it: its rows, read together and cached, and written only for trials that it owns.

For every question, Optuna's storages read all trials that have not ended again, and a trial asks a dozen questions.
The cache reads them together, when other processes may have written. What belongs together is also written together.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.core.errors import LostTrialError
from hpo.core.interrupts import StopRequest
from hpo.storage.criteria import Criteria
from hpo.storage.databases import READING
from hpo.storage.ended_trials import EndedTrials, Kept
from hpo.storage.retry import Retry
from hpo.storage.step_metrics import METRICS_AT, metrics_at
from hpo.storage.trial_changes import Change
from hpo.storage.trial_locks import starting
from hpo.storage.trial_ownership import ATTEMPT, TrialOwnership, adoption_of
from hpo.storage.trial_writers import writer_of


@dataclass
class _Transaction:
    """What is written together: trial id -> change; and the rows as they were before, by number."""

    changes: dict[int, Change] = field(default_factory=dict)
    before: dict[int, FrozenTrial] = field(default_factory=dict)


class StudyCache(BaseStorage):
    """One study of a storage, as this process knows it.

    Args:
        study: The study as opened in its storage.
        url: URL of the storage, where the locks are; None if no other process can see it.
        stop_request: Once it is set, the wait for a storage that is away is short.
        waits: Called with the reason before each wait for a storage that is away.
    """

    def __init__(
        self,
        study: optuna.Study,
        url: str | None = None,
        stop_request: StopRequest | None = None,
        waits: Callable[[str], None] | None = None,
    ) -> None:
        self._storage, self._study_id, self._name = study._storage, study._study_id, study.study_name
        self._directions, self._writer = study.directions, writer_of(study._storage)
        self._url, self._retry = url, Retry(url, stop_request, waits)
        self._ownership = TrialOwnership(url, self._name)
        self._numbers: dict[int, int] = {}
        self._rows: list[FrozenTrial] = []  # by number
        self._ended = EndedTrials()
        self._transactions: list[_Transaction] = []  # the open one, if any; a list, which all views share
        self._limit: int | None = None
        self._as_seen: Callable[[FrozenTrial], FrozenTrial | None] | None = None
        self._settled = True
        self._study_user: dict[str, Any] = {}
        self._study_system: dict[str, Any] = {}
        self._read_at, self.took = 0.0, 0.0  # when the rows were read last; how long it took, in seconds
        self.refresh()

    # ------------------------------------------------------------ reading the storage

    def refresh(self, *, now: bool = True) -> None:
        """Read the rows again; if not `now`, only if reading takes at most a twentieth of the time."""
        assert not self._transactions, "a refresh would forget what has not been written yet"
        began = time.monotonic()
        if not now and began - self._read_at < 20 * self.took:
            return
        reading = READING.set(True)
        try:
            self._read_all()
        finally:
            READING.reset(reading)
        self._read_at = time.monotonic()
        self.took = self._read_at - began

    def _read_all(self) -> None:
        rows = self._retry(lambda: self._storage.get_all_trials(self._study_id, deepcopy=False))
        self._numbers.update({row._trial_id: row.number for row in rows[len(self._rows) :]})
        self._rows[:] = rows
        self._ended.read(len(rows))
        self._study_user.update(self._retry(lambda: self._storage.get_study_user_attrs(self._study_id)))
        self._study_system.update(self._retry(lambda: self._storage.get_study_system_attrs(self._study_id)))

    def before(self, number: int) -> StudyCache:
        """Return a view that has only the rows before a number; what is written through it is seen here too."""
        view = copy.copy(self)
        view._limit = number
        return view

    def seen_as(
        self, change: Callable[[FrozenTrial], FrozenTrial | None], direction: str, *, settled: bool = True
    ) -> StudyCache:
        """Return a view whose rows are those that `change` returns, None left out, and whose direction is given.

        Args:
            change: Changes a row.
            direction: `maximize` or `minimize`.
            settled: Whether what it returns of an ended trial stays the same.
        """
        view = copy.copy(self)
        view._as_seen, view._settled, view._directions = change, settled, [StudyDirection[direction.upper()]]
        return view

    def read_again(self, number: int) -> None:
        """Read one row again in one transaction: Optuna reads attributes first and values later."""
        self._rows[number] = self._retry(lambda: self._writer.read(self._rows[number]._trial_id))
        self._ended.changed.add(number)

    def row(self, number: int) -> FrozenTrial:
        """Return a trial's row."""
        return self._rows[number]

    @property
    def count(self) -> int:
        """The number of rows, of which a view may show fewer."""
        return len(self._rows)

    def unfinished(self) -> list[FrozenTrial]:
        """Return the rows that have not ended, by number; as `seen_as` shows them, they may seem to have ended."""
        return self._shown(self._ended.others(self._rows, self._in_transaction))

    def kept(self, kind: Callable[..., Kept], *arguments: Hashable) -> Kept:
        """Return what `kind(*arguments)` keeps of the ended trials; each has been added to it once, in any order."""
        view = (self._limit, self._as_seen) if self._settled else None
        return self._ended.kept(self._rows, self._in_transaction, self._shown, kind, arguments, view)

    @property
    def _in_transaction(self) -> Container[int]:
        """The numbers of the rows whose changes have not been written yet."""
        return self._transactions[0].before if self._transactions else ()

    def _shown(self, rows: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return rows as this view shows them, without those beyond its limit."""
        if self._limit is not None:
            rows = [row for row in rows if row.number < self._limit]
        if self._as_seen is None:
            return list(rows)
        return [seen for row in rows if (seen := self._as_seen(row)) is not None]

    # ------------------------------------------------------------ ownership of trials

    def take(self, number: int, *, run: bool = True) -> FrozenTrial | None:
        """Become the owner of a trial that has none, and set it running; return None if it has one, or has ended.

        None is returned too if the lock was lost, with the connection to a server, before the trial was set running:
        the trial can be taken again then.

        A trial that is already running belonged to a process that died: it is adopted, and its attempt is raised.

        Args:
            number: The trial's.
            run: Whether it is to run; if not, its state stays as it is.
        """
        if not self._retry(lambda: self._ownership.lock(number)):
            return None
        trial_id = self._rows[number]._trial_id
        row = self._rows[number] = self._retry(lambda: self._writer.read(trial_id))
        self._ended.changed.add(number)
        if row.state.is_finished():
            self._ownership.release(number)
            return None
        self._ownership.own(row)
        try:
            if run and row.state == TrialState.RUNNING:
                self.set_trial_system_attr(trial_id, ATTEMPT, adoption_of(row))
                self._ownership.own(self._rows[number])
            elif run:
                self.set_trial_state_values(trial_id, TrialState.RUNNING)
        except LostTrialError:
            return None
        return self._rows[number]

    def put_back(self, number: int) -> None:
        """Make a trial WAITING again, with its parameters, and give it up.

        Optuna's storages allow this but do not document it; `tests/storage/test_study_cache.py` checks it.
        """
        self.set_trial_state_values(self._rows[number]._trial_id, TrialState.WAITING)
        self.release(number)

    def release(self, number: int) -> None:
        """Give a trial up; nothing happens if it is not owned."""
        self._ownership.release(number)

    @property
    def owned(self) -> Sequence[int]:
        """Numbers of the trials owned."""
        return self._ownership.owned

    def close(self) -> None:
        """Give all trials up."""
        self._ownership.close()

    def _still_owns(self, number: int) -> bool:
        return self._ownership.still_owns(number, lambda: self._writer.read(self._rows[number]._trial_id))

    # ------------------------------------------------------------ writing

    def add_row(self) -> None:
        """Add a row for the sampler to fill, unless another process has added one that is not known here yet."""

        def add() -> None:
            with starting(self._url, self._name):
                if len(self._storage.get_all_trials(self._study_id, deepcopy=False)) == len(self._rows):
                    self._writer.add(self._study_id, [optuna.create_trial(state=TrialState.WAITING)])

        self._retry(add)
        self.refresh()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all changes to trials inside in one transaction at the end; the cache has them at once.

        After an error, nothing has been written. If a trial is lost, the changes to the others are written.

        Raises:
            LostTrialError: A trial is not owned, or has been told: it is given up, and its row is as it was before.
        """
        if self._transactions:  # nested: the outer one writes
            yield
            return
        transaction = _Transaction()
        self._transactions.append(transaction)
        try:
            yield
            lost = self._write(transaction.changes)
        except BaseException:
            for number, row in transaction.before.items():
                self._rows[number] = row
            raise
        finally:
            self._transactions.clear()
        for number in lost:
            self._rows[number] = transaction.before[number]
            self.release(number)
        if lost:
            raise LostTrialError(lost[0])

    def _write(self, changes: Mapping[int, Change]) -> Sequence[int]:
        """Write to the trials that are owned and have not ended, and return the numbers of the others."""

        def write() -> Sequence[int]:
            owned = {trial: change for trial, change in changes.items() if self._still_owns(self._numbers[trial])}
            # Another process has told them, or this one has, and the storage's answer was lost.
            ended = self._writer.write(owned) if owned else ()
            return [self._numbers[trial] for trial in changes if trial not in owned or trial in ended]

        return self._retry(write)

    @contextmanager
    def _changing(self, trial_id: int) -> Iterator[tuple[Change, FrozenTrial]]:
        """Give the change of a trial to fill in, and a copy of its row: rows returned before must not change."""
        number = self._numbers[trial_id]
        with self.together():
            (transaction,) = self._transactions
            transaction.before.setdefault(number, self._rows[number])
            self._ended.changed.add(number)
            self._rows[number] = copy.copy(self._rows[number])
            yield transaction.changes.setdefault(trial_id, Change()), self._rows[number]

    def report(self, number: int, step: int, value: float, metrics: Mapping[str, float]) -> None:
        """Write an evaluation of a trial: its intermediate value and metrics, unless they are there already."""
        row = self._rows[number]
        all_metrics = metrics_at(row, step, metrics)
        with self.together():
            if row.intermediate_values.get(step) != value:
                self.set_trial_intermediate_value(row._trial_id, step, value)
            if all_metrics != row.system_attrs.get(METRICS_AT, {}):
                self.set_trial_system_attr(row._trial_id, METRICS_AT, all_metrics)

    def note(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Write user attributes of a trial together."""
        with self.together():
            for name, value in attrs.items():
                self.set_trial_user_attr(self._rows[number]._trial_id, name, value)

    def constrain(self, number: int, criteria: Criteria) -> None:
        """Write a trial's constraints, by what it has measured, for Optuna's own tools and `Study.best_trial`."""
        row = self._rows[number]
        with self.together():
            for name, excess in criteria.constraints(row.user_attrs).items():
                self.set_trial_system_attr(row._trial_id, name, excess)

    # ------------------------------------------------------------ Optuna's interface: writing

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the cache."""
        self._retry(lambda: self._storage.set_study_user_attr(self._study_id, key, value))
        self._study_user[key] = value

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the cache."""
        self._retry(lambda: self._storage.set_study_system_attr(self._study_id, key, value))
        self._study_system[key] = value

    def set_trial_param(self, trial_id: int, param_name: str, value: float, distribution: BaseDistribution) -> None:
        """Write to the storage and to the cache."""
        with self._changing(trial_id) as (change, row):
            change.params[param_name] = value, distribution
            row.params = {**row.params, param_name: distribution.to_external_repr(value)}
            row.distributions = {**row.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write to the storage and to the cache."""
        with self._changing(trial_id) as (change, row):
            change.state, change.values = state, values
            row.state = state
            if values is not None:
                row.values = list(values)
            if state == TrialState.RUNNING:
                row.datetime_start = datetime.now()
            if state.is_finished():
                row.datetime_complete = datetime.now()
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, value: float) -> None:
        """Write to the storage and to the cache."""
        with self._changing(trial_id) as (change, row):
            change.curve[step] = value
            row.intermediate_values = {**row.intermediate_values, step: value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to the storage and to the cache."""
        with self._changing(trial_id) as (change, row):
            change.user[key] = value
            row.user_attrs = {**row.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to the storage and to the cache."""
        with self._changing(trial_id) as (change, row):
            change.system[key] = value
            row.system_attrs = {**row.system_attrs, key: value}

    # ------------------------------------------------------------ Optuna's interface: reading

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a copy of a row: Optuna's `Trial` writes into the one that it is given."""
        row = copy.copy(self._rows[self._numbers[trial_id]])
        row.params, row.distributions = dict(row.params), dict(row.distributions)
        row.user_attrs, row.system_attrs = dict(row.user_attrs), dict(row.system_attrs)
        row.intermediate_values = dict(row.intermediate_values)
        return row

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the rows by number."""
        rows = self._shown(self._rows[: self._limit])  # first: it may change the state
        rows = rows if states is None else [row for row in rows if row.state in states]
        return copy.deepcopy(rows) if deepcopy else rows

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's user attributes."""
        return self._study_user

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's system attributes, which Optuna writes."""
        return self._study_system

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the study's id in its storage."""
        return self._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the study's directions."""
        return self._directions

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a study cache has one study, whose trials `add_row` adds: use its storage for this")

    get_all_studies = create_new_study = delete_study = create_new_trial = _refuse
