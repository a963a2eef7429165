"""The file of a storage, which must not be deleted or replaced while the storage is open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hpo.core.errors import StorageGoneError
from hpo.storage.urls import path_of, redacted


class StorageFile:
    """The file of a storage, as it was when it was opened.

    A process can go on writing to an open file that has been deleted. What it writes is lost when it closes the file.
    """

    def __init__(self, url: str) -> None:
        self._url, self._path = url, Path(path_of(url)).absolute()
        self._opened = os.stat(self._path)

    def check(self, *_: Any) -> None:
        """Check that the path still leads to the file that was opened.

        Raises:
            StorageGoneError: The file was deleted, moved or replaced.
        """
        try:
            problem = None if os.path.samestat(self._opened, os.stat(self._path)) else "replaced by another file"
        except OSError as error:
            problem = f"deleted or moved ({error.strerror})"
        if problem is not None:
            raise StorageGoneError(
                f"the storage {redacted(self._url)} is gone: {self._path} was {problem} while it was in use, so that "
                "the results since then are not in it. Put the file back, from a copy if need be, and run the same "
                "command again to go on; without it, the same command begins the study anew"
            )
