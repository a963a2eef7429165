from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest

import hpo
from hpo.core.errors import StorageError, StorageHeldError
from hpo.storage import backends, databases, file_lock, journal, postgres_session, retry, trial_locks
from hpo.storage.retry import Retry
from hpo.storage.trial_locks import locks_for, starting

SHARED = ("sqlite", "journal", "postgresql")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return f"{request.param}:////{tmp_path}/it"


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts processes; they and their children are killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *arguments]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        started.append(subprocess.Popen(command, text=True, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: subprocess.Popen[str]) -> str:
    """Send a line to a process, and return the line that it prints next."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Return whether a condition comes true in time: a server needs a moment to notice the death of a client."""
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


OWNER = """
import os, sys
from hpo.storage.trial_locks import locks_for
mine = locks_for(sys.argv[1], "study")
print(mine.take(7), flush=True)
{then}
for line in sys.stdin:
    print(mine.held(7), flush=True)
"""


# ---------------------------------------------------------------- one owner


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
def test_a_lock_has_one_owner(url: str) -> None:
    with locks_for(url, "study") as mine, locks_for(url, "study") as theirs, locks_for(url, "another") as another:
        assert mine.take(0)
        assert mine.take(1)
        assert not mine.take(1)
        assert not theirs.take(1)
        assert another.take(1)
        assert (mine.held(0), mine.held(1), mine.held(2), theirs.held(1)) == (True, True, False, False)
        theirs.release(1)  # not theirs: nothing happens
        assert mine.held(1)
        mine.release(1)
        assert not mine.held(1)
        assert theirs.take(1)
        assert theirs.held(1)
        assert not mine.take(1)
    with locks_for(url, "study") as later:
        assert later.take(0)
        assert later.take(1)


def test_a_study_in_memory_has_locks_too() -> None:
    with locks_for(None, "study") as mine:
        assert mine.take(1)
        assert not mine.take(1)
        assert mine.held(1)
        mine.release(1)
        mine.release(1)
        assert not mine.held(1)
        assert mine.take(1)


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
@pytest.mark.parametrize("then", ["", "if os.fork() == 0: sys.stdin.close(); import time; time.sleep(60)"])
def test_a_killed_owner_leaves_its_lock_free(url: str, then: str, python: Any) -> None:
    owner = python(OWNER.format(then=then), url)
    assert said(owner) == "True"
    with locks_for(url, "study") as mine:
        assert not mine.take(7)
        owner.kill()
        owner.wait()
        assert within(5, lambda: mine.take(7))


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
def test_a_stopped_owner_still_holds_its_lock_and_goes_on_with_it(url: str, python: Any) -> None:
    owner = python(OWNER.format(then=""), url)
    assert said(owner) == "True"
    owner.send_signal(signal.SIGSTOP)
    with locks_for(url, "study") as mine:
        assert not within(1, lambda: mine.take(7))
        owner.send_signal(signal.SIGCONT)
        assert ask(owner) == "True"
        assert not mine.take(7)


CONTENDER = """
import os, sys, time
from hpo.storage.trial_locks import locks_for
for worker in range(4):
    if os.fork() == 0:
        mine, taken, end = locks_for(sys.argv[1], "study"), 0, time.monotonic() + 1
        while time.monotonic() < end or not taken:
            for number in range(2):
                if mine.take(number):
                    os.close(os.open(f"inside-{number}", os.O_CREAT | os.O_EXCL))  # fails if another process is inside
                    time.sleep(0.001)
                    os.unlink(f"inside-{number}")
                    mine.release(number)
                    taken += 1
                    time.sleep(0.002)
        os._exit(0)
print([os.wait()[1] for worker in range(4)])
"""


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
def test_two_processes_never_hold_one_lock(url: str, python: Any) -> None:
    assert said(python(CONTENDER, url)) == "[0, 0, 0, 0]"


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
def test_a_forked_child_has_no_lock_and_frees_none(url: str, python: Any) -> None:
    child = "if os.fork() == 0: print(mine.held(7), mine.take(7), mine.take(8), flush=True); os._exit(0)\nos.wait()"
    owner = python(OWNER.format(then=child), url)
    assert said(owner) == "True"
    assert said(owner) == "False False True"
    assert ask(owner) == "True"


# ---------------------------------------------------------------- locks that are lost


@pytest.mark.parametrize("replace", [os.unlink, lambda path: os.replace("new", path)])
def test_the_lock_on_a_deleted_or_replaced_file_is_not_held(replace: Callable[[Path], None]) -> None:
    with locks_for("sqlite:///it.db", "study") as mine, locks_for("sqlite:///it.db", "study") as theirs:
        assert mine.take(1)
        assert mine.take(2)
        Path("new").touch()
        replace(next(Path("it.db.locks").rglob("1")))
        assert not mine.held(1)
        assert mine.held(2)
        assert theirs.take(1)
        assert not mine.take(1)
        theirs.release(1)
        assert mine.take(1)
        assert mine.held(1)


def test_a_lock_file_replaced_while_waiting_for_it_is_not_taken_for_the_lock(tmp_path: Path, python: Any) -> None:
    code = "import sys, pathlib; from hpo.storage.file_lock import FileLock\n"
    code += "with FileLock(pathlib.Path(sys.argv[1])) as lock:\n"
    with file_lock.FileLock(tmp_path / "lock"):
        waiting = python(code + "    print(lock.held(), flush=True)", str(tmp_path / "lock"))
        time.sleep(0.5)
        (tmp_path / "lock").rename(tmp_path / "former")
    assert said(waiting) == "True"


def terminate_all(url: str) -> None:
    """End every session of a database, as a restart of the server does."""
    import psycopg

    others = b"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
    with psycopg.connect(url) as connection:
        connection.execute(others + b"AND pid <> pg_backend_pid()")


def test_a_lost_connection_is_a_lost_lock(postgresql: str) -> None:
    with locks_for(postgresql, "study") as mine, locks_for(postgresql, "study") as theirs:
        assert mine.take(1)
        assert mine.take(2)
        terminate_all(postgresql)
        assert not mine.held(1)
        assert theirs.take(1)  # over a new connection
        assert not mine.held(2)  # lost with the same connection
        assert not mine.take(1)
        assert mine.take(2)
        assert mine.held(2)


def test_a_connection_lost_unnoticed_is_noticed_when_a_lock_is_taken_or_released(postgresql: str) -> None:
    with locks_for(postgresql, "study") as mine:
        assert mine.take(1)
        terminate_all(postgresql)
        assert mine.take(2)
        assert not mine.held(1)
        terminate_all(postgresql)
        mine.release(2)
        assert mine.take(2)


def test_a_server_that_cannot_be_reached_is_an_error_without_a_password(postgresql: str) -> None:
    import psycopg

    server, _, name = postgresql.rpartition("/")
    with locks_for(postgresql, "study") as mine:
        assert mine.take(1)
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            connection.execute(b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        assert not mine.held(1)
        for use in (
            lambda: mine.take(1),
            lambda: locks_for(postgresql, "study"),
            lambda: starting(postgresql).__enter__(),
        ):
            with pytest.raises(StorageError, match="cannot be opened") as caught:
                use()
            assert "canary" not in str(caught.value)
            assert caught.value.__suppress_context__
            assert caught.value.__cause__ is None


def test_an_old_server_is_refused(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "OLDEST_SERVER", 99)
    with pytest.raises(StorageError, match="hpo needs 99 or later") as caught:
        locks_for(postgresql, "study")
    assert "canary" not in str(caught.value)


def test_a_session_has_no_time_limit_of_the_server(postgresql: str) -> None:
    import psycopg

    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("ALTER ROLE tuner SET statement_timeout = 200")
    try:
        with postgres_session.open_session(postgresql) as mine:
            assert mine.execute("SELECT pg_sleep(0.5)").fetchone() is not None
    finally:
        with psycopg.connect(postgresql, autocommit=True) as connection:
            connection.execute("ALTER ROLE tuner RESET statement_timeout")


# ---------------------------------------------------------------- places of lock files


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "x" * 5000, "é\u202e\U0001f600", "a\x00b\n", "", ".", "\udc80"])
def test_no_name_of_a_study_becomes_a_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    with locks_for("sqlite:///inner/it.db", name) as mine, locks_for("sqlite:///inner/it.db", name + "x") as another:
        assert mine.take(3)
        assert another.take(3)
        assert not locks_for("sqlite:///inner/it.db", name).take(3)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(path.match("inner/it.db.locks/????????????????/3") for path in files)


