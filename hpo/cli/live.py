"""What is shown while a command runs: a live table on a terminal, plain lines elsewhere, or next to nothing."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from optuna.trial import FrozenTrial
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.analysis.trial_summary import finite_value, remarks, seconds
from hpo.cli.progress import Progress
from hpo.core.errors import hidden
from hpo.core.events import Observer
from hpo.core.formatting import duration, number, plain, wrapped
from hpo.core.trainer import Evaluation, Seen

RECENT = 8  # ended trials that stay in sight
STATE_STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}

SILENCE = 15.0  # seconds after which a log gets another line, and between two lines of evaluations of a trial
TICK = 0.5  # seconds between two looks at how far the trials are

GAP = 2  # columns between two of a table
BAR = 16  # columns of a bar where there is room, half as many where there is little


def view(quiet: bool, console: Console) -> View:
    """Return what suits: notes only, a live table on a terminal, a line a trial in a log."""
    if quiet:
        return QuietView()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return LineView(console)


class View(Observer):
    """A watcher that shows a command from its first second to its last, as a context manager.

    Besides the study it shows what else is done, such as loading a model: that is what hpo logs at level INFO.
    """

    def __init__(self) -> None:
        self._progress = Progress()
        self._seen: Callable[[], Mapping[int, Seen]] = dict
        self._step: tuple[str, float] | None = None  # what is done besides training, and since when
        self._lock = threading.RLock()  # trials are looked at from a thread of the view's own
        self._handler = _Handler(self.doing)

    def __enter__(self) -> Self:
        """Listen to what hpo logs."""
        logger = logging.getLogger("hpo")
        self._level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self._handler)
        return self

    def __exit__(self, *raised: object) -> None:
        """Listen no more."""
        logger = logging.getLogger("hpo")
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)

    def doing(self, step: str) -> None:
        """Take in what is done now."""
        step = plain(hidden(step))
        with self._lock:
            if self._step is None or self._step[0] != step:
                self._step = step, time.monotonic()
                self._begun(step)

    def _begun(self, step: str) -> None:
        """Say that something else is done now."""

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Count what has already ended."""
        with self._lock:
            self._progress, self._step = Progress.of(name, metric, direction, total, finished), None

    def follow(self, seen: Callable[[], Mapping[int, Seen]]) -> None:
        """Look at how far the trials are from now on."""
        self._seen = seen
        self._look()

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Count a running trial."""
        with self._lock:
            self._progress.start(number, params)
            self._look()

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Keep a trial's latest score."""
        with self._lock:
            self._progress.evaluate(number, evaluation)

    def closed(self) -> None:
        """Look at trials no more."""
        self._seen = dict
        self._look()

    def _look(self) -> None:
        """See how far the trials are; while any trains, nothing else is worth a word."""
        with self._lock:
            seen = self._seen()
            self._progress.measure(seen)
            if seen:
                self._step = None

    def _left(self) -> str:
        left = self._progress.left
        return "unknown" if left is None else duration(left)


