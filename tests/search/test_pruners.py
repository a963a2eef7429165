from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner

from hpo.search import pruners
from hpo.search.pruners import PRUNERS, make

SLOW = {"interval_steps": 1, "n_startup_trials": 0, "n_warmup_steps": 0}


def pruned_at(pruner: BasePruner, curves: Sequence[Mapping[int, float]]) -> list[int | None]:
    """Run trials one after the other and return the step at which each was pruned."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    stops: list[int | None] = []
    for curve in curves:
        trial, stop = study.ask(), None
        for step, value in curve.items():
            trial.report(value, step)
            if trial.should_prune():
                stop = step
                break
        state = optuna.trial.TrialState.COMPLETE if stop is None else optuna.trial.TrialState.PRUNED
        study.tell(trial, None if stop else value, state)
        stops.append(stop)
    return stops


def lines(*ends: float, steps: int = 4) -> list[dict[int, float]]:
    """IntermediateValues that rise to `end` in even steps."""
    return [{i: end * i / steps for i in range(1, steps + 1)} for end in ends]


TABLE: list[tuple[str, dict[str, Any], list[dict[int, float]], list[int | None]]] = [
    ("none", {}, lines(0.9, 0.1), [None, None]),
    ("median", SLOW, lines(0.9, 0.5, 0.95, 0.6), [None, 1, None, 1]),
    ("median", {**SLOW, "n_warmup_steps": 3}, lines(0.9, 0.5, 0.95), [None, 3, None]),
    ("median", {**SLOW, "n_startup_trials": 2}, lines(0.9, 0.5, 0.6), [None, None, 1]),
    ("percentile", {**SLOW, "percentile": 25.0}, lines(0.9, 0.8, 0.7, 0.95), [None, 1, 1, None]),
    ("percentile", SLOW, lines(0.9, 0.8, 0.95), [None, 1, None]),
    ("asha", {"reduction_factor": 2, "min_early_stopping_rate": 0}, lines(0.9, 0.5, 0.95), [None, 1, None]),
    ("successive_halving", {"reduction_factor": 2}, lines(0.9, 0.5, 0.95), [None, 1, None]),
    ("hyperband", {"max_resource": 4, "reduction_factor": 4}, lines(0.9, 0.9), [None, None]),
    ("patient", {"patience": 1}, [{1: 0.5, 2: 0.4, 3: 0.3}, {1: 0.5, 2: 0.6, 3: 0.7}], [3, None]),
    ("patient", {"patience": 1, "wrapped": "none"}, [{1: 0.5, 2: 0.4, 3: 0.3}], [None]),
    (
        "patient",
        {"patience": 1, "wrapped": {"name": "median", **SLOW}},
        [*lines(0.9), {1: 0.1, 2: 0.09, 3: 0.08, 4: 0.07}, {1: 0.8, 2: 0.79, 3: 0.78, 4: 0.9}],
        [None, 3, None],
    ),
    (
        "wilcoxon",
        {"n_startup_steps": 2},
        [{i: 0.9 + i / 100 for i in range(1, 13)}, {i: 0.5 + i / 100 for i in range(1, 13)}],
        [None, 4],
    ),
    ("threshold", {"lower": 0.2}, [{1: 0.3, 2: 0.1}, {1: 0.3, 2: 0.5}], [2, None]),
    ("two_rungs", {}, lines(0.9, 0.5, 0.95), [None, 1, None]),
    ("auto", {}, lines(0.9, 0.5, 0.95), [None, 1, None]),
    ("NopPruner", {}, lines(0.9, 0.1), [None, None]),
    ("MedianPruner", SLOW, lines(0.9, 0.5), [None, 1]),
]


def test_every_pruner_is_in_the_table() -> None:
    assert set(PRUNERS) <= {name for name, *_ in TABLE}


@pytest.mark.parametrize(("name", "arguments", "curves", "expected"), TABLE)
def test_prunes_at_the_expected_steps(
    name: str, arguments: dict[str, Any], curves: list[dict[int, float]], expected: list[int | None]
) -> None:
    assert pruned_at(make(name, arguments), curves) == expected


def test_trials_of_different_batch_sizes_compare_at_the_same_examples_seen() -> None:
    small = {examples: 0.9 * examples / 320 for examples in range(80, 321, 80)}  # batch 16: 20 steps in all
    large = {examples: 0.3 * examples / 320 for examples in range(80, 321, 80)}  # batch 80: 4 steps in all
    pruner = make("median", SLOW, segment=80, horizon=320)
    assert pruned_at(pruner, [small, large]) == [None, 80]
    by_steps = [{at // size: value for at, value in curve.items()} for curve, size in ((small, 16), (large, 80))]
    assert pruned_at(make("median", SLOW), by_steps) == [None, None]  # counting steps, the trials would not be compared


@pytest.mark.parametrize("name", ["asha", "successive_halving"])
def test_the_first_rung_is_a_segment(name: str) -> None:
    curves = [{at: end * at / 400 for at in range(100, 401, 100)} for end in (0.9, 0.1)]
    assert pruned_at(make(name, {"reduction_factor": 2}, segment=200, horizon=400), curves) == [None, 200]
    assert pruned_at(make(name, {"reduction_factor": 2, "min_resource": 400}, segment=200), curves) == [None, 400]


@pytest.mark.parametrize(
    ("segment", "horizon", "arguments", "brackets"),
    [(100, 900, {}, 3), (100, 2700, {}, 4), (100, 900, {"max_resource": 100}, 1), (1, 9, {"reduction_factor": 9}, 2)],
)
def test_the_brackets_of_hyperband_span_segment_to_horizon(
    segment: int, horizon: int, arguments: dict[str, Any], brackets: int
) -> None:
    pruner = make("hyperband", arguments, segment, horizon)
    pruned_at(pruner, [{segment: 0.5, horizon: 0.6}])
    assert len(pruner._pruners) == brackets  # type: ignore[attr-defined]


def test_hyperband_waits_for_a_complete_trial_where_the_horizon_is_not_known() -> None:
    pruner = make("hyperband", {}, segment=1)
    assert pruned_at(pruner, lines(0.9, 0.5)) == [None, None]
    assert pruner._max_resource == 4 + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("mediann", {}, "no pruner is called 'mediann'; one of none, median"),
        ("BasePruner", {}, "no pruner is called 'BasePruner'"),
        ("annotations", {}, "no pruner is called"),
        ("", {}, "no pruner is called ''"),
        ("median", {"startup": 3}, "unexpected keyword argument 'startup'"),
        ("median", {"n_startup_trials": -1}, "cannot be negative"),
        ("percentile", {"percentile": 101.0}, "between 0 and 100"),
        ("threshold", {}, "[Ee]ither lower or upper"),
        ("patient", {"wrapped": "mediann"}, "no pruner is called 'mediann'"),
        ("patient", {"wrapped": {"name": "median", "n_startup": 1}}, "unexpected keyword argument 'n_startup'"),
    ],
)
def test_a_pruner_that_cannot_be_built_is_a_value_error(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(name, arguments)


def test_any_class_of_optuna_can_be_named() -> None:
    for name in optuna.pruners.__all__:
        assert (pruners.factory(name) is None) == (name == "BasePruner")
