"""Writing checkpoints in a thread of its own, while training goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from hpo.execution.checkpoint_store import Checkpoint, Checkpoints

FIRST = 60  # seconds of a process before its first checkpoint: less work than that is quickly done again
REST = 20  # pause after a checkpoint, as a multiple of the time it took: writing takes less than 5 % of the time


class CheckpointWriter:
    """Writes checkpoints in the background, from the second minute on, one at a time, in less than 5 % of the time.

    Args:
        checkpoints: Where they are written.
        clock: Seconds, from any beginning.

    Attributes:
        problem: Why a checkpoint could not be written: the first reason; None if all were written.
    """

    def __init__(self, checkpoints: Checkpoints, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem: str | None = None
        self._checkpoints, self._clock = checkpoints, clock
        self._due = clock() + FIRST
        self._thread: threading.Thread | None = None

    def offer(self, array: str, take: Callable[[], Checkpoint]) -> None:
        """Write an array's checkpoint in the background if one is due; returns without waiting for it.

        Args:
            array: Its name.
            take: Returns the checkpoint, in memory that training does not change. Called before this returns.
        """
        if (self._thread is not None and self._thread.is_alive()) or self._clock() < self._due:
            return
        began = self._clock()
        try:
            checkpoint = take()
        except Exception as error:  # mostly that there is no memory for a copy
            self._note_problem(f"no checkpoint was taken ({type(error).__name__}: {error})")
            self._set_due(began)
            return
        # A daemon, so that a disk that hangs does not hold up the end of the process.
        given = (array, checkpoint, began)
        self._thread = threading.Thread(target=self._write, args=given, name="checkpoint", daemon=True)
        self._thread.start()

    def flush(self, array: str, checkpoint: Checkpoint) -> None:
        """Write an array's checkpoint now, after the one that is being written."""
        self._wait()
        self._write(array, checkpoint, self._clock())

    def close(self) -> None:
        """Wait for the checkpoint that is being written; later offers are ignored."""
        self._wait()
        self._due = math.inf

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _write(self, array: str, checkpoint: Checkpoint, began: float) -> None:
        try:
            self._note_problem(self._checkpoints.save(array, checkpoint))
        except Exception as error:  # checkpoints are a cache: training goes on without
            self._note_problem(f"no checkpoint was written ({type(error).__name__}: {error})")
        self._set_due(began)

    def _note_problem(self, reason: str | None) -> None:
        self.problem = self.problem or reason

    def _set_due(self, began: float) -> None:
        ended = self._clock()
        self._due = ended + REST * (ended - began)
