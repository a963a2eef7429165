from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import plotly.graph_objects as go
import pytest
from optuna import visualization
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance._fanova._tree import _FanovaTree
from optuna.trial import TrialState, create_trial

import hpo
from hpo.analysis import importances, plots
from hpo.analysis.importances import compared
from hpo.analysis.plots import PLOTS
from hpo.storage import snapshot as snapshots
from hpo.storage.snapshot import Results

Build = Callable[..., Results]
LINK = '<a href="http://example.org">x</a>'


def drawn(results: Results) -> dict[str, str]:
    """Return name -> the plot's title, or the reason why there is none."""
    outcomes = {}
    for name, plot in PLOTS.items():
        try:
            outcomes[name] = plot(results).layout.title.text
        except ValueError as reason:
            outcomes[name] = f"not drawn: {reason}"
    return outcomes


def study(*rows: dict[str, Any], value: Callable[[int], float] = float, **extra: Any) -> Results:
    trials = []
    for number, params in enumerate(rows):
        ranges = {
            name: CategoricalDistribution((LINK, "other")) if isinstance(x, str) else FloatDistribution(0, 9)
            for name, x in params.items()
        }
        made = create_trial(value=value(number), params=params, distributions=ranges, **extra)
        made.number = number
        trials.append(made)
    return Results("s", "minimize", tuple(trials), {})


def test_the_order_of_a_report() -> None:
    assert list(PLOTS) == [
        "history",
        "tuning curve",
        "learning curves",
        "parallel coordinates",
        "slices",
        "contour",
        "importance",
        "timeline",
    ]


def test_a_whole_study_gets_every_plot(sample_results: Build) -> None:
    assert not [title for title in drawn(sample_results()).values() if title.startswith("not drawn")]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_small_study_gets_plots_or_reasons(sample_results: Build, count: int) -> None:
    outcomes = drawn(sample_results(count))
    assert outcomes["importance"].startswith("not drawn: it needs 3 completed trials, and there")
    assert (outcomes["history"] == "History") == (count > 0)
    assert (outcomes["slices"].startswith("Slices")) == (count > 1)


def test_one_parameter_has_no_pairs() -> None:
    outcomes = drawn(study(*({"x": n / 2} for n in range(5))))
    assert outcomes["contour"].startswith("not drawn: it needs two parameters")
    assert outcomes["importance"].startswith("not drawn: it needs two parameters")
    assert outcomes["slices"].startswith("Slices")


def test_a_study_without_parameters_or_completed_trials() -> None:
    assert drawn(study({}, {}, {}))["slices"] == "not drawn: no completed trial has a searched parameter"
    pruned = create_trial(state=TrialState.PRUNED, value=1.0, intermediate_values={10: 1.0})
    assert drawn(Results("s", "maximize", (pruned,), {}))["learning curves"] == "Learning curves"


def test_equal_values_and_parameters_that_never_meet() -> None:
    rows = [{"a": n / 2} if n % 2 else {"b": n / 2} for n in range(6)]
    assert drawn(study(*rows, value=lambda _: 0.5))["contour"].startswith("not drawn")
    same = study(*({"a": n / 2, "b": n % 3} for n in range(6)), value=lambda _: 0.5)
    assert all(drawn(same).values())


def test_axes_say_what_they_show(sample_results: Build) -> None:
    results = sample_results()
    curves = plots.learning_curves(results).layout
    assert (curves.xaxis.title.text, curves.yaxis.title.text) == ("examples seen", "accuracy")
    assert plots.history(results).layout.yaxis.title.text == "accuracy"
    rate = next(a for a in plots.slices(results).select_xaxes() if a.title.text == "learning_rate")
    assert rate.type == "log"


def test_the_best_curve_is_drawn_last_and_named(sample_results: Build) -> None:
    results = sample_results()
    assert results.best is not None
    *others, best = plots.learning_curves(results).data
    assert best.name == f"best (trial {results.best.number})"
    assert tuple(best.y) == tuple(results.best.intermediate_values.values())
    assert {trace.name for trace in others} == {"complete", "pruned", "running"}
    assert sum(bool(trace.showlegend) for trace in others) == 3


