"""The plots of a study: a plain dict, name -> function of the results, in a report's order.

Optuna draws most of them. Here they get a common style, the metric's name on their axes, and titles that say on how
many trials they rest. Of a large study a sample is drawn. If a study is too small for a plot, the function raises
`TooSmallError` with the reason, which a report shows instead of the plot.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from hpo.analysis.findings import ENOUGH
from hpo.analysis.importances import (
    FOREST,
    RESAMPLES,
    Importance,
    TooSmallError,
    importances,
    intervals,
    searched,
)
from hpo.analysis.plot_style import BEST_COLOR, SCALE, STATE_COLORS, styled
from hpo.analysis.tuning_curve import CONFIDENCE, UntoldError, mean_of, random_draws
from hpo.analysis.tuning_curve import tuning_curve as curve_of
from hpo.core.formatting import duration, number
from hpo.storage.criteria import NO_CRITERIA, violation
from hpo.storage.snapshot import Results

Plot = Callable[[Results], go.Figure]

POINTS, LINES = 1000, 300  # trials drawn at most, as points and as lines
CELLS = 100  # trials of a contour at most; a contour has their number squared cells
CURVES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)  # whose learning curves are drawn
IMPORTANT = 0.05  # a parameter below this share of the importance gets no contour of its own
COLUMNS = 3  # slices a row


def history(results: Results) -> go.Figure:
    """Draw the value of every completed trial and the best so far."""
    _need(results, 1)
    drawn = results.sample(results.complete, POINTS)
    sampled = len(drawn) < len(results.complete)
    shown = _shown_in_history(results, drawn) if sampled else results.trials
    figure = _optuna(
        visualization.plot_optimization_history,
        results,
        _by_position(shown),
        constrained=True,
        target_name=results.metric,
    )
    for trace in figure.data:
        trace.x = [shown[position].number for position in trace.x]
    if sampled:
        _thin(figure, drawn)
    figure.update_traces(name="best so far", line={"shape": "hv", "width": 2}, selector={"mode": "lines"})
    beyond = {"name": "beyond a limit", "marker_color": STATE_COLORS["PRUNED"]}
    figure.update_traces(beyond, selector={"name": "Infeasible Trial"})
    figure.update_layout(xaxis_title="trial")
    return styled(figure, f"History{sample_note(drawn, results.complete)}")


def _shown_in_history(results: Results, drawn: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return the trials that the history of a sample needs: it, the first and the last, and where the best changes."""
    sign, best, steps = 1 if results.direction == "maximize" else -1, -math.inf, []
    for trial in results.complete:
        if (score := sign * (trial.value or 0.0)) > best and not violation(trial):
            best = score
            steps.append(trial)
    by_number = {trial.number: trial for trial in (results.trials[0], *drawn, *steps, results.trials[-1])}
    return [by_number[number] for number in sorted(by_number)]


