"""Storages: URL scheme -> Optuna storage. SQLite by default, PostgreSQL for several machines, a journal file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from optuna.storages import BaseStorage

from hpo.core.errors import MissingExtraError, StorageError
from hpo.storage.databases import open_postgresql, open_sqlite
from hpo.storage.file_lock import refuse_network
from hpo.storage.journal import open_journal
from hpo.storage.urls import FILES, POSTGRESQL, is_file, opening_error, path_of, redacted, scheme_of, split_secrets

DEFAULT = "sqlite:///hpo.db"

SCHEMES: dict[str, Callable[[str, bool], BaseStorage]] = {
    "sqlite": open_sqlite,
    "journal": open_journal,
    **dict.fromkeys(POSTGRESQL, open_postgresql),
}


def choose(flag: str | None, file: str | None = None) -> str:
    """Return the storage's URL: from the command line, else the study file, else the environment, else `hpo.db` here.

    The environment has it in `HPO_STORAGE`, else in the file that `HPO_STORAGE_FILE` names, as containers hold secrets.
    A plain path that ends in `.db`, `.sqlite` or `.log` is understood as SQLite or a journal file.

    Raises:
        StorageError: `HPO_STORAGE_FILE` names a file that cannot be read, or that is not one line.
    """
    given = flag or file or os.environ.get("HPO_STORAGE") or _url_in_file() or DEFAULT
    if "://" not in given:
        scheme = {".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".log": "journal"}
        return f"{scheme.get(Path(given).suffix, 'unknown')}:///{given}"
    return given


def _url_in_file() -> str | None:
    path = os.environ.get("HPO_STORAGE_FILE")
    if not path:
        return None
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:  # a ValueError's text quotes the file: do not show it
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StorageError(f"HPO_STORAGE_FILE names {path}, which cannot be read: {reason}") from None
    urls = [line.strip() for line in lines if line.strip()]
    if len(urls) != 1:
        raise StorageError(f"HPO_STORAGE_FILE names {path}, which has {len(urls)} lines; write one, the storage's URL")
    return urls[0]


def exists(url: str) -> bool:
    """Return whether opening the storage would make no new file."""
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
        split_secrets(url)
    folder = Path(path_of(url)).parent
    if scheme_of(url) in FILES and not folder.is_dir():
        raise StorageError(f"storage {url}: there is no folder {folder}; create it, or name another place")
    if scheme_of(url) in FILES:
        refuse_network(folder)


def connect(url: str) -> BaseStorage:
    """Open a storage, and make its tables if it is new; any number of processes may do so at once.

    Raises:
        StorageError: The URL is not understood or the storage cannot be opened.
        MissingExtraError: PostgreSQL's driver is not installed.
    """
    return _open(url, reads=False)


def look(url: str) -> BaseStorage:
    """Open a storage to read it: this makes nothing, takes no lock and waits for no other process.

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
    except Exception as error:  # SQLAlchemy, psycopg and Optuna's journal raise their own kinds
        raise opening_error(url, error) from None