def test_curves_keep_their_numbers_behind_a_waiting_trial(sample_results: Build) -> None:
    results = sample_results()
    moved = (results.trials[-1], *results.trials[:-1])
    for number, trial in enumerate(moved):
        trial.number = number
    best = plots.learning_curves(Results("s", "maximize", moved, {})).data[-1]
    assert best.name == f"best (trial {moved.index(results.best)})"


def test_importance_rests_on_parameters_of_every_trial(sample_results: Build) -> None:
    shares = plots.importances(sample_results())
    assert next(iter(shares)) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    assert "power" not in shares
    title = plots.importance(sample_results()).layout.title.text
    assert title == (
        "Importance, from 24 completed trials (95% intervals from 50 resamples of these trials; grey cannot be told "
        "from 0: schedule, batch_size, epochs; 3 pruned trials are left out: it says what matters among trials that "
        "survived; without power: not in every trial, or always the same)"
    )
    assert plots.importances(sample_results()) == shares


def test_contours_show_two_to_four_parameters() -> None:
    rows = [{name: (n * k) % 9 for k, name in enumerate("abcdefg", 2)} for n in range(12)]
    axes = {a.title.text for a in plots.contour(study(*rows)).select_xaxes()} - {None}
    assert 2 <= len(axes) <= 4


def test_many_slices_share_a_page() -> None:
    figure = plots.slices(study(*(dict.fromkeys("abcdefg", n / 9) for n in range(4))))
    assert figure.layout.width is None
    places = {(a.domain[0], b.domain[0]) for a, b in zip(figure.select_xaxes(), figure.select_yaxes(), strict=True)}
    assert len(places) == 7
    assert all(0 <= low < high <= 1 for axis in figure.select_yaxes() for low, high in [axis.domain])


def test_markup_in_names_and_choices_stays_text() -> None:
    rows = [{LINK: LINK if n % 2 else "other", "x": n / 2} for n in range(4)]
    results = study(*rows, user_attrs={"reason": LINK})
    for name in ("slices", "parallel coordinates", "timeline", "importance", "contour"):
        assert "<a" not in json.dumps(PLOTS[name](results).to_plotly_json(), default=list), name


def test_importance_without_a_pruned_trial_speaks_of_no_survivors() -> None:
    title = plots.importance(study(*({"a": n / 2, "b": n % 3} for n in range(6)))).layout.title.text
    assert title == "Importance, from 6 completed trials (intervals need 10)"


# ---------------------------------------------------------------- as Optuna draws the storage

RATE = {"low": 1e-5, "high": 4e-5, "log": True}
SPACES: dict[str, dict[str, Any]] = {
    "a default above a range": {
        "parameters": {"rate": RATE, "x": {"low": 0.0, "high": 1.0}},
        "baseline": {"rate": 5e-5},
    },
    "a default below a range": {
        "parameters": {"n": {"low": 4, "high": 9}, "x": {"low": 0.5, "high": 1.0}},
        "baseline": {"n": 3, "x": 0.0},
    },
    "defaults off their lattices": {
        "parameters": {"x": {"low": 0.0, "high": 1.0, "step": 0.25}, "n": {"low": 2, "high": 10, "step": 2}},
        "baseline": {"x": 0.3, "n": 5},
    },
    "logarithmic whole numbers": {
        "parameters": {"n": {"low": 1, "high": 64, "log": True}, "rate": RATE},
        "baseline": {"n": 100, "rate": 1e-3},
    },
    "choices of mixed types": {
        "parameters": {"kind": ["a", None, 2, True, 0.5], "x": {"low": 0.0, "high": 1.0}},
        "baseline": {"kind": None},
    },
    "a default that is no choice": {"parameters": {"size": [16, 32], "x": [0.1, 0.2, 0.3]}, "baseline": {"size": 8}},
    "a condition": {
        "parameters": {
            "kind": ["flat", "steep"],
            "power": {"low": 0.5, "high": 2.0, "when": {"kind": "steep"}},
            "x": {"low": 0.0, "high": 1.0},
        },
        "baseline": {"kind": "steep", "power": 3.0, "x": 2.0},
    },
    "a default that lacks a parameter": {
        "parameters": {"rate": RATE, "x": {"low": 0.0, "high": 1.0}},
        "baseline": {"x": 1.5},
    },
    "one parameter": {"parameters": {"rate": RATE, "fixed": 3}, "baseline": {"rate": 1.0}},
    "fixed values only": {"parameters": {"fixed": 3, "other": {"low": 2, "high": 2}}},
}


