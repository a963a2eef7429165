from __future__ import annotations

import errno
import os
import signal
import sqlite3
import time
from contextlib import suppress
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from hpo.core.errors import LostTrialError, StorageAwayError, StorageError
from hpo.core.interrupts import StopRequest
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.runner import Runner
from hpo.search.samplers import TrialSeededSampler
from hpo.search.stopping import Rules
from hpo.space.parser import parse
from hpo.storage import backends, retry
from hpo.storage.study_cache import StudyCache
from hpo.storage.trial_ownership import attempt_of, fruitless

SPACE = parse({"x": {"low": 0.0, "high": 1.0}, "kind": ["a", "b"], "n": {"low": 1, "high": 9}})
ON_DISK = ("sqlite:///{}/a.db", "journal:///{}/a.log")
UNIT = FloatDistribution(0.0, 1.0)


@pytest.fixture(params=[*ON_DISK, None], ids=["sqlite", "journal", "memory"])
def url(request, tmp_path):
    return request.param and request.param.format(tmp_path)


@pytest.fixture(params=ON_DISK, ids=["sqlite", "journal"])
def shared(request, tmp_path):
    """A storage that other processes can see."""
    return request.param.format(tmp_path)


def opened(url, rows=0):
    """Return a study of a storage of that URL; None is memory."""
    storage = InMemoryStorage() if url is None else backends.connect(url)
    study = optuna.create_study(
        storage=storage,
        study_name="s",
        direction="maximize",
        load_if_exists=True,
        sampler=TrialSeededSampler("tpe", {"n_startup_trials": 2}, SPACE, 0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1),
    )
    for _ in range(rows):
        study.enqueue_trial({}, user_attrs={"planned": True})
    return study


def another(url):
    """Return what another process would have: a cache with its own connection."""
    return StudyCache(opened(url), url)


def objective(params):
    if params["n"] == 5:
        raise ValueError("five")
    for step in range(4):
        yield params["x"] * step


def facts(of):
    """Return all fields of the rows, except for the times, which each storage takes itself."""
    rows = of.get_all_trials(0) if isinstance(of, StudyCache) else of.get_trials(deepcopy=False)
    same = ("number", "state", "params", "distributions", "values", "intermediate_values", "user_attrs", "system_attrs")
    return [{name: getattr(row, name) for name in same} for row in rows]


# ---------------------------------------------------------------- reading


def test_after_a_run_the_storage_has_what_the_cache_has(url):
    study = opened(url, 12)
    runner = Runner(study, SPACE, GeneratorArray(objective, 2), Rules(12, max_consecutive_failures=99), url=url)
    runner.run()
    runner.study.set_user_attr("said", {"a": [1]})
    runner.cache.set_study_system_attr(0, "hidden", 2)
    assert facts(runner.study) == facts(study)
    assert {row["state"] for row in facts(study)} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert runner.study.user_attrs == study.user_attrs == {"said": {"a": [1]}}
    assert runner.cache.get_study_system_attrs(0) == study._storage.get_study_system_attrs(study._study_id)
    assert runner.cache.get_study_system_attrs(0) == {"hidden": 2}
    assert facts(Runner(study, SPACE, GeneratorArray(objective), Rules(12)).study) == facts(study)


