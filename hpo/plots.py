"""The plots of a study: a plain dict, name -> function of the results, in a report's order.

Optuna draws them; here they get one look, the metric's name on their axes and titles that say what they
rest on. A plot that a study is too small for raises `ValueError` with the reason, which a report shows in
its place.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io as pio
from optuna import visualization

from hpo.results import Results

Plot = Callable[[Results], go.Figure]

STATE_COLORS = {
    "COMPLETE": "#2563eb",
    "PRUNED": "#d97706",
    "FAIL": "#dc2626",
    "RUNNING": "#16a34a",
    "WAITING": "#9ca3af",
}
BEST_COLOR = "#111827"
IMPORTANT = 0.05  # a parameter below this share of the importance gets no contour of its own
COLUMNS = 3  # slices a row

TEMPLATE = go.layout.Template(pio.templates["plotly_white"])
TEMPLATE.layout.update(
    font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": "#1f2937"},
    colorway=[STATE_COLORS["COMPLETE"], BEST_COLOR, STATE_COLORS["PRUNED"], STATE_COLORS["RUNNING"]],
    margin={"l": 70, "r": 30, "t": 60, "b": 60},
    legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
)


def history(results: Results) -> go.Figure:
    """Draw the value of every completed trial and the best so far."""
    _need(results, 1)
    figure = _optuna(visualization.plot_optimization_history, results, target_name=results.metric)
    figure.update_traces(name="best so far", line={"shape": "hv", "width": 2}, selector={"mode": "lines"})
    figure.update_layout(xaxis_title="trial")
    return _styled(figure, "History")


def learning_curves(results: Results) -> go.Figure:
    """Draw the score of every trial while it trained, the best trial on top, pruned ones in their colour."""
    if not any(trial.intermediate_values for trial in results.trials):
        raise ValueError("no trial has reported a score while it trained")
    figure = _optuna(visualization.plot_intermediate_values, results)
    shown: set[str] = set()
    for trace in figure.data:
        trial = results.trials[int(trace.name.removeprefix("Trial"))]
        best = results.best is not None and trial.number == results.best.number
        group = f"best (trial {trial.number})" if best else trial.state.name.lower()
        color = BEST_COLOR if best else STATE_COLORS[trial.state.name]
        trace.update(
            line={"color": color, "width": 3 if best else 1.5},
            marker={"size": 6 if best else 4},
            opacity=1 if best else 0.5,
            hovertemplate=f"trial {trial.number}: %{{y:.4g}} at %{{x}}<extra></extra>",
            legendgroup=group,
            showlegend=group not in shown,
            name=group,
        )
        shown.add(group)
    figure.data = sorted(figure.data, key=lambda trace: trace.name.startswith("best"))
    figure.update_layout(
        xaxis_title="examples seen", yaxis_title=results.metric, showlegend=True, xaxis_rangemode="tozero"
    )
    return _styled(figure, "Learning curves")


def parallel_coordinates(results: Results) -> go.Figure:
    """Draw every completed trial as a line through its parameters."""
    _need(results, 2)
    figure = _optuna(visualization.plot_parallel_coordinate, results, target_name=results.metric)
    return _styled(figure, "Parallel coordinates of completed trials")


def slices(results: Results) -> go.Figure:
    """Draw the value over each parameter alone, a few slices a row."""
    _need(results, 2)
    figure = _optuna(visualization.plot_slice, results, target_name=results.metric)
    count = sum(1 for _ in figure.select_xaxes())
    rows = math.ceil(count / COLUMNS)
    gap = 0.28 / rows
    height = (1 - gap * (rows - 1)) / rows
    # Optuna puts all slices in one row, which no page is wide enough for.
    for index in range(count if rows > 1 else 0):
        row, column = divmod(index, COLUMNS)
        name = index + 1 if index else ""
        left, top = column / COLUMNS, 1 - row * (height + gap)
        figure.layout[f"xaxis{name}"].domain = (left + 0.015, left + 1 / COLUMNS - 0.015)
        figure.layout[f"yaxis{name}"].domain = (max(0, top - height), top)
        if column == 0:
            figure.layout[f"yaxis{name}"].update(title_text=results.metric, showticklabels=True)
    figure.update_layout(width=None, height=max(420, 290 * rows))
    return _styled(figure, "Slices: each parameter alone")


def contour(results: Results) -> go.Figure:
    """Draw the value over pairs of the two to four most important parameters."""
    _need(results, 3)
    ranked = list(importances(results).items())
    names = [name for rank, (name, share) in enumerate(ranked[:4]) if rank < 2 or share >= IMPORTANT]
    if len(names) < 2:
        raise ValueError("it needs two parameters that differ between completed trials")
    figure = _optuna(visualization.plot_contour, results, params=names, target_name=results.metric)
    figure.update_layout(height=480 if len(names) == 2 else 240 * len(names))
    return _styled(figure, "Contours of the most important parameters")


def importance(results: Results) -> go.Figure:
    """Draw the share of the value's variation that each parameter explains (fANOVA, Hutter et al., 2014)."""
    _need(results, 3)
    names = _compared(results)
    if len(names) < 2:
        raise ValueError("it needs two parameters that all completed trials have, with values that differ")
    figure = _optuna(
        visualization.plot_param_importances,
        results,
        evaluator=_evaluator(),
        params=names,
        target_name=results.metric,
    )
    figure.update_layout(
        xaxis_title=f"share of the importance for {results.metric}", yaxis_title=None, yaxis_automargin=True
    )
    left_out = sorted(_searched(results) - set(names))
    without = f" (without {', '.join(left_out)}: not in every trial, or always the same)" if left_out else ""
    return _styled(figure, f"Importance, from {len(results.complete)} completed trials{without}")


