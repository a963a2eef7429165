from __future__ import annotations

import datetime
import math

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState

from hpo.storage import backends, databases, table_writer
from hpo.storage.table_writer import TableWriter
from hpo.storage.trial_changes import Change
from hpo.storage.trial_writers import CallWriter, writer_of

CHANGES = {
    "params": Change(
        params={
            "x": (0.5, FloatDistribution(0.0, 1.0)),
            "rate": (1e-3, FloatDistribution(1e-5, 1e-1, log=True)),
            "kind": (1, CategoricalDistribution(("a", None, 2))),
            "depth": (3, IntDistribution(1, 4)),
        }
    ),
    "curve": Change(curve={30: 0.5, 10: math.inf, 20: -math.inf, 40: math.nan}),
    "attributes": Change(user={"ä": [1, {"b": None}], "a": "x" * 5000}, system={"s": [1, 2, -1], "t": 0.1}),
    "running": Change(state=TrialState.RUNNING),
    "complete": Change(user={"a": 1}, state=TrialState.COMPLETE, values=[0.25]),
    "infinite": Change(state=TrialState.COMPLETE, values=[math.inf]),
    "pruned": Change(curve={1: 0.5}, state=TrialState.PRUNED, values=[0.5]),
    "failed": Change(user={"reason": "x"}, state=TrialState.FAIL),
    "waiting": Change(state=TrialState.WAITING),
}
PLANNED = [
    optuna.create_trial(state=TrialState.WAITING, user_attrs=user, system_attrs=system)
    for user, system in (({}, {}), ({"baseline": True}, {"fixed_params": {"x": 1}}), ({}, {"fixed_params": {}}))
]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A database."""
    return f"sqlite:///{tmp_path}/a.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")


def opened(url, name="s", rows=0):
    study = optuna.create_study(storage=backends.connect(url), study_name=name)
    if rows:
        writer_of(study._storage).add(study._study_id, PLANNED * rows)
    return study


def ids(study):
    return [row._trial_id for row in study.get_trials(deepcopy=False)]


def tables(study):
    """Return the tables' rows of the trials of a study in the order of their keys, without keys and times."""
    engine = study._storage._backend.engine
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    found = {}
    own = ids(study)
    with engine.connect() as connection:
        for name, table in metadata.tables.items():
            if "trial_id" in table.columns:
                rows = connection.execute(sqlalchemy.select(table).order_by(*table.primary_key)).mappings().all()
                drop = {column.name for column in table.primary_key} | {"trial_id", "study_id"}
                found[name] = [
                    (own.index(row["trial_id"]), *(_said(row[key]) for key in row if key not in drop))
                    for row in rows
                    if row["trial_id"] in own
                ]
    return found


def _said(value):
    return type(value) if isinstance(value, datetime.datetime) else value


# ---------------------------------------------------------------- as Optuna does


def test_the_tables_have_what_optuna_would_have_left_there(url):
    pairs = [(first, then) for first in CHANGES for then in CHANGES if not first == then == "params"]
    studies = [opened(url, "tables", len(pairs)), opened(url, "calls", len(pairs))]
    said = []
    for study, writer in zip(studies, (writer_of(studies[0]._storage), CallWriter(studies[1]._storage)), strict=True):
        own, ended = ids(study), []
        for number, (trial, (first, then)) in enumerate(zip(own, pairs, strict=False)):
            ended += [writer.write({trial: CHANGES["running"]}), writer.write({trial: CHANGES[first]})]
            ended.append(writer.write({trial: CHANGES[then], own[-1]: Change(system={f"{number}": 1})}))
        said.append([[own.index(trial) for trial in some] for some in ended])
    assert tables(studies[0]) == tables(studies[1])
    assert said[0] == said[1]


def test_rows_are_added_as_optuna_adds_them(url):
    studies = [opened(url, "tables"), opened(url, "calls")]
    writers = [writer_of(studies[0]._storage), CallWriter(studies[1]._storage)]
    for _ in range(2):
        for study, writer in zip(studies, writers, strict=True):
            writer.add(study._study_id, PLANNED)
    assert tables(studies[0]) == tables(studies[1])
    assert [row.number for row in studies[0].trials] == [*range(6)]
    assert [row.system_attrs for row in studies[0].trials] == 2 * [row.system_attrs for row in PLANNED]


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_is_read_as_optuna_reads_it(url, change):
    study = opened(url, rows=1)
    writer = writer_of(study._storage)
    number = 1
    trial_id = ids(study)[number]
    writer.write({trial_id: CHANGES["running"]})
    writer.write({trial_id: CHANGES[change]})
    read, wanted = writer.read(trial_id), backends.connect(url).get_trial(trial_id)
    read.intermediate_values, wanted.intermediate_values = (
        {step: str(value) for step, value in row.intermediate_values.items()}  # nan is not equal to nan
        for row in (read, wanted)
    )
    assert vars(read) == vars(wanted)
    assert list(read.params) == list(wanted.params)
    now = datetime.datetime.now()
    assert abs(now - read.datetime_start) < datetime.timedelta(minutes=1)


