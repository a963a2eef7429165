"""The style of all plots: colours, fonts, few labels on small axes, and names that cannot be read as markup."""

from __future__ import annotations

import math
import re
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

STATE_COLORS = {
    "COMPLETE": "#2563eb",
    "PRUNED": "#d97706",
    "FAIL": "#dc2626",
    "RUNNING": "#16a34a",
    "WAITING": "#9ca3af",
}
BEST_COLOR = "#111827"
SCALE = ["#d97706", "#8b93b5", "#1d4ed8"]  # from the first value to the last; each colour is visible on white
MOST_TICKS = 3  # labels on the logarithmic axis of a small plot

TEMPLATE = go.layout.Template(pio.templates["plotly_white"])
TEMPLATE.layout.update(
    font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": "#1f2937"},
    colorway=[STATE_COLORS["COMPLETE"], BEST_COLOR, STATE_COLORS["PRUNED"], STATE_COLORS["RUNNING"]],
    margin={"l": 70, "r": 30, "t": 60, "b": 60},
    legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
)


def styled(figure: go.Figure, title: str) -> go.Figure:
    """Return a figure in the style of a report, with a title."""
    figure.update_yaxes(exponentformat="power", selector={"type": "log"})
    for axis in figure.select_xaxes(selector={"type": "log"}):
        name = axis.plotly_name.replace("axis", "")
        drawn = [trace.x for trace in figure.data if (trace.xaxis or "x") == name and trace.x is not None]
        values = [value for each in drawn for value in each if value]
        ticks = _few_ticks(min(values), max(values)) if values else []
        axis.update(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], tickangle=0)
    figure.update_layout(template=TEMPLATE, title={"text": title, "x": 0, "xanchor": "left"})
    return go.Figure(_inert(figure.to_plotly_json()))


def _few_ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a small logarithmic axis: more labels would overlap, or reach into the plot below."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= MOST_TICKS:
            break
    return ticks if len(ticks) > 1 else sorted({low, high})


def _inert(value: Any) -> Any:
    """Return a figure's JSON with markup in names and choices as text: Plotly would render links in it."""
    if isinstance(value, str):
        return re.sub(r"<(?!br>|/?b>|/?extra>)", "&lt;", value)
    if isinstance(value, dict):
        return {key: _inert(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_inert(entry) for entry in value]
    return value
