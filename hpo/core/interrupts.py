"""How a process that trains is asked to end: by a signal, or by its own watchdog."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STALLED = 70
"""Exit code of a process that its watchdog has ended."""

TICK = 1.0  # seconds


class StopRequest:
    """A flag that asks for an end after the step under way; whoever looks at it shows that he is alive.

    A `threading.Event` has a lock, which a signal's handler must not wait for.
    """

    def __init__(self) -> None:
        self._asked = False
        self.silent = 0  # ticks since anybody has looked

    def set(self) -> None:
        """Ask for an end."""
        self._asked = True

    def is_set(self) -> bool:
        """Return whether an end is asked for."""
        self.silent = 0
        return self._asked


@contextmanager
def handling_signals(request: StopRequest) -> Iterator[None]:
    """Set `request` at the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt wherever the program is.

    What ignores a signal, such as a job in the background of a shell, goes on ignoring it. In a thread that is not
    the main one nothing is changed.
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
        os.write(2, b"\nstopping after the step under way; once more to stop at once\n")  # takes no lock

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watchdog(request: StopRequest, limit: float | None) -> Iterator[None]:
    """End the process when nobody has looked at `request` for a while, so that others adopt its trials.

    Ticks are counted, not time: none passes while the process is stopped (SIGSTOP, a suspended machine).

    Args:
        request: What is looked at after every step of training.
        limit: Seconds of silence after which the process ends; None never ends it.
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
