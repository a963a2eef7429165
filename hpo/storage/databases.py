"""Storages in SQLite and PostgreSQL: tables made once, transactions that wait for each other, and a time limit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from hpo.storage.postgres_session import open_session
from hpo.storage.storage_file import StorageFile
from hpo.storage.table_writer import Database
from hpo.storage.trial_locks import on_disk, starting
from hpo.storage.urls import path_of, split_secrets

LOCK_TIMEOUT = 60.0  # seconds that a statement waits for a lock inside the database before the wait is reported

READING: ContextVar[bool] = ContextVar("READING", default=False)
"""Whether the transactions that begin now only read."""


# ---------------------------------------------------------------- SQLite


def open_sqlite(url: str, reads: bool) -> BaseStorage:
    """Open a database in SQLite.

    Args:
        url: URL of the storage.
        reads: Whether it will only be read: then no file or table is made, and a missing one is read as empty.
    """
    disk = on_disk(url)
    if disk and not (Path(path_of(url)).exists() and _has_sqlite_tables(path_of(url), reads)):
        if reads:
            return InMemoryStorage()
        _import_alembic()
        with starting(url):
            with closing(sqlite3.connect(path_of(url), timeout=LOCK_TIMEOUT)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # this change needs the file alone, once
            RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT}}).engine.dispose()
    file = StorageFile(url) if disk else None
    database = Database(url, engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT}}, skip_table_creation=disk)
    if file is not None:
        sqlalchemy.event.listen(database.engine, "do_connect", file.check)  # else SQLite would make an empty file
        sqlalchemy.event.listen(database.engine, "begin", file.check)
    sqlalchemy.event.listen(database.engine, "connect", _set_read_only if reads else _set_write_ahead)
    sqlalchemy.event.listen(database.engine, "begin", _begin_reading if reads else _begin)
    if disk:
        database.engine.dispose()  # connections opened before the listeners were added
    return database


def _import_alembic() -> None:
    """Import what making tables needs. It takes half a second: do it before the lock is taken."""
    from alembic import command, config, migration, script  # noqa: F401


def _has_sqlite_tables(path: str, reads: bool) -> bool:
    """Return whether a database has all of Optuna's tables and, unless it is only read, a write-ahead log."""
    with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if not found or (mode != "wal" and not reads):
            return False
        # Optuna writes the version after it has made all tables.
        return bool(connection.execute("SELECT count(*) FROM alembic_version").fetchone()[0])


def _set_write_ahead(connection: Any, _: Any) -> None:
    """Use a write-ahead log: a commit does not wait for the disk, and readers do not wait for a writer.

    A commit survives the end of the process. After a power cut the last commits may be missing, but the database is
    consistent.
    """
    connection.isolation_level = None  # `_begin` begins transactions
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _set_read_only(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # `_begin_reading` begins transactions
    connection.execute("PRAGMA query_only=ON")


def _begin(connection: sqlalchemy.Connection) -> None:
    """Wait for the write lock before the first read: of two that tell one trial, the second sees that it was told.

    SQLite does not let a transaction write after another one has changed what it read; it fails without waiting.
    A transaction that only reads waits for no lock.
    """
    connection.exec_driver_sql("BEGIN" if READING.get() else "BEGIN IMMEDIATE")


def _begin_reading(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


# ---------------------------------------------------------------- PostgreSQL


def open_postgresql(url: str, reads: bool) -> BaseStorage:
    """Open a database in PostgreSQL.

    Args:
        url: URL of the storage.
        reads: Whether it will only be read: then no table is made, and a database without tables is read as empty.
    """
    bare, secrets = split_secrets(url)  # Optuna and alembic never see a password, so they cannot print it
    settings = {"pool_pre_ping": True, "connect_args": secrets}
    if not _has_postgresql_tables(url):
        if reads:
            return InMemoryStorage()
        _import_alembic()
        with starting(url):
            RDBStorage(bare, engine_kwargs=settings).engine.dispose()
    database = Database(bare, engine_kwargs=settings, skip_table_creation=True)
    sqlalchemy.event.listen(database.engine, "connect", _limit_waiting)
    database.engine.dispose()  # connections opened before the listener was added
    return database


def _has_postgresql_tables(url: str) -> bool:
    """Return whether a database has all of Optuna's tables."""
    with closing(open_session(url)) as session:
        if session.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
            return False
        # Optuna writes the version after it has made all tables.
        return session.execute("SELECT FROM alembic_version").fetchone() is not None


def _limit_waiting(connection: Any, _: Any) -> None:
    """Limit how long a statement waits for a process that is stopped inside a transaction; `Retry` repeats it."""
    connection.autocommit = True
    connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT:g}s'")
    connection.autocommit = False