def test_rows_are_read_by_refreshes_and_takes_only(url, monkeypatch):
    study = opened(url, 6)
    runner = Runner(study, SPACE, GeneratorArray(objective, 2), Rules(6, max_consecutive_failures=99), url=url)
    counts = {"get_all_trials": 0, "read": 0, "_read_all": 0, "take": 0}

    def counted(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(study._storage, "get_all_trials")
    counted(runner.cache._writer, "read")
    for name in ("_read_all", "take"):
        counted(runner.cache, name)
    runner.run()
    assert counts["get_all_trials"] == counts["_read_all"]
    assert counts["read"] == counts["take"] == 6


def test_reading_takes_a_twentieth_of_the_time_at_most(url):
    study = opened(url, 1)
    cache = StudyCache(study, url)
    study.enqueue_trial({})
    for ago, rows in ((19.0, 1), (21.0, 2)):
        cache.took, cache._read_at = 1.0, time.monotonic() - ago
        cache.refresh(now=False)
        assert len(cache.get_all_trials(0)) == rows
    study.enqueue_trial({})
    cache.took = 1e9
    cache.refresh()
    assert len(cache.get_all_trials(0)) == 3


def test_a_view_has_the_rows_before_a_number_and_what_is_written_through_it_is_seen(url):
    cache = StudyCache(opened(url, 4), url)
    view = cache.before(2)
    assert [row.number for row in view.get_all_trials(0)] == [0, 1]
    row = cache.take(0)
    view.set_trial_user_attr(row._trial_id, "a", 1)
    view.set_study_user_attr(0, "b", 2)
    assert cache.row(0).user_attrs == {"planned": True, "a": 1}
    assert cache.get_study_user_attrs(0) == {"b": 2}
    cache.set_trial_param(row._trial_id, "x", 0.5, UNIT)
    assert view.get_all_trials(0)[0].params == {"x": 0.5}
    assert view.get_trial(cache.row(3)._trial_id).number == 3  # by its id, it is found


def test_a_row_that_was_returned_does_not_change(url):
    cache = StudyCache(opened(url, 1), url)
    row = cache.take(0)
    cache.set_trial_param(row._trial_id, "x", 0.5, UNIT)
    cache.set_trial_intermediate_value(row._trial_id, 1, 2.0)
    cache.set_trial_state_values(row._trial_id, TrialState.COMPLETE, [1.0])
    assert (row.params, row.intermediate_values, row.state, row.values) == ({}, {}, TrialState.RUNNING, None)


# ---------------------------------------------------------------- ownership


def test_a_waiting_row_is_taken_once(url):
    study = opened(url, 2)
    cache = StudyCache(study, url)
    row = cache.take(1)
    assert (row.number, row.state, attempt_of(row)) == (1, TrialState.RUNNING, 0)
    assert row.datetime_start is not None
    assert study.trials[1].state == TrialState.RUNNING
    assert cache.take(1) is None
    assert cache.owned == [1]


def test_a_row_may_be_taken_without_being_run(url):
    study = opened(url, 1)
    cache = StudyCache(study, url)
    row = cache.take(0, run=False)
    cache.set_trial_param(row._trial_id, "x", 0.5, UNIT)
    cache.release(0)
    assert (study.trials[0].state, study.trials[0].params) == (TrialState.WAITING, {"x": 0.5})
    assert cache.take(0).params == {"x": 0.5}


def test_a_finished_row_is_not_taken_and_its_lock_is_released(shared):
    study = opened(shared, 1)
    cache, other = StudyCache(study, shared), another(shared)
    study.tell(study.ask(), 1.0)  # neither cache knows it
    assert cache.take(0) is None
    assert other.take(0) is None
    assert cache.owned == []
    assert cache.row(0).state == TrialState.COMPLETE


def test_a_running_row_without_owner_is_adopted_and_deaths_without_progress_are_counted(url):
    study, said = opened(url, 1), []
    for reported in (0, 0, 1, 0, 0):  # evaluations of each owner, before it dies
        cache = StudyCache(study, url)
        row = cache.take(0)
        said.append((attempt_of(row), fruitless(row)))
        for _ in range(reported):
            cache.set_trial_intermediate_value(row._trial_id, len(row.intermediate_values) + 1, 0.5)
        cache._ownership._locks.close()  # the end of its process
    assert said == [(0, 0), (1, 1), (2, 2), (3, 1), (4, 2)]
    assert attempt_of(study.trials[0]) == 4


def test_a_row_that_was_put_back_has_no_death_counted(url):
    cache = StudyCache(opened(url, 1), url)
    for _ in range(3):
        row = cache.take(0)
        cache.put_back(0)
    assert (attempt_of(row), fruitless(row)) == (0, 0)


def test_a_trial_of_another_process_is_not_taken_before_that_process_is_dead(shared):
    cache = StudyCache(opened(shared, 1), shared)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(another(shared).take(0).state.name).encode())
        signal.pause()
        os._exit(0)
    try:
        assert os.read(reading, 99) == b"RUNNING"
        assert cache.take(0) is None
        assert cache.row(0).state == TrialState.WAITING  # it was not read
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    row = cache.take(0)
    assert (row.state, attempt_of(row), fruitless(row)) == (TrialState.RUNNING, 1, 1)


