"""The writer of a storage: of a database's tables in one transaction, of a journal in one append, else call by call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from hpo.storage.table_writer import table_writer_of
from hpo.storage.trial_changes import Change, TrialWriter


def writer_of(storage: BaseStorage) -> TrialWriter:
    """Return the writer of a storage: of its tables if their version is known, else by the storage's methods."""
    inner = getattr(storage, "_backend", None)  # the database behind Optuna's cache, or the file of a journal
    tables = table_writer_of(inner) if isinstance(inner, RDBStorage) else None
    return tables or CallWriter(storage, getattr(inner, "holding", nullcontext))


class CallWriter:
    """Writes by the methods of a storage, one call a change: a process that is killed in between has written some.

    Args:
        storage: Any storage.
        holding: A context in which a journal holds records back until the next append after it.
    """

    def __init__(self, storage: BaseStorage, holding: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._storage, self._holding = storage, holding

    def read(self, trial_id: int) -> FrozenTrial:
        """Return a trial's row."""
        return self._storage.get_trial(trial_id)

    def write(self, changes: Mapping[int, Change]) -> Collection[int]:
        """Write trial by trial."""
        ended = []
        for trial_id, change in changes.items():
            *first, last = self._calls(trial_id, change)
            try:
                with self._holding():
                    for call in first:
                        call()
                last()
            except UpdateFinishedTrialError:
                ended.append(trial_id)
                for _ in first:  # the journal raises for each refused record of this process, at the next reads
                    with suppress(UpdateFinishedTrialError):
                        self._storage.get_trial(trial_id)
        return ended

    def add(self, study_id: int, rows: Sequence[FrozenTrial]) -> None:
        """Add row by row."""
        for row in rows:
            self._storage.create_new_trial(study_id, row)

    def _calls(self, trial_id: int, change: Change) -> Iterator[Callable[[], Any]]:
        for name, (value, distribution) in change.params.items():
            yield partial(self._storage.set_trial_param, trial_id, name, value, distribution)
        for step, value in change.curve.items():
            yield partial(self._storage.set_trial_intermediate_value, trial_id, step, value)
        for key, attr in change.user.items():
            yield partial(self._storage.set_trial_user_attr, trial_id, key, attr)
        for key, attr in change.system.items():
            yield partial(self._storage.set_trial_system_attr, trial_id, key, attr)
        if change.state is not None:  # last: a reader that finds a trial ended must find all of its data
            yield partial(self._storage.set_trial_state_values, trial_id, change.state, change.values)
