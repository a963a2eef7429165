from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from hpo import plots
from hpo.plots import PLOTS
from hpo.results import Results

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
    assert title.startswith("Importance, from 24 completed trials (without power")
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
