"""Reading and writing trials directly in Optuna's tables.

Optuna's storages write every parameter, value and attribute in its own transaction, which reads the trial first.
Here several changes are one transaction. `tests/storage/test_trial_writers.py` compares the tables that this module
leaves with those that Optuna leaves.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from hpo.storage.trial_changes import Change

SCHEMA = 12
"""The version of Optuna's tables that `TableWriter` writes to."""

MOST_IDS = 500
"""The most trial ids to list in one statement."""

MOST_ROWS = 10_000
"""The most rows that are held at a time while they are read."""

Rows = Iterator[Any]

INSERT: Mapping[str, Callable[[Any], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Database(RDBStorage):
    """Optuna's storage in a database, which reads trials with one select per table.

    Optuna makes an object of every row of every table, which takes ten times as long.
    """

    @cached_property
    def _tables(self) -> TableWriter | None:
        return table_writer_of(self)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        if self._tables is None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        rows = self._tables.rows(study_id, included_trial_ids, trial_id_greater_than)
        if not rows and not included_trial_ids:
            self.get_study_name_from_id(study_id)  # raises KeyError where there is no such study, as Optuna's does
        return [row for row in rows if states is None or row.state in states]


def table_writer_of(database: RDBStorage) -> TableWriter | None:
    """Return the writer of a database's tables; None if their version is not known."""
    with suppress(ImportError, AttributeError, LookupError, ValueError):
        return TableWriter(database.engine)
    return None


class TableWriter:
    """Writes to Optuna's tables: all changes in one transaction, or none.

    Args:
        engine: The database's.

    Raises:
        LookupError: The database is neither SQLite nor PostgreSQL, or Optuna's tables have another version. Tables that
            have changed without a new version can raise ImportError, AttributeError or ValueError.
    """

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        from optuna.storages._rdb import models

        if models.SCHEMA_VERSION != SCHEMA:
            raise LookupError(models.SCHEMA_VERSION)
        self._engine, tables = engine, models.BaseModel.metadata.tables
        self._studies, self._trials = tables["studies"], tables["trials"]
        parts = [
            tables[f"trial_{name}"]
            for name in ("params", "intermediate_values", "user_attributes", "system_attributes", "values")
        ]
        self._point, self._value = models.TrialIntermediateValueModel, models.TrialValueModel
        # Making a statement takes longer than executing it, so each is made once.
        self._params, self._curve, self._user, self._system, self._values = (
            _upsert(INSERT[engine.name](table)) for table in parts
        )
        self._selects = [_select(table) for table in (self._trials, *parts)]
        # An object for the kind of each value would take longer than reading it.
        kind = parts[1].c.intermediate_value_type
        self._selects[2] = _select(parts[1], {kind: sqlalchemy.type_coerce(kind, sqlalchemy.String)})
        trial_id: Any = sqlalchemy.bindparam("id")
        self._selects_of_one = [select.where(_trial_of(select) == trial_id) for select in self._selects]
        state = sqlalchemy.select(self._trials.c.state).where(self._trials.c.trial_id == trial_id)
        self._state_of = state.with_for_update()  # no other process can tell the trial before the transaction ends
        self._update_to = {state: self._update(state) for state in TrialState}

    def read(self, trial_id: int) -> FrozenTrial:
        """Return a trial's row."""
        (row,) = self._read(self._selects_of_one, {"id": trial_id})
        return row

    def rows(self, study_id: int, known: Collection[int] = (), last: int = -1) -> list[FrozenTrial]:
        """Return rows of a study in the order of their ids, with one select per table.

        Args:
            study_id: The study's id.
            known: Ids of the trials to read among those up to `last`.
            last: Trials with a higher id are all read.
        """
        trial = self._trials.c
        wanted: Any = trial.trial_id > last
        if known:  # a statement can have some 30,000 values at most
            wanted |= trial.trial_id.in_(known) if len(known) <= MOST_IDS else trial.trial_id >= min(known)
        ids = sqlalchemy.select(trial.trial_id).where(trial.study_id == study_id, wanted)
        # SQLite finds trials by an index and sorts what it finds; an expression has no index, and it scans in order.
        scans = last < 0 and self._are_most(study_id)
        trial_of = [_trial_of(select) + 0 if scans else _trial_of(select) for select in self._selects]
        selects = zip(self._selects, trial_of, strict=True)
        rows = self._read([select.where(each.in_(ids)) for select, each in selects], {})
        return [row for row in rows if row._trial_id > last or row._trial_id in known]

    def _are_most(self, study_id: int) -> bool:
        """Return whether at least half of all trials are of a study, so that a scan of SQLite's tables is faster."""
        if self._engine.name != "sqlite":
            return False
        of_study = sqlalchemy.func.count().filter(self._trials.c.study_id == study_id)
        with self._engine.begin() as connection:
            own, every = connection.execute(sqlalchemy.select(of_study, sqlalchemy.func.count())).one()
        return bool(2 * own >= every)

    def _read(self, selects: Sequence[Any], values: Mapping[str, Any]) -> list[FrozenTrial]:
        """Return the trials that selects give: first from the table of trials, then from those of parts."""
        with self._engine.begin() as connection, _no_garbage_collection():
            trials, *parts = (_stream(connection, select, values) for select in selects)
            rows = list(trials)
            params, distributions = self._drawn(parts[0])
            curves = self._curves(parts[1])
            user, system = _attrs(parts[2]), _attrs(parts[3])
            results = self._results(parts[4])
        return [
            FrozenTrial(
                number=row.number,
                state=row.state,
                value=None,
                values=results.get(row.trial_id),
                datetime_start=_local(row.datetime_start),
                datetime_complete=_local(row.datetime_complete),
                params=params[row.trial_id],
                distributions=distributions[row.trial_id],
                user_attrs=user[row.trial_id],
                system_attrs=system[row.trial_id],
                intermediate_values=curves[row.trial_id],
                trial_id=row.trial_id,
            )
            for row in rows
        ]

    # Each fills the dicts of the trials row by row: the rows of a large study take more memory than what they say.

    def _drawn(self, rows: Rows) -> tuple[Mapping[int, dict[str, Any]], Mapping[int, dict[str, BaseDistribution]]]:
        """Return the parameters and the distributions of each trial."""
        known: dict[str, BaseDistribution] = {}  # parsing is slow, and trials share most distributions
        params: dict[int, dict[str, Any]] = defaultdict(dict)
        distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
        for trial_id, name, number, text in rows:
            if text not in known:
                known[text] = json_to_distribution(text)
            name = sys.intern(name)
            distribution = distributions[trial_id][name] = known[text]
            params[trial_id][name] = distribution.to_external_repr(number)
        return params, distributions

    def _curves(self, rows: Rows) -> Mapping[int, dict[int, float]]:
        """Return the intermediate values of each trial."""
        value, kinds = self._point.stored_repr_to_intermediate_value, self._point.TrialIntermediateValueType
        steps: dict[int, int] = {}  # trials share most steps
        curves: dict[int, dict[int, float]] = defaultdict(dict)
        for trial_id, step, number, kind in rows:
            curves[trial_id][steps.setdefault(step, step)] = number if kind == "FINITE" else value(number, kinds[kind])
        return curves

    def _results(self, rows: Rows) -> Mapping[int, list[float]]:
        """Return the values of each trial that has some, by objective."""
        found: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for trial_id, objective, number, kind in rows:
            found[trial_id].append((objective, self._value.stored_repr_to_value(number, kind)))
        return {trial_id: [value for _, value in sorted(values)] for trial_id, values in found.items()}

    def _update(self, state: TrialState) -> sqlalchemy.Update:
        """Return the statement that sets a state, and the time of the start or the end."""
        changed: dict[str, Any] = {"state": state}
        if state != TrialState.WAITING:
            column = "datetime_complete" if state.is_finished() else "datetime_start"
            changed[column] = sqlalchemy.bindparam("now", type_=sqlalchemy.DateTime)
        where = self._trials.c.trial_id == sqlalchemy.bindparam("id")
        return sqlalchemy.update(self._trials).where(where).values(changed)

    def write(self, changes: Mapping[int, Change]) -> Collection[int]:
        """Write in one transaction."""
        with self._engine.begin() as connection:
            states = {
                trial: connection.execute(self._state_of, {"id": trial}).scalar_one() for trial in sorted(changes)
            }
            live = {trial: change for trial, change in changes.items() if not states[trial].is_finished()}
            self._execute(connection, live)
        return changes.keys() - live.keys()

    def add(self, study_id: int, rows: Sequence[FrozenTrial]) -> None:
        """Add all in one transaction."""
        study, trial = self._studies.c, self._trials.c
        with self._engine.begin() as connection:
            # Optuna locks the study too before it counts: no constraint makes the numbers unique.
            connection.execute(sqlalchemy.select(study.study_id).where(study.study_id == study_id).with_for_update())
            counted = sqlalchemy.select(sqlalchemy.func.count()).where(trial.study_id == study_id)
            begin = connection.execute(counted).scalar_one()
            new = [
                {"study_id": study_id, "number": number, "state": row.state} for number, row in enumerate(rows, begin)
            ]
            connection.execute(sqlalchemy.insert(self._trials), new)
            ids = sqlalchemy.select(trial.trial_id).where(trial.study_id == study_id, trial.number >= begin)
            added = connection.execute(ids.order_by(trial.number)).scalars()
            attrs = [Change(user=row.user_attrs, system=row.system_attrs) for row in rows]
            self._execute(connection, dict(zip(added, attrs, strict=True)))

    def _execute(self, connection: sqlalchemy.Connection, changes: Mapping[int, Change]) -> None:
        """Execute each statement once, for all of the trials."""
        together: dict[Any, list[dict[str, Any]]] = {}
        for trial_id, change in changes.items():
            for statement, row in self._rows(trial_id, change):
                together.setdefault(statement, []).append(row)
        for statement, rows in together.items():
            connection.execute(statement, rows)

    def _rows(self, trial_id: int, change: Change) -> Iterator[tuple[Any, dict[str, Any]]]:
        key_of_trial = {"trial_id": trial_id}
        for name, (value, distribution) in change.params.items():
            drawn = {"param_name": name, "param_value": value, "distribution_json": distribution_to_json(distribution)}
            yield self._params, key_of_trial | drawn
        for step, value in change.curve.items():
            number, value_type = self._point.intermediate_value_to_stored_repr(value)
            stored = {"step": step, "intermediate_value": number, "intermediate_value_type": value_type}
            yield self._curve, key_of_trial | stored
        for statement, attrs in ((self._user, change.user), (self._system, change.system)):
            for key, attr in attrs.items():
                yield statement, key_of_trial | {"key": key, "value_json": json.dumps(attr)}
        for objective, value in enumerate(change.values or ()):
            number, kind = self._value.value_to_stored_repr(value)
            yield self._values, key_of_trial | {"objective": objective, "value": number, "value_type": kind}
        if change.state is not None:
            now = {} if change.state == TrialState.WAITING else {"now": datetime.now(UTC).replace(tzinfo=None)}
            yield self._update_to[change.state], {"id": trial_id, **now}


def _upsert(statement: Any) -> Any:
    """Return the statement that inserts a row, or replaces the one that has the same key."""
    (unique,) = (each for each in statement.table.constraints if isinstance(each, sqlalchemy.UniqueConstraint))
    keys = {column.name for column in unique.columns}
    others = [column for column in statement.table.columns if column.name not in keys and not column.primary_key]
    rest = {column.name: statement.excluded[column.name] for column in others}
    return statement.on_conflict_do_update(index_elements=list(unique.columns), set_=rest)


def _select(table: Any, replaced: Mapping[Any, Any] | None = None) -> Any:
    """Return a select of a table's columns without its primary key, the trial's id first, ordered by that key.

    Args:
        table: The table.
        replaced: Column -> what is selected in its place.
    """
    keys = [column for column in table.primary_key if column.name != "trial_id"]
    columns = [column for column in table.columns if column.name != "trial_id" and column not in keys]
    shown = [(replaced or {}).get(column, column) for column in columns]
    return sqlalchemy.select(table.c.trial_id, *shown).order_by(*table.primary_key)


def _stream(connection: sqlalchemy.Connection, select: Any, values: Mapping[str, Any]) -> Rows:
    """Yield the rows of a select, which is executed when the first one is asked for."""
    for rows in connection.execute(select, values).partitions(MOST_ROWS):
        yield from rows


def _attrs(rows: Rows) -> Mapping[int, dict[str, Any]]:
    """Return the attributes of each trial."""
    parsed = json.JSONDecoder().raw_decode
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in rows:
        found[trial_id][sys.intern(key)] = parsed(text)[0]
    return found


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Stop the garbage collector, which visits all rows again and again while more are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _trial_of(select: Any) -> Any:
    """Return the column of a select that has the trial's id."""
    return select.selected_columns.trial_id


def _local(time: datetime | None) -> datetime | None:
    """Return a time, UTC in the table, as local time, as Optuna does."""
    if time is None:
        return None
    return time + _offset(time.replace(minute=time.minute // 15 * 15, second=0, microsecond=0))


@cache  # finding it takes longer than reading a trial, and clocks are changed at quarters of an hour only
def _offset(time: datetime) -> timedelta:
    """Return the difference between local time and UTC at a time in UTC."""
    return time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None) - time
