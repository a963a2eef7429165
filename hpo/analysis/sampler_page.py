"""The page of a comparison of samplers: sentences, tables, and the best value so far over the cost, with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative

from hpo.analysis import html_page
from hpo.analysis.plot_style import styled
from hpo.analysis.sampler_comparison import sentences, tables

Found = Mapping[str, Any]

COLORS = qualitative.Safe  # colour-blind people can tell them apart


def write(found: Found, name: str, path: Path) -> Path:
    """Write the page of a comparison; the file is replaced in one step.

    Args:
        found: What `hpo.analysis.sampler_comparison.compare_samplers` returned.
        name: Name of the study whose samplers are compared.
        path: The HTML file; its folder is made.

    Raises:
        HpoError: The file cannot be written.
    """
    text = "".join(f"<p>{escape(sentence)}.</p>" for sentence in sentences(found))
    shown = "".join(f"<h3>{escape(title)}</h3>{html_page.table(heads, rows)}" for title, heads, rows in tables(found))
    plot = '<section class="plot"><div id="plot-samplers" class="figure" style="height:480px"></div></section>'
    body = f'<div class="card">{text}</div>\n{plot}\n{shown}'
    return html_page.write(
        path, "page", lambda: html_page.page(f"Samplers of {name}", body, {"plot-samplers": figure(found)})
    )


def figure(found: Found) -> go.Figure:
    """Draw the mean over seeds of the best value so far over the cost; a band goes from the lowest to the highest."""
    curves, traces = found["curves"], list[go.Scatter]()
    names = [each["name"] for each in found["samplers"]]
    for index, name in enumerate(names):
        color = COLORS[index % len(COLORS)]
        if found["seeds"] > 1:
            traces.append(_band(name, curves["costs"], curves[name], color))
        traces.append(_line(name, curves["costs"], curves[name]["mean"], color))
    drawn = go.Figure(traces)
    drawn.update_layout(xaxis_title=f"{found['unit']} that all trials have trained", xaxis_rangemode="tozero")
    drawn.update_layout(yaxis_title=f"best {found['metric']} so far")
    seeds = (
        "one seed" if found["seeds"] == 1 else f"mean of {found['seeds']} seeds, bands from the lowest to the highest"
    )
    return styled(drawn, f"Samplers over the cost: {seeds}")


def _line(name: str, costs: Sequence[int], values: Sequence[float | None], color: str) -> go.Scatter:
    return go.Scatter(
        x=costs,
        y=values,
        mode="lines",
        name=name,
        legendgroup=name,
        line={"color": color, "width": 2.5, "shape": "hv"},
        hovertemplate=f"{name}: %{{y:.4g}} at %{{x}}<extra></extra>",
    )


def _band(name: str, costs: Sequence[int], curve: Mapping[str, Sequence[float | None]], color: str) -> go.Scatter:
    """Return the band of a curve, where all searches have found something."""
    rows = list(zip(costs, curve["lowest"], curve["highest"], strict=True))
    known = [row for row in rows if row[1] is not None]
    outline = [(cost, low) for cost, low, _ in known] + [(cost, high) for cost, _, high in reversed(known)]
    return go.Scatter(
        x=[cost for cost, _ in outline],
        y=[value for _, value in outline],
        mode="lines",
        name=name,
        fill="toself",
        fillcolor=color.replace("rgb(", "rgba(").replace(")", ", 0.15)"),
        line={"width": 0},
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
