from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import JournalStorage, RDBStorage

from hpo.core.errors import StorageError, StorageGoneError
from hpo.storage import backends

CANARY = "c4n4ry-p4ss"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)


@pytest.mark.parametrize(
    ("flag", "file", "environment", "chosen"),
    [
        ("sqlite:///flag.db", "sqlite:///file.db", "sqlite:///env.db", "sqlite:///flag.db"),
        (None, "sqlite:///file.db", "sqlite:///env.db", "sqlite:///file.db"),
        (None, None, "sqlite:///env.db", "sqlite:///env.db"),
        (None, None, None, "sqlite:///hpo.db"),
        (None, None, "", "sqlite:///hpo.db"),
        ("a/b.db", None, None, "sqlite:///a/b.db"),
        ("/a/b.sqlite3", None, None, "sqlite:////a/b.sqlite3"),
        ("hpo.log", None, None, "journal:///hpo.log"),
    ],
)
def test_the_command_line_wins_over_the_file_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, file: str | None, environment: str | None, chosen: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("HPO_STORAGE", environment)
    assert backends.choose(flag, file) == chosen


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:///a.db", RDBStorage),
        ("sqlite:////{here}/a.db", RDBStorage),
        ("journal:///a.log", JournalStorage),
        ("journal:////{here}/a.log", JournalStorage),
    ],
)
def test_a_study_is_still_there_when_the_storage_is_opened_again(tmp_path: Path, url: str, kind: type) -> None:
    url = url.format(here=str(tmp_path)[1:])
    assert not backends.exists(url)
    first = backends.connect(url)
    assert isinstance(first, kind)
    assert backends.exists(url)
    optuna.create_study(storage=first, study_name="kept").add_trial(optuna.create_trial(value=2.5))
    again = optuna.load_study(study_name="kept", storage=backends.connect(url))
    assert [trial.value for trial in again.trials] == [2.5]


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://me:{canary}@host/db", "not understood"),
        ("unknown:///what", "not understood"),
        ("postgresql://me:{canary}@127.0.0.1:{port}/db", "cannot be opened"),
        ("postgres://me:{canary}@127.0.0.1:{port}/db", "cannot be opened"),
        ("postgresql+psycopg://me:{canary}@127.0.0.1:{port}/db", "cannot be opened"),
        ("postgresql://127.0.0.1:{port}/db?user=me&password={canary}&connect_timeout=2", "cannot be opened"),
        ("postgresql://me:{canary}@127.0.0.1:noport/db", "cannot be opened"),
        ("postgresql://me:a@b/{canary}@127.0.0.1:{port}/db", "cannot be opened"),
        ("postgresql://me:{canary}@127.0.0.1:{port}/db?no_such_option=1", "cannot be opened"),
    ],
)
def test_no_error_shows_a_password(url: str, said: str) -> None:
    with pytest.raises(StorageError, match=said) as caught:
        backends.connect(url.format(canary=CANARY, port=closed_port()))
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)
    hidden = caught.value.__suppress_context__ or caught.value.__context__ is None
    assert hidden  # a traceback does not show the cause, which has the URL


@pytest.mark.parametrize("url", ["sqlite:///no/such/a.db", "journal:///no/such/a.log"])
def test_a_missing_folder_is_named(url: str) -> None:
    with pytest.raises(StorageError, match="there is no folder no/such; create it"):
        backends.connect(url)
    assert not Path("no").exists()


@pytest.mark.parametrize("name", ["sqlite:///it", "journal:///it"])
def test_a_file_that_is_no_storage_cannot_be_opened(name: str) -> None:
    Path("it").write_bytes(b"\x00\x01 this is no storage\n\xff\n" * 50)
    with pytest.raises(StorageError, match="cannot be opened"):
        backends.connect(name)


