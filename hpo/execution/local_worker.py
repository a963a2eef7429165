"""Workers: processes that run the trials of a study, started by a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

STORAGE = "HPO_WORKER_STORAGE"
"""Environment variable with the storage's URL: on the command line, a password in it would be visible to all users."""

SUPERVISED = "HPO_SUPERVISED"
"""Environment variable of a worker whose standard input ends when its supervisor ends."""

LOST = 71
"""Stands for the exit code of a process whose machine was lost."""


class Worker(ABC):
    """A process that runs trials, already started, on any machine."""

    @abstractmethod
    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""

    @abstractmethod
    def last_words(self) -> str:
        """Return the error that it has ended with, as it was printed for the user."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to put its trials back and end."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


class LocalWorker(Worker):
    """A worker on this machine.

    Args:
        arguments: Of `hpo worker`, the study first.
        url: URL of the storage.
        log: File that its output is appended to.
        environment: Variables added to the environment of this process.
    """

    def __init__(
        self, arguments: Sequence[str], url: str, log: Path, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        command = [sys.executable, "-m", "hpo.cli", "worker", *arguments]
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._began = output.tell()
            # A session of its own: Ctrl-C reaches the supervisor alone, which passes it on once.
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment, STORAGE: url, SUPERVISED: "1"},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return its exit code."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait()

    def last_words(self) -> str:
        """Return the last error in its log, or the end of the log."""
        with self._log.open("rb") as file:
            file.seek(self._began)
            output = file.read().decode(errors="replace")
        return output.rpartition("error: ")[2].strip() if "error: " in output else output[-2000:].strip()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()
        self._process.wait()


def end_with_supervisor() -> None:
    """Send SIGTERM to this process when its standard input ends, which means that its supervisor has ended."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