def ran(name: str, folder: Path, **options: Any) -> optuna.Study:
    """Run a study of a space in SQLite, some of whose trials are pruned."""

    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        value = sum(float(v) if isinstance(v, int | float) else len(str(v)) for v in params.values())
        for step in range(1, 4):
            yield value * step if value < 2.5 else value / step

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        url = f"sqlite:///{folder}/hpo.db"
        pruner = {"name": "median", "n_startup_trials": 3}
        hpo.optimize(objective, SPACES[name], trials=9, storage=url, name="s", pruner=pruner, **options)
    return optuna.load_study(study_name="s", storage=url)


def data(figure: go.Figure) -> list[dict[str, str]]:
    """Return what the traces of a figure show, without how they look."""
    shown = ("x", "y", "z", "base", "customdata")
    return [{key: repr(trace[key]) for key in shown if key in trace} for trace in _json(figure)["data"]]


def _json(figure: go.Figure) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(figure.to_json())
    return read


@pytest.mark.parametrize("sampler", ["random", "grid"])
@pytest.mark.parametrize("name", SPACES)
def test_a_study_is_drawn_as_optuna_draws_its_storage(name: str, sampler: str, tmp_path: Path) -> None:
    ranges = [space for space in SPACES[name]["parameters"].values() if isinstance(space, dict)]
    continuous = any(isinstance(space["low"], float) and "step" not in space for space in ranges)
    if sampler == "grid" and continuous:
        pytest.skip("a grid has no continuous range")
    stored = ran(name, tmp_path, sampler=sampler)
    results = snapshots.read(stored)
    said = {"target_name": results.metric}
    theirs = {
        "history": lambda: visualization.plot_optimization_history(stored, **said),
        "parallel coordinates": lambda: visualization.plot_parallel_coordinate(stored, **said),
        "slices": lambda: visualization.plot_slice(stored, **said),
        "timeline": lambda: visualization.plot_timeline(stored),
    }
    reasons = {plot: title for plot, title in drawn(results).items() if title.startswith("not drawn")}
    few = len({key for trial in results.complete for key in trial.params}) < 2 or len(results.complete) < 3
    assert reasons.keys() <= ({"contour", "importance"} if few or name == "a condition" else set()) | (
        {"parallel coordinates", "slices"} if name == "fixed values only" else set()
    ) | {"tuning curve"}, reasons
    for plot, draw in theirs.items():
        if plot not in reasons:
            assert data(PLOTS[plot](results)) == data(draw()), plot
    assert curves(PLOTS["learning curves"](results)) == curves(visualization.plot_intermediate_values(stored))
    if "contour" not in reasons:
        check_importance(results, stored)


def check_importance(results: Results, stored: optuna.Study) -> None:
    # For a tree of equal values Optuna's variance is 0 or a rounding error, and of that it gives all to one parameter.
    variance: property = _FanovaTree.variance  # type: ignore[assignment]
    rounded = property(lambda tree: found if (found := variance.fget(tree)) > 1e-20 else 0.0)  # type: ignore[misc]
    with mock.patch.object(_FanovaTree, "variance", rounded):
        compare_importance(results, stored)


def compare_importance(results: Results, stored: optuna.Study) -> None:
    shares, names = plots.importances(results), compared(results)
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    wide = widened(stored)
    assert shares == pytest.approx(optuna.importance.get_param_importances(wide, evaluator=forest, params=names))
    assert sum(shares.values()) == pytest.approx(1)
    (bars,) = visualization.plot_param_importances(wide, evaluator=forest, params=names).data
    (ours,) = plots.importance(results).data
    assert (list(ours.y), list(ours.x)) == (list(bars.y), pytest.approx(list(bars.x)))
    asked = list(shares)[: max(2, sum(share >= plots.IMPORTANT for share in list(shares.values())[:4]))]
    assert data(plots.contour(results)) == data(visualization.plot_contour(stored, params=asked))