def test_a_trial_number_that_is_not_a_number_becomes_no_path() -> None:
    with locks_for("sqlite:///it.db", "study") as mine, pytest.raises(ValueError, match="format code"):
        mine.take("../../x")  # type: ignore[arg-type]


def test_the_lock_is_the_same_in_every_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "inner" / "it.db")
    with locks_for("sqlite:///inner/it.db", "study") as mine:
        assert mine.take(1)
        monkeypatch.chdir("inner")
        for url in ("sqlite:///it.db", f"sqlite:////{tmp_path}/inner/it.db?timeout=5", "sqlite:///../link.db"):
            assert not locks_for(url, "study").take(1)
        assert locks_for("sqlite:///other.db", "study").take(1)


LOCAL = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n23 22 0:5 / /proc rw - proc proc rw\n"


def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    (tmp_path / "mountinfo").write_text(LOCAL + "".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(file_lock, "MOUNTS", tmp_path / "mountinfo")


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "fuse.glusterfs", "gpfs"]
)
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    far = tmp_path / "far away"
    far.mkdir()
    mounts(
        monkeypatch, tmp_path, f"40 22 0:50 / {tmp_path}/far\\040away rw,nosuid shared:2 master:1 - {kind} server:/x rw"
    )
    for scheme in ("sqlite", "journal"):
        url = f"{scheme}:////{far}/it"
        for use in (
            backends.connect,
            backends.refuse,
            lambda url: locks_for(url, "study"),
            lambda url: starting(url).__enter__(),
        ):
            with pytest.raises(
                StorageError, match=rf"network file system \({kind}, mounted at .*far away\).*postgresql://"
            ):
                use(url)
    assert list(far.iterdir()) == []
    (tmp_path / "link").symlink_to(far)
    with pytest.raises(StorageError, match=kind):
        backends.connect("sqlite:///link/it.db")
    backends.connect("sqlite:///near.db")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["40 22 0:50 / /elsewhere rw - nfs4 server:/x rw"],
        ["40 22 0:50 / {here} rw - nfs4 server:/x rw", "41 40 8:2 / {here} rw - ext4 /dev/sdb1 rw"],  # mounted over it
        ["41 22 8:2 / {here} rw - xfs /dev/sdb1 rw", "40 22 0:50 / {parent} rw - nfs4 server:/x rw"],
        ["40 22 0:50 / {part} rw - nfs4 server:/x rw"],
        ["40 22 0:50 / {here} rw - tmpfs nfs rw"],
        ["40 22 0:50 / {here} rw - fuse.unionfs nfs rw"],
    ],
)
def test_a_local_disk_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    mounts(
        monkeypatch,
        tmp_path,
        *(line.format(here=tmp_path, parent=tmp_path.parent, part=str(tmp_path)[:-1]) for line in lines),
    )
    with locks_for("sqlite:///it.db", "study") as mine:
        assert mine.take(1)


