"""Locks of trials. A lock is free as soon as its owner dies: a trial whose lock is free has no owner.

SQLite and the journal file are for one machine: the kernel holds their locks, on files beside the storage's file.
PostgreSQL holds the locks of a connection itself: a process that loses its connection loses its locks.
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

LONGEST_WAIT = 60.0  # seconds to wait for one and the same process that makes tables or a study
POLL = 0.1  # seconds between two queries to a server

TAKE_START = "SELECT pg_try_advisory_lock(%s::bigint)"  # a key of 64 bits never equals a trial's pair of 32 bits
TAKE = "SELECT pg_try_advisory_lock(%s, %s)"
RELEASE = "SELECT pg_advisory_unlock(%s, %s)"
IS_HELD = """
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND pid = pg_backend_pid()
    AND classid = %s::int::oid AND objid = %s::int::oid
"""


class TrialLocks(ABC):
    """The locks of one study's trials that this process holds; a forked child does not inherit them."""

    @abstractmethod
    def take(self, number: int) -> bool:
        """Take a trial's lock; return False if anybody has it, this object too.

        Raises:
            StorageError: The server cannot be reached; try again later.
        """

    @abstractmethod
    def held(self, number: int) -> bool:
        """Ask the kernel or the server whether this object still has a trial's lock; return False if neither answers.

        A process that has lost the lock must not write to the trial.
        """

    @abstractmethod
    def release(self, number: int) -> None:
        """Release a trial's lock; nothing happens if it is not held."""

    @abstractmethod
    def close(self) -> None:
        """Release all locks."""

    def __enter__(self) -> TrialLocks:
        """Return the locks themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release all locks."""
        self.close()


class MemoryLocks(TrialLocks):
    """Locks of a study that no other process can see."""

    def __init__(self) -> None:
        self._held: set[int] = set()

    def take(self, number: int) -> bool:
        """Take a lock."""
        free = number not in self._held
        self._held.add(number)
        return free

    def held(self, number: int) -> bool:
        """Return whether a lock is held."""
        return number in self._held

    def release(self, number: int) -> None:
        """Release a lock."""
        self._held.discard(number)

    def close(self) -> None:
        """Release all locks."""
        self._held.clear()


class FileLocks(TrialLocks):
    """One file per trial, locked while the trial is owned, and never deleted."""

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
        """Release a lock."""
        if number in self._files:
            self._files.pop(number).release()

    def close(self) -> None:
        """Release all locks."""
        for number in list(self._files):
            self.release(number)


class PostgresLocks(TrialLocks):
    """Advisory locks of one session, on its own connection; if the connection is lost, all locks are."""

    def __init__(self, url: str, study: int) -> None:
        self._url, self._study = url, study
        self._held: set[int] = set()
        self._session = open_session(url)

    def take(self, number: int) -> bool:
        """Ask the server for a lock, over a new connection if the old one is lost."""
        if self._ask("SELECT 1") is None:
            self._session = open_session(self._url)
        if number in self._held or self._ask(TAKE, self._study, number) != (True,):
            return False
        self._held.add(number)
        return True

    def held(self, number: int) -> bool:
        """Ask the server whether this session has a lock."""
        return number in self._held and self._ask(IS_HELD, self._study, number) is not None

    def release(self, number: int) -> None:
        """Release a lock."""
        if number in self._held:
            self._held.remove(number)
            self._ask(RELEASE, self._study, number)

    def close(self) -> None:
        """Release all locks."""
        self._held.clear()
        self._session.close()

    def _ask(self, query: str, *values: int) -> tuple[Any, ...] | None:
        """Return the first row of the answer; None if there is none, or if the connection and its locks are lost."""
        import psycopg

        try:
            return self._session.execute(query.encode(), values).fetchone()
        except psycopg.OperationalError:
            if not self._session.closed:
                raise
            self._held.clear()
            return None


# ---------------------------------------------------------------- opened by URL


def on_disk(url: str) -> bool:
    """Return whether a storage is a file; its locks are files beside it."""
    return scheme_of(url) in FILES and path_of(url) not in ("", ":memory:")


def digest_of(study: str) -> bytes:
    """Return the digest that represents a study's name in paths and keys."""
    return hashlib.sha256(study.encode(errors="surrogatepass")).digest()


def key_of(purpose: str, study: str | None = None) -> int:
    """Return a key of 64 bits for an advisory lock of PostgreSQL.

    Args:
        purpose: What the lock is for.
        study: The name of its study; None for the whole database.
    """
    digest = b"" if study is None else digest_of(study)
    return int.from_bytes(hashlib.sha256(f"hpo {purpose} ".encode() + digest).digest()[:8], "big", signed=True)


def locks_for(url: str | None, study: str) -> TrialLocks:
    """Return the locks of a study's trials.

    Args:
        url: URL of the storage; None for one in memory.
        study: The study's name. Paths and keys have its digest only.

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

    Reading a study and resuming it need no lock. The lock does not nest: a process that takes it twice waits for
    itself.

    Raises:
        StorageHeldError: Another process has held it for `LONGEST_WAIT` seconds.
        StorageError: The storage is on a network file system, or its server cannot be reached.
    """
    purpose = "make the tables" if study is None else f"make study {study!r} or its rows"
    if url is not None and scheme_of(url) in POSTGRESQL:
        with closing(open_session(url)) as session:
            _wait(session, url, key_of("start", study), purpose)
            yield
    elif url is not None and on_disk(url):
        lock = LockFolder(path_of(url)).lock("start" if study is None else f"start-{digest_of(study).hex()[:16]}")
        if not lock.acquire(limit=LONGEST_WAIT):
            raise _held_error(url, lock.holder(), purpose)
        with lock:
            yield
    else:
        yield


def _wait(session: Any, url: str, key: int, purpose: str) -> None:
    """Poll for an advisory lock: PostgreSQL's own wait does not name the holder."""
    since, before = time.monotonic(), ""
    while session.execute(TAKE_START, [key]).fetchone() != (True,):
        if (holder := ", ".join(holders(session, key))) not in ("", before):
            since, before = time.monotonic(), holder
        if time.monotonic() - since >= LONGEST_WAIT:
            raise _held_error(url, before or "another process", purpose)
        time.sleep(POLL)


def _held_error(url: str, holder: str, purpose: str) -> StorageHeldError:
    return StorageHeldError(
        f"storage {redacted(url)}: {holder} has held the lock to {purpose} for {LONGEST_WAIT:g} s. It may be "
        "stopped: let it go on (kill -CONT) or end it (kill -9), and run the same command again"
    )
