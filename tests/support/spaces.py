"""Search spaces for tests: a fixed one with conditions, and Hypothesis strategies for parameters and spaces."""

from __future__ import annotations

from typing import Any

import optuna
from hypothesis import strategies as st

from hpo.space.parameters import Categorical, Float, Int, Parameter
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

CONDITIONAL = {
    "cycles": {"low": 1, "high": 3, "when": {"schedule": "restarts"}},
    "schedule": ["linear", "restarts", "poly"],
    "power": {"values": [1.0, 2.0], "when": {"schedule": ["poly", "restarts"], "epochs": 3}},
    "epochs": 3,
}

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