def test_where_mounts_are_not_listed_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "MOUNTS", Path("no/such/file"))
    assert locks_for("sqlite:///it.db", "study").take(1)


# ---------------------------------------------------------------- the first start

STARTER = """
import sys
from hpo.storage.trial_locks import starting
with starting(sys.argv[1]):
    print("in", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
def test_one_process_starts_at_a_time_and_a_killed_one_frees_the_lock(url: str, python: Any) -> None:
    first = python(STARTER, url)
    assert said(first) == "in"
    second = python(STARTER, url)
    assert select.select([second.stdout], [], [], 1)[0] == []
    first.kill()
    assert said(second) == "in"


def test_a_storage_in_memory_starts_at_once(tmp_path: Path) -> None:
    with starting(None), starting(None), starting("sqlite:///:memory:"), starting("sqlite://"):
        pass
    assert list(tmp_path.iterdir()) == []


COLD = """
import os, sys, traceback
import optuna, psycopg
from hpo.storage import backends, trial_locks
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, count = sys.argv[1], int(sys.argv[2])
backends.connect("sqlite:///warm.db")  # so that the children need not import it
closed, gate = os.pipe()
for process in range(count):
    if os.fork() == 0:
        os.close(gate)
        os.read(closed, 1)  # until the parent closes the gate, for all at once
        try:
            storage = backends.connect(url)
            with trial_locks.starting(url):
                study = optuna.create_study(storage=storage, study_name="study", load_if_exists=True)
                if not study.trials:
                    for row in range(3):
                        study.enqueue_trial({})
            study.add_trial(optuna.create_trial(value=process))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