def _by_position(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return trials whose numbers are their positions, for which Optuna's history takes them."""
    copies = [copy.copy(trial) for trial in trials]
    for position, trial in enumerate(copies):
        trial.number = position
    return copies


def _thin(figure: go.Figure, drawn: Sequence[FrozenTrial]) -> None:
    """Reduce a history to some trials' points, and its line to the points where it changes, and its end."""
    numbers = {trial.number for trial in drawn}
    for trace in figure.data:
        points = list(zip(trace.x, trace.y, strict=True))
        if trace.mode == "lines":
            steps = [now for before, now in pairwise(points) if now[1] != before[1]]
            points = [points[0], *steps, points[-1]]
        else:
            points = [point for point in points if point[0] in numbers]
        trace.x, trace.y = [x for x, _ in points], [y for _, y in points]


def tuning_curve(results: Results) -> go.Figure:
    """Draw the median of the best value of n random trials over n, and its band where one is known.

    Where the band has no end towards better values, only its other end is drawn.
    """
    try:
        draws = random_draws(results)
    except UntoldError as reason:
        raise TooSmallError(str(reason)) from None
    curve = curve_of(draws)
    rows = list(zip(curve.trials, curve.median, curve.worst, curve.best, strict=True))
    color, ends = STATE_COLORS["COMPLETE"], f"{CONFIDENCE:.0%} band"
    band = [row for row in rows if math.isfinite(row[2]) and draws.sign * row[3] < draws.limit]
    outline = [(row[0], row[2]) for row in band] + [(row[0], row[3]) for row in reversed(band)]
    figure = go.Figure(
        [
            _line(ends, outline, fill="toself", fillcolor="rgba(37, 99, 235, 0.18)", line={"width": 0}),
            _line(f"worse end of the {ends}", [(row[0], row[2]) for row in rows], line={"color": color, "dash": "dot"}),
            _line("median", [(row[0], row[1]) for row in rows], line={"color": BEST_COLOR, "width": 3}),
        ]
    )
    each = [f"{cost.mean:,.0f} examples"] if (cost := mean_of(draws.examples)) else []
    each += [duration(cost.mean)] if (cost := mean_of(draws.seconds)) else []
    trials = "random trials" + (f" (one takes {' and '.join(each)} on average)" if each else "")
    figure.update_layout(xaxis_title=trials, yaxis_title=f"best {results.metric}", xaxis_rangemode="tozero")
    pruned = f", {draws.pruned:,} of them pruned and counted as worse than all others" if draws.pruned else ""
    return styled(figure, f"Tuning curve: the best of n random trials, from {len(draws.scores):,}{pruned}")


def _line(name: str, points: Sequence[tuple[float, float]], **look: Any) -> go.Scatter:
    """Return a line through the points whose value is finite."""
    known = [(x, y) for x, y in points if math.isfinite(y)]
    x, y = zip(*known, strict=True) if known else ((), ())
    return go.Scatter(x=x, y=y, mode="lines", name=name, hovertemplate="%{y:.4g} at %{x}<extra></extra>", **look)


def learning_curves(results: Results) -> go.Figure:
    """Draw the intermediate values of every trial, coloured by state, with the best trial on top."""
    curves = [trial for trial in results.trials if trial.intermediate_values and trial.state in CURVES]
    if not curves:
        raise TooSmallError("no trial has reported a score while it trained")
    drawn = results.sample(curves, POINTS)
    groups: dict[str, list[FrozenTrial]] = {state.name.lower(): [] for state in CURVES}
    last = []
    for trial in drawn:
        if results.best is not None and trial.number == results.best.number:
            last.append(_curves(f"best (trial {trial.number})", [trial], BEST_COLOR, best=True))
        else:
            groups[trial.state.name.lower()].append(trial)
    first = [_curves(name, trials, STATE_COLORS[name.upper()]) for name, trials in groups.items() if trials]
    figure = go.Figure([*first, *last])
    figure.update_layout(
        xaxis_title="examples seen", yaxis_title=results.metric, showlegend=True, xaxis_rangemode="tozero"
    )
    return styled(figure, f"Learning curves{sample_note(drawn, curves)}")


def _curves(name: str, trials: Sequence[FrozenTrial], color: str, best: bool = False) -> go.Scatter:
    """Return the curves of trials as one trace, with gaps between them: one trace per trial is slow to draw."""
    points = [
        point
        for trial in trials
        for point in (*((*each, trial.number) for each in sorted(trial.intermediate_values.items())), (None,) * 3)
    ][:-1]
    steps, values, numbers = zip(*points, strict=True)
    return go.Scatter(
        x=steps,
        y=values,
        customdata=numbers,
        mode="lines+markers",
        name=name,
        showlegend=True,
        line={"color": color, "width": 3 if best else 1.5},
        marker={"size": 6 if best else 4},
        opacity=1 if best else 0.5,
        hovertemplate="trial %{customdata}: %{y:.4g} at %{x}<extra></extra>",
    )


def parallel_coordinates(results: Results) -> go.Figure:
    """Draw every completed trial as a line through its parameters, the better the bluer."""
    _need(results, 2)
    drawn = results.sample(results.complete, LINES)
    figure = _optuna(visualization.plot_parallel_coordinate, results, drawn, target_name=results.metric)
    scale = SCALE if results.direction == "maximize" else SCALE[::-1]
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    # The first axis is that of the value, scaled to 0..1.
    for line, color in zip(lines, sample_colorscale(scale, [line.y[0] for line in lines]), strict=True):
        line.update(line={"color": color, "width": 1.5}, opacity=0.65)
    figure.update_traces(marker={"colorscale": scale, "reversescale": False}, selector={"mode": "markers"})
    return styled(figure, f"Parallel coordinates of completed trials{sample_note(drawn, results.complete)}")


def slices(results: Results) -> go.Figure:
    """Draw the value over each single parameter, `COLUMNS` slices a row."""
    _need(results, 2)
    drawn = results.sample(results.complete, POINTS)
    figure = _optuna(visualization.plot_slice, results, drawn, target_name=results.metric)
    figure.update_traces(marker_colorscale=SCALE)
    count = sum(1 for _ in figure.select_xaxes())
    rows = math.ceil(count / COLUMNS)
    gap = 0.28 / rows
    height = (1 - gap * (rows - 1)) / rows
    # Optuna puts all slices into one row, which is too wide for a page.
    for index in range(count if rows > 1 else 0):
        row, column = divmod(index, COLUMNS)
        name = index + 1 if index else ""
        left, top = column / COLUMNS, 1 - row * (height + gap)
        figure.layout[f"xaxis{name}"].domain = (left + 0.015, left + 1 / COLUMNS - 0.015)
        figure.layout[f"yaxis{name}"].domain = (max(0, top - height), top)
        if column == 0:
            figure.layout[f"yaxis{name}"].update(title_text=results.metric, showticklabels=True)
    figure.update_layout(width=None, height=max(420, 290 * rows))
    return styled(figure, f"Slices: each parameter alone{sample_note(drawn, results.complete)}")


def contour(results: Results) -> go.Figure:
    """Draw the value over pairs of the two to four most important parameters."""
    _need(results, 3)
    ranked = list(importances(results).items())
    names = [name for rank, (name, share) in enumerate(ranked[:4]) if rank < 2 or share >= IMPORTANT]
    drawn = results.sample(results.complete, CELLS)
    figure = _optuna(visualization.plot_contour, results, drawn, params=names, target_name=results.metric)
    figure.update_layout(height=480 if len(names) == 2 else 240 * len(names))
    return styled(figure, f"Contours of the most important parameters{sample_note(drawn, results.complete)}")


def importance(results: Results) -> go.Figure:
    """Draw the share of the value's variation that each parameter explains, with intervals (fANOVA)."""
    _need(results, 3)
    shares = importances(results)
    known = intervals(results) if len(results.complete) >= ENOUGH else {}
    names = list(reversed(shares))  # Plotly draws bars from the bottom
    ends = [(known[name].low, known[name].high) if name in known else (shares[name],) * 2 for name in names]
    bars = go.Bar(
        x=[shares[name] for name in names],
        y=names,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - shares[name] for name, (_, high) in zip(names, ends, strict=True)],
            "arrayminus": [shares[name] - low for name, (low, _) in zip(names, ends, strict=True)],
            "visible": bool(known),
        },
        marker_color=[
            STATE_COLORS["WAITING" if name in known and not known[name].told else "COMPLETE"] for name in names
        ],
        customdata=[f" ({number(low, 2)} to {number(high, 2)})" if known else "" for low, high in ends],
        orientation="h",
        hovertemplate="%{y}: %{x:.4g}%{customdata}<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_layout(xaxis_title=f"share of the importance for {results.metric}", yaxis_automargin=True)
    return styled(figure, _rests_on(results, shares, known))


