"""The report: one HTML file that holds all it shows, plots too, and sends no request to the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hpo.analysis import audit, confirm_text, html_page
from hpo.analysis.by_task import measured
from hpo.analysis.findings import findings
from hpo.analysis.front_plot import front_plot
from hpo.analysis.importances import TooSmallError
from hpo.analysis.memory_text import memory_fact
from hpo.analysis.plots import PLOTS, Plot
from hpo.analysis.trial_summary import finite_value, in_words, remarks, seconds
from hpo.analysis.verdict_text import Table, sentences, tables
from hpo.analysis.worth import worth_text
from hpo.core.formatting import duration, number, plain
from hpo.search.warm_start import stored_in
from hpo.storage.criteria import measures_of
from hpo.storage.snapshot import Results
from hpo.tasks.metrics import of_generated_text

ROWS = 1000  # trials in the table, at most
SHOWN = 200  # characters of a text that show before it is opened

BROAD = {"parallel coordinates", "slices", "contour"}  # plots that scroll sideways on a phone instead of shrinking


@dataclass
class _Plots:
    """The plots of a report.

    Attributes:
        figures: Id of a div -> figure.
        problems: A sentence for each plot that failed.
    """

    figures: dict[str, go.Figure] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def write(results: Results, path: Path, note: Callable[[str], None] | None = None) -> Path:
    """Write the report of a study; the file is replaced in one step, so that no reader sees half of it.

    Args:
        results: A snapshot of the study, finished or not.
        path: The HTML file; its folder is made.
        note: Called with a sentence for each plot that failed.

    Returns:
        The path.

    Raises:
        HpoError: The file cannot be written.
    """
    return html_page.write(path, "report", lambda: html(results, note))


def html(results: Results, note: Callable[[str], None] | None = None) -> str:
    """Return the report as one page."""
    drawn = _Plots()
    sections = [
        ("", _facts(results)),
        ("Verdict on the test split", _verdict(results)),
        ("Is it worth searching on?", _worth(results)),
        ("Confirmation with fresh seeds", _confirmation(results)),
        ("Audit of the pruner", _audit(results)),
        ("Findings", _findings(results)),
        ("Best hyperparameters", _best(results)),
        ("Plots", "".join(_plot(name, draw, results, drawn) for name, draw in _plots_of(results).items())),
        ("Trials", _trials(results)),
        ("Configuration", _config(results)),
    ]
    if note is not None:
        for problem in drawn.problems:
            note(problem)
    body = "\n".join((f"<h2>{title}</h2>\n" if title else "") + inner for title, inner in sections if inner)
    return html_page.page(results.name, body, drawn.figures)


def _plots_of(results: Results) -> dict[str, Plot]:
    """Return the plots; first that of the front, if the study has a second metric."""
    return {"front": front_plot, **PLOTS} if results.criteria.second else PLOTS


# ---------------------------------------------------------------- sections


def _facts(results: Results) -> str:
    best, config, start = results.best, results.attrs.get("config", {}), stored_in(results.attrs)
    states = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count)
    starts = [t.datetime_start for t in results.trials if t.datetime_start]
    ends = [t.datetime_complete for t in results.trials if t.datetime_complete]
    limits = ", ".join(f"{limit.name} {limit.says()}" for limit in results.criteria.limits)
    data = _sources(config)
    facts = (
        ("Metric", results.metric, results.direction),
        ("Best", number(best.value) if best else "none yet", f"trial {best.number}" if best else ""),
        ("Limits", limits or None, f"{len(results.within_limits)} of {len(results.trained)} completed trials within"),
        ("Trials", len(results.trials), states),
        ("Duration", duration((max(ends) - min(starts)).total_seconds()) if starts and ends else None, ""),
        ("Warm start", ", ".join(start.asked) if start else None, ""),
        ("Stopped", "early" if results.stopped else None, results.stopped),
        ("Model", _model(results), ""),
        ("Data", data, ""),
        ("Task", results.facts.get("task"), ""),
        ("Generating", *_generating(results)),
        ("Memory", *memory_fact(results)),
    )
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{_text(value)}</dd><dd class=soft>{_text(more)}</dd></div>"
        for name, value, more in facts
        if value is not None
    )
    return f'<dl class="facts">{shown}</dl>'


def _sources(config: Mapping[str, Any]) -> str | None:
    """Return where the rows of train are from; of several tasks, of each."""
    if tasks := config.get("tasks"):
        return "; ".join(f"{name}: {_sources(part)}" for name, part in tasks.items())
    data = config.get("data")
    if isinstance(data, Mapping):
        data = data.get("dataset") or data.get("train")
    return data if isinstance(data, str | None) else ", ".join(map(str, data))


def _generating(results: Results) -> tuple[str | None, str]:
    """Return the time in which trials generated text, and of how much it is a part; None if none did."""
    spent = [(trial.user_attrs.get("generation_seconds"), seconds(trial)) for trial in results.trials]
    known = [part for part, _ in spent if isinstance(part, int | float)]
    return (duration(sum(known)) if known else None), f"of {duration(sum(whole or 0 for _, whole in spent))} of trials"


def _model(results: Results) -> str | None:
    """Return the model, the models, or the objective of one's own."""
    config = results.attrs.get("config", {})
    model = config.get("model") or config.get("objective")
    return ", ".join(map(str, model)) if isinstance(model, list) else model


