"""The base of all views of a running command, and the view that shows only notes."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from optuna.trial import FrozenTrial

from hpo.cli.progress import Progress
from hpo.core.errors import hidden
from hpo.core.events import Observer
from hpo.core.formatting import duration, plain
from hpo.core.trainer import Evaluation, Seen


class View(Observer):
    """Shows a command from its start to its end, as a context manager.

    It shows the study and also other steps, such as loading a model. Steps are what hpo logs at level INFO.
    """

    def __init__(self) -> None:
        self._progress = Progress()
        self._seen: Callable[[], Mapping[int, Seen]] = dict
        self._step: tuple[str, float] | None = None  # the step under way besides training, and when it began
        self._lock = threading.RLock()  # the view reads how far trials are in a thread of its own
        self._handler = _StepHandler(self.doing)

    def __enter__(self) -> Self:
        """Receive what hpo logs."""
        logger = logging.getLogger("hpo")
        self._level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop receiving what hpo logs."""
        logger = logging.getLogger("hpo")
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)

    def doing(self, step: str) -> None:
        """Show a step that begins now."""
        step = plain(hidden(step))
        with self._lock:
            if self._step is None or self._step[0] != step:
                self._step = step, time.monotonic()
                self._step_begun(step)

    def _step_begun(self, step: str) -> None:
        """React to a step that has just begun."""

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Count the trials that have already ended."""
        with self._lock:
            self._progress, self._step = Progress.of(name, metric, direction, total, finished), None

    def follow(self, seen: Callable[[], Mapping[int, Seen]]) -> None:
        """Read from now on how far the trials are."""
        self._seen = seen
        self._look()

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Count a running trial."""
        with self._lock:
            self._progress.start(number, params)
            self._look()

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Remember a trial's latest score."""
        with self._lock:
            self._progress.evaluate(number, evaluation)

    def closed(self) -> None:
        """Stop reading how far the trials are."""
        self._seen = dict
        self._look()

    def _look(self) -> None:
        """Read how far the trials are; while one trains, no other step is shown."""
        with self._lock:
            seen = self._seen()
            self._progress.measure(seen)
            if seen:
                self._step = None

    def _time_left(self) -> str:
        left = self._progress.left
        return "unknown" if left is None else duration(left)


class _StepHandler(logging.Handler):
    """Passes on the messages of level INFO."""

    def __init__(self, receive: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            self._receive(record.getMessage())


class QuietView(View):
    """Only notes, on the standard error."""

    def note(self, message: str) -> None:
        """Print a sentence."""
        print(plain(message), file=sys.stderr, flush=True)


def counted(seen: int, of: int | None) -> str:
    """Return how far a trial is, in examples: seen and, if known, in all; a dash before the first."""
    return f"{seen}/{of}" if of else f"{seen}" if seen else "-"
