"""Few and round labels on logarithmic axes, in a style that all plots share."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from hpo.analysis.plot_style import styled


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5e-5, 1.2e-4, 2.8e-4], [5e-5, 1e-4, 2e-4]),
        ([1e-5, 1e-3], [1e-5, 1e-4, 1e-3]),
        ([1e-5, 1e-4], [1e-5, 3e-5, 1e-4]),
        ([1e-6, 1.0], [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        ([2.1e-4, 4.9e-4], [2.1e-4, 4.9e-4]),  # no round number between them: the ends
        ([3e-4], [3e-4]),
    ],
)
def test_a_logarithmic_axis_has_few_round_labels(values: list[float], expected: list[float]) -> None:
    figure = go.Figure(go.Scatter(x=values, y=values)).update_xaxes(type="log")
    axis = styled(figure, "title").layout.xaxis
    assert list(axis.tickvals) == pytest.approx(expected)
    assert list(axis.ticktext) == [f"{value:g}" for value in expected]


def test_an_axis_is_labelled_by_what_is_drawn_on_it() -> None:
    figure = go.Figure([go.Scatter(x=[1.0, 2.0]), go.Scatter(x=[10.0, 100.0], xaxis="x2"), go.Contour(xaxis="x2")])
    figure.update_layout(xaxis={"type": "log"}, xaxis2={"type": "log"}, xaxis3={"type": "log"})
    layout = styled(figure, "title").layout
    assert [list(axis.tickvals) for axis in (layout.xaxis, layout.xaxis2)] == [[1, 2], [10, 30, 100]]
    assert not layout.xaxis3.tickvals
