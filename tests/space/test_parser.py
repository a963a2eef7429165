from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from spaces import CONDITIONAL, spaces, trials

from hpo.core.errors import ConfigError
from hpo.recipe.hyperparameters import DEFAULTS, HYPERPARAMETERS
from hpo.space.parameters import Categorical, Float, Int, Parameter
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

# Optuna lowers an end that is off the lattice, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")


@given(spaces())
def test_a_space_written_as_json_reads_back_equal(space: SearchSpace) -> None:
    again = parse(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert list(again.parameters) == list(space.parameters)
    assert {name: type(p) for name, p in again.parameters.items()} == {
        name: type(p) for name, p in space.parameters.items()
    }


@pytest.mark.parametrize(
    ("raw", "parameter"),
    [
        ({"low": 1e-5, "high": 1e-3, "log": True}, Float(1e-5, 1e-3, log=True)),
        ({"low": 0, "high": 1.0}, Float(0.0, 1.0)),
        ({"low": 0, "high": 1, "step": 0.25}, Float(0.0, 1.0, step=0.25)),
        ({"low": 1, "high": 8, "log": True}, Int(1, 8, log=True)),
        ({"low": 0, "high": 10, "step": 5}, Int(0, 10, step=5)),
        ([16, 32], Categorical([16, 32])),
        (("a", None, True), Categorical(["a", None, True])),
        ({"values": [16, 32]}, Categorical([16, 32])),
        (Float(0.0, 1.0), Float(0.0, 1.0)),
    ],
)
def test_a_range_a_list_and_an_object_are_searched(raw: Any, parameter: Parameter) -> None:
    read = parse({"x": raw}).parameters["x"]
    assert read == parameter
    assert type(read) is type(parameter)


@pytest.mark.parametrize("value", [3, 1e-5, "linear", True, None])
def test_a_scalar_is_fixed_in_every_trial(value: Any) -> None:
    space = parse({"x": [1, 2], "y": value})
    assert space.fixed == {"y": value}
    assert all(params["y"] is value for params, _ in trials(space))


def test_a_range_has_the_kind_of_its_hyperparameter() -> None:
    space = parse({"learning_rate": {"low": 0.5, "high": 1}, "weight_decay": {"low": 0, "high": 1}}, HYPERPARAMETERS)
    assert {type(parameter) for parameter in space.parameters.values()} == {Float}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"x": {"low": 2, "high": 1}}, "x: is empty: low 2 is above high 1"),
        ({"x": {"low": 0.0, "high": 1.0, "log": True}}, "x: with log, low must be above 0, not 0"),
        ({"x": {"low": 0.0, "high": math.inf}}, "x: low and high must be finite, not 0.0 and inf"),
        ({"x": {"low": math.nan, "high": 1.0}}, "x: low and high must be finite, not nan and 1.0"),
        ({"x": {"low": 0.0, "high": 1.0, "step": -0.5}}, "x: step must be above 0, not -0.5"),
        ({"x": {"low": 0, "high": 1, "step": 0}}, "x: step must be above 0, not 0"),
        ({"x": {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}}, "x: takes either log or step, not both"),
        ({"x": {"low": 1, "high": 8, "log": True, "step": 2}}, "x: takes either log or step, not both"),
        ({"x": {"low": 1}}, "x: high: Field required"),
        ({"x": {"log": True}}, "x: needs low and high for a range, or values for a choice"),
        ({"x": {}}, "x: needs low and high for a range, or values for a choice"),
        ({"x": {"low": 0, "high": 1, "lgo": True}}, "x: lgo: Unexpected keyword argument"),
        ({"x": {"values": [1], "low": 0}}, "x: low: Unexpected keyword argument"),
        ({"x": {"low": "a", "high": 1.0}}, "x: low: Input should be a valid number"),
        ({"x": []}, "x: needs at least one value"),
        ({"x": [16, 32, 16]}, "x: has a value twice: [16, 32, 16]"),
        ({"x": [1, 1.0]}, "x: has a value twice: [1, 1.0]"),
        ({"x": [1, True]}, "x: has a value twice: [1, True]"),  # equal values to Optuna
        ({"x": {"values": 3}}, "x: values: Input should be a valid list"),
        ({"x": object()}, "x: must be a value, a list or a range, not object"),
        ({"x": 1, "y": 2}, "searches nothing: give at least one parameter a range or a list"),
        ({}, "must map parameter names to values or ranges"),
        ({"parameters": {}}, "parameters: must map parameter names to values or ranges"),
        ({"parameters": [1]}, "parameters: must map parameter names to values or ranges"),
        (
            {"parameters": {"x": [1, 2]}, "basline": {}},
            "basline: is not a key of a search space; did you mean baseline?",
        ),
        ({"parameters": {"x": [1, 2]}, "baseline": {"y": 1}}, "baseline.y: is not a parameter of this space"),
        ({"parameters": {"x": [1, 2]}, "baseline": [1]}, "baseline: must map parameter names to values"),
        (
            {"x": [1], "y": {"values": [1], "when": {"xx": 1}}},
            "y.when.xx: is not a parameter of this space; did you mean x?",
        ),
        ({"x": [1], "y": {"values": [1], "when": {"x": 2}}}, "y.when.x: is never 2; it is one of 1"),
        ({"x": 1, "y": {"values": [1], "when": {"x": 2}}}, "y.when.x: is never 2; it is one of 1"),
        ({"x": {"values": [1], "when": {"x": 1}}}, "x.when: conditions run in a circle"),
        (
            {"x": {"values": [1], "when": {"y": 1}}, "y": {"values": [1], "when": {"x": 1}}},
            "x.when: conditions run in a circle",
        ),
    ],
)
def test_a_problem_has_its_path(raw: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw, source="here")
    assert caught.value.source == "here"
    assert said in [str(problem) for problem in caught.value.problems]
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"learning_rte": [1e-5]}, "learning_rte: is not read by the objective; did you mean learning_rate?"),
        ({"zzz": 3}, f"zzz: is not read by the objective; one of {', '.join(sorted(HYPERPARAMETERS))}"),
        ({"learning_rate": {"low": 0.0, "high": 0.1}}, "learning_rate: 0.0 is outside (0, 1]"),
        ({"learning_rate": [1e-5, 2.0]}, "learning_rate: 2.0 is outside (0, 1]"),
        ({"batch_size": [8, 16.5]}, "batch_size: 16.5 is not a whole number"),
        ({"batch_size": {"low": 8.0, "high": 16}}, "batch_size: low: Input should be a valid integer"),
        ({"epochs": [1, 2], "batch_size": 16.0}, "batch_size: 16.0 is not a whole number; write 16"),
        ({"schedule": ["linear", "cosin"]}, "schedule: 'cosin' is not one of constant"),
        ({"schedule": {"low": 1, "high": 2}}, "schedule: 1.0 is not one of constant"),
        (
            {"parameters": {"epochs": [1, 2]}, "baseline": {"epochs": 0}},
            "baseline.epochs: 0 is outside [1, 10000]",
        ),
    ],
)
def test_hyperparameters_are_checked_against_what_the_objective_reads(raw: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw, HYPERPARAMETERS)
    assert any(str(problem).startswith(said) for problem in caught.value.problems), caught.value


