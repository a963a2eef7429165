"""A password, given in every possible way, opens the storage and is in nothing that is printed, written or listed."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

import hpo
from hpo.core.errors import StorageAwayError, StorageError
from hpo.storage import backends, retry, trial_locks, urls

SECRET = "c4n4ry@:/%p4ss word"  # with characters that have a meaning in a URL
CODED = quote(SECRET, safe="")
HINTS = ("c4n4ry", "p4ss")  # parts of it that no coding changes

OBJECTIVE = """
import os
from pathlib import Path

def objective(params):
    mine = {os.getpid()}
    for place in sorted(Path("/proc").glob("[0-9]*"), key=lambda place: int(place.name)):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if int(place.name) in mine or parent in mine:
                mine.add(int(place.name))
                with open("processes", "ab") as file:
                    file.write((place / "cmdline").read_bytes() + b"\\n")
        except OSError:
            continue
    return params["x"]
"""
STUDY = "objective: own:objective\nspace: {x: [1, 2, 3]}\ntrials: 2\nsampler: random\npruner: none\n"
# All loggers log everything; Optuna does not pass its log to the root logger by itself.
VERBOSE = """
import logging, os
logging.basicConfig(level=logging.DEBUG)
for name in ("sqlalchemy", "alembic", "psycopg"):
    logging.getLogger(name).setLevel(logging.DEBUG)
