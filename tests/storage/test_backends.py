from __future__ import annotations

import socket
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage

from hpo.core.errors import StorageError
from hpo.storage import backends

CANARY = "c4n4ry-p4ss"

pytestmark = pytest.mark.usefixtures("own_folder")


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


@pytest.mark.parametrize("name", ["sqlite:///it", "journal:///it"])
def test_a_folder_cannot_be_opened(name: str) -> None:
    Path("it").mkdir()
    with pytest.raises(StorageError, match="cannot be opened"):
        backends.connect(name)


def test_a_server_counts_as_existing() -> None:
    assert backends.exists("postgresql://me@host/db")
    assert not backends.exists("sqlite:///:memory:")


def test_a_reader_makes_nothing_and_writes_nothing(tmp_path: Path) -> None:
    for url in ("sqlite:///it.db", "journal:///it.log"):
        assert backends.look(url).get_all_studies() == []
    assert list(tmp_path.iterdir()) == []
    optuna.create_study(storage=backends.connect("sqlite:///it.db"), study_name="kept")
    with pytest.raises(optuna.exceptions.StorageInternalError):
        optuna.create_study(storage=backends.look("sqlite:///it.db"), study_name="other")
