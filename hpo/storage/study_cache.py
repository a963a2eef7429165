"""What a process knows and owns of a study: its rows, read once and kept, and the locks of the trials it runs.

Optuna's storages read every row that has not ended again, for each question asked of them, and a trial asks a dozen.
Here they are read together, when others may have written; what this process writes of one moment is written together
too, and only to trials that it owns.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
from hpo.storage.retry import Retry
from hpo.storage.step_metrics import METRICS_AT, metrics_at
from hpo.storage.trial_locks import locks_for, starting
from hpo.storage.trial_writers import Change, writer_of

READING: ContextVar[bool] = ContextVar("READING", default=False)
"""Whether what is asked of the storage now only reads."""

ATTEMPT = "hpo:attempt"
"""System attribute of a trial: how often it has been taken over from an owner that died."""


@dataclass
class _Moment:
    """What is written together: trial id -> change; and the rows as they were before, by their numbers."""

    changes: dict[int, Change] = field(default_factory=dict)
    before: dict[int, FrozenTrial] = field(default_factory=dict)


class StudyCache(BaseStorage):
    """One study of a storage, as this process knows it.

    Args:
        study: The study as opened in its storage.
        url: URL of the storage, where the locks are; None if no other process can see it.
        stop_request: Once it is set, a storage that is away is not waited for much longer.
        waits: Told why, before each wait for a storage that is away.
    """

    def __init__(
        self,
        study: optuna.Study,
        url: str | None = None,
        stop_request: StopRequest | None = None,
        waits: Callable[[str], None] | None = None,
    ) -> None:
        self._kept, self._study_id, self._name = study._storage, study._study_id, study.study_name
        self._directions, self._pen = study.directions, writer_of(study._storage)
        self._url, self._patiently = url, Retry(url, stop_request, waits)
        self._locks = locks_for(url, self._name)
        self._attempts: dict[int, int] = {}  # of the trials owned
        self._numbers: dict[int, int] = {}
        self._rows: dict[int, FrozenTrial] = {}
        self._moments: list[_Moment] = []  # the one that has begun, here and in all views
        self._limit: int | None = None
        self._as_seen: Callable[[FrozenTrial], FrozenTrial | None] | None = None
        self._study_user: dict[str, Any] = {}
        self._study_system: dict[str, Any] = {}
        self._read, self.took = 0.0, 0.0  # when the rows were read last; how long it took, in seconds
        self.refresh()

    # ------------------------------------------------------------ knowing

    def refresh(self, *, now: bool = True) -> None:
        """Read the rows again; if not `now`, only where that takes at most a twentieth of the time."""
        assert not self._moments, "what has not been written yet would be forgotten"
        began = time.monotonic()
        if not now and began - self._read < 20 * self.took:
            return
        reading = READING.set(True)
        try:
            self._read_all()
        finally:
            READING.reset(reading)
        self._read = time.monotonic()
        self.took = self._read - began

    def _read_all(self) -> None:
        rows = self._patiently(lambda: self._kept.get_all_trials(self._study_id, deepcopy=False))
        for row in rows:
            self._numbers[row._trial_id] = row.number
            self._rows[row.number] = row
        self._study_user.update(self._patiently(lambda: self._kept.get_study_user_attrs(self._study_id)))
        self._study_system.update(self._patiently(lambda: self._kept.get_study_system_attrs(self._study_id)))

    def before(self, number: int) -> StudyCache:
        """Return a view in which there are only the rows before a number; what is written through it is seen here."""
        view = copy.copy(self)
        view._limit = number
        return view

    def seen_as(self, change: Callable[[FrozenTrial], FrozenTrial | None], direction: str) -> StudyCache:
        """Return a view in which every row is as `change` returns it, or left out, and `direction` is the study's."""
        view = copy.copy(self)
        view._as_seen, view._directions = change, [StudyDirection[direction.upper()]]
        return view

    def read_again(self, number: int) -> None:
        """Read one row again, as it is at one moment: Optuna reads attributes first and values later."""
        self._rows[number] = self._patiently(lambda: self._pen.read(self._rows[number]._trial_id))

    def row(self, number: int) -> FrozenTrial:
        """Return a trial's row."""
        return self._rows[number]

    # ------------------------------------------------------------ owning

    def take(self, number: int, *, run: bool = True) -> FrozenTrial | None:
        """Become the owner of a trial that has none, and set it running; None if it has one, or has ended.

        A trial that is running already belonged to somebody who died: its attempt is raised.

        Args:
            number: The trial's.
            run: Whether it is to run; if not, its state stays as it is.
        """
        if not self._patiently(lambda: self._locks.take(number)):
            return None
        trial_id = self._rows[number]._trial_id
        row = self._rows[number] = self._patiently(lambda: self._pen.read(trial_id))
        if row.state.is_finished():
            self._locks.release(number)
            return None
        self._attempts[number] = attempt_of(row)
        if run and row.state == TrialState.RUNNING:
            self._raise_attempt(row)
        elif run:
            self.set_trial_state_values(trial_id, TrialState.RUNNING)
        return self._rows[number]

    def _raise_attempt(self, row: FrozenTrial) -> None:
        """Say in the row that it has a new owner, who counts as the first if the last one got no further."""
        _, fruitless, reported = row.system_attrs.get(ATTEMPT, (0, 0, -1))
        fruitless = fruitless + 1 if len(row.intermediate_values) <= reported else 1
        attempt = attempt_of(row) + 1
        self.set_trial_system_attr(row._trial_id, ATTEMPT, [attempt, fruitless, len(row.intermediate_values)])
        self._attempts[row.number] = attempt

    def add_row(self) -> None:
        """Add a row for the sampler to fill, unless somebody else has added one that is not known here yet."""

        def add() -> None:
            with starting(self._url, self._name):
                if len(self._kept.get_all_trials(self._study_id, deepcopy=False)) == len(self._rows):
                    self._pen.add(self._study_id, [optuna.create_trial(state=TrialState.WAITING)])

        self._patiently(add)
        self.refresh()

    def put_back(self, number: int) -> None:
        """Make a trial WAITING again, with its parameters, and give it up.

        Optuna's storages allow it and say nothing of it; `tests/storage/test_study_cache.py` pins it.
        """
        self.set_trial_state_values(self._rows[number]._trial_id, TrialState.WAITING)
        self.release(number)

    def release(self, number: int) -> None:
        """Give a trial up; nothing happens if it is not owned."""
        self._attempts.pop(number, None)
        self._locks.release(number)

    @property
    def owned(self) -> Sequence[int]:
        """Numbers of the trials owned."""
        return sorted(self._attempts)

    def close(self) -> None:
        """Give all trials up."""
        self._attempts.clear()
        self._locks.close()

    def _owns(self, number: int) -> bool:
        """Return whether nobody else can own a trial by now."""
        attempt = self._attempts.get(number)
        if attempt is None or self._locks.held(number):
            return attempt is not None
        if not self._locks.take(number):
            return False
        row = self._pen.read(self._rows[number]._trial_id)  # lost with a connection; adopted by anybody since?
        return attempt_of(row) == attempt and row.state == TrialState.RUNNING

    # ------------------------------------------------------------ writing

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what is written to trials inside, and known here at once, reach the storage at the end, in one go.

        After an error nothing of it has been written. A trial that is lost keeps nothing from the others.

        Raises:
            LostTrialError: A trial is not owned, or has been told: it is given up, and known as it was before.
        """
        if self._moments:  # inside of another
            yield
            return
        moment = _Moment()
        self._moments.append(moment)
        try:
            yield
            lost = self._write(moment.changes)
        except BaseException:
            self._rows.update(moment.before)
            raise
        finally:
            self._moments.clear()
        for number in lost:
            self._rows[number] = moment.before[number]
            self.release(number)
        if lost:
            raise LostTrialError(lost[0])

    def _write(self, changes: Mapping[int, Change]) -> Sequence[int]:
        """Write to the trials that are owned and have not ended, and return the numbers of the others."""

        def write() -> Sequence[int]:
            owned = {trial: change for trial, change in changes.items() if self._owns(self._numbers[trial])}
            ended = self._pen.write(owned) if owned else ()  # by somebody else, or by us, and the answer did not arrive
            return [self._numbers[trial] for trial in changes if trial not in owned or trial in ended]

        return self._patiently(write)

    @contextmanager
    def _changing(self, trial_id: int) -> Iterator[tuple[Change, FrozenTrial]]:
        """Give what is to be written to a trial, and its row, a new one: whoever holds the old one may rely on it."""
        number = self._numbers[trial_id]
        with self.together():
            (moment,) = self._moments
            moment.before.setdefault(number, self._rows[number])
            self._rows[number] = copy.copy(self._rows[number])
            yield moment.changes.setdefault(trial_id, Change()), self._rows[number]

    def report(self, number: int, step: int, value: float, metrics: Mapping[str, float]) -> None:
        """Write an evaluation of a trial, its value and metrics to keep beside it, as far as it is not there yet."""
        row = self._rows[number]
        beside = metrics_at(row, step, metrics)
        with self.together():
            if row.intermediate_values.get(step) != value:
                self.set_trial_intermediate_value(row._trial_id, step, value)
            if beside != row.system_attrs.get(METRICS_AT, {}):
                self.set_trial_system_attr(row._trial_id, METRICS_AT, beside)

    def note(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Write attributes of a trial together."""
        with self.together():
            for name, fact in attrs.items():
                self.set_trial_user_attr(self._rows[number]._trial_id, name, fact)

    # ------------------------------------------------------------ writing, as Optuna asks for it

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the copy."""
        self._patiently(lambda: self._kept.set_study_user_attr(self._study_id, key, value))
        self._study_user[key] = value

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write to the storage, then to the copy."""
        self._patiently(lambda: self._kept.set_study_system_attr(self._study_id, key, value))
        self._study_system[key] = value

    def set_trial_param(self, trial_id: int, param_name: str, value: float, distribution: BaseDistribution) -> None:
        """Write to the storage and to the copy."""
        with self._changing(trial_id) as (change, row):
            change.params[param_name] = value, distribution
            row.params = {**row.params, param_name: distribution.to_external_repr(value)}
            row.distributions = {**row.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write to the storage and to the copy."""
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
        """Write to the storage and to the copy."""
        with self._changing(trial_id) as (change, row):
            change.curve[step] = value
            row.intermediate_values = {**row.intermediate_values, step: value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to the storage and to the copy."""
        with self._changing(trial_id) as (change, row):
            change.user[key] = value
            row.user_attrs = {**row.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write to the storage and to the copy."""
        with self._changing(trial_id) as (change, row):
            change.system[key] = value
            row.system_attrs = {**row.system_attrs, key: value}

    # ------------------------------------------------------------ reading, as Optuna asks for it

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a row, for the caller alone: Optuna's `Trial` writes into the one that it is given."""
        row = copy.copy(self._rows[self._numbers[trial_id]])
        row.params, row.distributions = dict(row.params), dict(row.distributions)
        row.user_attrs, row.system_attrs = dict(row.user_attrs), dict(row.system_attrs)
        row.intermediate_values = dict(row.intermediate_values)
        return row

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the rows in their order."""
        every = [self._rows[number] for number in range(len(self._rows))[: self._limit]]
        some = every if states is None else [row for row in every if row.state in states]
        if self._as_seen is not None:
            some = [seen for row in some if (seen := self._as_seen(row)) is not None]
        return copy.deepcopy(some) if deepcopy else some

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's attributes."""
        return self._study_user

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return Optuna's own attributes of the study."""
        return self._study_system

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the study's id in its storage."""
        return self._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return which way is better."""
        return self._directions

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a ledger is of one study, whose rows are planned when it is opened: ask its storage")

    get_all_studies = create_new_study = delete_study = create_new_trial = _refuse


def attempt_of(row: FrozenTrial) -> int:
    """Return how often a trial has been taken over."""
    return int(row.system_attrs.get(ATTEMPT, (0,))[0])


def fruitless(row: FrozenTrial) -> int:
    """Return how many owners in a row died without one more evaluation of a trial."""
    return int(row.system_attrs.get(ATTEMPT, (0, 0))[1])
