from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from spaces import CHOICES, FINITE, floats, ints

from hpo.core.errors import ConfigError
from hpo.space.parameters import Categorical, Float, Int, Parameter
from hpo.space.parser import parse

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


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"low": 1.0, "high": 2.0, "prior": {"mean": 3.0, "spread": 1.0}}, "mean 3 is outside the range, 1 to 2"),
        ({"low": 1, "high": 9, "prior": {"mean": 2.0, "spread": 0.0}}, "is a standard deviation, and must be above 0"),
        ({"low": 1.0, "high": 9.0, "log": True, "prior": {"mean": 2.0, "spread": 1.0}}, "is a factor on a logarithmic"),
        ({"low": 1.0, "high": 2.0, "prior": {"mean": 1.5}}, "spread"),
        ({"low": 1.0, "high": 2.0, "prior": {"weights": [1.0]}}, "prior"),
        ({"values": [1, 2], "prior": {"weights": [1.0]}}, "needs a weight for each of the 2 values, and has 1"),
        ({"values": [1, 2], "prior": {"weights": [0.0, 0.0]}}, "not all 0"),
        ({"values": [1, 2], "prior": {"weights": [-1.0, 2.0]}}, "0 or more"),
    ],
)
def test_a_prior_that_cannot_be_drawn_from_is_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        parse({"x": written})
    assert "x" in str(raised.value)


def test_a_prior_is_stored_with_its_space_and_a_space_without_one_as_before() -> None:
    written = {"low": 1e-6, "high": 1e-3, "log": True, "prior": {"mean": 1e-5, "spread": 2.0}}
    space = parse({"x": written, "y": {"low": 0.0, "high": 1.0}})
    assert space.to_dict()["parameters"]["x"]["prior"] == written["prior"]
    assert "prior" not in space.to_dict()["parameters"]["y"]
    assert parse(space.to_dict()) == space


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ({"x": 1.0}, "configurations: must be a list"),
        ([{"x": 3.0}], "configurations.0.x: 3.0 is outside the range or not one of the values"),
        ([{"x": 1.5}, {"n": 1.5}], "configurations.1.n: 1.5 is outside"),
        ([{"c": "z"}], "configurations.0.c: 'z' is outside the range or not one of the values"),
        ([{"xx": 1.0}], "configurations.0.xx: is not a parameter of this space"),
        ([{"fixed": 1.0}], "configurations.0.fixed: is fixed in this space"),
    ],
)
def test_a_configuration_that_is_not_in_the_space_is_refused(configurations: Any, message: str) -> None:
    parameters = {"x": {"low": 1.0, "high": 2.0}, "n": {"low": 1, "high": 9}, "c": ["a", "b"], "fixed": 1.0}
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse({"parameters": parameters, "configurations": configurations})
