"""The processes that run a study: how they are listed, and how `hpo stop` asks them to end.

Each process holds a lock while it runs, which names it. The process that asks them to end holds the study's stop lock
until they have ended; they check it every second. Both locks are released when their owner ends, so a request does
not reach a process that is started later.
"""

from __future__ import annotations

import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hpo.storage.file_lock import FileLock, LockFolder
from hpo.storage.postgres_session import holders, open_session
from hpo.storage.trial_locks import TAKE_START, digest_of, key_of, on_disk
from hpo.storage.urls import POSTGRESQL, path_of, scheme_of

LOOK = 1.0  # seconds between two checks of the stop lock


class Processes(ABC):
    """The processes of one study, for one of them or another process."""

    @abstractmethod
    def join(self) -> None:
        """Register this process as one of them."""

    @abstractmethod
    def asked(self) -> bool:
        """Return whether they are asked to end."""

    @abstractmethod
    def ask(self) -> None:
        """Ask them to end; the request stands until `close`."""

    @abstractmethod
    def running(self) -> list[str]:
        """Return the names of those that run: `process 12 on host`."""

    @abstractmethod
    def close(self) -> None:
        """Unregister this process, and withdraw its request."""


class FileProcesses(Processes):
    """Processes of this machine: each locks a file of its own beside the storage's file."""

    def __init__(self, folder: LockFolder, study: str) -> None:
        self._folder, self._place = folder, f"{study}-processes"
        self._member: FileLock | None = None
        self._stop = folder.lock(self._place, "stop")

    def join(self) -> None:
        """Lock a file of its own, once the storage exists."""
        if self._member is None and self._folder.database.exists():
            member = self._folder.lock(self._place, f"{os.getpid()}-{uuid.uuid4().hex[:8]}")
            self._member = member if member.acquire(limit=LOOK) else None
            self.running()  # deletes the files of killed processes

    def asked(self) -> bool:
        """Return whether the stop file is locked."""
        return self._stop.is_held()

    def ask(self) -> None:
        """Lock the stop file, unless another process has locked it."""
        if not self._stop.held():
            self._stop.acquire(limit=LOOK)

    def running(self) -> list[str]:
        """Return the holders of the files that are locked, and delete the others."""
        found = []
        if self._folder.path.exists():
            self._folder.make(self._folder.path)  # raises if this user cannot read it: it would seem empty
        for path in sorted((self._folder.path / self._place).glob("[0-9]*")):
            lock = self._folder.lock(self._place, path.name)
            if lock.is_held():
                found.append(lock.holder())
            else:
                path.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """Release the stop file, and delete this process's own file."""
        self._stop.release()
        if self._member is not None:
            self._member.remove()
            self._member = None


class ServerProcesses(Processes):
    """Processes of any machine: each shares an advisory lock of PostgreSQL, on a connection of its own."""

    def __init__(self, url: str, study: str) -> None:
        self._url = url
        self._running, self._stop = key_of("processes", study), key_of("stop", study)
        self._opened: Any = None

    def join(self) -> None:
        """Share the lock of those that run, over a new connection if the old one was closed."""
        if self._opened is None:
            self._session.execute("SELECT pg_advisory_lock_shared(%s::bigint)", [self._running])

    def asked(self) -> bool:
        """Ask the server whether the stop lock is held."""
        return bool(holders(self._session, self._stop))

    def ask(self) -> None:
        """Take the stop lock, unless this or another process holds it."""
        if not self.asked():
            self._session.execute(TAKE_START, [self._stop])

    def running(self) -> list[str]:
        """Ask the server which processes share the lock of those that run."""
        return holders(self._session, self._running)

    def close(self) -> None:
        """Close the connection, which releases its locks."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _session(self) -> Any:
        if self._opened is None:
            self._opened = open_session(self._url)
        return self._opened


def processes_of(url: str | None, study: str) -> Processes | None:
    """Return the processes of a study; None if no other process can see it.

    Raises:
        StorageError: The storage is on a network file system.
    """
    if url is not None and scheme_of(url) in POSTGRESQL:
        return ServerProcesses(url, study)
    if url is not None and on_disk(url):
        return FileProcesses(LockFolder(path_of(url)), digest_of(study).hex()[:16])
    return None


@contextmanager
def joined(url: str | None, study: str, end: Callable[[], object]) -> Iterator[None]:
    """Register as one of the processes of a study.

    Args:
        url: URL of the storage; None for one in memory.
        study: The study's name.
        end: Called once, in another thread, when the processes are asked to end.
    """
    processes, over = processes_of(url, study), threading.Event()
    if processes is None:
        yield
        return
    follower = threading.Thread(target=_follow, args=(processes, over, end), daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join(2 * LOOK)  # it may hang in a call to the server


def _follow(processes: Processes, over: threading.Event, end: Callable[[], object]) -> None:
    """Stay registered until `over` is set; if the storage cannot be reached, register again later."""
    asked = False
    while not over.is_set():
        try:
            processes.join()
            if not asked and processes.asked():
                asked = True
                os.write(2, b"\nhpo stop asks this process to end\n")
                end()
        except Exception:  # of the storage: the training thread meets it too, and reports it
            with suppress(Exception):
                processes.close()
        over.wait(LOOK)
    with suppress(Exception):
        processes.close()
