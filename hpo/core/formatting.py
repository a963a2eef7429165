"""How numbers, durations and trials are written for people: in reports, findings and on the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.cells import cell_len


def number(value: Any, digits: int = 4) -> str:
    """Return a value as short text: floats with `digits` significant digits, all else as it is.

    Args:
        value: A score or a hyperparameter's value; None is a dash.
        digits: Significant digits; a number of 1 or more keeps all digits before its point up to a million.
    """
    if value is None:
        return "-"
    if not isinstance(value, float):
        return plain(str(value))
    if not math.isfinite(value):
        return str(value)
    if 1 <= abs(value) < 1e6:
        digits = max(digits, int(math.log10(abs(value))) + 1)
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """Return a time span as `8 s`, `3 min 20 s` or `2 h 5 min`; None is a dash."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def columns(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return cells as lines of aligned columns, the heads first: for thousands of rows, where rich takes a while."""
    cells = [[plain(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def plain(text: str) -> str:
    """Return text on one line, with what could steer a terminal replaced."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)


def wrapped(text: str, width: int) -> str:
    """Return text whose lines are broken between words; a longer word, such as a path, stays whole."""
    return "\n".join(
        "\n".join(textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)) or line
        for line in text.split("\n")
    )


def seconds(trial: FrozenTrial) -> float | None:
    """Return how long a trial was trained, as it says itself, or else how long it took, if it has ended."""
    trained = trial.user_attrs.get("seconds")
    if isinstance(trained, int | float):
        return float(trained)
    return trial.duration.total_seconds() if trial.duration else None


def finite_value(trial: FrozenTrial) -> float | None:
    """Return a trial's value, if it has one that is a number."""
    value = trial.values[0] if trial.values else None
    return value if value is not None and math.isfinite(value) else None


def remarks(trial: FrozenTrial) -> str:
    """Return what sets a trial apart: why it ended, and whether it is the default or a duplicate."""
    attrs = trial.user_attrs
    said = ["published default"] if attrs.get("baseline") else []
    if attrs.get("reason"):
        said.append(plain(str(attrs["reason"]).replace("_", " ")))
    if trial.state == TrialState.FAIL and attrs.get("detail"):
        said[-1:] = [": ".join([*said[-1:], textwrap.shorten(plain(str(attrs["detail"])), 160)])]
    if attrs.get("duplicate_of") is not None:
        said.append(f"duplicate of {attrs['duplicate_of']}")
    if attrs.get("stopped_early_at") is not None:
        said.append(f"stopped by patience at {plain(str(attrs['stopped_early_at']))}")
    if attrs.get("collapsed") is True:
        said.append("collapsed")
    return ", ".join(said)
