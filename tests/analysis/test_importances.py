"""Importances of trials whose values are known functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from hpo.analysis import importances
from hpo.analysis.importances import Importance, TooSmallError, intervals
from hpo.storage.snapshot import Results

SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "size": IntDistribution(1, 9),
    "kind": CategoricalDistribution(("a", "b", "c")),
    "other": FloatDistribution(0.0, 1.0),
}
Value = Callable[[Mapping[str, Any], np.random.Generator], float]


def study(value: Value, trials: int = 64, seed: int = 0) -> Results:
    random, made = np.random.default_rng(seed), []
    for number in range(trials):
        params = {
            "rate": 10 ** random.uniform(-5, -1),
            "size": int(random.integers(1, 10)),
            "kind": "abc"[random.integers(3)],
            "other": random.random(),
        }
        made.append(create_trial(value=value(params, random), params=params, distributions=SPACE))
        made[-1].number = number
    return Results("s", "maximize", tuple(made), {})


def one_matters(params: Mapping[str, Any], random: np.random.Generator) -> float:
    return -((params["other"] - 0.4) ** 2) + random.normal(0, 0.02)


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_optunas_fanova(seed: int) -> None:
    def value(params: Mapping[str, Any], random: np.random.Generator) -> float:
        return params["size"] * params["other"] + (params["kind"] == "b") + random.normal()

    results = study(value, 40, seed)
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    theirs = optuna.importance.get_param_importances(results.as_study(), evaluator=forest)
    assert importances.importances(results) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_what_matters_is_told_and_what_does_not_is_not() -> None:
    found = intervals(study(one_matters))
    assert next(iter(found)) == "other"
    assert {name for name, importance in found.items() if importance.told} == {"other"}
    assert found["other"].low > 0.5
    assert all(0 <= each.low <= each.share <= each.high <= 1 for each in found.values())


def test_noise_is_told_from_nothing_in_most_studies() -> None:
    told = [
        importance.told
        for seed in range(3)
        for importance in intervals(study(lambda _, random: random.normal(), 24, seed)).values()
    ]
    assert sum(told) <= 2  # of 12


def test_more_trials_make_the_interval_narrower() -> None:
    def width(trials: int) -> float:
        other = intervals(study(one_matters, trials))["other"]
        return other.high - other.low

    assert width(128) < width(16)


def test_intervals_are_the_same_each_time() -> None:
    first = intervals(study(one_matters, 16))
    assert intervals(study(one_matters, 16)) == first


def test_few_trials_and_equal_values_tell_nothing() -> None:
    with pytest.raises(TooSmallError, match="intervals need 10 completed trials, and there are 9"):
        intervals(study(one_matters, 9))
    with pytest.raises(TooSmallError, match="all completed trials have the same value"):
        intervals(study(lambda *_: 0.5, 12))


def test_a_share_at_the_level_of_shuffled_values_cannot_be_told_from_0() -> None:
    assert not Importance(0.2, 0.05, 0.4, 0.05).told
    assert Importance(0.2, 0.06, 0.4, 0.05).told
