"""The report: one HTML file that holds all it shows, plots too, and asks nothing of the network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import plotly.io as pio
from plotly.offline import get_plotlyjs

from hpo.errors import HpoError
from hpo.findings import findings
from hpo.formatting import duration, finite, number, remarks, seconds
from hpo.page import PAGE, SORT, STYLE
from hpo.plots import PLOTS, Plot
from hpo.results import Results
from hpo.verdict import sentences, tables

# Plotly's own bar offers to upload the chart; a report must not.
PLOTLY = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "lasso2d", "select2d"],
}

BROAD = {"parallel coordinates", "slices", "contour"}  # scroll sideways on a phone rather than shrink


def write(results: Results, path: Path) -> Path:
    """Write the report of a study; a reader of the old one never sees half of the new.

    Args:
        results: A snapshot of the study, finished or not.
        path: The HTML file; its folder is made.

    Returns:
        The path.

    Raises:
        HpoError: The file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(html(results), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise HpoError(f"report {path} cannot be written ({error.strerror}); name another place") from None
    return path


def html(results: Results) -> str:
    """Return the report as one page."""
    sections = [
        ("", _facts(results)),
        ("Verdict on the test split", _verdict(results)),
        ("Findings", _findings(results)),
        ("Best hyperparameters", _best(results)),
        ("Plots", "".join(_plot(name, draw, results) for name, draw in PLOTS.items())),
        ("Trials", _trials(results)),
        ("Configuration", _config(results)),
    ]
    body = "\n".join((f"<h2>{title}</h2>\n" if title else "") + inner for title, inner in sections if inner)
    return PAGE.substitute(title=escape(results.name), style=STYLE, plotly=get_plotlyjs(), body=body, sort=SORT)


# ---------------------------------------------------------------- sections


def _facts(results: Results) -> str:
    best, config = results.best, results.attrs.get("config", {})
    states = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count)
    starts = [t.datetime_start for t in results.trials if t.datetime_start]
    ends = [t.datetime_complete for t in results.trials if t.datetime_complete]
    data = config.get("data")
    if isinstance(data, Mapping):
        data = data.get("dataset") or data.get("train")
    facts = (
        ("Metric", results.metric, results.direction),
        ("Best", number(best.value) if best else "none yet", f"trial {best.number}" if best else ""),
        ("Trials", len(results.trials), states),
        ("Duration", duration((max(ends) - min(starts)).total_seconds()) if starts and ends else None, ""),
        ("Model", config.get("model") or config.get("objective"), ""),
        ("Data", data if isinstance(data, str | None) else ", ".join(map(str, data)), ""),
        ("Task", results.facts.get("task"), ""),
    )
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{_text(value)}</dd><dd class=soft>{_text(more)}</dd></div>"
        for name, value, more in facts
        if value is not None
    )
    return f'<dl class="facts">{shown}</dl>'


def _verdict(results: Results) -> str:
    look = results.verdict
    if look is None:
        return ""
    said = "".join(f"<p>{_text(sentence)}.</p>" for sentence in sentences(look, results.looks))
    parts = [f'<div class="card">{said}</div>']
    for title, heads, rows in tables(look):
        parts.append(f"<h3>{_text(title)}</h3>" + _table(heads, [[_cell(cell) for cell in row] for row in rows], set()))
    return "\n".join(parts)


def _findings(results: Results) -> str:
    said = findings(results)
    if not said:
        return '<p class="soft">Nothing to warn of.</p>'
    return '<ul class="findings">' + "".join(f"<li>{_text(sentence)}</li>" for sentence in said) + "</ul>"


def _best(results: Results) -> str:
    best, baseline = results.best, results.baseline
    if best is None:
        return '<p class="soft">No trial has completed.</p>'
    heads, columns = ["", f"best (trial {best.number})"], [best]
    if baseline is not None and baseline.number != best.number:
        heads, columns = [*heads, f"published default (trial {baseline.number})"], [best, baseline]
    params = [{**trial.params, **results.not_searched(trial)} for trial in columns]
    rows = [[_cell(results.metric), *(_cell(finite(trial)) for trial in columns)]]
    for name in dict.fromkeys(name for each in params for name in each):
        rows.append([_cell(name), *(_setting(each, name, digits=6) for each in params)])
    return _table(heads, rows, marked={0})


def _plot(name: str, draw: Plot, results: Results) -> str:
    try:
        figure = draw(results)
    except ValueError as reason:
        why = f'<span class="soft">Not drawn: {_text(reason)}.</span>'
        return f'<section class="card missing"><h3>{_text(name.capitalize())}</h3>{why}</section>'
    title = unescape(figure.layout.title.text)
    # The page's own heading wraps on a phone; Plotly's would be cut off.
    figure.update_layout(title=None, margin_t=40)
    inner = pio.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name.replace(' ', '-')}",
        default_height=f"{figure.layout.height or 420}px",
        config=PLOTLY,
    )
    css = "plot broad" if name in BROAD else "plot"
    return f'<section class="{css}"><h3>{_text(title)}</h3><div class="wide">{inner}</div></section>'


def _trials(results: Results) -> str:
    names = list(dict.fromkeys(name for trial in results.trials for name in trial.params))
    rows = [
        [
            _cell(trial.number),
            _cell(trial.state.name.lower()),
            _cell(finite(trial)),
            _cell(seconds(trial), digits=3),
            *(_setting(trial.params, name) for name in names),
            _cell(remarks(trial), css="long"),
        ]
        for trial in results.trials
    ]
    best = results.trials.index(results.best) if results.best else None
    heads = ["trial", "state", results.metric, "seconds", *names, "reason"]
    return _table(heads, rows, {best}, sortable=True) if rows else ""


def _config(results: Results) -> str:
    config = results.attrs.get("config")
    if not config:
        return ""
    shown = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    summary = "<summary>The study file, as it was run</summary>"
    return f'<details class="card">{summary}<pre>{escape(shown)}</pre></details>'


# ---------------------------------------------------------------- parts


def _text(value: Any) -> str:
    return escape(str(value))


def _cell(value: Any, digits: int = 4, css: str = "") -> str:
    """Return a table cell; a number carries itself in full, to sort by."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    attributes = (f' data-v="{value!r}"' if is_number else "") + (f' class="{css}"' if css else "")
    shown = "" if value is None else number(value, digits)
    return f"<td{attributes}>{escape(shown)}</td>"


def _setting(params: Mapping[str, Any], name: str, digits: int = 4) -> str:
    """Return the cell of a hyperparameter: empty if the trial has none, `None` if that is its value."""
    value = params.get(name, "")
    return _cell("None" if value is None else value, digits)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: set[int | None], sortable: bool = False) -> str:
    tag = "<th><button>{}</button></th>" if sortable else "<th>{}</th>"
    head = "".join(tag.format(_text(title)) for title in heads)
    classes = [" class=best" if index in marked else "" for index, _ in enumerate(rows)]
    body = "\n".join(f"<tr{css}>{''.join(cells)}</tr>" for css, cells in zip(classes, rows, strict=True))
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide card"><table>{inner}</table></div>'
