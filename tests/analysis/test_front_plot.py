"""The plots of a study with limits and a second metric."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from hpo.analysis import report
from hpo.analysis.front_plot import front_plot
from hpo.analysis.importances import TooSmallError
from hpo.analysis.plots import PLOTS
from hpo.storage.snapshot import Results, read

POINTS = [(0.9, 40.0), (0.8, 30.0), (0.7, 10.0), (0.6, 20.0), (0.5, 5.0)]


def results(*points: tuple[float, float | None], **config: Any) -> Results:
    study = optuna.create_study(study_name="s", direction="maximize")
    study.set_user_attr("config", {"name": "s", "space": {}, "metric": "accuracy", **config})
    for value, latency in points:
        metrics = {} if latency is None else {"latency_ms": latency}
        ranges = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
        params = {"x": value, "y": (3 * value) % 1}
        study.add_trial(
            create_trial(
                value=value,
                params=params,
                distributions=ranges,
                user_attrs={"metrics": metrics},
                intermediate_values={1: value},
            )
        )
    return read(study)


SECOND = {"second_metric": {"name": "latency_ms", "direction": "minimize"}}
LIMITS = {"limits": {"latency_ms": {"most": 35}}}


def test_the_front_is_marked_and_so_is_what_is_beyond_a_limit() -> None:
    figure = front_plot(results(*POINTS, (0.95, None), **SECOND, **LIMITS))
    assert {trace.name: list(trace.customdata) for trace in figure.data} == {
        "beyond a limit": [0],
        "dominated": [3],
        "front": [1, 2, 4],
    }
    assert "left out without latency_ms: 1" in figure.layout.title.text


def test_without_a_second_metric_there_is_no_plot_and_no_section() -> None:
    with pytest.raises(TooSmallError, match="has no second_metric"):
        front_plot(results(*POINTS))
    with pytest.raises(TooSmallError, match="no completed trial has measured latency_ms"):
        front_plot(results((0.5, None), **SECOND))
    assert "Front of" not in report.html(results(*POINTS))


@pytest.mark.parametrize("most", [35, 1])
def test_all_plots_are_drawn_of_trials_beyond_limits(most: float) -> None:
    study = results(*POINTS, **SECOND, limits={"latency_ms": {"most": most}})
    for name, draw in PLOTS.items():
        if name not in ("tuning curve", "timeline"):
            draw(study)
    notes: list[str] = []
    page = report.html(study, notes.append)
    assert notes == []
    assert f"latency_ms at most {most}" in page
    assert ("none of 5 completed trials is within the limits" in page) == (most == 1)


def test_the_history_tells_trials_beyond_a_limit_apart() -> None:
    beyond = [trace for trace in PLOTS["history"](results(*POINTS, **LIMITS)).data if trace.name == "beyond a limit"]
    assert [list(trace.y) for trace in beyond] == [[0.9]]