os.close(gate)
codes = [os.wait()[1] for process in range(count)]
rows = optuna.load_study(study_name="study", storage=backends.connect(url)).trials
print(sum(map(bool, codes)), len(rows), len({row.number for row in rows}), max(int(row.value or 0) for row in rows))
"""


@pytest.mark.parametrize(("url", "count"), [("sqlite", 32), ("journal", 32), ("postgresql", 32)], indirect=["url"])
def test_any_number_of_processes_may_start_at_once(url: str, count: int, python: Any) -> None:
    assert said(python(COLD, url, str(count))) == f"0 {count + 3} {count + 3} {count - 1}"


STUCK = """
import os, signal, sys
import optuna, sqlalchemy
from hpo.storage import backends, trial_locks
url, study = sys.argv[1], sys.argv[2] or None
if study is None:
    make = optuna.storages.RDBStorage.__init__
    def stopped(*args, **named):
        print("in", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        make(*args, **named)
    optuna.storages.RDBStorage.__init__ = stopped
    backends.connect(url)
else:
    with trial_locks.starting(url, study):
        print("in", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
print("out", flush=True)
"""


@pytest.mark.parametrize("url", [*SHARED], indirect=True)
def test_a_process_stopped_in_its_start_up_blocks_no_reader_and_no_other_study(
    url: str, python: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, trials: int) -> None:
        hpo.optimize(lambda params: params["x"], {"x": [1, 2, 3, 4]}, name=name, trials=trials, storage=url)

    run("there", 2)
    owner = python(STUCK, url, "stuck")
    assert said(owner) == "in"
    monkeypatch.setattr(trial_locks, "LONGEST_WAIT", 0.5)
    monkeypatch.setenv("HPO_STORAGE", url)
    reads = [("list",), ("show", "there"), ("trials", "there"), ("best", "there"), ("report", "there")]
    for words in reads:
        code, printed = call(*words)
        assert code == 0, printed
    run("there", 2)  # resumed
    run("there", 3)
    run("other", 2)
    with pytest.raises(
        StorageHeldError, match=rf"process {owner.pid} on \S+ has held the lock to make study 'stuck'.*-CONT"
    ):
        run("stuck", 1)
    owner.send_signal(signal.SIGCONT)
    assert said(owner) == "out"
    run("stuck", 1)


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
def test_a_process_stopped_while_it_makes_tables_blocks_no_reader_and_is_named(
    url: str, python: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = python(STUCK, url, "")
    assert said(owner) == "in"
    monkeypatch.setattr(trial_locks, "LONGEST_WAIT", 0.5)
    code, printed = call("list", "--storage", url)
    assert code == 0, printed
    code, printed = call("show", "there", "--storage", url)
    assert (code, "it has none" in printed) == (2, True), printed
    with pytest.raises(StorageHeldError, match=rf"process {owner.pid} on \S+ has held the lock to make the tables"):
        backends.connect(url)
    owner.kill()
    owner.wait()
    assert within(5, lambda: bool(backends.connect(url)))


def test_a_journal_whose_writer_is_stopped_is_read_and_the_wait_is_reported(
    monkeypatch: pytest.MonkeyPatch, python: Any
) -> None:
    hpo.optimize(lambda params: params["x"], {"x": [1, 2]}, trials=1, storage="journal:///it.log")
    owner = python("import sys\nfrom hpo.storage.backends import connect\nconnect('journal:///it.log')._backend._lock.acquire()\n"
                   "print('in', flush=True)\nsys.stdin.readline()")  # fmt: skip
    assert said(owner) == "in"
    owner.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(journal, "LOCK_TIMEOUT", 0.2)
    notes: list[str] = []

    def waits(message: str) -> None:
        notes.append(message)
        owner.kill()

    assert len(backends.look("journal:///it.log").get_all_studies()) == 1
    storage = backends.connect("journal:///it.log")
    Retry("journal:///it.log", waits=waits)(
        lambda: storage.set_study_user_attr(storage.get_all_studies()[0]._study_id, "a", 1)
    )
    assert f"process {owner.pid} on " in notes[0]
    assert "has held the lock of it.log for 0.2 s" in notes[0]


def test_the_wait_for_the_start_lock_starts_anew_with_each_holder(tmp_path: Path) -> None:
    """The limit is for each holder: many processes may start at once."""
    code = """
import time
from hpo.storage import trial_locks
trial_locks.LONGEST_WAIT = 1.0
with trial_locks.starting("sqlite:///it.db"):
    time.sleep(0.4)
"""
    several = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(6)]
    assert [process.wait() for process in several] == [0] * 6


# ---------------------------------------------------------------- owners and modes of lock files


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


def test_no_other_user_can_open_a_lock_file(tmp_path: Path) -> None:
    os.umask(umask := os.umask(0))
    os.umask(0)  # files would be open to all
    try:
        with locks_for("sqlite:///it.db", "study") as mine, starting("sqlite:///it.db"):
            assert mine.take(1)
            found = modes(tmp_path / "it.db.locks")
    finally:
        os.umask(umask)
    inner = next(name for name in found if len(name) == 16)
    assert found == {"it.db.locks": 0o700, inner: 0o700, "1": 0o600, "start": 0o600}


def test_a_folder_of_an_earlier_version_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "it.db.locks").mkdir(mode=0o755)
    assert locks_for("sqlite:///it.db", "study").take(1)
    assert modes(tmp_path / "it.db.locks")["it.db.locks"] == 0o700


def test_the_group_that_may_write_the_database_shares_its_locks(tmp_path: Path) -> None:
    (tmp_path / "it.db").touch()
    (tmp_path / "it.db").chmod(0o660)
    umask = os.umask(0o077)
    try:
        with locks_for("sqlite:///it.db", "study") as mine:
            assert mine.take(1)
    finally:
        os.umask(umask)
    found = modes(tmp_path / "it.db.locks")
    inner = next(name for name in found if len(name) == 16)
    assert found == {"it.db.locks": 0o2770, inner: 0o2770, "1": 0o660}


def test_a_folder_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it.db.locks").mkdir()
    (tmp_path / "it.db.locks").chmod(0o777)
    for use in (lambda: locks_for("sqlite:///it.db", "s").take(1), lambda: backends.connect("sqlite:///it.db")):
        with pytest.raises(StorageError, match="can be written by everybody"):
            use()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "it.db.locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a symbolic link"):
        locks_for("sqlite:///it.db", "s").take(1)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it.db.locks").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # as another user
    with pytest.raises(StorageError, match=r"belongs to another user \(uid \d+\)"):
        locks_for("sqlite:///it.db", "s").take(1)


def test_a_lock_file_that_is_a_link_is_refused_and_its_target_not_changed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    with starting("sqlite:///it.db"):
        pass
    (tmp_path / "it.db.locks" / "start").unlink()
    (tmp_path / "it.db.locks" / "start").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="is a symbolic link where a lock file belongs"), starting("sqlite:///it.db"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change an owner")
def test_what_root_makes_beside_a_users_database_belongs_to_that_user(tmp_path: Path) -> None:
    (tmp_path / "it.db").touch()
    os.chown(tmp_path / "it.db", 12345, 12345)
    assert locks_for("sqlite:///it.db", "study").take(1)
    owners = {path.stat().st_uid for path in [tmp_path / "it.db.locks", *(tmp_path / "it.db.locks").rglob("*")]}
    assert owners == {12345}


def test_the_wait_for_a_stopped_transaction_has_a_limit(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    monkeypatch.setattr(databases, "LOCK_TIMEOUT", 0.3)
    study = optuna.create_study(storage=backends.connect(postgresql), study_name="study")
    with psycopg.connect(postgresql) as other:
        other.execute("SELECT FROM studies FOR UPDATE")
        with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
            study.ask()
    assert retry._is_away(caught.value)  # so a run repeats the call and reports the wait
    assert study.ask().number == 0