@pytest.mark.parametrize(
    "content",
    [
        "garbage",
        "garbage\n",
        "\n",
        "garbage\ngarbage\n",
        "3\n",
        '{"a": 1}\n',
        '{"op_code": 99}\n',
        "[1]\n",
        '{"op_code":4,\n',
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    Path("it.log").write_text(content)
    with pytest.raises(StorageError, match=r"it\.log is not an Optuna journal, or is damaged"):
        backends.connect("journal:///it.log")
    assert Path("it.log").read_text() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "it.log"]


def test_an_empty_file_is_a_new_journal_and_a_record_half_written_is_no_damage() -> None:
    Path("it.log").touch()
    optuna.create_study(storage=backends.connect("journal:///it.log"), study_name="kept")
    with Path("it.log").open("a") as file:
        file.write('{"op_code": 4, "wor')  # as another process may be seen writing it
    assert optuna.get_all_study_names(backends.connect("journal:///it.log")) == ["kept"]


def test_a_journal_torn_anywhere_is_read_up_to_there_and_goes_on() -> None:
    lines = [f"study-{i}" for i in range(3)]
    for name in lines:
        optuna.create_study(storage=backends.connect("journal:///whole.log"), study_name=name)
    whole = Path("whole.log").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        Path("it.log").write_bytes(whole[:size])
        optuna.create_study(storage=backends.connect("journal:///it.log"), study_name="next")
        kept = lines[: sum(end <= size for end in ends)]
        assert optuna.get_all_study_names(backends.connect("journal:///it.log")) == [*kept, "next"], size


def test_a_process_killed_while_it_writes_to_a_journal_holds_nobody_up() -> None:
    optuna.create_study(storage=backends.connect("journal:///it.log"), study_name="kept")
    code = """
from hpo.storage import connect
kept = connect("journal:///it.log")
kept._backend._lock.acquire()
print("in", flush=True)
input()
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in\n"
        done = threading.Event()
        kept = backends.connect("journal:///it.log")
        create = threading.Thread(target=lambda: (optuna.create_study(storage=kept, study_name="next"), done.set()))
        create.start()
        assert not done.wait(0.5)
        writer.kill()
        assert done.wait(5)
        create.join()


def test_a_journal_that_vanished_is_an_error_that_holds_nobody_up() -> None:
    kept = backends.connect("journal:///it.log")
    Path("it.log").unlink()
    for name in ("one", "two"):
        with pytest.raises(StorageGoneError, match="deleted or moved"):
            optuna.create_study(storage=kept, study_name=name)


RIVALS = """
import os, optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from hpo.storage import backends
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=storage.connect("sqlite:///it.db"), study_name="study")
for row in range(30):
    study.enqueue_trial({})