def widened(stored: optuna.Study) -> optuna.Study:
    """Return a study that was searched in ranges wide enough for all of its values, which Optuna accepts."""
    rows = [trial for trial in stored.trials if trial.state == TrialState.COMPLETE]
    made = optuna.create_study(direction="maximize")
    for row in rows:
        for name, known in row.distributions.items():
            values = [trial.params[name] for trial in rows if name in trial.params]
            inside = not hasattr(known, "low") or known.low <= min(values) <= max(values) <= known.high
            if not inside:
                ends = min(known.low, *values), max(known.high, *values)
                row.distributions[name] = type(known)(*ends, log=known.log)
        made._storage.create_new_trial(made._study_id, row)
    return made


def curves(figure: go.Figure) -> list[list[tuple[float, float]]]:
    """Return the curves of a figure, whether one a trace or several with gaps between them."""
    found = []
    for trace in figure.data:
        for gap, points in itertools.groupby(zip(trace.x, trace.y, strict=True), lambda point: point[0] is None):
            found += [] if gap else [list(points)]
    return sorted(found)


# ---------------------------------------------------------------- large studies


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a study of sixty trials be a large one."""
    for name, limit in {"POINTS": 20, "LINES": 15, "CELLS": 8}.items():
        monkeypatch.setattr(plots, name, limit)
    for module in (plots, importances):
        monkeypatch.setattr(module, "FOREST", 12)
    importances.importances.cache_clear()
    importances.intervals.cache_clear()


@pytest.mark.usefixtures("small_limits")
def test_of_a_large_study_a_sample_is_drawn_and_its_title_says_so(sample_results: Build) -> None:
    results = sample_results(60)
    complete = len(results.complete)
    titles = drawn(results)
    for name, of in {
        "history": f"20 of {complete} trials",
        "learning curves": f"20 of {complete + results.counts['pruned'] + 1} trials",
        "parallel coordinates": f"15 of {complete} trials",
        "slices": f"20 of {complete} trials",
        "contour": f"8 of {complete} trials",
        "importance": f"from 12 of {complete} completed trials",
        "timeline": "20 of 59 trials",
    }.items():
        assert of in titles[name], name
    assert len([t for t in plots.parallel_coordinates(results).data if t.mode == "lines"]) == 15
    assert sum(len(t.x) for t in plots.timeline(results).data) == 20
    assert max(len(t.z) for t in plots.contour(results).data if t.type == "contour") <= 8 + 2


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_so_far_is_that_of_all_trials(sample_results: Build, direction: str) -> None:
    results = sample_results(60, direction=direction)
    points, line = plots.history(results).data[:2]
    assert len(points.x) == 20
    best, steps = None, []
    for trial in results.complete:
        if best is None or (trial.value > best if direction == "maximize" else trial.value < best):
            best = trial.value
            steps.append((trial.number, best))
    assert list(zip(line.x, line.y, strict=True)) == [*steps, (results.trials[-1].number, best)]


# ---------------------------------------------------------------- colours


def contrast(color: str, opacity: float) -> float:
    """Return the contrast of a colour on white (WCAG 2.2, relative luminance)."""
    digits = [int(color[i : i + 2], 16) for i in (1, 3, 5)] if color.startswith("#") else None
    shares = [opacity * float(c) / 255 + 1 - opacity for c in digits or re.findall(r"[\d.]+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_every_line_and_point_is_seen_on_white(sample_results: Build, direction: str) -> None:
    results = sample_results(direction=direction)
    lines = [trace for trace in plots.parallel_coordinates(results).data if trace.mode == "lines"]
    for trace in [*lines, *plots.learning_curves(results).data]:
        assert contrast(trace.line.color, trace.opacity) > 1.5, trace.line.color
    for trace in plots.slices(results).data:
        assert all(contrast(color, 1) > 2.5 for _, color in trace.marker.colorscale)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_better_a_line_the_bluer_as_its_scale_says(sample_results: Build, direction: str) -> None:
    results = sample_results(direction=direction)
    assert results.best is not None
    *lines, scale = plots.parallel_coordinates(results).data
    top, bottom = max(lines, key=lambda line: line.y[0]), min(lines, key=lambda line: line.y[0])
    blue, orange = (top, bottom) if direction == "maximize" else (bottom, top)
    assert (blue.line.color, orange.line.color) == ("rgb(29, 78, 216)", "rgb(217, 119, 6)")
    assert f"{results.best.value:.3g}"[:5] in str(blue.customdata[0])
    ends = [color for _, color in scale.marker.colorscale]
    assert ends[:: 1 if direction == "maximize" else -1] == plots.SCALE
    assert not scale.marker.reversescale
