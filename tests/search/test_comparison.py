from __future__ import annotations

import math

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.core.errors import ConfigError, DivergedError
from hpo.search.comparison import Comparison
from hpo.storage.step_metrics import METRICS_AT, metrics_at


def row(
    curve: dict[int, float], losses: dict[str, float] | None = None, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    return create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0.0, 1.0)},
        intermediate_values=curve,
        system_attrs={METRICS_AT: {"loss": losses}} if losses else {},
    )


def test_a_value_is_compared_first_and_the_loss_where_values_are_equal() -> None:
    good, bad = row({1: 0.5}, {"1": 0.1}), row({1: 0.5}, {"1": 0.2})
    for direction in ("maximize", "minimize"):
        compared = Comparison(direction)
        assert compared.curve(good)[1] < compared.curve(bad)[1]
    better = row({1: 0.6}, {"1": 9.0})
    assert Comparison("maximize").curve(better)[1] < Comparison("maximize").curve(good)[1]
    assert Comparison("minimize").curve(better)[1] > Comparison("minimize").curve(good)[1]


def test_a_trial_without_a_loss_comes_last_among_equals() -> None:
    compared = Comparison("maximize")
    assert compared.curve(row({1: 0.5}))[1] > compared.curve(row({1: 0.5}, {"1": 9.0}))[1]
    assert compared.curve(row({1: 0.5})) == compared.curve(row({1: 0.5}))


def test_a_metric_is_compared_in_place_of_the_value() -> None:
    compared = Comparison("minimize", "loss")
    assert compared.curve(row({1: 0.5, 2: 0.6}, {"1": 3.0})) == {1: (3.0,)}
    assert Comparison("maximize", "loss").curve(row({1: 0.5}, {"1": 3.0})) == {1: (-3.0,)}


def test_a_pruner_sees_the_metric_as_the_value_and_the_trial_is_not_changed() -> None:
    given = row({1: 0.5, 2: 0.6}, {"1": 3.0, "2": 2.0})
    seen = Comparison("minimize", "loss").seen(given)
    assert seen is not None
    assert (seen.intermediate_values, seen.value, seen.number) == ({1: 3.0, 2: 2.0}, 2.0, given.number)
    assert (given.intermediate_values, given.value) == ({1: 0.5, 2: 0.6}, 1.0)
    assert Comparison("maximize").seen(given) is given


def test_a_completed_trial_without_the_metric_is_not_seen() -> None:
    compared = Comparison("minimize", "loss")
    assert compared.seen(row({1: 0.5})) is None
    running = compared.seen(row({1: 0.5}, state=TrialState.RUNNING))
    assert running is not None
    assert running.intermediate_values == {}


def test_only_the_metrics_that_pruning_needs_are_stored() -> None:
    metrics = {"loss": 0.5, "accuracy": 0.9}
    assert Comparison("maximize").stored(metrics) == {"loss": 0.5}
    assert Comparison("maximize", "accuracy").stored(metrics) == {"accuracy": 0.9}
    assert Comparison("maximize").stored({"loss": math.nan}) == {}
    assert Comparison("maximize").stored({}) == {}


def test_metrics_are_added_step_by_step() -> None:
    one = row({1: 0.5}, {"1": 3.0})
    assert metrics_at(one, 2, {"loss": 2.0}) == {"loss": {"1": 3.0, "2": 2.0}}
    assert metrics_at(one, 2, {"error": 2.0}) == {"loss": {"1": 3.0}, "error": {"2": 2.0}}
    assert one.system_attrs[METRICS_AT] == {"loss": {"1": 3.0}}


def test_an_evaluation_without_the_metric_is_a_user_error() -> None:
    compared = Comparison("minimize", "los")
    with pytest.raises(ConfigError, match=r"prune_on: 'los' is not a metric .* \(it reports loss, steps\)"):
        compared.require({"loss": 1.0, "steps": 2.0})
    with pytest.raises(ConfigError, match="it reports none"):
        compared.require({})
    with pytest.raises(DivergedError, match="los, which prune_on names, is nan"):
        compared.require({"los": math.nan})
    compared.require({"los": 1.0})
    Comparison("minimize").require({})
