"""The view for a terminal, a live table, and the choice among the views."""

from __future__ import annotations

import signal
import textwrap
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from optuna.trial import FrozenTrial
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.analysis.trial_summary import finite_value, remarks, seconds
from hpo.cli.line_view import LineView
from hpo.cli.printing import end, interrupt
from hpo.cli.view import QuietView, View, counted
from hpo.core.formatting import duration, number, plain, wrapped

RECENT = 8  # ended trials that stay in sight
STATE_STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}

GAP = 2  # characters between two columns of a table
BAR = 16  # characters of a bar where there is room, half as many where there is little


def view(quiet: bool, console: Console) -> View:
    """Return a view: notes only if quiet, else a live table on a terminal, lines in a log."""
    if quiet:
        return QuietView()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return LineView(console)


@contextmanager
def watched(quiet: bool, as_json: bool, put_back: str) -> Iterator[View]:
    """Watch a command that trains; if a signal stops it, say what is put back, and end with exit code 130."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with view(quiet or as_json, Console(stderr=as_json)) as watch:
            watch.doing("loading Optuna")
            yield watch
    except KeyboardInterrupt:
        end(f"stopped; {put_back} are put back, and the same command goes on from here", 130)


class LiveView(View):
    """A table on a terminal that follows the study, at any width."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._recent: deque[tuple[FrozenTrial, float | None]] = deque(maxlen=RECENT)
        self._live = Live(console=console, get_renderable=lambda: self, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Show the steps until the study is open."""
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
            self._recent = deque(((trial, seconds(trial)) for trial in finished), maxlen=RECENT)
        self._live.transient = False

    def ended(self, trial: FrozenTrial) -> None:
        """Move a trial to those that have ended."""
        with self._lock:
            self._recent.append((trial, self._progress.end(trial)))

    def note(self, message: str) -> None:
        """Print a sentence above the table."""
        self.console.print(Text(wrapped(plain(message), self.console.width)), soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw the study, the step under way, the trials that run, and those that have ended."""
        with self._lock:
            self._look()
            if self._progress.total:
                yield self._header()
            if self._step is not None:
                yield Text(f"{self._step[0]}  {duration(time.monotonic() - self._step[1])}", "cyan")
            if self._progress.running:
                yield self._running_table(options.max_width)
            if self._recent:
                yield self._ended_table(options.max_width)

    def _header(self) -> Text:
        progress = self._progress
        best = "-" if progress.best is None else f"{number(finite_value(progress.best))} (trial {progress.best.number})"
        left = f"  left {self._time_left()}" if progress.finished < progress.total else ""
        speed = "" if progress.speed is None else f"  {number(progress.speed, 2)} examples/s"
        return Text.assemble(
            (progress.name, "bold"),
            f"  {progress.finished}/{progress.total} trials  best {progress.metric} ",
            (best, "bold green"),
            f"  elapsed {duration(progress.elapsed)}{left}{speed}",
        )

    def _running_table(self, width: int) -> Table:
        """Return the running trials; if space is short, hyperparameters go first, then the bar."""
        trials = sorted(self._progress.running.items())
        scores = [number(float(trial.evaluation.value)) if trial.evaluation else "-" for _, trial in trials]
        columns = {"running": [str(number) for number, _ in trials], self._progress.metric: scores}
        room = width - sum(_needed(title, cells) for title, cells in columns.items()) - GAP
        params = [_pairs(trial.params) for _, trial in trials]
        texts = [counted(trial.seen, None) for _, trial in trials]
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

    def _ended_table(self, width: int) -> Table:
        """Return the ended trials; if space is short, the reason goes first, then the time."""
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


# ---------------------------------------------------------------- tables that fit


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
    for title in titles:
        _column(table, title)
    return table


def _column(table: Table, title: str) -> None:
    table.add_column(Text(title), overflow="ellipsis", no_wrap=True)


def _needed(title: str, cells: Sequence[str]) -> int:
    """Return the characters that a column of a table needs so that nothing is cut."""
    return max(map(len, [title, *cells]))


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