def timeline(results: Results) -> go.Figure:
    """Draw when each trial ran and how it ended."""
    if not any(trial.datetime_start for trial in results.trials):
        raise ValueError("no trial has started")
    figure = _optuna(visualization.plot_timeline, results)
    for trace in figure.data:
        # Optuna's hover text holds every attribute of a trial, tracebacks too.
        trace.update(
            marker_color=STATE_COLORS[trace.name],
            name=trace.name.lower(),
            width=0.8,
            text=None,
            hovertemplate=f"trial %{{y}}: {trace.name.lower()}<extra></extra>",
        )
    figure.update_layout(xaxis_title=None, yaxis_title="trial", barmode="overlay", legend_traceorder="normal")
    return _styled(figure, "Timeline")


PLOTS: dict[str, Plot] = {
    "history": history,
    "learning curves": learning_curves,
    "parallel coordinates": parallel_coordinates,
    "slices": slices,
    "contour": contour,
    "importance": importance,
    "timeline": timeline,
}


def importances(results: Results) -> dict[str, float]:
    """Return parameter -> share of the importance, the highest first.

    Only completed trials count, and only parameters that all of them have: Optuna's own default also ranks
    conditional ones, and at 30 trials put one without any effect first in most studies of our test function.

    Raises:
        ValueError: They cannot be computed, e.g. of a single trial.
    """
    names = _compared(results)
    shares = _optuna(optuna.importance.get_param_importances, results, evaluator=_evaluator(), params=names)
    return {name: float(share) for name, share in shares.items()}


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _compared(results: Results) -> list[str]:
    """Return the parameters that every completed trial has, and not always with the same value."""
    trials = [trial.params for trial in results.complete]
    shared = [name for name in sorted(_searched(results)) if all(name in params for params in trials)]
    return [name for name in shared if len({repr(params[name]) for params in trials}) > 1]


def _need(results: Results, count: int) -> None:
    have = len(results.complete)
    if have < count:
        are = {0: "is none", 1: "is one"}.get(have, f"are {have}")
        raise ValueError(f"it needs {count} completed trial{'s' * (count > 1)}, and there {are}")
    if count > 1 and not _searched(results):
        raise ValueError("no completed trial has a searched parameter")


def _searched(results: Results) -> set[str]:
    return {name for trial in results.complete for name in trial.params}


def _optuna(call: Callable[..., Any], results: Results, **options: Any) -> Any:
    """Call Optuna on the study; whatever it raises becomes the reason why there is no plot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(results.as_study(), **options)
    except Exception as error:
        raise ValueError(f"Optuna could not draw it: {error or type(error).__name__}") from error


def _styled(figure: go.Figure, title: str) -> go.Figure:
    figure.update_xaxes(exponentformat="power", selector={"type": "log"})
    figure.update_yaxes(exponentformat="power", selector={"type": "log"})
    figure.update_layout(template=TEMPLATE, title={"text": title, "x": 0, "xanchor": "left"})
    return go.Figure(_inert(figure.to_plotly_json()))


def _inert(value: Any) -> Any:
    """Return a figure's JSON with markup in names and choices as text: Plotly would render links in it."""
    if isinstance(value, str):
        return re.sub(r"<(?!br>|/?b>|/?extra>)", "&lt;", value)
    if isinstance(value, dict):
        return {key: _inert(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_inert(entry) for entry in value]
    return value