class _Handler(logging.Handler):
    """Passes on what is logged at level INFO."""

    def __init__(self, told: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            self._told(record.getMessage())


class LiveView(View):
    """A table that follows the study on a terminal, whatever its width."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._recent: deque[tuple[FrozenTrial, float | None]] = deque(maxlen=RECENT)
        self._live = Live(console=console, get_renderable=lambda: self, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Show what is done until the study is open."""
        super().__enter__()
        self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Leave the last state of the table on the screen, if there was a study."""
        with self._lock:
            self._step = None
        self._live.stop()
        super().__exit__(*raised)

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Show an open study with what has already ended."""
        super().opened(name, metric, direction, total, finished)
        with self._lock:
            self._recent.extend((trial, seconds(trial)) for trial in finished)
        self._live.transient = False

    def ended(self, trial: FrozenTrial) -> None:
        """Move a trial to those that have ended."""
        with self._lock:
            self._recent.append((trial, self._progress.end(trial)))

    def note(self, message: str) -> None:
        """Print a sentence above the table."""
        self.console.print(Text(wrapped(plain(message), self.console.width)), soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw it: the study, what is done, the trials that run, and those that have ended."""
        with self._lock:
            self._look()
            if self._progress.total:
                yield self._header()
            if self._step is not None:
                yield Text(f"{self._step[0]}  {duration(time.monotonic() - self._step[1])}", "cyan")
            if self._progress.running:
                yield self._running(options.max_width)
            if self._recent:
                yield self._ended(options.max_width)

    def _header(self) -> Text:
        progress = self._progress
        best = "-" if progress.best is None else f"{number(finite_value(progress.best))} (trial {progress.best.number})"
        left = f"  left {self._left()}" if progress.finished < progress.total else ""
        speed = "" if progress.speed is None else f"  {number(progress.speed, 2)} examples/s"
        return Text.assemble(
            (progress.name, "bold"),
            f"  {progress.finished}/{progress.total} trials  best {progress.metric} ",
            (best, "bold green"),
            f"  elapsed {duration(progress.elapsed)}{left}{speed}",
        )

    def _running(self, width: int) -> Table:
        """Return the trials that run; hyperparameters give way first, then the bar, number and score never."""
        trials = sorted(self._progress.running.items())
        scores = [number(float(trial.evaluation.value)) if trial.evaluation else "-" for _, trial in trials]
        columns = {"running": [str(number) for number, _ in trials], self._progress.metric: scores}
        room = width - sum(_needed(title, cells) for title, cells in columns.items()) - GAP
        params = [_pairs(trial.params) for _, trial in trials]
        texts = [_counted(trial.seen, None) for _, trial in trials]
        bar = _needed("progress", texts)
        brief = room - bar - 2 * GAP
        wider = max(BAR - bar, 0)
        if brief - wider >= max(len(", ".join(pairs)) for pairs in params):
            brief, bar = brief - wider, bar + wider
        table = _table("running")
        if shows_params := brief >= len("hyperparameters"):
            _column(table, "hyperparameters")
        if shows_bar := room >= bar + GAP:
            _column(table, "progress")
        _column(table, self._progress.metric)
        for (trial, running), pairs, text, score in zip(trials, params, texts, scores, strict=True):
            cells: list[RenderableType] = [str(trial)]
            cells += [Text(_fitted(pairs, brief))] if shows_params else []
            cells += [_bar(running.seen, running.of, bar) if running.of else Text(text)] if shows_bar else []
            table.add_row(*cells, Text(score))
        return table

    def _ended(self, width: int) -> Table:
        """Return trials that have ended; the reason gives way first, then the time."""
        best = self._progress.best
        rows = list(self._recent)
        if best is not None and all(trial.number != best.number for trial, _ in rows):
            rows = [(best, seconds(best)), *rows[1:]]
        numbers = [f"{t.number} ★" if best is not None and t.number == best.number else str(t.number) for t, _ in rows]
        states, scores = [t.state.name.lower() for t, _ in rows], [number(finite_value(t)) for t, _ in rows]
        spans, reasons = [duration(span) for _, span in rows], [remarks(t) for t, _ in rows]
        columns = {"ended": numbers, "state": states, self._progress.metric: scores}
        room = width - sum(_needed(title, cells) for title, cells in columns.items()) - 2 * GAP
        table = _table(*columns)
        if shows_time := room >= GAP + _needed("time", spans):
            _column(table, "time")
        room -= GAP + _needed("time", spans) + GAP
        if shows_reason := shows_time and any(reasons) and room >= len("published default"):
            _column(table, "reason")
        for i, (trial, _) in enumerate(rows):
            state = Text(states[i], STATE_STYLES.get(trial.state.name, ""))
            cells: list[RenderableType] = [numbers[i], state, scores[i]]
            cells += [spans[i]] if shows_time else []
            cells += [Text(_shortened(reasons[i], room))] if shows_reason else []
            table.add_row(*cells, style="bold" if "★" in numbers[i] else "")
        return table


class LineView(View):
    """Lines for logs and for programs: `key=value` apart from the first word or two.

    A trial that ends is one line. A trial's evaluation is one if the last was long ago, and after `SILENCE` without a
    line there is one that says how far it is.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._printed = time.monotonic()
        self._told: dict[int, float] = {}  # trial -> when it started, or had its last line
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        """Never be silent for long, from here on."""
        super().__enter__()
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Be silent."""
        self._closing.set()
        super().__exit__(*raised)

    def _begun(self, step: str) -> None:
        self._print(f"doing {json.dumps(step)}")

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Sequence[FrozenTrial]) -> None:
        """Print the study's name and how far it is."""
        super().opened(name, metric, direction, total, finished)
        self._print(f"study {_word(name)} metric={_word(metric)} direction={direction} {self._count()}")

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Remember when a trial started."""
        super().started(number, params)
        self._told[number] = time.monotonic()

    def evaluated(self, number: int, evaluation: Evaluation) -> None:
        """Print a score, unless the trial has just had a line."""
        super().evaluated(number, evaluation)
        now = time.monotonic()
        if now - self._told.get(number, now) < SILENCE:
            return
        self._told[number] = now
        words = [f"trial {number}", f"value={_word(float(evaluation.value))}"]
        words += [f"at={evaluation.at}"] if evaluation.at is not None else []
        words += [f"of={evaluation.of}"] if evaluation.of else []
        self._print(" ".join([*words, f"left={_word(self._left())}"]))

    def ended(self, trial: FrozenTrial) -> None:
        """Print how a trial ended, its hyperparameters last."""
        with self._lock:
            span = self._progress.end(trial)
        best = self._progress.best
        self._told.pop(trial.number, None)
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
        """Print how far it is whenever nothing has been printed for a while."""
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
                words += [f"seen={','.join(_counted(trial.seen, trial.of) for _, trial in trials)}"]
            if progress.speed is not None:
                words += [f"examples_per_second={number(progress.speed, 3)}"]
            return " ".join([*words, self._count(), f"left={_word(self._left())}"])

    def _count(self) -> str:
        return f"finished={self._progress.finished}/{self._progress.total}"

    def _print(self, line: str) -> None:
        with self._lock:
            print(line, file=self.console.file, flush=True)  # rich would wrap it
            self._printed = time.monotonic()


class QuietView(View):
    """Nothing but notes, on the standard error."""

    def note(self, message: str) -> None:
        """Print a sentence."""
        print(plain(message), file=sys.stderr, flush=True)


# ---------------------------------------------------------------- tables that fit


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
    for title in titles:
        _column(table, title)
    return table


def _column(table: Table, title: str) -> None:
    table.add_column(Text(title), overflow="ellipsis", no_wrap=True)


def _needed(title: str, cells: Sequence[str]) -> int:
    """Return the columns of the terminal that a column of a table needs to be whole."""
    return max(map(len, [title, *cells]))


def _counted(seen: int, of: int | None) -> str:
    return f"{seen}/{of}" if of else f"{seen}" if seen else "-"


def _bar(seen: int, of: int, width: int) -> ProgressBar:
    return ProgressBar(total=of, completed=min(seen, of), width=width)


def _pairs(params: Mapping[str, Any]) -> list[str]:
    return [f"{plain(name)} {number(value, 2)}" for name, value in params.items()]


def _fitted(pairs: Sequence[str], width: int) -> str:
    """Return as many whole pairs as there is room for."""
    text = ", ".join(pairs)
    for count in range(len(pairs) - 1, 0, -1):
        if len(text) <= width:
            break
        text = ", ".join([*pairs[:count], "…"])
    return text


def _shortened(text: str, width: int) -> str:
    """Return text cut between two words."""
    return textwrap.shorten(text, width, placeholder=" …")


def _word(value: Any) -> str:
    """Return a value as one word of a line; in quotes, as JSON, if it has blanks or marks."""
    if isinstance(value, float):
        return number(value)
    text = str(value)
    bare = text and all(c.isalnum() or c in "._-+/" for c in text)
    return text if bare else json.dumps(text)