def _verdict(results: Results) -> str:
    verdict = results.verdict
    if verdict is None:
        return ""
    text = "".join(f"<p>{_text(sentence)}.</p>" for sentence in sentences(verdict, results.looks))
    return "\n".join([f'<div class="card">{text}</div>', _tables(tables(verdict)), _samples(verdict)])


def _tables(given: Sequence[Table]) -> str:
    """Return tables with their titles."""
    return "\n".join(
        f"<h3>{_text(title)}</h3>" + _table(heads, [[_cell(cell) for cell in row] for row in rows], set())
        for title, heads, rows in given
    )


def _samples(verdict: Mapping[str, Any]) -> str:
    """Return test examples with what the best trial and the published default have generated for them, side by side."""
    samples = (verdict.get("generated") or {}).get("samples")
    if not samples:
        return ""
    names = [f"best (trial {verdict['best']['number']})"]
    if len(samples[0]["generated"]) > 1:
        names.append(f"published default (trial {verdict['baseline']['number']})")
    rows = [
        [_cell(each["row"]), *map(_folded, (each["source"], each["expected"], *each["generated"]))] for each in samples
    ]
    table = _table(["test row", "source", "expected", *names], rows, set())
    return f"<h3>Generated text: {len(samples)} test rows, drawn from the study's seed</h3>{table}"


def _folded(text: str) -> str:
    """Return a cell with a text; of a long one, the beginning shows and the whole opens."""
    shown = escape(text)
    if len(text) > SHOWN:
        shown = f"<details><summary>{escape(text[:SHOWN])} ...</summary>{shown}</details>"
    return f'<td class="long text">{shown}</td>'


def _worth(results: Results) -> str:
    text = "".join(f"<p>{_text(sentence)}.</p>" for sentence in worth_text(results))
    return f'<div class="card">{text}</div>' if text else ""


def _confirmation(results: Results) -> str:
    found = results.confirmation
    if found is None:
        return ""
    text = "".join(f"<p>{_text(sentence)}.</p>" for sentence in confirm_text.sentences(found))
    (title, heads, rows), *of_text = confirm_text.tables(found)
    names = [each["name"] for each in found["configurations"]]
    marked: set[int | None] = {names.index(found["winner"])} if found["winner"] in names else set()
    table = _table(heads, [[_cell(cell) for cell in row] for row in rows], marked)
    return f'<div class="card">{text}</div>\n<h3>{_text(title)}</h3>{table}' + _tables(of_text)


def _audit(results: Results) -> str:
    found = results.audit
    text = "" if found is None else "".join(f"<p>{_text(sentence)}.</p>" for sentence in audit.sentences(found))
    return f'<div class="card">{text}</div>' if text else ""


def _findings(results: Results) -> str:
    found = findings(results)
    if not found:
        return '<p class="soft">Nothing to warn of.</p>'
    return '<ul class="findings">' + "".join(f"<li>{_text(sentence)}</li>" for sentence in found) + "</ul>"


