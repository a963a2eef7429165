from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.core.errors import ConfigError, nearest
from hpo.recipe.hyperparameters import DEFAULTS, HYPERPARAMETERS
from hpo.space.parameters import MOST_POINTS, Categorical, Float, Int, Parameter
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

# Optuna lowers an end that is off the lattice, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")

CONDITIONAL = {
    "cycles": {"low": 1, "high": 3, "when": {"schedule": "restarts"}},
    "schedule": ["linear", "restarts", "poly"],
    "power": {"values": [1.0, 2.0], "when": {"schedule": ["poly", "restarts"], "epochs": 3}},
    "epochs": 3,
}

# ---------------------------------------------------------------- generated spaces

NAMES = ("a", "b", "c", "d")
FINITE = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3)
SCALARS = st.booleans() | st.integers(-9, 9) | FINITE | st.sampled_from(["x", "y", "1e-5"])


@st.composite
def floats(draw: st.DrawFn) -> Float:
    low, high = sorted((draw(FINITE), draw(FINITE)))
    if draw(st.booleans()):
        return Float(abs(low) + 1e-6, abs(low) + abs(high) + 1e-6, log=True)
    return Float(low, high, step=draw(st.none() | st.sampled_from([250.0, 300.0, 999.0])))


@st.composite
def ints(draw: st.DrawFn) -> Int:
    low, high = sorted((draw(st.integers(-20, 20)), draw(st.integers(-20, 20))))
    return (
        Int(abs(low) + 1, abs(low) + 21, log=True)
        if draw(st.booleans())
        else Int(low, high, step=draw(st.integers(1, 5)))
    )


