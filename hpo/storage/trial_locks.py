"""Who owns a trial: locks that die with their owner, so that a trial whose lock is free has none.

SQLite and the journal file are for one machine: the kernel keeps their locks, on files beside the storage's own.
PostgreSQL keeps them itself, for as long as a connection lasts. Whoever lost that connection lost its locks.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from hpo.core.errors import StorageHeldError
from hpo.storage.file_lock import FileLock, LockFolder
from hpo.storage.postgres_session import holders, open_session
from hpo.storage.urls import FILES, POSTGRESQL, path_of, redacted, scheme_of

LIMIT = 60.0  # seconds to wait for one and the same process that makes tables or a study
PACE = 0.1  # seconds between two questions to a server

TAKE_START = "SELECT pg_try_advisory_lock(%s::bigint)"  # keys of 64 bits: never one of the pairs that trials have
TAKE = "SELECT pg_try_advisory_lock(%s, %s)"
RELEASE = "SELECT pg_advisory_unlock(%s, %s)"
HELD = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND pid = pg_backend_pid()
    AND classid = %s::int::oid AND objid = %s::int::oid
"""


class Locks(ABC):
    """The locks of one study's trials that this process holds; none passes to a process that it forks."""

    @abstractmethod
    def take(self, number: int) -> bool:
        """Take a trial's lock; False if anybody has it, this very object too.

        Raises:
            StorageError: The server cannot be reached; try again later.
        """

    @abstractmethod
    def held(self, number: int) -> bool:
        """Return whether this object still has a trial's lock: found out, not remembered.

        False too where that cannot be found out. Who is not the owner any more must not write.
        """

    @abstractmethod
    def release(self, number: int) -> None:
        """Give a trial's lock back; nothing happens if it is not held."""

    @abstractmethod
    def close(self) -> None:
        """Give all locks back."""

    def __enter__(self) -> Locks:
        """Return the locks themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give all locks back."""
        self.close()


class MemoryLocks(Locks):
    """Locks of a study that no other process sees."""

    def __init__(self) -> None:
        self._mine: set[int] = set()

    def take(self, number: int) -> bool:
        """Take a lock."""
        free = number not in self._mine
        self._mine.add(number)
        return free

    def held(self, number: int) -> bool:
        """Return whether a lock is held."""
        return number in self._mine

    def release(self, number: int) -> None:
        """Give a lock back."""
        self._mine.discard(number)

    def close(self) -> None:
        """Give all locks back."""
        self._mine.clear()


class FileLocks(Locks):
    """A file a trial, locked while the trial is owned and never deleted."""

    def __init__(self, folder: LockFolder, study: str) -> None:
        self._folder, self._study = folder, study
        self._files: dict[int, FileLock] = {}

    def take(self, number: int) -> bool:
        """Lock the trial's file."""
        if self.held(number):
            return False
        self.release(number)
        lock = self._folder.lock(self._study, f"{number:d}")
        if lock.acquire(limit=0):
            self._files[number] = lock
        return number in self._files

    def held(self, number: int) -> bool:
        """Return whether the file that others would lock is the one that is locked here."""
        return number in self._files and self._files[number].held()

    def release(self, number: int) -> None:
        """Give a lock back."""
        if number in self._files:
            self._files.pop(number).release()

    def close(self) -> None:
        """Give all locks back."""
        for number in list(self._files):
            self.release(number)