import optuna
optuna.logging.set_verbosity = lambda verbosity: None
optuna.logging.enable_propagation()
logging.getLogger("optuna").setLevel(logging.DEBUG)
"""


def shows(text: str | bytes) -> bool:
    """Return whether a text has a part of the password."""
    said = text.encode(errors="replace") if isinstance(text, str) else text
    return any(hint.encode() in said for hint in HINTS)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PG")] + ["HPO_STORAGE", "HPO_STORAGE_FILE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where libpq looks for a .pgpass
    (tmp_path / "home").mkdir()


@pytest.fixture
def server(postgresql: str) -> Iterator[tuple[str, str]]:
    """Return host:port and the name of a database of the user `guest`, who has the password."""
    import psycopg

    with psycopg.connect(postgresql, autocommit=True) as owner:
        owner.execute("DROP ROLE IF EXISTS guest")
        owner.execute(f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}'".encode())
        owner.execute("CREATE SCHEMA guest AUTHORIZATION guest")  # where a search for tables looks first
    at, _, database = postgresql.partition("@")[2].partition("/")
    yield at, database
    with psycopg.connect(postgresql, autocommit=True) as owner:
        owner.execute("DROP OWNED BY guest")
        owner.execute("DROP ROLE guest")


def rows(url: str) -> str:
    """Return all rows of a database."""
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("SET search_path TO guest")
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'guest'").fetchall()
        assert len(tables) > 10
        return "\n".join(str(connection.execute(f"SELECT * FROM {name}".encode()).fetchall()) for (name,) in tables)


# Each returns arguments, environment and a line for the study file; the files that it writes are in the folder `given`.


def by_flag(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    return ["--storage", f"postgresql://guest:{CODED}@{at}/{database}"], {}, ""


def by_study_file(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    return [], {}, f"storage: 'postgresql://guest:{CODED}@{at}/{database}'\n"


def by_query(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    return [], {"HPO_STORAGE": f"postgres://guest@{at}/{database}?password={CODED}"}, ""


def by_environment(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    return [], {"HPO_STORAGE": f"postgresql+psycopg://guest:{CODED}@{at}/{database}"}, ""


def by_file(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    Path("given/url").write_text(f"\npostgresql://guest:{CODED}@{at}/{database}\n")
    return [], {"HPO_STORAGE_FILE": "given/url"}, ""


def by_pgpassword(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    return ["--storage", f"postgresql://guest@{at}/{database}"], {"PGPASSWORD": SECRET}, ""


def _pgpass(path: str) -> None:
    Path(path).write_text("*:*:*:guest:" + SECRET.replace(":", "\\:") + "\n")
    Path(path).chmod(0o600)


def by_passfile(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    _pgpass("given/pgpass")
    return ["--storage", f"postgresql://guest@{at}/{database}"], {"PGPASSFILE": "given/pgpass"}, ""


def by_home(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    _pgpass("home/.pgpass")
    return ["--storage", f"postgresql://guest@{at}/{database}"], {}, ""


def by_service(at: str, database: str) -> tuple[list[str], dict[str, str], str]:
    host, _, port = at.partition(":")
    lines = ["[tuning]", f"host={host}", f"port={port}", f"dbname={database}", "user=guest", f"password={SECRET}"]
    Path("given/services").write_text("\n".join(lines))
    return ["--storage", "postgresql:///?service=tuning"], {"PGSERVICEFILE": "given/services"}, ""


WAYS = [
    by_flag,
    by_study_file,
    by_query,
    by_environment,
    by_file,
    by_pgpassword,
    by_passfile,
    by_home,
    by_service,
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_shows_the_password_nowhere(way: Any, server: tuple[str, str], postgresql: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "sitecustomize.py").write_text(VERBOSE)
    arguments, environment, line = way(*server)
    (tmp_path / "own.py").write_text(OBJECTIVE)
    (tmp_path / "given" / "own.yaml").write_text(STUDY + line)
    paths = os.pathsep.join([str(tmp_path / "loud"), *sys.path])
    command = [sys.executable, "-X", "faulthandler", "-m", "hpo.cli", "run", "given/own.yaml", *arguments]
    known = {**os.environ, "PYTHONPATH": paths, **environment}
    ran = subprocess.run(command, env=known, capture_output=True, text=True, timeout=120, check=False)
    printed = ran.stdout + ran.stderr
    assert ran.returncode == 0, printed
    assert "DEBUG" in printed
    assert not shows(printed)
    assert ("can see a password on the command line" in printed) == (way is by_flag)
    stored = rows(postgresql)
    assert "fingerprint" in stored
    assert not shows(stored)
    listed = (tmp_path / "processes").read_bytes()
    assert b"hpo.cli" in listed
    if way is not by_flag:  # where the user has put it into the list of processes
        assert not shows(listed)
    (tmp_path / "processes").unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.parts[-2] not in ("given", "home")]
    assert tmp_path / "runs" / "own" / "report.html" in written
    assert [path for path in written if shows(path.read_bytes())] == []


def test_reading_commands_show_the_password_nowhere(
    call: Any, server: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import optuna_dashboard

    at, database = server
    url = f"postgresql://guest:{CODED}@{at}/{database}"
    study = hpo.optimize(lambda params: params["x"], {"x": [1, 2, 3]}, trials=2, name="own", storage=url)
    monkeypatch.setenv("HPO_STORAGE", url)
    looks = [("list",), ("list", "--json"), ("show", "own"), ("show", "own", "--json"), ("trials", "own", "--json")]
    for words in [*looks, ("trials", "own"), ("best", "own"), ("report", "own")]:
        code, printed = call(*words)
        assert code == 0, printed
        assert not shows(printed)
    for words in (("export", "own", "-o", "out"), ("show", "other"), ("run", "own"), ("dashboard", "other")):
        code, printed = call(*words)
        assert code == 2
        assert "error: " in printed
        assert not shows(printed)
    app = optuna_dashboard.wsgi(study._storage)
    for place in ("/api/meta", "/api/studies", f"/api/studies/{study._study_id}", "/api/nothing"):
        request: dict[str, Any] = {"PATH_INFO": place, "QUERY_STRING": "after=0", "wsgi.errors": io.StringIO()}
        setup_testing_defaults(request)
        answer = b"".join(app(request, lambda *_: None))
        assert not shows(answer)
        assert not shows(request["wsgi.errors"].getvalue())
    assert not any(shows(path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())


def test_no_url_that_optuna_stores_has_the_password(server: tuple[str, str]) -> None:
    at, database = server
    storage = backends.connect(f"postgresql://guest:{CODED}@{at}/{database}")
    assert isinstance(storage, optuna.storages.RDBStorage)
    assert not shows(
        f"{storage.url} {storage.engine.url.render_as_string(hide_password=False)} {storage._version_manager.url}"
    )
    assert optuna.create_study(storage=storage, study_name="x").study_name == "x"


# ---------------------------------------------------------------- failures


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


FAILURES = {
    "server down": "postgresql://guest:{secret}@127.0.0.1:{closed}/db",
    "server down, password in the query": "postgresql://127.0.0.1:{closed}/db?user=guest&password={secret}",
    "key that hides what it is": "postgresql://127.0.0.1:{closed}/db?user=guest&pass%77ord={secret}",
    "password of a key": "postgresql://guest@127.0.0.1:{closed}/db?sslmode=require&sslpassword={secret}",
    "two passwords": "postgresql://127.0.0.1:{closed}/db?password={secret}&password=other",
    "unknown host": "postgresql://guest:{secret}@nowhere.invalid/db",
    "unknown option": "postgresql://guest:{secret}@127.0.0.1:{closed}/db?no_such_option=1",
    "port that is none": "postgresql://guest:{secret}@127.0.0.1:port/db",
    "port out of range": "postgresql://guest:{secret}@127.0.0.1:99999/db",
    "no host": "postgresql://guest:{secret}/db",
    "no host or database": "postgresql://guest:{secret}",
    "@ in the password": "postgresql://guest:{secret}@{secret}@127.0.0.1:{closed}/db",
    "@ and / in the password": "postgresql://guest:x@y/{secret}@127.0.0.1:{closed}/db",
    "/ in the user": "postgresql://me/guest:{secret}@127.0.0.1:{closed}/db",
    "blank in the password": "postgresql://guest:x {secret}@127.0.0.1:{closed}/db",
    "% in the password": "postgresql://guest:%zz{secret}@127.0.0.1:{closed}/db",
    "wrong scheme": "mysql://guest:{secret}@127.0.0.1:{closed}/db",
    "redis": "redis://:{secret}@127.0.0.1:{closed}/0",
    "file with a server's parts": "sqlite://guest:{secret}@127.0.0.1/db",
    "journal with a server's parts": "journal://guest:{secret}@127.0.0.1/db",
    "no scheme": "guest:{secret}@127.0.0.1/db",
    "a connection string": "host=127.0.0.1 user=guest password={secret}",
    "a quoted connection string": "host=127.0.0.1 user=guest password='a {secret}'",
}
PLAIN = "c4n4ry-p4ss"


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("way", ["flag", "set", "environment", "file", "study"])
def test_no_failure_shows_the_password(call: Any, monkeypatch: pytest.MonkeyPatch, way: str, failure: str) -> None:
    url = FAILURES[failure].format(secret=PLAIN, closed=closed_port())
    Path("own.py").write_text("def objective(params):\n    return params['x']\n")
    Path("own.yaml").write_text(STUDY)
    words = ["--storage", url] if way == "flag" else ["--set", f"storage='{url}'"] if way == "set" else []
    if way == "set" and "'" in url:
        words = ["--set", f"storage={url}"]
    if way == "environment":
        monkeypatch.setenv("HPO_STORAGE", url)
    if way == "file":
        Path("url").write_text(url)
        monkeypatch.setenv("HPO_STORAGE_FILE", "url")
    if way == "study":
        Path("own.yaml").write_text(f'{STUDY}storage: "{url}"\n')
    commands = [["run", "own.yaml"]] if way in ("set", "study") else [["run", "own.yaml"], ["list"], ["show", "x"]]
    for command in commands:
        code, printed = call(*command, *words)
        assert code == 2, printed
        assert "error: " in printed
        assert "Traceback" not in printed
        assert not shows(printed)
    with pytest.raises(StorageError) as caught:
        backends.connect(backends.choose(url))
    assert not shows(f"{caught.value!r} {caught.value}")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("opened", [backends.connect, lambda url: trial_locks.locks_for(url, "x")])
@pytest.mark.parametrize(
    ("user", "database", "said"),
    [("guest", None, "password authentication failed"), ("tuner", "c4ge", 'database "c4ge" does not exist')],
)
def test_a_refusal_by_the_server_is_reported_without_the_password(
    postgresql: str, opened: Any, user: str, database: str | None, said: str
) -> None:
    at, _, own = postgresql.partition("@")[2].partition("/")
    secret = "canary" if user == "tuner" else PLAIN
    with pytest.raises(StorageError) as caught:
        opened(f"postgresql://{user}:{secret}@{at}/{database or own}")
    assert said in str(caught.value)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["list", "postgresql://guest:{secret}@host/db"],
        ["dashboard", "postgresql://guest:{secret}@host/db"],
        ["show", "postgresql://guest:{secret}@host/db"],
        ["run", "own.yaml", "--storag", "postgresql://guest:{secret}@host/db"],
        ["run", "own.yaml", "--storage=postgresql://guest:{secret}@host/db", "--trials=many"],
        ["run", "own.yaml", "--trials=postgresql://guest:{secret}@host/db"],
        ["run", "own.yaml", "--set", "storage:postgresql://guest:{secret}@host/db"],
        ["run", "own.yaml", "--set", "storage=[postgresql://guest:{secret}@host/db]"],
        ["run", "own.yaml", "--set", "storag=postgresql://guest:{secret}@host/db"],
        ["postgresql://guest:{secret}@host/db"],
        ["run", "postgresql://guest:{secret}@host/db.yaml"],
    ],
)
def test_a_password_in_the_wrong_place_is_not_repeated(call: Any, words: list[str]) -> None:
    Path("own.yaml").write_text(STUDY)
    code, printed = call(*(word.format(secret=PLAIN) for word in words))
    assert code == 2
    assert "rror" in printed
    assert not shows(printed)


@pytest.mark.parametrize(
    "line", ["storage: [{url}]", "storag: {url}", "storage: {{url: {url}}}", "storage: !secret {url}"]
)
def test_a_study_file_that_is_wrong_about_its_storage_does_not_quote_it(call: Any, line: str) -> None:
    Path("own.yaml").write_text(STUDY + line.format(url=f"postgresql://guest:{PLAIN}@host/db"))
    for command in (["run", "own.yaml"], ["show", "own.yaml"]):
        code, printed = call(*command)
        assert code == 2
        assert not shows(printed)


def test_the_traceback_of_a_defect_lacks_only_the_password(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError(f"at postgresql://guest:{PLAIN}@host/db, or password={PLAIN}, it broke")

    monkeypatch.setattr("hpo.cli.inspect_commands.summaries", broken)
    code, printed = call("list")
    assert code == 1
    assert "RuntimeError: at postgresql://guest:***@host/db, or password=*** it broke" in printed
    assert "in broken" in printed
    assert not shows(printed)


# ---------------------------------------------------------------- a file that holds the URL


def test_the_environment_wins_over_the_file_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("url").write_text("sqlite:///of-file.db\r\n")
    monkeypatch.setenv("HPO_STORAGE_FILE", "url")
    assert backends.choose(None) == "sqlite:///of-file.db"
    assert backends.choose(None, "sqlite:///of-study.db") == "sqlite:///of-study.db"
    monkeypatch.setenv("HPO_STORAGE", "sqlite:///named.db")
    assert backends.choose(None) == "sqlite:///named.db"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "has 0 lines; write one"),
        (f"postgresql://a:{PLAIN}@h/d\n{PLAIN}\n".encode(), "has 2 lines; write one"),
        (b"\xff" + PLAIN.encode(), "cannot be read: it is not text"),
    ],
)
def test_a_file_that_holds_no_url_is_named_but_not_quoted(
    call: Any, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    if content is not None:
        Path("url").write_bytes(content)
    monkeypatch.setenv("HPO_STORAGE_FILE", "url")
    code, printed = call("list")
    assert code == 2
    assert f"HPO_STORAGE_FILE names url, which {said}" in printed
    assert not shows(printed)


def test_two_passwords_in_one_process_do_not_mix(server: tuple[str, str], postgresql: str) -> None:
    at, database = server
    ours, theirs = f"postgresql://guest:{CODED}@{at}/{database}", postgresql
    storages = [backends.connect(url) for url in (ours, theirs, ours)]
    for storage in storages:
        storage.engine.dispose()  # type: ignore[attr-defined]  # so that each connects again
    names = {name for storage in storages for name in optuna.get_all_study_names(storage)}
    assert names == set()
    with contextlib.closing(trial_locks.locks_for(ours, "x")) as held:
        assert held.take(0)


# ---------------------------------------------------------------- reasons stay readable

DRIVER = (
    'connection to server at "db.example.org" (10.0.0.1), port 5432 failed: FATAL: no pg_hba.conf entry for host '
    '"10.0.0.2", user "me@corp", database "db", no encryption (see https://db.example.org:8080/help, or ask me@corp)'
)


def test_a_drivers_message_stays_readable() -> None:
    url = f"postgresql://guest:{CODED}@127.0.0.1:1/db"
    assert str(StorageError(DRIVER)) == DRIVER
    assert DRIVER in str(urls.opening_error(url, RuntimeError(DRIVER)))
    for form in (SECRET, CODED, quote(SECRET)):
        said = str(urls.opening_error(url, RuntimeError(f"{form}: {DRIVER} '{form}'")))
        assert f"***: {DRIVER} '***'" in said
        assert not shows(said)


def test_the_reason_why_a_storage_is_away_is_reported_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    notes: list[str] = []
    url = f"postgresql://guest:{CODED}@127.0.0.1:1/db"
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.0)

    def fails() -> None:
        raise psycopg.OperationalError(f"{DRIVER}, with {SECRET}")

    with pytest.raises(StorageAwayError) as caught:
        retry.Retry(url, waits=notes.append)(fails)
    assert f"({DRIVER}, with ***)" in str(caught.value)
    assert not shows(str(caught.value))


def test_a_short_password_hides_itself_and_no_other_word() -> None:
    urls.split_secrets("postgresql://me:a@host/db?sslpassword=or")
    assert str(StorageError("a host or a name: 'a' at x:a@host")) == "a host or a name: '***' at x:***@host"