def test_optunas_storages_let_a_running_trial_wait_again_with_all_that_it_has(url):
    study = opened(url, 1)
    cache = StudyCache(study, url)
    row = cache.take(0)
    cache.set_trial_param(row._trial_id, "x", 0.5, UNIT)
    cache.set_trial_user_attr(row._trial_id, "u", 1)
    cache.set_trial_system_attr(row._trial_id, "s", 2)
    cache.set_trial_intermediate_value(row._trial_id, 7, 0.25)
    cache.put_back(0)
    assert cache.owned == []
    for back in (cache.row(0), study.trials[0], opened(url).trials[0] if url else study.trials[0]):
        assert (back.state, back.params, back.intermediate_values) == (TrialState.WAITING, {"x": 0.5}, {7: 0.25})
        assert back.user_attrs == {"planned": True, "u": 1}
        assert back.system_attrs["s"] == 2
    again = study.ask()
    assert again.number == 0
    assert again.suggest_float("x", 0.0, 1.0) == 0.5
    study.tell(again, 1.0)
    assert len(study.trials) == 1


def test_two_processes_that_need_a_row_add_one(shared):
    one, other = StudyCache(opened(shared, 1), shared), another(shared)
    one.add_row()
    other.add_row()
    assert len(one.get_all_trials(0)) == len(other.get_all_trials(0)) == 2
    other.add_row()
    assert [row.state for row in opened(shared).trials] == [TrialState.WAITING] * 3


# ---------------------------------------------------------------- writing together


def test_a_transaction_is_in_the_cache_at_once_and_in_the_storage_at_its_end(url):
    study = opened(url, 2)
    cache = StudyCache(study, url)
    view, before = cache.before(1), None
    rows = [cache.take(number)._trial_id for number in (0, 1)]
    with cache.together():
        before = facts(study)
        cache.set_trial_param(rows[0], "x", 0.5, UNIT)
        with cache.together():
            view.set_trial_intermediate_value(rows[0], 1, 0.25)
        cache.set_trial_user_attr(rows[1], "a", 1)
        cache.set_trial_state_values(rows[1], TrialState.COMPLETE, [1.0])
        assert facts(study) == before
        assert cache.row(0).intermediate_values == {1: 0.25}
        assert cache.row(1).state == TrialState.COMPLETE
    assert facts(study) == facts(cache) != before


def test_after_an_error_nothing_of_a_transaction_is_written(url):
    study = opened(url, 1)
    cache = StudyCache(study, url)
    trial = optuna.trial.Trial(optuna.Study("s", cache), cache.take(0)._trial_id)
    before, known = facts(study), facts(cache)
    with suppress(ZeroDivisionError), cache.together():
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr("a", 1)
        raise ZeroDivisionError
    assert facts(study) == before
    assert facts(cache) == known  # although Optuna's trial has written into the row that it was given
    cache.set_trial_user_attr(trial._trial_id, "a", 2)
    assert facts(study) == facts(cache) != before


def test_if_a_trial_is_lost_the_rest_of_the_transaction_is_written(shared):
    study = opened(shared, 3)
    cache, other = StudyCache(study, shared), another(shared)
    rows = [cache.take(number)._trial_id for number in (0, 1, 2)]
    lose_lock(cache, "delete")
    other.take(0)
    study._storage.set_trial_state_values(rows[1], TrialState.PRUNED)  # by hand
    known, before = facts(cache), facts(study)

    def write():
        with cache.together():
            for row in rows:
                cache.set_trial_intermediate_value(row, 1, 0.5)
                cache.set_trial_user_attr(row, "a", 1)

    with pytest.raises(LostTrialError, match="trial 0 "):
        write()
    assert cache.owned == [2]
    assert facts(cache)[:2] == known[:2]
    assert facts(study)[:2] == before[:2]
    assert facts(study)[2] == facts(cache)[2] != known[2]
    cache.refresh()
    assert facts(study) == facts(cache)


@pytest.mark.parametrize("slots", [1, 4])
def test_a_segment_and_a_change_of_state_are_one_transaction_each(tmp_path, slots):
    url = ON_DISK[0].format(tmp_path)
    study = opened(url, 8)
    runner = Runner(study, SPACE, GeneratorArray(lambda params: iter((1, 2, 3, 4, 5)), slots), Rules(8), url=url)
    runner.cache.took = 1e9  # no more reads
    study.pruner = optuna.pruners.NopPruner()
    commits = []
    sqlalchemy.event.listen(study._storage._backend.engine, "commit", commits.append)
    runner.run()
    assert {row.state for row in study.trials} == {TrialState.COMPLETE}
    assert len(commits) <= 8 * (4 + 5 / slots) + 6  # read, set running, drawn, told; evaluated


# ---------------------------------------------------------------- ownership that is lost

