"""What is shown while a study runs: a live table on a terminal, plain lines elsewhere, or next to nothing."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.formatting import duration, finite, number, plain, remarks, seconds
from hpo.objective import Evaluation
from hpo.progress import Progress

RECENT = 8  # ended trials that stay in sight
STATE_STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


def view(quiet: bool, console: Console) -> LiveView | LineView | QuietView:
    """Return what suits: notes only, a live table on a terminal, a line a trial in a log."""
    if quiet:
        return QuietView()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return LineView(console)


class LiveView:
    """A table that follows the study on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress()
        self._recent: deque[tuple[FrozenTrial, float | None]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()  # the table is drawn from a thread of its own
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Show an open study with what has already ended."""
        with self._lock:
            self._progress = Progress.of(name, metric, direction, total, finished)
            self._recent.extend((trial, seconds(trial)) for trial in finished)
        self._live.start()

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Add a running trial."""
        with self._lock:
            self._progress.start(number, params)

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Show a trial's latest score."""
        with self._lock:
            if number in self._progress.running:
                self._progress.running[number].evaluation = evaluation

    def ended(self, trial: FrozenTrial) -> None:
        """Move a trial to those that have ended."""
        with self._lock:
            self._recent.append((trial, self._progress.end(trial)))

    def note(self, message: str) -> None:
        """Print a sentence above the table."""
        self.console.print(Text(plain(message)))

    def closed(self) -> None:
        """Leave the last state of the table on the screen."""
        self._live.stop()

    def _render(self) -> RenderableType:
        with self._lock:
            parts = [self._header(), self._running(), self._ended()]
            return Group(*(part for part in parts if part is not None))

    def _header(self) -> RenderableType:
        progress = self._progress
        best = "-" if progress.best is None else f"{number(finite(progress.best))} (trial {progress.best.number})"
        left = "unknown" if progress.left is None else duration(progress.left)
        return Text.assemble(
            (progress.name, "bold"),
            f"  {progress.finished}/{progress.total} trials  best {progress.metric} ",
            (best, "bold green"),
            f"  elapsed {duration(progress.elapsed)}  left {left}",
        )

    def _running(self) -> Table | None:
        if not self._progress.running:
            return None
        table = _table("running", "hyperparameters", "progress", self._progress.metric)
        for trial, running in sorted(self._progress.running.items()):
            last = running.evaluation
            value = Text(number(float(last.value)) if last else "-")
            table.add_row(str(trial), Text(_brief(running.params)), _bar(last), value)
        return table

    def _ended(self) -> Table | None:
        if not self._recent:
            return None
        table = _table("ended", "state", self._progress.metric, "time", "reason")
        best = self._progress.best
        rows = list(self._recent)
        if best is not None and all(trial.number != best.number for trial, _ in rows):
            rows = [(best, seconds(best)), *rows[1:]]
        for trial, span in rows:
            state, is_best = trial.state.name, best is not None and trial.number == best.number
            table.add_row(
                f"{trial.number} ★" if is_best else str(trial.number),
                Text(state.lower(), STATE_STYLES.get(state, "")),
                number(finite(trial)),
                duration(span),
                Text(remarks(trial)),
                style="bold" if is_best else "",
            )
        return table


class LineView:
    """One line an ended trial, `key=value` apart from its number: for logs and for programs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress()

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Print the study's name and how far it is."""
        self._progress = Progress.of(name, metric, direction, total, finished)
        self._print(f"study {_word(name)} metric={_word(metric)} direction={direction} {self._count()}")

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Remember when a trial started."""
        self._progress.start(number, params)

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Say nothing: a trial is one line."""

    def ended(self, trial: FrozenTrial) -> None:
        """Print how a trial ended, its hyperparameters last."""
        span = self._progress.end(trial)
        best = self._progress.best
        words = [f"trial {trial.number}", f"state={trial.state.name.lower()}"]
        words += [f"value={number(value)}"] if (value := finite(trial)) is not None else []
        words += [f"seconds={span:.1f}"] if span is not None else []
        words += [f"reason={_word(reason)}"] if (reason := remarks(trial)) else []
        words += [self._count()]
        words += [f"best={number(finite(best))} best_trial={best.number}"] if best is not None else []
        words += [f"{name}={_word(value)}" for name, value in trial.params.items()]
        self._print(" ".join(words))

    def note(self, message: str) -> None:
        """Print a sentence."""
        self._print(f"note {_word(message)}")

    def closed(self) -> None:
        """Leave nothing to close."""

    def _count(self) -> str:
        return f"finished={self._progress.finished}/{self._progress.total}"

    def _print(self, line: str) -> None:
        print(line, file=self.console.file, flush=True)  # rich would wrap it


class QuietView:
    """Nothing but notes, on the standard error."""

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Say nothing."""

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Say nothing."""

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Say nothing."""

    def ended(self, trial: FrozenTrial) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Print a sentence."""
        print(plain(message), file=sys.stderr, flush=True)

    def closed(self) -> None:
        """Leave nothing to close."""


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(Text(title), overflow="ellipsis", no_wrap=True)
    return table


def _bar(evaluation: Evaluation | None) -> RenderableType:
    if evaluation is None or evaluation.at is None:
        return Text("-")
    if not evaluation.of:
        return Text(f"{evaluation.at} seen")
    return ProgressBar(total=evaluation.of, completed=min(evaluation.at, evaluation.of), width=16)


def _brief(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{plain(name)} {number(value, 2)}" for name, value in params.items())


def _word(value: Any) -> str:
    """Return a value as one word of a line; in quotes, as JSON, if it has blanks or marks."""
    if isinstance(value, float):
        return number(value)
    text = str(value)
    bare = text and all(c.isalnum() or c in "._-+/" for c in text)
    return text if bare else json.dumps(text)