class PostgresLocks(Locks):
    """Advisory locks of one session, on a connection of its own: all are lost with it."""

    def __init__(self, url: str, study: int) -> None:
        self._url, self._study = url, study
        self._mine: set[int] = set()
        self._session = open_session(url)

    def take(self, number: int) -> bool:
        """Ask the server for a lock, over a new connection where the old one is gone."""
        if self._ask("SELECT 1") is None:
            self._session = open_session(self._url)
        if number in self._mine or self._ask(TAKE, self._study, number) != (True,):
            return False
        self._mine.add(number)
        return True

    def held(self, number: int) -> bool:
        """Ask the server whether this session has a lock."""
        return number in self._mine and self._ask(HELD, self._study, number) is not None

    def release(self, number: int) -> None:
        """Give a lock back."""
        if number in self._mine:
            self._mine.remove(number)
            self._ask(RELEASE, self._study, number)

    def close(self) -> None:
        """Give all locks back."""
        self._mine.clear()
        self._session.close()

    def _ask(self, query: str, *values: int) -> tuple[Any, ...] | None:
        """Return the answer's row; None if there is none, or the connection is gone and with it every lock."""
        import psycopg

        try:
            return self._session.execute(query.encode(), values).fetchone()
        except psycopg.OperationalError:
            if not self._session.closed:
                raise
            self._mine.clear()
            return None


# ---------------------------------------------------------------- from a URL


def on_disk(url: str) -> bool:
    """Return whether a storage is a file, with its locks beside it."""
    return scheme_of(url) in FILES and path_of(url) not in ("", ":memory:")


def digest_of(study: str) -> bytes:
    """Return what stands for a study's name in paths and keys."""
    return hashlib.sha256(study.encode(errors="surrogatepass")).digest()


def key_of(purpose: str, study: str | None = None) -> int:
    """Return a key of 64 bits for an advisory lock of PostgreSQL.

    Args:
        purpose: What the lock is for.
        study: The study that it is of; None is the whole database.
    """
    of = b"" if study is None else digest_of(study)
    return int.from_bytes(hashlib.sha256(f"hpo {purpose} ".encode() + of).digest()[:8], "big", signed=True)


def locks_for(url: str | None, study: str) -> Locks:
    """Return the locks of a study's trials.

    Args:
        url: URL of the storage; None for one in memory.
        study: The study's name. Only a digest of it is used: it is in no path.

    Raises:
        StorageError: The storage is on a network file system, or its server cannot be reached.
    """
    digest = digest_of(study)
    if url is not None and scheme_of(url) in POSTGRESQL:
        return PostgresLocks(url, int.from_bytes(digest[:4], "big", signed=True))
    if url is not None and on_disk(url):
        return FileLocks(LockFolder(path_of(url)), digest.hex()[:16])
    return MemoryLocks()


@contextmanager
def starting(url: str | None, study: str | None = None) -> Iterator[None]:
    """Hold the lock under which one process makes a study and its rows or, without a study, a storage's tables.

    Only who makes something takes it: reading and going on need none. It does not nest: a process that holds it
    already would wait for itself.

    Raises:
        StorageHeldError: Another process has kept it for `LIMIT` seconds.
        StorageError: The storage is on a network file system, or its server cannot be reached.
    """
    what = "make the tables" if study is None else f"make study {study!r} or its rows"
    if url is not None and scheme_of(url) in POSTGRESQL:
        with closing(open_session(url)) as session:
            _wait(session, url, key_of("start", study), what)
            yield
    elif url is not None and on_disk(url):
        lock = LockFolder(path_of(url)).lock("start" if study is None else f"start-{digest_of(study).hex()[:16]}")
        if not lock.acquire(limit=LIMIT):
            raise _held(url, lock.holder(), what)
        with lock:
            yield
    else:
        yield


def _wait(session: Any, url: str, key: int, what: str) -> None:
    """Wait for an advisory lock, asking again and again: a server's own waiting does not say for whom."""
    since, before = time.monotonic(), ""
    while session.execute(TAKE_START, [key]).fetchone() != (True,):
        if (holder := ", ".join(holders(session, key))) not in ("", before):
            since, before = time.monotonic(), holder
        if time.monotonic() - since >= LIMIT:
            raise _held(url, before or "another process", what)
        time.sleep(PACE)


def _held(url: str, holder: str, what: str) -> StorageHeldError:
    return StorageHeldError(
        f"storage {redacted(url)}: {holder} has held the lock to {what} for {LIMIT:g} s. It may be stopped: let it go "
        "on (kill -CONT) or end it (kill -9), and run the same command again"
    )