def _rests_on(results: Results, names: Container[str], known: Mapping[str, Importance]) -> str:
    """Return the title of the importances, which says on which trials they rest."""
    used, complete, pruned = min(len(results.complete), FOREST), len(results.complete), results.counts["pruned"]
    title = f"Importance, from {used:,}{f' of {complete:,}' if used < complete else ''} completed trials"
    notes = []
    if known:
        notes.append(f"{CONFIDENCE:.0%} intervals from {RESAMPLES} resamples of these trials")
    else:
        notes.append(f"intervals need {ENOUGH}")
    if untold := [name for name, found in known.items() if not found.told]:
        notes.append(f"grey cannot be told from 0: {', '.join(untold)}")
    if pruned:
        are = "trial is" if pruned == 1 else "trials are"
        notes.append(f"{pruned:,} pruned {are} left out: it says what matters among trials that survived")
    if left_out := sorted(name for name in searched(results) if name not in names):
        notes.append(f"without {', '.join(left_out)}: not in every trial, or always the same")
    return f"{title} ({'; '.join(notes)})"


def timeline(results: Results) -> go.Figure:
    """Draw when each trial ran and how it ended."""
    started = [trial for trial in results.trials if trial.datetime_start]
    if not started:
        raise TooSmallError("no trial has started")
    drawn = results.sample(started, POINTS)
    figure = _optuna(visualization.plot_timeline, results, drawn)
    for trace in figure.data:
        # Optuna's hover text has all attributes of a trial, tracebacks too.
        trace.update(
            marker_color=STATE_COLORS[trace.name],
            name=trace.name.lower(),
            width=0.8 * len(started) / len(drawn),
            text=None,
            hovertemplate=f"trial %{{y}}: {trace.name.lower()}<extra></extra>",
        )
    figure.update_layout(xaxis_title=None, yaxis_title="trial", barmode="overlay", legend_traceorder="normal")
    return styled(figure, f"Timeline{sample_note(drawn, started)}")


PLOTS: dict[str, Plot] = {
    "history": history,
    "tuning curve": tuning_curve,
    "learning curves": learning_curves,
    "parallel coordinates": parallel_coordinates,
    "slices": slices,
    "contour": contour,
    "importance": importance,
    "timeline": timeline,
}


def _need(results: Results, count: int) -> None:
    have = len(results.complete)
    if have < count:
        are = {0: "is none", 1: "is one"}.get(have, f"are {have}")
        raise TooSmallError(f"it needs {count} completed trial{'s' * (count > 1)}, and there {are}")
    if count > 1 and not searched(results):
        raise TooSmallError("no completed trial has a searched parameter")


def _optuna(
    call: Callable[..., Any],
    results: Results,
    trials: Sequence[FrozenTrial] | None = None,
    constrained: bool = False,
    **options: Any,
) -> Any:
    """Call Optuna on the study, or on some of its trials.

    Args:
        call: The function of Optuna's.
        results: The study.
        trials: The trials; None takes all.
        constrained: Whether Optuna is to tell trials beyond a limit from the others.
        options: Further arguments of the function.

    Raises:
        ValueError: Optuna raises.
    """
    shown = results.trials if trials is None else trials
    shown = shown if constrained else tuple(map(NO_CRITERIA.seen, shown))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(results.as_study(shown), **options)
    except Exception as error:
        raise ValueError(f"Optuna could not draw it: {error or type(error).__name__}") from error


def sample_note(drawn: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> str:
    """Return the part of a title that says how many of the trials are drawn; empty if all are."""
    if len(drawn) == len(trials):
        return ""
    return f" ({len(drawn):,} of {len(trials):,} trials: the best, the published default, others evenly spaced)"
