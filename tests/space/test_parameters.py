from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from spaces import CHOICES, FINITE, floats, ints

from hpo.space.parameters import Categorical, Float, Int, Parameter

# Optuna lowers an end that is off the lattice, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")


@given(floats() | ints() | CHOICES)
def test_every_point_is_one_that_optuna_can_store(parameter: Parameter) -> None:
    distribution = parameter.distribution()
    for value in list(parameter.points() or [])[:100]:
        assert distribution._contains(distribution.to_internal_repr(value))


@given(FINITE, st.floats(0, 50), st.sampled_from([0.1, 0.05, 0.3, 1e-3, 7.0]))
def test_the_last_point_of_a_range_with_steps_is_optunas(low: float, width: float, step: float) -> None:
    parameter = Float(round(low, 3), round(low, 3) + round(width, 3), step=step)
    top = parameter.distribution().high  # type: ignore[attr-defined]
    points = parameter.points()
    assert points is not None
    assert max(points) <= top
    assert points[-1] == pytest.approx(top, abs=1e-9)


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        (Float(1e-5, 1e-3, log=True), FloatDistribution(1e-5, 1e-3, log=True)),
        (Float(0.0, 1.0, step=0.25), FloatDistribution(0, 1, step=0.25)),
        (Int(1, 9, step=2), IntDistribution(1, 9, step=2)),
        (Categorical(["a", None]), CategoricalDistribution(["a", None])),
    ],
)
def test_the_distribution_is_optunas(parameter: Parameter, distribution: Any) -> None:
    assert parameter.distribution() == distribution


@pytest.mark.parametrize(
    ("parameter", "points"),
    [
        (Float(0.1, 0.3, step=0.1), [0.1, 0.2, 0.3]),
        (Float(0.0, 1.0, step=0.3), [0.0, 0.3, 0.6, 0.9]),
        (Float(2.0, 2.0), [2.0]),
        (Float(0.0, 1.0), None),
        (Int(1, 10, step=4), [1, 5, 9]),
        (Int(3, 3), [3]),
        (Categorical(["a", None]), ["a", None]),
    ],
)
def test_the_points_of_a_parameter(parameter: Parameter, points: list[Any] | None) -> None:
    found = parameter.points()
    assert (found if found is None else list(found)) == (points if points is None else pytest.approx(points))
    assert found is None or isinstance(parameter, Categorical) or max(found) <= parameter.high