rows = study.trials
closed, gate = os.pipe()
for process in range(6):
    if os.fork() == 0:
        kept = optuna.load_study(storage=storage.connect("sqlite:///it.db"), study_name="study")._storage
        os.close(gate)
        os.read(closed, 1)  # until the parent opens it for all
        for row in rows:
            try:
                won = kept.set_trial_state_values(row._trial_id, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if won:
                os.write(1, b"won ")
                kept.set_trial_state_values(row._trial_id, TrialState.COMPLETE, [1.0])
        os._exit(0)
os.close(gate)
print([os.wait()[1] for process in range(6)])
"""


def test_of_many_who_want_a_trial_in_sqlite_one_gets_it() -> None:
    ran = subprocess.run([sys.executable, "-c", RIVALS], capture_output=True, text=True, check=True, timeout=120)
    assert "[0, 0, 0, 0, 0, 0]" in ran.stdout, ran.stderr
    assert ran.stdout.count("won") == 30


def test_sqlite_waits_for_another_writer_instead_of_reading_what_is_old_by_the_time_it_writes() -> None:
    kept = backends.connect("sqlite:///it.db")
    assert isinstance(kept, RDBStorage)
    one = optuna.create_study(storage=kept, study_name="kept")
    ended = threading.Event()

    def other() -> None:
        optuna.load_study(study_name="kept", storage=backends.connect("sqlite:///it.db")).add_trial(
            optuna.create_trial(value=1.0)
        )
        ended.set()

    with kept.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trials").scalar() == 0
        thread = threading.Thread(target=other)
        thread.start()
        assert not ended.wait(1)
        connection.exec_driver_sql("UPDATE studies SET study_name = 'kept'")
    assert ended.wait(10)
    thread.join()
    assert len(one.trials) == 1


@pytest.mark.parametrize("name", ["sqlite:///it", "journal:///it"])
def test_a_folder_cannot_be_opened(name: str) -> None:
    Path("it").mkdir()
    with pytest.raises(StorageError, match="cannot be opened"):
        backends.connect(name)


def test_a_server_is_taken_to_exist() -> None:
    assert backends.exists("postgresql://me@host/db")
    assert not backends.exists("sqlite:///:memory:")


def test_sqlite_does_not_wait_for_the_disk_at_every_commit(tmp_path: Path) -> None:
    kept = backends.connect(f"sqlite:///{tmp_path}/a.db")
    assert (tmp_path / "a.db").read_bytes()[18:20] == b"\2\2"  # writes ahead already, changed while it was alone
    with kept.engine.connect() as connection:  # type: ignore[attr-defined]
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


# ---------------------------------------------------------------- a file that is deleted or replaced


def delete(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}*"):
        if part.is_file():
            part.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, "copy")
    os.replace("copy", path)


@pytest.mark.parametrize("how", [delete, replace])
@pytest.mark.parametrize("url", ["sqlite:///it.db", "journal:///it.db"])
def test_what_would_be_written_to_a_file_that_is_gone_is_an_error(url: str, how: Any) -> None:
    kept = backends.connect(url)
    study = optuna.create_study(storage=kept, study_name="kept")
    study.add_trial(optuna.create_trial(value=1.0))
    how(Path("it.db"))
    before = Path("it.db").exists()
    said = "deleted or moved" if how is delete else "replaced by another file"
    for use in (
        lambda: study.set_user_attr("a", 1),
        lambda: study.ask(),
        lambda: study.trials,
        lambda: optuna.get_all_study_names(kept),
    ):
        with pytest.raises(
            StorageGoneError, match=rf"the storage {url} is gone: /\S+/it.db was {said}.*Put the file back"
        ):
            use()
    assert Path("it.db").exists() == before  # nothing takes its place


@pytest.mark.parametrize("url", ["sqlite:///it.db", "journal:///it.db"])
def test_a_file_that_is_moved_away_and_back_is_the_same(url: str) -> None:
    kept = backends.connect(url)
    os.rename("it.db", "away")
    with pytest.raises(StorageGoneError):
        optuna.create_study(storage=kept, study_name="kept")
    os.rename("away", "it.db")
    optuna.create_study(storage=kept, study_name="kept")
    assert optuna.get_all_study_names(backends.look(url)) == ["kept"]


GONE = """
import os, shutil
from pathlib import Path

def objective(params):
    for step in range(3):
        yield params["x"] * step
    if len(list(Path().glob("ran*"))) == 2:
        {how}
    Path(f"ran{{params['x']}}").touch()
"""
HOWS = {
    "deleted": "[path.unlink() for path in Path().glob('it*') if path.is_file()]",
    "replaced": "shutil.copy('it', 'new'); os.replace('new', 'it')",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["alone", "together"])
def test_a_run_whose_storage_is_gone_ends_with_an_error_and_no_result(
    scheme: str, how: str, workers: list[str]
) -> None:
    Path("own.py").write_text(GONE.format(how=HOWS[how]))
    space = "{x: {low: 0.0, high: 1.0}}"
    Path("s.yaml").write_text(
        f"objective: own:objective\nspace: {space}\ntrials: 6\nsampler: random\npruner: none\nbaseline: false\n"
    )
    command = [sys.executable, "-m", "hpo.cli", "run", "s.yaml", "--storage", f"{scheme}:///it", *workers]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert f"is gone: {Path('it').absolute()} was {how}" in ran.stderr
    assert "run the same command again" in ran.stderr.replace("\n", " ")
    assert "best: " not in ran.stdout
    assert "next:" not in ran.stdout
    assert "Traceback" not in ran.stderr


def test_a_reader_makes_nothing_and_writes_nothing(tmp_path: Path) -> None:
    for url in ("sqlite:///it.db", "journal:///it.log"):
        assert backends.look(url).get_all_studies() == []
    assert list(tmp_path.iterdir()) == []
    optuna.create_study(storage=backends.connect("sqlite:///it.db"), study_name="kept")
    with pytest.raises(optuna.exceptions.StorageInternalError):
        optuna.create_study(storage=backends.look("sqlite:///it.db"), study_name="other")


def test_a_reader_does_not_wait_for_a_writer() -> None:
    kept = backends.connect("sqlite:///it.db")
    optuna.create_study(storage=kept, study_name="kept")
    with kept.engine.begin() as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql("UPDATE studies SET study_name = 'other'")
        assert optuna.get_all_study_names(backends.look("sqlite:///it.db")) == ["kept"]


def test_tables_half_made_are_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it makes them leaves some."""

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
