"""A page: one HTML file that holds all it shows, plots too, and sends no request to the network."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from hpo.core.errors import HpoError

# By default, Plotly's bar offers to upload the chart.
PLOTLY = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "lasso2d", "select2d"],
}


def write(path: Path, kind: str, html: Callable[[], str]) -> Path:
    """Write a page; the file is replaced in one step, so that no reader sees half of it.

    Args:
        path: The HTML file; its folder is made.
        kind: What it is, for the error.
        html: Returns its content.

    Returns:
        The path.

    Raises:
        HpoError: The file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(html(), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise HpoError(f"{kind} {path} cannot be written ({error.strerror}); name another place") from None
    return path


def page(title: str, body: str, figures: Mapping[str, go.Figure]) -> str:
    """Return a page.

    Args:
        title: Its title, as text.
        body: Its content, as HTML, with an empty div for each figure.
        figures: Id of a div -> the figure that is drawn there.
    """
    drawn = ",".join(
        f'"{div}":{{"figure":{pio.to_json(figure)},"config":{json.dumps(PLOTLY)}}}' for div, figure in figures.items()
    )
    # The page's Content-Security-Policy forbids every request, also those that a text of the study might cause.
    return Template(part("report.html")).substitute(
        title=escape(title),
        style=part("report.css"),
        body=body,
        sort=part("report_tables.js"),
        draw=part("report_plots.js") if figures else "",
        library=_library() if figures else "",
        figures=packed(f"{{{drawn}}}"),
    )


@lru_cache
def part(name: str) -> str:
    """Return a file of the page, which lies beside this module."""
    return resources.files("hpo.analysis").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _library() -> str:
    return packed(get_plotlyjs())


def packed(text: str) -> str:
    """Return text compressed, in characters without a meaning in HTML; `report_plots.js` unpacks it."""
    compressed = gzip.compress(text.encode(), mtime=0)
    return base64.b85encode(compressed).decode().replace("<", ",")  # a comma is not among the 85 characters


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts as HTML."""
    head = "".join(f"<th>{escape(title)}</th>" for title in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