def _best(results: Results) -> str:
    best, baseline = results.best, results.baseline
    if best is None:
        why = results.why_no_best if results.trained else "No trial has completed"
        return f'<p class="soft">{_text(why)}.</p>'
    heads, columns = ["", f"best (trial {best.number})"], [best]
    if baseline is not None and baseline.number != best.number:
        heads, columns = [*heads, f"published default (trial {baseline.number})"], [best, baseline]
    params = [{**trial.params, **results.not_searched(trial)} for trial in columns]
    rows = [[_cell(results.metric), *(_cell(finite_value(trial)) for trial in columns)]]
    for name in results.criteria.names:
        rows.append([_cell(name), *(_cell(measures_of(trial.user_attrs).get(name)) for trial in columns)])
    of_tasks = [measured(results, trial) for trial in columns]
    for name in dict.fromkeys(name for each in of_tasks for name in each):
        rows.append([_cell(name), *(_cell(each.get(name)) for each in of_tasks)])
    scores = [trial.user_attrs.get("metrics") or {} for trial in columns]
    for name in of_generated_text(str(results.facts.get("task"))):
        if any(name in each for each in scores):
            rows.append([_cell(f"{name} of generated text"), *(_cell(each.get(name)) for each in scores)])
    for name in dict.fromkeys(name for each in params for name in each):
        rows.append([_cell(name), *(_setting(each, name, digits=6) for each in params)])
    return _table(heads, rows, marked={0})


def _plot(name: str, draw: Plot, results: Results, drawn: _Plots) -> str:
    try:
        figure = draw(results)
    except Exception as reason:  # the rest of the report is useful without this plot
        if not isinstance(reason, TooSmallError):
            drawn.problems.append(plain(f"the report of {results.name} lacks the plot {name!r}: {reason!r}"))
        why = f'<span class="soft">Not drawn: {_text(reason)}.</span>'
        return f'<section class="card missing"><h3>{_text(name.capitalize())}</h3>{why}</section>'
    title = unescape(figure.layout.title.text)
    # A heading of the page wraps on a phone; a title of Plotly's would be cut off.
    figure.update_layout(title=None, margin_t=40)
    div, height = f"plot-{name.replace(' ', '-')}", figure.layout.height or 420
    drawn.figures[div] = figure
    css = "plot broad" if name in BROAD else "plot"
    inner = f'<div id="{div}" class="figure" style="height:{height}px"></div>'
    return f'<section class="{css}"><h3>{_text(title)}</h3><div class="wide">{inner}</div></section>'


def _trials(results: Results) -> str:
    shown = results.sample(results.trials, ROWS)
    names = list(dict.fromkeys(name for trial in results.trials for name in trial.params))
    measured = results.criteria.names
    rows = [
        [
            _cell(trial.number),
            _cell(trial.state.name.lower()),
            _cell(finite_value(trial)),
            *(_cell(measures_of(trial.user_attrs).get(name)) for name in measured),
            _cell(seconds(trial), digits=3),
            *(_setting(trial.params, name) for name in names),
            _cell(remarks(trial), css="long"),
        ]
        for trial in shown
    ]
    best = shown.index(results.best) if results.best else None
    heads = ["trial", "state", results.metric, *measured, "seconds", *names, "reason"]
    table = _table(heads, rows, {best}, sortable=True) if rows else ""
    if len(shown) == len(results.trials):
        return table
    count = f"{len(shown):,} of {len(results.trials):,} trials: the best, the published default, others evenly spaced"
    return f'<p class="soft">{count}. All: <code>hpo trials {_text(results.name)}</code></p>{table}'


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
    """Return a table cell; a number also has an attribute with all its digits, to sort by."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    attributes = (f' data-v="{value!r}"' if is_number else "") + (f' class="{css}"' if css else "")
    shown = "" if value is None else number(value, digits)
    return f"<td{attributes}>{escape(shown)}</td>"


def _setting(params: Mapping[str, Any], name: str, digits: int = 4) -> str:
    """Return the cell of a hyperparameter: empty if the trial has none, in words if it leaves the model as it is."""
    value = params.get(name, "")
    return _cell(in_words(name, value), digits)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: set[int | None], sortable: bool = False) -> str:
    tag = "<th><button>{}</button></th>" if sortable else "<th>{}</th>"
    head = "".join(tag.format(_text(title)) for title in heads)
    classes = [" class=best" if index in marked else "" for index, _ in enumerate(rows)]
    body = "\n".join(f"<tr{css}>{''.join(cells)}</tr>" for css, cells in zip(classes, rows, strict=True))
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide card"><table>{inner}</table></div>'