def said(row):
    """Return the fields of a row and the order of its parameters; values are text, because nan is not equal to nan."""
    curve = {step: str(value) for step, value in row.intermediate_values.items()}
    return {**vars(row), "intermediate_values": curve, "order": (list(row.params), list(row.distributions))}


@pytest.fixture
def every_kind(url):
    """A database with trials of every state, attribute and distribution, between those of another study."""
    pairs = [(first, then) for first in CHANGES for then in CHANGES if not first == then == "params"]
    study, other = opened(url, "s", len(pairs)), opened(url, "other", 2)
    optuna.load_study(study_name="s", storage=backends.connect(url)).enqueue_trial({"x": 1})
    writer = writer_of(study._storage)
    for trial, pair in zip(ids(study), pairs, strict=False):
        for change in pair:
            writer.write({trial: CHANGES[change]})
    moved = {"x": (7.5, FloatDistribution(0.0, 1.0)), "n": (4, IntDistribution(2, 10, step=2))}  # one is out of range
    writer.write({ids(other)[0]: Change(params=moved, state=TrialState.RUNNING)})
    # A study that another program made.
    two = optuna.create_study(storage=backends.connect(url), study_name="two", directions=["minimize", "maximize"])
    two.add_trial(optuna.create_trial(values=[1.0, 2.0]))
    return backends.connect(url), study._study_id, ids(study)


@pytest.mark.parametrize("part", ["all", "none", "a few", "many", "of a state", "of another study"])
def test_rows_are_read_as_optuna_reads_them(every_kind, part, monkeypatch):
    storage, study, own = every_kind
    monkeypatch.setattr(table_writer, "MOST_IDS", 5)
    few = {own[3], own[5], own[11]}
    states, known, last = {
        "all": (None, set(), -1),
        "none": (None, set(), own[-1] + 99),
        "a few": (None, few, own[20]),
        "many": (None, set(own[4:20]), own[20]),
        "of a state": ((TrialState.COMPLETE, TrialState.FAIL), few, own[20]),
        "of another study": (None, set(), -1),
    }[part]
    for one in [study] if part != "of another study" else range(1, 4):
        rows = storage._get_trials(one, states, set(known), last)
        wanted = RDBStorage._get_trials(storage, one, states, set(known), last)
        assert [said(row) for row in rows] == [said(row) for row in wanted]
        assert bool(rows) == (part != "none")
    if part == "all":
        assert {row.state for row in rows} == set(TrialState)


def test_rows_of_tables_of_another_version_are_read_by_optuna(every_kind, monkeypatch):
    storage, study, own = every_kind
    monkeypatch.setattr(table_writer, "SCHEMA", table_writer.SCHEMA + 1)
    assert storage._tables is None
    assert [row._trial_id for row in storage._get_trials(study, None, set(), -1)] == own


# ---------------------------------------------------------------- all or nothing


@pytest.mark.parametrize("at", range(1, 6))
def test_an_interrupted_write_leaves_nothing(url, at):
    study = opened(url, rows=1)
    writer, own, before = writer_of(study._storage), ids(study), tables(study)
    writes = []

    def interrupt(connection, cursor, statement, *_):
        writes.append(statement)
        if sum(one.startswith(("INSERT", "UPDATE")) for one in writes) == at:
            raise KeyboardInterrupt

    sqlalchemy.event.listen(study._storage._backend.engine, "before_cursor_execute", interrupt)
    every = Change(CHANGES["params"].params, {1: 0.5}, {"a": 1}, {"b": 2}, TrialState.COMPLETE, [1.0])
    with pytest.raises(KeyboardInterrupt):
        writer.write({own[0]: CHANGES["running"], own[1]: every})
    sqlalchemy.event.remove(study._storage._backend.engine, "before_cursor_execute", interrupt)
    assert tables(study) == before
    assert writer.write({own[1]: every}) == set()
    assert tables(study) != before


