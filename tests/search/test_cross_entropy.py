from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from hpo.search.cross_entropy import BETTER, FEWEST, CrossEntropySampler, better_third, place_of, value_at

RATE = FloatDistribution(1e-6, 1e-2, log=True)
RANGES = [
    RATE,
    FloatDistribution(-1.0, 3.0),
    FloatDistribution(0.0, 1.0, step=0.25),
    IntDistribution(1, 10),
    IntDistribution(8, 64, step=8),
    IntDistribution(1, 1024, log=True),
]


def study_of(values: list[tuple[float, Any]], distribution: Any, direction: str = "maximize") -> optuna.Study:
    """Return a study with completed trials of (score, value of `x`)."""
    study = optuna.create_study(direction=direction)
    study.add_trials([create_trial(value=v, params={"x": x}, distributions={"x": distribution}) for v, x in values])
    return study


def drawn(study: optuna.Study, distribution: Any, count: int = 400) -> list[Any]:
    sampler = CrossEntropySampler(seed=0)
    trial = create_trial(state=optuna.trial.TrialState.RUNNING)
    return [sampler.sample_independent(study, trial, "x", distribution) for _ in range(count)]


@pytest.mark.parametrize("distribution", RANGES, ids=str)
@given(place=st.floats(0, 1))
def test_a_value_is_in_its_range_and_nearest_to_its_place(distribution: Any, place: float) -> None:
    value = value_at(distribution, place)
    assert distribution._contains(distribution.to_internal_repr(value))
    assert isinstance(value, int) == isinstance(distribution, IntDistribution)
    if distribution.step is None:
        assert place_of(distribution, value) == pytest.approx(place, abs=1e-9)
    assert value_at(distribution, place_of(distribution, value)) == pytest.approx(value)


@pytest.mark.parametrize("distribution", RANGES[2:5], ids=str)
def test_all_values_of_a_range_with_steps_are_equally_wide(distribution: Any) -> None:
    values = [value_at(distribution, place) for place in np.linspace(0, 1, 4000, endpoint=False)]
    counts = np.unique(values, return_counts=True)[1]
    assert counts.max() - counts.min() <= 2


def test_a_published_value_outside_the_range_has_the_place_of_the_nearer_end() -> None:
    assert place_of(RATE, 1.0) == 1
    assert place_of(RATE, 1e-9) == 0


@given(scores=st.lists(st.integers(0, 9), max_size=12), higher=st.booleans())
def test_the_better_third_is_rounded_up_and_none_is_better(scores: list[int], higher: bool) -> None:
    study = study_of([(float(score), 1e-4) for score in scores], RATE, "maximize" if higher else "minimize")
    found = [trial.value for trial in better_third(study)]
    assert len(found) == (math.ceil(len(scores) / BETTER) if len(scores) >= FEWEST else 0)
    assert found == sorted(scores, reverse=higher)[: len(found)]


def test_draws_are_near_the_better_third_where_it_is_narrow() -> None:
    rates = [10.0**-exponent for exponent in (6, 6, 3, 3, 3, 6, 4.2, 4, 3.8)]
    study = study_of([(float(score), rate) for score, rate in enumerate(rates)], RATE)
    exponents = np.log10(drawn(study, RATE))
    assert exponents.mean() == pytest.approx(-4, abs=0.05)
    assert exponents.std() == pytest.approx(np.std([4.2, 4, 3.8]), rel=0.1)


@pytest.mark.parametrize("values", [[], [(1.0, 1e-4)] * (FEWEST - 1)])
def test_draws_are_uniform_where_too_little_is_known(values: list[tuple[float, float]]) -> None:
    places = [place_of(RATE, rate) for rate in drawn(study_of(values, RATE), RATE, 1000)]
    assert np.histogram(places, 4, (0, 1))[0] == pytest.approx([250] * 4, abs=60)


def test_equal_values_do_not_end_the_search() -> None:
    assert len(set(drawn(study_of([(1.0, 1e-4)] * 9, RATE), RATE))) > 100


def test_draws_at_an_end_do_not_pile_up_there() -> None:
    rates = drawn(study_of([(1.0, 1e-2), (1.0, 5e-3), (0.0, 1e-5), (0.0, 1e-6)] * 2, RATE), RATE)
    assert np.mean(np.array(rates) == RATE.high) < 0.01
    assert max(rates) <= RATE.high


def test_a_choice_is_drawn_as_often_as_the_better_third_has_it_and_none_is_excluded() -> None:
    choices = CategoricalDistribution(("a", "b", "c"))
    study = study_of([(1.0, "a")] * 3 + [(2.0, "b")] * 3 + [(0.0, "c")] * 9, choices)  # the better third: 3 b, 2 a
    counts = {choice: drawn(study, choices, 1000).count(choice) / 1000 for choice in "abc"}
    assert counts == pytest.approx({"a": 3 / 8, "b": 4 / 8, "c": 1 / 8}, abs=0.05)


def test_a_parameter_that_few_of_the_better_third_have_is_drawn_anywhere() -> None:
    study = study_of([(float(score), 1e-4) for score in range(6)], RATE)
    other = FloatDistribution(0.0, 1.0)
    sampler, trial = CrossEntropySampler(0), create_trial(state=optuna.trial.TrialState.RUNNING)
    values = [sampler.sample_independent(study, trial, "other", other) for _ in range(400)]
    assert np.histogram(values, 4, (0, 1))[0] == pytest.approx([100] * 4, abs=40)
