"""Storages: URL scheme -> Optuna storage. SQLite by default, PostgreSQL for several machines, a journal file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from hpo.errors import MissingExtraError, StorageError

DEFAULT = "sqlite:///hpo.db"


def _sqlite(url: str) -> BaseStorage:
    kept = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    sqlalchemy.event.listen(kept.engine, "connect", _write_ahead)
    kept.engine.dispose()  # what was connected before
    return kept


def _write_ahead(connection: Any, _: Any) -> None:
    """Let readers and a writer not wait for each other, and a commit not for the disk.

    What is committed survives the process; after a power cut the last commits may be missing, nothing is torn.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _postgresql(url: str) -> BaseStorage:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise MissingExtraError("A PostgreSQL storage", "postgresql") from None
    with_driver = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    return RDBStorage(with_driver, engine_kwargs={"pool_pre_ping": True})


def _journal(url: str) -> BaseStorage:
    path = _path(url)
    backend = JournalFileBackend(path, JournalFileOpenLock(path))
    try:
        # Optuna takes a last line that it cannot read for one that is being written, so a file of one line is empty.
        if next(backend.read_logs(0), None) is None and Path(path).stat().st_size:
            raise ValueError("no line of it is a record")
        return JournalStorage(backend)
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # what reading anything else ends in
        raise StorageError(
            f"storage {url} cannot be opened: {path} is not an Optuna journal, or is damaged "
            f"({type(error).__name__}: {error}). Name another file"
        ) from None


SCHEMES: dict[str, Callable[[str], BaseStorage]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "postgresql+psycopg": _postgresql,
    "postgres": _postgresql,
    "journal": _journal,
}


def _path(url: str) -> str:
    """Return the file of `scheme:///relative` or `scheme:////absolute`."""
    return url.partition("://")[2].partition("?")[0][1:]


def redacted(url: str) -> str:
    """Return a URL without its password, for messages and reports."""
    return re.sub(r"(password=)[^&\s]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def choose(flag: str | None, file: str | None = None) -> str:
    """Return the storage's URL: the command line's, else the file's, else `HPO_STORAGE`, else `hpo.db` here.

    A plain path that ends in `.db`, `.sqlite` or `.log` is understood as SQLite or a journal file.
    """
    given = flag or file or os.environ.get("HPO_STORAGE") or DEFAULT
    if "://" not in given:
        scheme = {".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".log": "journal"}
        return f"{scheme.get(Path(given).suffix, 'unknown')}:///{given}"
    return given


def exists(url: str) -> bool:
    """Return whether opening the storage would write no new file."""
    scheme = url.partition("://")[0]
    return Path(_path(url)).exists() if scheme in ("sqlite", "journal") else True


def refuse(url: str) -> None:
    """Refuse a URL that cannot be opened, before anything else is done.

    Raises:
        StorageError: The scheme is not known, or there is no folder for the file.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise StorageError(
            f"storage {redacted(url)!r}: not understood. Write sqlite:///hpo.db, journal:///hpo.log "
            "or postgresql://user@host/database"
        )
    folder = Path(_path(url)).parent
    if scheme in ("sqlite", "journal") and not folder.is_dir():
        raise StorageError(f"storage {url}: there is no folder {folder}; create it, or name another place")


def connect(url: str) -> BaseStorage:
    """Open a storage, with its tables made if it is new.

    Raises:
        StorageError: The URL is not understood or the storage cannot be opened.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    refuse(url)
    try:
        return SCHEMES[url.partition("://")[0]](url)
    except (StorageError, MissingExtraError):
        raise
    except Exception as error:  # SQLAlchemy, psycopg and the journal raise their own kinds; the URL stays out
        reason = redacted(str(error.__cause__ or error)).splitlines()[0] if str(error.__cause__ or error) else ""
        raise StorageError(
            f"storage {redacted(url)} cannot be opened ({type(error).__name__}: {reason}). "
            "Check that the path or server exists and may be written"
        ) from None