def test_a_reader_that_finds_a_trial_ended_finds_its_value(url):
    study = opened(url, rows=1)
    writer, own, other = writer_of(study._storage), ids(study), backends.connect(url)
    seen = []

    def look(connection, cursor, statement, *_):
        if statement.startswith(("INSERT", "UPDATE")):
            token = databases.READING.set(True)  # a reader waits for no lock
            seen.append(other.get_trial(own[0]))
            databases.READING.reset(token)

    engine = study._storage._backend.engine
    sqlalchemy.event.listen(engine, "after_cursor_execute", look)
    writer.write({own[0]: CHANGES["complete"]})
    assert len(seen) == 3
    assert {(row.state, row.value, len(row.user_attrs)) for row in seen} == {(TrialState.WAITING, None, 0)}
    row = other.get_trial(own[0])
    assert (row.state, row.value, row.user_attrs) == (TrialState.COMPLETE, 0.25, {"a": 1})


def test_a_change_may_be_written_twice(url):
    study = opened(url, rows=1)
    writer, own = writer_of(study._storage), ids(study)
    every = Change(CHANGES["params"].params, {1: 0.5}, {"a": 1}, {"b": 2}, TrialState.RUNNING)
    writer.write({own[0]: every})
    once = tables(study)
    writer.write({own[0]: every})
    assert tables(study) == once


@pytest.mark.parametrize("kind", ["sqlite", "journal", "memory"])
def test_a_trial_that_has_ended_does_not_change_and_the_others_are_written(tmp_path, kind):
    url = {"sqlite": f"sqlite:///{tmp_path}/a.db", "journal": f"journal:///{tmp_path}/a.log"}.get(kind)
    study = optuna.create_study(storage=InMemoryStorage() if url is None else backends.connect(url))
    writer = writer_of(study._storage)
    writer.add(study._study_id, PLANNED)
    own = ids(study)
    study._storage.set_trial_state_values(own[1], TrialState.COMPLETE, [1.0])
    late = Change(user={"a": 1, "b": 2, "c": 3}, curve={1: 0.5}, state=TrialState.FAIL)
    assert list(writer.write(dict.fromkeys(own, late))) == [own[1]]
    assert [row.state for row in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL]
    assert study.trials[1].user_attrs == {"baseline": True}
    assert study.trials[2].user_attrs == late.user
    if url is not None:
        assert backends.connect(url).get_all_trials(study._study_id) == study.trials


def test_a_journal_waits_for_the_disk_once(tmp_path, monkeypatch):
    study = optuna.create_study(storage=backends.connect(f"journal:///{tmp_path}/a.log"))
    writer = writer_of(study._storage)
    writer.add(study._study_id, PLANNED)
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    writer.write({0: Change(CHANGES["params"].params, {1: 0.5}, {"a": 1}, {"b": 2}, TrialState.COMPLETE, [1.0])})
    assert len(synced) == 1
    (row, _, _) = optuna.load_study(study_name=study.study_name, storage=study._storage).trials
    assert (row.params["depth"], row.intermediate_values, row.value) == (3, {1: 0.5}, 1.0)


# ---------------------------------------------------------------- versions of Optuna's tables


def test_optunas_tables_have_the_known_version(url):
    assert isinstance(writer_of(opened(url)._storage), TableWriter), (
        "Optuna has changed its tables: see `table_writer.TableWriter`"
    )


def test_tables_of_another_version_are_written_by_optuna(tmp_path, monkeypatch):
    study = opened(f"sqlite:///{tmp_path}/a.db")
    monkeypatch.setattr(table_writer, "SCHEMA", table_writer.SCHEMA + 1)
    writer = writer_of(study._storage)
    assert isinstance(writer, CallWriter)
    writer.add(study._study_id, PLANNED)
    writer.write({ids(study)[0]: CHANGES["complete"]})
    assert study.trials[0].value == 0.25


def test_other_storages_are_written_by_their_methods(tmp_path):
    assert isinstance(writer_of(InMemoryStorage()), CallWriter)
    assert isinstance(writer_of(backends.connect(f"journal:///{tmp_path}/a.log")), CallWriter)
    uncached = RDBStorage("sqlite:///:memory:")  # a study wraps it in Optuna's cache
    assert isinstance(writer_of(uncached), CallWriter)
