from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from spaces import CONDITIONAL, spaces, trials

from hpo.recipe.hyperparameters import HYPERPARAMETERS
from hpo.space.parameters import MOST_POINTS, Float, Int
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

# Optuna lowers an end that is off the lattice, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")


@given(spaces())
def test_suggested_parameters_are_active_in_the_space_and_complete(space: SearchSpace) -> None:
    for params, trial in trials(space):
        searched = {name: value for name, value in params.items() if name not in space.fixed}
        assert searched == trial.params
        assert searched.keys() == {name for name in space.parameters if space.active(name, params)}
        assert space.contains(searched)
        assert params["fixed"] == space.fixed["fixed"]
        grid = space.grid()
        assert grid is None or searched in grid


@given(spaces())
def test_the_size_is_that_of_the_grid_whose_points_are_distinct(space: SearchSpace) -> None:
    grid = space.grid()
    if grid is None:
        assert space.size == math.inf
        return
    assert space.size == len(grid) or space.size > 100_000  # beyond, conditions are not counted
    assert len({tuple(sorted(point.items())) for point in grid}) == len(grid)
    assert all(space.contains(point) for point in grid[:100])


@given(spaces())
def test_the_first_trial_is_a_point_with_the_conditions_respected(space: SearchSpace) -> None:
    point = space.first_trial()
    assert space.contains(point) or any(isinstance(p, Float | Int) for p in space.parameters.values())
    assert point.keys() == {name for name in space.parameters if space.active(name, point)}


@pytest.mark.parametrize(
    ("name", "params", "active"),
    [
        ("schedule", {}, True),
        ("cycles", {"schedule": "restarts"}, True),
        ("cycles", {"schedule": "linear"}, False),
        ("cycles", {}, False),
        ("power", {"schedule": "poly"}, True),
        ("power", {"schedule": "restarts"}, True),
        ("power", {"schedule": "poly", "epochs": 2}, False),  # all conditions must hold
    ],
)
def test_a_condition_is_on_the_values_of_earlier_parameters(name: str, params: dict[str, Any], active: bool) -> None:
    assert parse(CONDITIONAL).active(name, params) is active


def test_a_parameter_of_an_inactive_one_is_inactive() -> None:
    raw = {"a": [0, 1], "b": {"values": [0, 1], "when": {"a": 1}}, "c": {"values": [0, 1], "when": {"b": [0, 1]}}}
    assert parse(raw).grid() == [
        {"a": 0},
        *({"a": 1, "b": b, "c": c} for b in (0, 1) for c in (0, 1)),
    ]


def test_the_grid_respects_conditions_and_order() -> None:
    space = parse(CONDITIONAL)
    grid = space.grid()
    assert grid is not None
    assert space.size == len(grid) == 1 + 3 * 2 + 2
    assert grid[0] == {"schedule": "linear"}
    assert grid[1] == {"schedule": "restarts", "cycles": 1, "power": 1.0}
    assert grid[-1] == {"schedule": "poly", "power": 2.0}


def test_inactive_parameters_are_not_suggested() -> None:
    for params, trial in trials(parse(CONDITIONAL), 30):
        assert ("cycles" in trial.params) == (params["schedule"] == "restarts")
        assert ("power" in trial.params) == (params["schedule"] != "linear")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [3]),
        ({"epochs": 5}, [5]),
        ({"epochs": [1, 2]}, [1, 2]),
        ({"epochs": {"low": 1, "high": 2}}, [1, 2]),
        ({"epochs": {"values": [1, 2], "when": {"schedule": "linear"}}}, [1, 2, 3]),
        ({"epochs": {"values": [2, 3], "when": {"schedule": "linear"}}}, [2, 3]),
    ],
)
def test_the_values_of_a_parameter_are_those_that_a_trial_may_have(given: dict[str, Any], expected: list[int]) -> None:
    space = parse({"schedule": ["linear", "cosine"], **given}, HYPERPARAMETERS)
    assert list(space.values_of("epochs", 3)) == expected


def test_a_large_range_of_whole_numbers_is_not_listed() -> None:
    space = parse({"seed": {"low": 0, "high": 2**40}})
    assert space.size == 2**40 + 1
    assert space.contains({"seed": 2**40})
    assert not space.contains({"seed": -1})


@pytest.mark.parametrize(
    ("raw", "point", "moved"),
    [
        (
            {"learning_rate": {"low": 1e-5, "high": 1e-3}, "batch_size": [16, 32], "epochs": 2},
            {"learning_rate": 5e-5, "batch_size": 32},
            {},
        ),
        ({"batch_size": [16, 48, 64]}, {"batch_size": 16}, {"batch_size": (32, 16)}),  # of equals the first
        ({"batch_size": [8, 40]}, {"batch_size": 40}, {"batch_size": (32, 40)}),
        ({"schedule": ["cosine", "constant"]}, {"schedule": "cosine"}, {"schedule": ("linear", "cosine")}),
        # Optuna stores a number outside its range too: the published default is run as it was published.
        ({"learning_rate": {"low": 1e-6, "high": 1e-5}}, {"learning_rate": 5e-5}, {}),
        ({"epochs": {"low": 5, "high": 9}}, {"epochs": 3}, {}),
        (
            {"parameters": {"learning_rate": [1e-5, 2e-5]}, "baseline": {"learning_rate": 2e-5}},
            {"learning_rate": 2e-5},
            {},
        ),
        (
            {
                "schedule": ["polynomial", "linear"],
                "power": {"low": 0.5, "high": 2.0, "when": {"schedule": "polynomial"}},
            },
            {"schedule": "linear"},
            {},
        ),
    ],
)
def test_the_first_trial_is_the_published_default_or_what_is_closest(
    raw: dict[str, Any], point: dict[str, Any], moved: dict[str, Any]
) -> None:
    space = parse(raw, HYPERPARAMETERS)
    assert space.first_trial() == point
    assert space.moved_baseline() == moved


@pytest.mark.parametrize(
    ("params", "contained"),
    [
        ({"a": 1, "b": 0.25, "c": 9.9}, True),
        ({"a": 3}, False),
        ({"b": 0.3}, False),
        ({"c": 99.0}, True),  # a continuous range is not checked
        ({"other": 1}, True),
        ({}, True),
    ],
)
def test_a_space_contains_its_finite_points(params: dict[str, Any], contained: bool) -> None:
    space = parse({"a": [1, 2], "b": {"low": 0.0, "high": 1.0, "step": 0.25}, "c": {"low": 0.0, "high": 10.0}})
    assert space.contains(params) is contained


@pytest.mark.parametrize(
    "raw", [{"x": [5]}, {"x": {"low": 5, "high": 5}}, {"x": {"low": 5.0, "high": 6.0, "step": 2.0}}]
)
def test_the_only_value_is_known_without_drawing(raw: dict[str, Any]) -> None:
    space = parse(raw)
    assert space.distributions()["x"].single()
    assert space.only_value("x") == 5


def test_a_space_of_too_many_points_is_not_listed() -> None:
    space = parse({"a": {"low": 0.0, "high": 1.0, "step": 1e-9}, "b": {"low": 1, "high": 10**12}})
    assert space.grid() is None
    assert space.size == math.inf
    assert space.contains({"a": 0.25, "b": 10**12})
    assert not space.contains({"a": 0.25, "b": 10**12 + 1})


def test_a_range_of_the_most_points_is_listed() -> None:
    space = parse({"a": {"low": 0.0, "high": 1.0, "step": 1 / MOST_POINTS}})
    assert space.size == MOST_POINTS + 1