WRITES = {
    "param": lambda cache, row: cache.set_trial_param(row, "x", 0.5, UNIT),
    "value": lambda cache, row: cache.set_trial_intermediate_value(row, 1, 0.5),
    "user": lambda cache, row: cache.set_trial_user_attr(row, "a", 1),
    "system": lambda cache, row: cache.set_trial_system_attr(row, "a", 1),
    "tell": lambda cache, row: cache.set_trial_state_values(row, TrialState.COMPLETE, [1.0]),
    "put back": lambda cache, row: cache.set_trial_state_values(row, TrialState.WAITING),
}


def lose_lock(cache, how):
    file = cache._ownership._locks._files[0]._path
    file.unlink()
    if how == "replace":
        file.touch()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("how", ["delete", "replace"])
@pytest.mark.parametrize("then", ["trains", "dies", "puts it back", "tells it"])
def test_an_owner_whose_trial_was_adopted_writes_nothing(tmp_path, write, how, then):
    url = ON_DISK[1].format(tmp_path)
    study = opened(url, 1)
    cache, other = StudyCache(study, url), another(url)
    row = cache.take(0)._trial_id
    lose_lock(cache, how)
    assert attempt_of(other.take(0)) == 1
    if then == "dies":
        other._ownership._locks.close()
    elif then == "puts it back":
        other.put_back(0)
    elif then == "tells it":
        other.set_trial_state_values(row, TrialState.PRUNED)
        other.release(0)
    before, known = facts(study), facts(cache)
    with pytest.raises(LostTrialError, match="trial 0 "):
        WRITES[write](cache, row)
    assert facts(study) == before
    assert facts(cache) == known
    assert cache.owned == []
    with pytest.raises(LostTrialError):  # the loss is permanent
        WRITES[write](cache, row)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("how", ["delete", "replace"])
def test_an_owner_that_lost_its_lock_but_not_its_trial_goes_on(tmp_path, write, how):
    url = ON_DISK[1].format(tmp_path)
    study = opened(url, 1)
    cache, other = StudyCache(study, url), another(url)
    row = cache.take(0)._trial_id
    lose_lock(cache, how)
    before = facts(study)
    WRITES[write](cache, row)
    assert facts(study) != before
    assert other.take(0) is None  # the lock was taken again


def test_a_trial_whose_lock_is_lost_before_it_is_set_running_can_be_taken_again(tmp_path, monkeypatch):
    url = ON_DISK[1].format(tmp_path)
    cache = StudyCache(opened(url, 1), url)
    own = cache._ownership.own

    def own_and_lose_the_lock(row):
        own(row)
        lose_lock(cache, "delete")

    monkeypatch.setattr(cache._ownership, "own", own_and_lose_the_lock)
    assert cache.take(0) is None
    assert cache.owned == []
    monkeypatch.undo()
    assert cache.take(0).state == TrialState.RUNNING
    assert cache.owned == [0]


def test_a_trial_that_is_not_owned_is_not_written(url):
    study = opened(url, 1)
    cache = StudyCache(study, url)
    row, before = cache.row(0)._trial_id, facts(study)
    for write in WRITES.values():
        with pytest.raises(LostTrialError):
            write(cache, row)
    assert facts(study) == before


def test_a_trial_that_has_been_told_already_is_lost(url):
    study = opened(url, 1)
    cache = StudyCache(study, url)
    row = cache.take(0)._trial_id
    study._storage.set_trial_state_values(row, TrialState.COMPLETE, [1.0])  # by a tell whose answer was lost
    with pytest.raises(LostTrialError):
        cache.set_trial_state_values(row, TrialState.COMPLETE, [2.0])
    assert study.trials[0].value == 1.0
    assert cache.owned == []


# ---------------------------------------------------------------- a storage that is away


def lost_server():
    psycopg = pytest.importorskip("psycopg")
    return psycopg.OperationalError("the connection to postgresql://u:canary@h/d is closed\nmore")


AWAY = {
    "server": lost_server,
    "lock": lambda: sqlite3.OperationalError("database is locked"),
}
BROKEN = {
    "full": lambda: wrapped(sqlite3.OperationalError("database or disk is full")),
    "read-only": lambda: wrapped(sqlite3.OperationalError("attempt to write a readonly database")),
    "damaged": lambda: wrapped(sqlite3.DatabaseError("database disk image is malformed")),
    "journal": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}


def wrapped(cause):
    """Return what Optuna makes of an error of a database's driver."""
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = sqlalchemy.exc.OperationalError("UPDATE", {}, cause)
    return error


