"""Requests to stop a process that trains: a signal asks it to stop, and a watchdog ends a process that hangs."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STALLED = 70
"""Exit code of a process that its watchdog ended."""

TICK = 1.0  # seconds


class StopRequest:
    """A flag that asks training to stop after the current step. Reading it tells the watchdog that training is alive.

    It is no `threading.Event`, because an event has a lock, and a signal handler must not wait for a lock.

    Attributes:
        deadline: When the time is up, on the clock of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.deadline = math.inf
        self._asked = False
        self.silent = 0  # ticks since the flag was last read

    def set(self) -> None:
        """Ask to stop."""
        self._asked = True

    def is_set(self) -> bool:
        """Return whether a stop was asked for."""
        self.silent = 0
        return self._asked

    def is_due(self) -> bool:
        """Return whether a stop was asked for or the time is up: work that takes long and is short to repeat ends."""
        return self.is_set() or time.monotonic() >= self.deadline


@contextmanager
def handling_signals(request: StopRequest) -> Iterator[None]:
    """Set `request` at the first SIGINT or SIGTERM; raise KeyboardInterrupt at the second.

    A process that ignores a signal, such as a shell's background job, still ignores it. Outside the main thread nothing
    is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    heard = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True
        request.set()
        os.write(2, b"\nstopping after the step under way; once more to stop at once\n")  # print takes a lock

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watchdog(request: StopRequest, limit: float | None) -> Iterator[None]:
    """End the process if `request` is not read for some time, so that other processes adopt its trials.

    The watchdog counts its own ticks instead of time, so that the time of a stopped process (SIGSTOP, a suspended
    machine) does not count.

    Args:
        request: The flag that training reads after every step.
        limit: Seconds without a read after which the process ends; None never ends it.
    """
    closed = threading.Event()

    def watch(limit: float) -> None:
        request.silent = 0
        while not closed.wait(TICK):
            request.silent += 1
            if request.silent * TICK > limit:
                _end(limit)

    if limit is not None:
        threading.Thread(target=watch, args=(limit,), daemon=True).start()
    try:
        yield
    finally:
        closed.set()


def _end(limit: float) -> NoReturn:
    sys.stderr.write(
        f"nothing has progressed for {limit:g} s: this process ends, its trials go on in another. It was at\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback()
    os._exit(STALLED)
