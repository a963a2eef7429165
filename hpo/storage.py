"""Storages: URL scheme -> Optuna storage. SQLite by default, PostgreSQL for several machines, a journal file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from hpo.changes import Database
from hpo.errors import MissingExtraError, StorageError
from hpo.flock import Flock, refuse_network
from hpo.ledger import READING
from hpo.locks import folder_beside, starting
from hpo.urls import FILES, POSTGRESQL, cannot_be_opened, is_file, parted, path_of, redacted, scheme_of

DEFAULT = "sqlite:///hpo.db"

RECORD = b'{"op_code":'  # what every line of a journal begins with


def _sqlite(url: str) -> BaseStorage:
    kept = Database(url, engine_kwargs={"connect_args": {"timeout": 60}})
    sqlalchemy.event.listen(kept.engine, "connect", _write_ahead)
    sqlalchemy.event.listen(kept.engine, "begin", _begin)
    kept.engine.dispose()  # what was connected before
    kept.engine.connect().close()  # the change to writing ahead needs the file for itself, as it is while starting
    return kept


def _write_ahead(connection: Any, _: Any) -> None:
    """Let a commit not wait for the disk, nor another program's readers for a writer.

    What is committed survives the process; after a power cut the last commits may be missing, nothing is torn.
    """
    connection.isolation_level = None  # `_begin` begins
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin(connection: sqlalchemy.Connection) -> None:
    """Wait for the right to write before reading: of two who tell a trial, the second sees that it has been told.

    SQLite refuses at once, without waiting, to let anybody write who has read what is old by then. Who only reads
    waits for nobody.
    """
    connection.exec_driver_sql("BEGIN" if READING.get() else "BEGIN IMMEDIATE")


def _postgresql(url: str) -> BaseStorage:
    bare, secrets = parted(url)  # Optuna and alembic never see a password, so that they cannot say it
    return Database(bare, engine_kwargs={"pool_pre_ping": True, "connect_args": secrets})


class _JournalLock(BaseJournalFileLock):
    """A journal's lock, free when its owner is killed; Optuna's own then stall for 30 s."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Flock(folder_beside(path) / "journal")

    def acquire(self) -> bool:
        """Wait for the lock, then cut off a record that its writer did not finish: the next would be glued to it."""
        self._lock.acquire()
        try:
            with open(self._path, "rb+") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
                if file.read() not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


class _Journal(JournalFileBackend):
    """A journal's file, which is locked and waited for once for several records."""

    def __init__(self, path: str) -> None:
        super().__init__(path, _JournalLock(path))
        self._holds, self._held = False, list[dict[str, Any]]()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep records back, until the first one that is appended afterwards."""
        self._holds, self._held = True, []
        try:
            yield
        finally:
            self._holds = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, behind those that were kept back."""
        self._held += logs
        if not self._holds:
            logs, self._held = self._held, []
            super().append_logs(logs)


def _journal(url: str) -> BaseStorage:
    path = path_of(url)
    backend = _Journal(path)
    with open(path, "rb") as file:
        first = file.readline()
    begun = not first.endswith(b"\n") and RECORD.startswith(first[: len(RECORD)])
    try:
        # Optuna takes a last line that it cannot read for one that is being written, so a file of one line is empty.
        if next(backend.read_logs(0), None) is None and not begun:
            raise ValueError("no line of it is a record")
        return JournalStorage(backend)
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # what reading anything else ends in
        raise StorageError(
            f"storage {url} cannot be opened: {path} is not an Optuna journal, or is damaged "
            f"({type(error).__name__}: {error}). Name another file"
        ) from None


SCHEMES: dict[str, Callable[[str], BaseStorage]] = {
    "sqlite": _sqlite,
    "journal": _journal,
    **dict.fromkeys(POSTGRESQL, _postgresql),
}


def choose(flag: str | None, file: str | None = None) -> str:
    """Return the storage's URL: the command line's, else the file's, else the environment's, else `hpo.db` here.

    The environment has it in `HPO_STORAGE`, else in the file that `HPO_STORAGE_FILE` names, as a container's secrets
    are. A plain path that ends in `.db`, `.sqlite` or `.log` is understood as SQLite or a journal file.

    Raises:
        StorageError: `HPO_STORAGE_FILE` names a file that cannot be read, or that is not one line.
    """
    given = flag or file or os.environ.get("HPO_STORAGE") or _kept_in_a_file() or DEFAULT
    if "://" not in given:
        scheme = {".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".log": "journal"}
        return f"{scheme.get(Path(given).suffix, 'unknown')}:///{given}"
    return given


def _kept_in_a_file() -> str | None:
    path = os.environ.get("HPO_STORAGE_FILE")
    if not path:
        return None
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:  # of which the second quotes the file
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StorageError(f"HPO_STORAGE_FILE names {path}, which cannot be read: {reason}") from None
    said = [line.strip() for line in lines if line.strip()]
    if len(said) != 1:
        raise StorageError(f"HPO_STORAGE_FILE names {path}, which has {len(said)} lines; write one, the storage's URL")
    return said[0]


def exists(url: str) -> bool:
    """Return whether opening the storage would write no new file."""
    return Path(path_of(url)).exists() if scheme_of(url) in FILES else True


def refuse(url: str) -> None:
    """Refuse a URL that cannot be opened, before anything else is done.

    Raises:
        StorageError: The scheme is not known, there is no folder for the file, or it is on a network file system.
    """
    if scheme_of(url) not in SCHEMES or (scheme_of(url) in FILES and not is_file(url)):
        raise StorageError(
            f"storage {redacted(url)!r}: not understood. Write sqlite:///hpo.db, journal:///hpo.log "
            "or postgresql://user@host/database"
        )
    if scheme_of(url) in POSTGRESQL:
        parted(url)
    folder = Path(path_of(url)).parent
    if scheme_of(url) in FILES and not folder.is_dir():
        raise StorageError(f"storage {url}: there is no folder {folder}; create it, or name another place")
    if scheme_of(url) in FILES:
        refuse_network(folder)


def connect(url: str) -> BaseStorage:
    """Open a storage, with its tables made if it is new; any number of processes may do so at once.

    Raises:
        StorageError: The URL is not understood or the storage cannot be opened.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    refuse(url)
    try:
        if scheme_of(url) == "journal":  # has no tables; where it is only read, nothing is written
            return _journal(url)
        from alembic import command, config, migration, script  # noqa: F401  # half a second that others need not wait

        with starting(url):
            return SCHEMES[scheme_of(url)](url)
    except (StorageError, MissingExtraError):
        raise
    except Exception as error:  # SQLAlchemy, psycopg and the journal raise their own kinds
        raise cannot_be_opened(url, error) from None