@pytest.fixture
def clock(monkeypatch):
    """Make waits take no time; count the seconds that they would take."""
    now = SimpleNamespace(seconds=0.0)

    def sleep(seconds):
        now.seconds += seconds

    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=sleep))
    return now


def fail(monkeypatch, storage, times, error, name="set_trial_user_attr"):
    """Make the next calls of a storage's method raise."""
    real, left = getattr(storage, name), [times]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise error()
        return real(*args, **kwargs)

    monkeypatch.setattr(storage, name, call)


@pytest.mark.parametrize("kind", AWAY)
def test_a_storage_that_is_away_is_waited_for(monkeypatch, clock, kind):
    study, said = opened(None, 1), []
    cache = StudyCache(study, waits=said.append)
    row = cache.take(0)._trial_id
    fail(monkeypatch, study._storage, 9, lambda: wrapped(AWAY[kind]()))
    fail(monkeypatch, study._storage, 5, lambda: wrapped(AWAY[kind]()), "get_all_trials")
    cache.set_trial_user_attr(row, "a", 1)
    cache.refresh()
    assert study.trials[0].user_attrs == cache.row(0).user_attrs == {"planned": True, "a": 1}
    assert len(said) == 14
    assert "waiting for it" in said[0]
    assert "canary" not in said[0]
    assert 1.0 < clock.seconds < 40.0


@pytest.mark.parametrize(
    ("stopped", "least", "most"), [(False, retry.LONGEST_WAIT, 610), (True, retry.LONGEST_WAIT_WHEN_STOPPING, 8)]
)
def test_a_storage_that_stays_away_is_given_up_sooner_after_a_stop_request(monkeypatch, clock, stopped, least, most):
    study, request = opened(None, 1), StopRequest()
    cache = StudyCache(study, stop_request=request)
    cache._retry = retry.Retry("postgresql://u:canary@h/d", request)
    row = cache.take(0)._trial_id
    fail(monkeypatch, study._storage, 10**9, lambda: wrapped(lost_server()))
    if stopped:
        request.set()
    with pytest.raises(StorageAwayError, match="was away for") as raised:
        cache.set_trial_user_attr(row, "a", 1)
    assert least < clock.seconds < most
    assert "postgresql://u:***@h/d" in str(raised.value)
    assert "canary" not in str(raised.value)
    assert "more" not in str(raised.value)
    assert "a" not in cache.row(0).user_attrs


def test_a_run_whose_storage_stays_away_waits_for_it_once(monkeypatch, clock):
    study = opened(None, 3)
    runner = Runner(study, SPACE, GeneratorArray(objective, 3), Rules(3))
    real = study._storage.set_trial_state_values

    def only_start(trial_id, state, values=None):
        if state != TrialState.RUNNING:
            raise wrapped(lost_server())
        return real(trial_id, state, values)

    monkeypatch.setattr(study._storage, "set_trial_state_values", only_start)
    fail(monkeypatch, study._storage, 10**9, lambda: wrapped(lost_server()), "set_trial_intermediate_value")
    with pytest.raises(StorageAwayError):
        runner.run()
    assert clock.seconds < retry.LONGEST_WAIT + 20
    assert {row.state for row in study.trials} == {TrialState.RUNNING}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_problem_that_waiting_does_not_solve_is_an_error_at_once(monkeypatch, clock, kind):
    study = opened(None, 1)
    cache = StudyCache(study)
    cache._retry = retry.Retry("postgresql://u:canary@h/d")
    row = cache.take(0)._trial_id
    fail(monkeypatch, study._storage, 1, BROKEN[kind])
    with pytest.raises(StorageError, match=r"storage postgresql://u:\*\*\*@h/d cannot be read or written") as raised:
        cache.set_trial_user_attr(row, "a", 1)
    assert not isinstance(raised.value, StorageAwayError)
    assert clock.seconds == 0
    cache.set_trial_user_attr(row, "a", 1)  # the trial is still owned
    assert study.trials[0].user_attrs["a"] == 1


def test_a_row_that_was_added_although_the_answer_was_lost_is_not_added_again(monkeypatch, clock):
    study = opened(None, 1)
    cache = StudyCache(study)
    real, asked = study._storage.create_new_trial, []

    def lost(*args, **kwargs):
        asked.append(real(*args, **kwargs))
        raise wrapped(AWAY["lock"]())

    monkeypatch.setattr(study._storage, "create_new_trial", lost)
    cache.add_row()
    assert len(asked) == 1
    assert len(cache.get_all_trials(0)) == len(study.trials) == 2
