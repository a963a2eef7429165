"""Storages: URL scheme -> Optuna storage. SQLite by default, PostgreSQL for several machines, a journal file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from hpo.core.errors import MissingExtraError, StorageError, StorageGoneError
from hpo.storage.file_lock import LockFolder, refuse_network
from hpo.storage.postgres_session import open_session
from hpo.storage.study_cache import READING
from hpo.storage.trial_locks import on_disk, starting
from hpo.storage.trial_writers import Database
from hpo.storage.urls import FILES, POSTGRESQL, cannot_be_opened, is_file, parted, path_of, redacted, scheme_of

DEFAULT = "sqlite:///hpo.db"

RECORD = b'{"op_code":'  # what every line of a journal begins with


WAIT = 60.0  # seconds to wait for a lock inside of a database, or on a journal, before that is said


class SameFile:
    """The file of a storage, which must stay the one that was opened.

    An open database goes on writing to a file that has been deleted, and nothing of it is found afterwards.
    """

    def __init__(self, url: str) -> None:
        self._url, self._path = url, Path(path_of(url)).absolute()
        self._opened = os.stat(self._path)

    def check(self, *_: Any) -> None:
        """Check that it still is.

        Raises:
            StorageGoneError: It was deleted, or replaced.
        """
        try:
            what = None if os.path.samestat(self._opened, os.stat(self._path)) else "replaced by another file"
        except OSError as error:
            what = f"deleted or moved ({error.strerror})"
        if what is not None:
            raise StorageGoneError(
                f"the storage {redacted(self._url)} is gone: {self._path} was {what} while it was in use, so that the "
                "results since then are not in it. Put the file back, from a copy if need be, and run the same command "
                "again to go on; without it, the same command begins the study anew"
            )


def _sqlite(url: str, reads: bool) -> BaseStorage:
    disk = on_disk(url)
    if disk and not (Path(path_of(url)).exists() and _has_sqlite_tables(path_of(url), reads)):
        if reads:
            return InMemoryStorage()
        _import_early()
        with starting(url):
            with closing(sqlite3.connect(path_of(url), timeout=WAIT)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # needs the file for itself, once
            RDBStorage(url, engine_kwargs={"connect_args": {"timeout": WAIT}}).engine.dispose()
    file = SameFile(url) if disk else None
    kept = Database(url, engine_kwargs={"connect_args": {"timeout": WAIT}}, skip_table_creation=disk)
    if file is not None:
        sqlalchemy.event.listen(kept.engine, "do_connect", file.check)  # or an empty file would take its place
        sqlalchemy.event.listen(kept.engine, "begin", file.check)
    sqlalchemy.event.listen(kept.engine, "connect", _read_only if reads else _write_ahead)
    sqlalchemy.event.listen(kept.engine, "begin", _begin_reading if reads else _begin)
    if disk:
        kept.engine.dispose()  # what was connected before
    return kept


def _import_early() -> None:
    """Import what making tables needs: half a second for which others need not wait."""
    from alembic import command, config, migration, script  # noqa: F401


def _has_sqlite_tables(path: str, reads: bool) -> bool:
    """Return whether a database has all of Optuna's tables and, to be written to, writes ahead."""
    with closing(sqlite3.connect(path, timeout=WAIT)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        (ahead,) = connection.execute("PRAGMA journal_mode").fetchone()
        if not found or (ahead != "wal" and not reads):
            return False
        return bool(connection.execute("SELECT count(*) FROM alembic_version").fetchone()[0])  # is written last


def _write_ahead(connection: Any, _: Any) -> None:
    """Let a commit not wait for the disk, nor another program's readers for a writer.

    What is committed survives the process; after a power cut the last commits may be missing, nothing is torn.
    """
    connection.isolation_level = None  # `_begin` begins
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _read_only(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # `_begin_reading` begins
    connection.execute("PRAGMA query_only=ON")


def _begin(connection: sqlalchemy.Connection) -> None:
    """Wait for the right to write before reading: of two who tell a trial, the second sees that it has been told.

    SQLite refuses at once, without waiting, to let anybody write who has read what is old by then. Who only reads
    waits for nobody.
    """
    connection.exec_driver_sql("BEGIN" if READING.get() else "BEGIN IMMEDIATE")


def _begin_reading(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _postgresql(url: str, reads: bool) -> BaseStorage:
    bare, secrets = parted(url)  # Optuna and alembic never see a password, so that they cannot say it
    settings = {"pool_pre_ping": True, "connect_args": secrets}
    if not _has_postgresql_tables(url):
        if reads:
            return InMemoryStorage()
        _import_early()
        with starting(url):
            RDBStorage(bare, engine_kwargs=settings).engine.dispose()
    kept = Database(bare, engine_kwargs=settings, skip_table_creation=True)
    sqlalchemy.event.listen(kept.engine, "connect", _limit_waiting)
    kept.engine.dispose()  # what was connected before
    return kept


def _has_postgresql_tables(url: str) -> bool:
    """Return whether a database has all of Optuna's tables."""
    with closing(open_session(url)) as session:
        if session.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
            return False
        return session.execute("SELECT FROM alembic_version").fetchone() is not None  # is written last


def _limit_waiting(connection: Any, _: Any) -> None:
    """Let no statement wait for long for a process that is stopped inside a transaction; it is asked again."""
    connection.autocommit = True
    connection.execute(f"SET lock_timeout = '{WAIT:g}s'")
    connection.autocommit = False


class _JournalLock(BaseJournalFileLock):
    """A journal's lock, free when its owner is killed; Optuna's own then stall for 30 s."""

    def __init__(self, path: str, file: SameFile) -> None:
        self._path, self._file = path, file
        self._lock = LockFolder(path).lock("journal")

    def acquire(self) -> bool:
        """Wait for the lock, then cut off a record that its writer did not finish: the next would be glued to it.

        Raises:
            StorageGoneError: The journal was deleted or replaced.
            TimeoutError: Another process has kept the lock for long; it may be asked for again.
        """
        if not self._lock.acquire(limit=WAIT):
            raise TimeoutError(f"{self._lock.holder()} has held the lock of {self._path} for {WAIT:g} s")
        try:
            self._file.check()
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

    def __init__(self, url: str) -> None:
        path = path_of(url)
        if not Path(path).exists():
            open(path, "ab").close()
        self._file = SameFile(url)
        super().__init__(path, _JournalLock(path, self._file))
        self._holds, self._held = False, list[dict[str, Any]]()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep records back, until the first one that is appended afterwards."""
        self._holds, self._held = True, []
        try:
            yield
        finally:
            self._holds = False

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read records from a number on."""
        self._file.check()
        return super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, behind those that were kept back."""
        self._held += logs
        if not self._holds:
            logs, self._held = self._held, []
            super().append_logs(logs)


def _journal(url: str, reads: bool) -> BaseStorage:
    path = path_of(url)
    if reads and not exists(url):
        return InMemoryStorage()
    backend = _Journal(url)  # has no tables, and takes no lock until it is written to
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


SCHEMES: dict[str, Callable[[str, bool], BaseStorage]] = {
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
    return _open(url, reads=False)


def look(url: str) -> BaseStorage:
    """Open a storage to read it: nothing is made, no lock is taken, and nobody is waited for.

    A storage that has no tables yet is read as an empty one.

    Raises:
        StorageError: The URL is not understood or the storage cannot be opened.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    return _open(url, reads=True)


def _open(url: str, *, reads: bool) -> BaseStorage:
    refuse(url)
    try:
        return SCHEMES[scheme_of(url)](url, reads)
    except (StorageError, MissingExtraError):
        raise
    except Exception as error:  # SQLAlchemy, psycopg and the journal raise their own kinds
        raise cannot_be_opened(url, error) from None
