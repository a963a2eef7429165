"""The plot of the Pareto front of a study's metric and its second metric."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from hpo.analysis.importances import TooSmallError
from hpo.analysis.plot_style import STATE_COLORS, styled
from hpo.analysis.plots import POINTS, sample_note
from hpo.storage.criteria import measures_of, violation
from hpo.storage.snapshot import Results


def front_plot(results: Results) -> go.Figure:
    """Draw the second metric over the value, with the Pareto front and the trials that are beyond a limit marked."""
    second = results.criteria.second
    if second is None:
        raise TooSmallError("the study has no second_metric")
    measured = [trial for trial in results.trained if second.name in measures_of(trial.user_attrs)]
    if not measured:
        raise TooSmallError(f"no completed trial has measured {second.name}")
    kept = {trial.number for trial in results.front}
    drawn = [trial for trial in measured if trial.number in kept]
    others = results.sample([trial for trial in measured if trial.number not in kept], POINTS)
    groups = {
        "beyond a limit": ("PRUNED", [trial for trial in others if violation(trial)]),
        "dominated": ("WAITING", [trial for trial in others if not violation(trial)]),
        "front": ("COMPLETE", drawn),
    }
    figure = go.Figure(
        [_points(name, trials, second.name, color) for name, (color, trials) in groups.items() if trials]
    )
    lacking = len(results.trained) - len(measured)
    left_out = f"; left out without {second.name}: {lacking:,}" if lacking else ""
    thinned = sample_note([*drawn, *others], measured)
    figure.update_layout(xaxis_title=results.metric, yaxis_title=second.name, showlegend=True)
    return styled(figure, f"Front of {results.metric} and {second.name} ({second.direction}d){left_out}{thinned}")


def _points(name: str, trials: Sequence[FrozenTrial], second: str, state: str) -> go.Scatter:
    return go.Scatter(
        x=[trial.value for trial in trials],
        y=[measures_of(trial.user_attrs)[second] for trial in trials],
        customdata=[trial.number for trial in trials],
        mode="markers",
        name=name,
        marker={"color": STATE_COLORS[state], "size": 8},
        hovertemplate="trial %{customdata}: %{x:.4g}, %{y:.4g}<extra></extra>",
    )