CHOICES = st.lists(SCALARS, min_size=1, max_size=4, unique=True).map(Categorical)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Any space of up to four parameters, each perhaps on condition of one that is drawn before it."""
    parameters: dict[str, Any] = {}
    for name in NAMES[: draw(st.integers(1, 4))]:
        parameter: Parameter = draw(floats() | ints() | CHOICES)
        when = {}
        controls = [other for other, p in parameters.items() if isinstance(p, Categorical)]
        if controls and draw(st.booleans()):
            other = draw(st.sampled_from(controls))
            when = {other: draw(st.sampled_from(parameters[other].values))}
        fields = {key: value for key, value in vars(parameter).items() if not key.startswith("_")}
        parameters[name] = type(parameter)(**{**fields, "when": when})
    names = draw(st.permutations(list(parameters)))
    raw = {"parameters": {n: parameters[n] for n in names} | {"fixed": draw(SCALARS)}, "source": "drawn"}
    return parse({**raw, "baseline": {}})


def trials(space: SearchSpace, count: int = 4) -> list[tuple[dict[str, Any], optuna.Trial]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked = [study.ask() for _ in range(count)]
    return [(space.suggest(trial), trial) for trial in asked]


@given(spaces())
def test_a_space_written_as_json_reads_back_equal(space: SearchSpace) -> None:
    again = parse(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert list(again.parameters) == list(space.parameters)
    assert {name: type(p) for name, p in again.parameters.items()} == {
        name: type(p) for name, p in space.parameters.items()
    }


@given(spaces())
def test_what_is_suggested_is_active_contained_and_complete(space: SearchSpace) -> None:
    for params, trial in trials(space):
        searched = {name: value for name, value in params.items() if name not in space.fixed}
        assert searched == trial.params
        assert searched.keys() == {name for name in space.parameters if space.active(name, params)}
        assert space.contains(searched)
        assert params["fixed"] == space.fixed["fixed"]
        grid = space.grid()
        assert grid is None or searched in grid


@given(spaces())
def test_the_size_is_that_of_the_grid_and_no_point_comes_twice(space: SearchSpace) -> None:
    grid = space.grid()
    if grid is None:
        assert space.size == math.inf
        return
    assert space.size == len(grid) or space.size > 100_000  # beyond, conditions are not counted
    assert len({tuple(sorted(point.items())) for point in grid}) == len(grid)
    assert all(space.contains(point) for point in grid[:100])


@given(floats() | ints() | CHOICES)
def test_every_point_is_one_that_optuna_can_store(parameter: Parameter) -> None:
    distribution = parameter.distribution()
    for value in list(parameter.points() or [])[:100]:
        assert distribution._contains(distribution.to_internal_repr(value))


@given(FINITE, st.floats(0, 50), st.sampled_from([0.1, 0.05, 0.3, 1e-3, 7.0]))
def test_the_last_point_of_a_lattice_is_optunas_last(low: float, width: float, step: float) -> None:
    parameter = Float(round(low, 3), round(low, 3) + round(width, 3), step=step)
    top = parameter.distribution().high  # type: ignore[attr-defined]
    points = parameter.points()
    assert points is not None
    assert max(points) <= top
    assert points[-1] == pytest.approx(top, abs=1e-9)


@given(spaces())
def test_the_first_trial_is_a_point_with_the_conditions_respected(space: SearchSpace) -> None:
    point = space.first_trial()
    assert space.contains(point) or any(isinstance(p, Float | Int) for p in space.parameters.values())
    assert point.keys() == {name for name in space.parameters if space.active(name, point)}


# ---------------------------------------------------------------- reading


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
        ({"x": [1, True]}, "x: has a value twice: [1, True]"),  # Optuna could not tell them apart
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
def test_what_is_wrong_is_said_with_its_place(raw: Any, said: str) -> None:
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


def test_all_problems_come_at_once() -> None:
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


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("learnig_rate", ["learning_rate"], "; did you mean learning_rate?"),
        (7, ["b", "a"], "; one of a, b"),
        ("Learning-Rate", ["learning_rate"], "; did you mean learning_rate?"),
    ],
)
def test_the_nearest_name_is_offered(name: Any, names: list[str], said: str) -> None:
    assert nearest(name, names) == said


# ---------------------------------------------------------------- conditions


def test_a_controlling_parameter_comes_before_those_it_controls() -> None:
    assert list(parse(CONDITIONAL).parameters) == ["schedule", "cycles", "power"]
    chain = {name: {"values": [1, 2], "when": {other: 1}} for name, other in zip("abc", "bcd", strict=True)}
    assert list(parse({**chain, "d": [1, 2], "e": [1, 2]}).parameters) == ["d", "e", "c", "b", "a"]


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
def test_a_condition_is_on_the_values_decided_before(name: str, params: dict[str, Any], active: bool) -> None:
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


def test_a_huge_range_of_whole_numbers_costs_nothing() -> None:
    space = parse({"seed": {"low": 0, "high": 2**40}})
    assert space.size == 2**40 + 1
    assert space.contains({"seed": 2**40})
    assert not space.contains({"seed": -1})


# ---------------------------------------------------------------- the published default


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


def test_the_baseline_holds_what_is_searched_and_the_file_wins_over_the_defaults() -> None:
    raw = {
        "parameters": {"learning_rate": [1e-5, 2e-5], "batch_size": [16, 32], "epochs": 9},
        "baseline": {"epochs": 4},
    }
    raw["baseline"]["learning_rate"] = 2e-5  # type: ignore[index]
    space = parse(raw, HYPERPARAMETERS)
    assert space.baseline == {"learning_rate": 2e-5, "batch_size": DEFAULTS["batch_size"]}


@pytest.mark.parametrize(
    ("params", "contained"),
    [
        ({"a": 1, "b": 0.25, "c": 9.9}, True),
        ({"a": 3}, False),
        ({"b": 0.3}, False),
        ({"c": 99.0}, True),  # a continuous range is not asked
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


def test_what_has_too_many_points_to_write_out_is_not_written_out() -> None:
    space = parse({"a": {"low": 0.0, "high": 1.0, "step": 1e-9}, "b": {"low": 1, "high": 10**12}})
    assert space.grid() is None
    assert space.size == math.inf
    assert space.contains({"a": 0.25, "b": 10**12})
    assert not space.contains({"a": 0.25, "b": 10**12 + 1})


def test_a_lattice_of_the_most_points_is_written_out() -> None:
    space = parse({"a": {"low": 0.0, "high": 1.0, "step": 1 / MOST_POINTS}})
    assert space.size == MOST_POINTS + 1


@pytest.mark.parametrize(("value", "said"), [(math.nan, "x: must be finite, not nan"), ([1.0, math.inf], "finite val")])
def test_a_value_that_is_not_finite_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"x": value, "y": [1, 2]})


@pytest.mark.parametrize(
    ("value", "ends"), [((0, 1), "{'low': 0, 'high': 1}"), ((0.5, 1e-5), "{'low': 1e-05, 'high': 0.5}")]
)
def test_a_pair_of_numbers_is_refused_with_both_of_its_readings(value: Any, ends: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"x": value, "y": [1, 2]})
    (problem,) = caught.value.problems
    assert problem.path == ("x",)
    assert f"write {ends} for all numbers between, or the list {list(value)} for these two" in problem.message


@pytest.mark.parametrize("value", [("a", "b"), (8, 16, 32), (True, False)])
def test_a_tuple_that_can_be_no_range_is_a_choice(value: Any) -> None:
    assert parse({"x": value}).parameters["x"] == Categorical(list(value))