def test_names_alone_can_be_checked() -> None:
    assert parse({"lr": [1, 2]}, names=["lr"]).parameters["lr"] == Categorical([1, 2])
    with pytest.raises(ConfigError, match="lrr: is not read by the objective; did you mean lr"):
        parse({"lrr": [1, 2]}, names=["lr"])


def test_all_problems_are_reported_together() -> None:
    raw = {
        "extra": 1,
        "parameters": {
            "learning_rate": {"low": 2.0, "high": 1.0},
            "batchsize": [16],
            "epochs": [0, 2],
            "power": {"low": 1.0, "high": 2.0, "when": {"schedul": "polynomial"}},
        },
        "baseline": {"dropout": 0.1},
    }
    with pytest.raises(ConfigError) as caught:
        parse(raw, HYPERPARAMETERS)
    assert [problem.path for problem in caught.value.problems] == [
        ("extra",),
        ("parameters", "learning_rate"),
        ("parameters", "batchsize"),
        ("parameters", "epochs"),
        ("baseline", "dropout"),
        ("parameters", "power", "when", "schedul"),
    ]


def test_a_controlling_parameter_comes_before_those_it_controls() -> None:
    assert list(parse(CONDITIONAL).parameters) == ["schedule", "cycles", "power"]
    chain = {name: {"values": [1, 2], "when": {other: 1}} for name, other in zip("abc", "bcd", strict=True)}
    assert list(parse({**chain, "d": [1, 2], "e": [1, 2]}).parameters) == ["d", "e", "c", "b", "a"]


def test_the_baseline_has_searched_parameters_and_the_file_overrides_defaults() -> None:
    raw = {
        "parameters": {"learning_rate": [1e-5, 2e-5], "batch_size": [16, 32], "epochs": 9},
        "baseline": {"epochs": 4},
    }
    raw["baseline"]["learning_rate"] = 2e-5  # type: ignore[index]
    space = parse(raw, HYPERPARAMETERS)
    assert space.baseline == {"learning_rate": 2e-5, "batch_size": DEFAULTS["batch_size"]}


@pytest.mark.parametrize(("value", "said"), [(math.nan, "x: must be finite, not nan"), ([1.0, math.inf], "finite val")])
def test_a_value_that_is_not_finite_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"x": value, "y": [1, 2]})


@pytest.mark.parametrize(
    ("value", "ends"), [((0, 1), "{'low': 0, 'high': 1}"), ((0.5, 1e-5), "{'low': 1e-05, 'high': 0.5}")]
)
def test_a_pair_of_numbers_is_refused_with_both_possible_meanings(value: Any, ends: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"x": value, "y": [1, 2]})
    (problem,) = caught.value.problems
    assert problem.path == ("x",)
    assert f"write {ends} for all numbers between, or the list {list(value)} for these two" in problem.message


@pytest.mark.parametrize("value", [("a", "b"), (8, 16, 32), (True, False)])
def test_a_tuple_that_cannot_be_a_range_is_a_choice(value: Any) -> None:
    assert parse({"x": value}).parameters["x"] == Categorical(list(value))
