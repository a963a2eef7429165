"""The view for logs: lines that programs can read."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from optuna.trial import FrozenTrial
from rich.console import Console

from hpo.analysis.trial_summary import finite_value, remarks
from hpo.cli.view import View, counted
from hpo.core.formatting import number
from hpo.core.trainer import Evaluation

SILENCE = 15.0  # seconds after which a log gets another line, and between two lines of evaluations of a trial
TICK = 0.5  # seconds between two readings of how far the trials are


class LineView(View):
    """Lines for logs and for programs: `key=value` after the first word or two.

    A trial that ends is printed as a line. An evaluation is printed only if the trial's last line is `SILENCE` old.
    After `SILENCE` without any line, one is printed that says how far the study is.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._printed = time.monotonic()
        self._trial_printed: dict[int, float] = {}  # trial -> when it started, or when its last line was printed
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        """Print at least a line every `SILENCE` seconds from now on."""
        super().__enter__()
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop printing."""
        self._closing.set()
        super().__exit__(*raised)

    def _step_begun(self, step: str) -> None:
        self._print(f"doing {json.dumps(step)}")

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Print the study's name and how far it is."""
        super().opened(name, metric, direction, total, finished)
        self._print(f"study {_word(name)} metric={_word(metric)} direction={direction} {self._count()}")

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Remember when a trial started."""
        super().started(number, params)
        self._trial_printed[number] = time.monotonic()

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Print a score, unless the trial's last line is recent."""
        super().evaluated(number, evaluation)
        now = time.monotonic()
        if now - self._trial_printed.get(number, now) < SILENCE:
            return
        self._trial_printed[number] = now
        words = [f"trial {number}", f"value={_word(float(evaluation.value))}"]
        words += [f"at={evaluation.at}"] if evaluation.at is not None else []
        words += [f"of={evaluation.of}"] if evaluation.of else []
        self._print(" ".join([*words, f"left={_word(self._time_left())}"]))

    def ended(self, trial: FrozenTrial) -> None:
        """Print how a trial ended, its hyperparameters last."""
        with self._lock:
            span = self._progress.end(trial)
        best = self._progress.best
        self._trial_printed.pop(trial.number, None)
        words = [f"trial {trial.number}", f"state={trial.state.name.lower()}"]
        words += [f"value={number(value)}"] if (value := finite_value(trial)) is not None else []
        words += [f"seconds={span:.1f}"] if span is not None else []
        words += [f"reason={_word(reason)}"] if (reason := remarks(trial)) else []
        words += [self._count()]
        words += [f"best={number(finite_value(best))} best_trial={best.number}"] if best is not None else []
        words += [f"{name}={_word(value)}" for name, value in trial.params.items()]
        self._print(" ".join(words))

    def note(self, message: str) -> None:
        """Print a sentence."""
        self._print(f"note {_word(message)}")

    def _tick(self) -> None:
        """Print how far the study is whenever nothing has been printed for a while."""
        while not self._closing.wait(min(TICK, SILENCE / 4)):
            self._look()
            if time.monotonic() - self._printed >= SILENCE:
                self._print(self._state())

    def _state(self) -> str:
        """Return what runs now, as a line."""
        with self._lock:
            progress = self._progress
            if self._step is not None:
                return f"doing {json.dumps(self._step[0])} seconds={time.monotonic() - self._step[1]:.0f}"
            trials = sorted(progress.running.items())
            words = [f"running trials={','.join(str(number) for number, _ in trials) or '-'}"]
            if any(trial.seen for _, trial in trials):
                words += [f"seen={','.join(counted(trial.seen, trial.of) for _, trial in trials)}"]
            if progress.speed is not None:
                words += [f"examples_per_second={number(progress.speed, 3)}"]
            return " ".join([*words, self._count(), f"left={_word(self._time_left())}"])

    def _count(self) -> str:
        return f"finished={self._progress.finished}/{self._progress.total}"

    def _print(self, line: str) -> None:
        with self._lock:
            print(line, file=self.console.file, flush=True)  # rich would wrap it
            self._printed = time.monotonic()


def _word(value: Any) -> str:
    """Return a value as one word of a line; text with blanks or punctuation in quotes, as JSON."""
    if isinstance(value, float):
        return number(value)
    text = str(value)
    bare = text and all(c.isalnum() or c in "._-+/" for c in text)
    return text if bare else json.dumps(text)
