"""A storage in a journal file: a lock that is free when its owner dies, and several records in one append."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

from hpo.core.errors import StorageError
from hpo.storage.file_lock import LockFolder
from hpo.storage.storage_file import StorageFile
from hpo.storage.urls import path_of

RECORD_START = b'{"op_code":'  # every line of a journal begins with it

LOCK_TIMEOUT = 60.0  # seconds to wait for a journal's lock before the wait is reported


class _JournalLock(BaseJournalFileLock):
    """A journal's lock, which is free as soon as its owner is killed. Optuna's own locks stall for 30 s then."""

    def __init__(self, path: str, file: StorageFile) -> None:
        self._path, self._file = path, file
        self._lock = LockFolder(path).lock("journal")

    def acquire(self) -> bool:
        """Wait for the lock, then remove an unfinished record at the end: the next record would be joined to it.

        Raises:
            StorageGoneError: The journal was deleted or replaced.
            TimeoutError: Another process has held the lock for `LOCK_TIMEOUT` seconds. The call may be repeated.
        """
        if not self._lock.acquire(limit=LOCK_TIMEOUT):
            raise TimeoutError(f"{self._lock.holder()} has held the lock of {self._path} for {LOCK_TIMEOUT:g} s")
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
        """Release the lock."""
        self._lock.release()


class _JournalFile(JournalFileBackend):
    """A journal's file, which can append several records under one lock, with one wait for the disk."""

    def __init__(self, url: str) -> None:
        path = path_of(url)
        if not Path(path).exists():
            open(path, "ab").close()
        self._file = StorageFile(url)
        super().__init__(path, _JournalLock(path, self._file))
        self._is_holding, self._held = False, list[dict[str, Any]]()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold records back inside; the first append after the end writes them all."""
        self._is_holding, self._held = True, []
        try:
            yield
        finally:
            self._is_holding = False

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read records from a number on."""
        self._file.check()
        return super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, after those that were held back."""
        self._held += logs
        if not self._is_holding:
            logs, self._held = self._held, []
            records = b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in logs)
            with get_lock_file(self._lock):
                self._append(records)

    def _append(self, records: bytes) -> None:
        """Append to the file; Optuna's own method would make a new file in the place of one that was just deleted."""
        try:
            with open(self._file_path, "rb+") as file:
                file.seek(0, os.SEEK_END)
                file.write(records)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            self._file.check()
            raise


def open_journal(url: str, reads: bool) -> BaseStorage:
    """Open a journal file.

    Args:
        url: URL of the storage.
        reads: Whether it will only be read: then a file that does not exist is not made, but read as empty.

    Raises:
        StorageError: The file is not a journal of Optuna.
    """
    path = path_of(url)
    if reads and not Path(path).exists():
        return InMemoryStorage()
    backend = _JournalFile(url)  # makes no tables, and takes no lock before it writes
    with open(path, "rb") as file:
        first = file.readline()
    unfinished = not first.endswith(b"\n") and RECORD_START.startswith(first[: len(RECORD_START)])
    try:
        # Optuna treats a last line that it cannot read as one being written: a file of one such line is read as empty.
        if next(backend.read_logs(0), None) is None and not unfinished:
            raise ValueError("no line of it is a record")
        return JournalStorage(backend)
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # what Optuna raises for any other file
        raise StorageError(
            f"storage {url} cannot be opened: {path} is not an Optuna journal, or is damaged "
            f"({type(error).__name__}: {error}). Name another file"
        ) from None
