from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from hpo.storage import backends
from hpo.storage.table_writer import TableWriter

pytestmark = pytest.mark.usefixtures("own_folder")


RIVALS = """
import os, optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from hpo.storage import backends
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=backends.connect("sqlite:///it.db"), study_name="study")
for row in range(30):
    study.enqueue_trial({})
rows = study.trials
closed, gate = os.pipe()
for process in range(6):
    if os.fork() == 0:
        storage = optuna.load_study(storage=backends.connect("sqlite:///it.db"), study_name="study")._storage
        os.close(gate)
        os.read(closed, 1)  # until the parent closes the gate, for all at once
        for row in rows:
            try:
                won = storage.set_trial_state_values(row._trial_id, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if won:
                os.write(1, b"won ")
                storage.set_trial_state_values(row._trial_id, TrialState.COMPLETE, [1.0])
        os._exit(0)
os.close(gate)
print([os.wait()[1] for process in range(6)])
"""


def test_of_many_processes_that_want_a_trial_in_sqlite_one_gets_it() -> None:
    ran = subprocess.run([sys.executable, "-c", RIVALS], capture_output=True, text=True, check=True, timeout=120)
    assert "[0, 0, 0, 0, 0, 0]" in ran.stdout, ran.stderr
    assert ran.stdout.count("won") == 30


def test_sqlite_waits_for_another_writer_before_it_reads() -> None:
    storage = backends.connect("sqlite:///it.db")
    assert isinstance(storage, RDBStorage)
    one = optuna.create_study(storage=storage, study_name="kept")
    ended = threading.Event()

    def other() -> None:
        optuna.load_study(study_name="kept", storage=backends.connect("sqlite:///it.db")).add_trial(
            optuna.create_trial(value=1.0)
        )
        ended.set()

    with storage.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar() == 0
        thread = threading.Thread(target=other)
        thread.start()
        assert not ended.wait(1)
        connection.exec_driver_sql("UPDATE studies SET study_name = 'kept'")
    assert ended.wait(10)
    thread.join()
    assert len(one.trials) == 1


def test_sqlite_does_not_wait_for_the_disk_at_every_commit(tmp_path: Path) -> None:
    storage = backends.connect(f"sqlite:///{tmp_path}/a.db")
    assert (tmp_path / "a.db").read_bytes()[18:20] == b"\2\2"  # the write-ahead log is on from the start
    with storage.engine.connect() as connection:  # type: ignore[attr-defined]
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


def test_a_reader_does_not_wait_for_a_writer() -> None:
    storage = backends.connect("sqlite:///it.db")
    optuna.create_study(storage=storage, study_name="kept")
    with storage.engine.begin() as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql("UPDATE studies SET study_name = 'other'")
        assert optuna.get_all_study_names(backends.look("sqlite:///it.db")) == ["kept"]


def test_unfinished_tables_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it makes tables leaves some of them."""

    class Killed(BaseException):
        pass

    def executes(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("\nCREATE TABLE trial_params"):
            raise Killed

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", executes)
    try:
        with pytest.raises(Killed):
            backends.connect("sqlite:///it.db")
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", executes)
    assert backends.look("sqlite:///it.db").get_all_studies() == []
    optuna.create_study(storage=backends.connect("sqlite:///it.db"), study_name="kept").add_trial(
        optuna.create_trial(value=1.0)
    )


@pytest.mark.parametrize("others", [1, 12])
def test_a_study_of_most_trials_is_read_by_a_scan_and_another_one_by_an_index(
    others: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = backends.connect(f"sqlite:///{tmp_path}/a.db")
    statements: list[str] = []
    studies = [optuna.create_study(storage=storage, study_name=name) for name in ("one", "another")]
    for study, count in zip(studies, (6, others), strict=True):
        study.optimize(lambda trial: trial.suggest_float("y", 0, 1) + trial.suggest_int("x", 0, 9), n_trials=count)
    assert isinstance(storage, RDBStorage)
    sqlalchemy.event.listen(
        storage.engine, "before_cursor_execute", lambda _, __, statement, *___: statements.append(statement)
    )
    rows = storage._get_trials(1, None, set(), -1)
    assert len(rows) == 6
    assert any("trial_id + ?" in statement for statement in statements) == (others < 6)
    monkeypatch.setattr(TableWriter, "_are_most", lambda self, study_id: others >= 6)
    assert storage._get_trials(1, None, set(), -1) == rows
