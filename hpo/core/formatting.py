"""Text for people, in reports and on the terminal: numbers, durations, columns, wrapped lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len


def number(value: Any, digits: int = 4) -> str:
    """Return a value as short text: a float rounded to `digits` significant digits, any other value unchanged.

    Args:
        value: A score or a hyperparameter's value; None is a dash.
        digits: Significant digits. From 1 up to a million, all digits before the decimal point are shown.
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


def size(count: int) -> str:
    """Return a number of bytes as `512 bytes`, `12.3 MB` or `1.3 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def columns(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as lines of aligned columns, the heads first. It is faster than rich for thousands of rows."""
    cells = [[plain(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def plain(text: str) -> str:
    """Return text on one line, with characters that could control a terminal replaced."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)


def wrapped(text: str, width: int) -> str:
    """Return text with lines broken between words; a word longer than a line, such as a path, is not broken."""
    return "\n".join(
        "\n".join(textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)) or line
        for line in text.split("\n")
    )
