from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config.study_spec import build
from hpo.recipe.hyperparameters import DEFAULTS, HYPERPARAMETERS, Hyperparameter, completed, conflicts, defaults
from hpo.recipe.schedules import SCHEDULES


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_every_default_is_allowed_and_explained(name: str) -> None:
    entry = HYPERPARAMETERS[name]
    assert entry.problem(DEFAULTS[name]) is None
    assert entry.says
    assert (entry.kind is str) == bool(entry.choices)


def test_the_defaults_are_those_of_run_classifier() -> None:
    published = {"learning_rate": 5e-5, "batch_size": 32, "epochs": 3, "warmup_ratio": 0.1, "weight_decay": 0.01}
    assert {name: DEFAULTS[name] for name in published} == published
    assert DEFAULTS["schedule"] == "linear"
    assert DEFAULTS["max_grad_norm"] == 1.0


def test_adapters_have_their_own_default_learning_rate(tmp_path: Path) -> None:
    settings = {"name": "s", "model": "m", "data": {"train": "x.csv"}}
    rates = {"low": 1e-5, "high": 1e-2, "log": True}
    for space, rate in ({"learning_rate": rates}, 5e-5), ({"learning_rate": rates, "lora_rank": [2, 4]}, 5e-4):
        assert build({**settings, "space": space}, "test", tmp_path).space.first_trial()["learning_rate"] == rate
    assert defaults({"lora_rank"})["learning_rate"] == 5e-4
    assert defaults({"learning_rate"}) == DEFAULTS


def test_the_choices_of_schedule_are_all_schedules() -> None:
    assert HYPERPARAMETERS["schedule"].choices == tuple(SCHEDULES)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 0.0, "0.0 is outside (0, 1]"),
        ("learning_rate", 1.0, None),
        ("learning_rate", 1.5, "1.5 is outside (0, 1]"),
        ("learning_rate", "1e-5", "'1e-5' is not a number"),
        ("learning_rate", True, "True is not a number"),
        ("learning_rate", math.nan, "nan is outside (0, 1]"),
        ("learning_rate", None, "None is not a number"),
        ("batch_size", 16, None),
        ("batch_size", 0, "0 is outside [1, 65536]"),
        ("batch_size", 1.5, "1.5 is not a whole number"),
        ("batch_size", 16.0, "16.0 is not a whole number; write 16"),
        ("batch_size", math.inf, "inf is not a whole number"),
        ("epochs", False, "False is not a whole number"),
        ("frozen_layers", 0, None),
        ("frozen_layers", -1, "-1 is outside [0, 1000]"),
        ("frozen_layers", 1.0, "1.0 is not a whole number; write 1"),
        ("dropout", None, None),
        ("dropout", 0.0, None),
        ("dropout", 1.0, "1.0 is outside [0, 1)"),
        ("max_grad_norm", 1e9, None),
        ("schedule", "linear", None),
        ("schedule", "lineer", f"'lineer' is not one of {', '.join(SCHEDULES)}"),
        ("schedule", ["linear"], f"['linear'] is not one of {', '.join(SCHEDULES)}"),
    ],
)
def test_the_problem_of_a_value_outside_its_range(name: str, value: Any, said: str | None) -> None:
    assert HYPERPARAMETERS[name].problem(value) == said


@given(st.floats(-2, 2), st.floats(-1, 0), st.floats(0, 1), st.booleans(), st.booleans())
def test_values_are_allowed_as_the_interval_notation_says(
    value: float, low: float, high: float, low_open: bool, high_open: bool
) -> None:
    entry = Hyperparameter(float, 0.0, "", low=low, high=high, low_open=low_open, high_open=high_open)
    inside = (low < value if low_open else low <= value) and (value < high if high_open else value <= high)
    assert (entry.problem(value) is None) == inside
    assert entry.range[0] + entry.range[-1] == ("(" if low_open else "[") + (")" if high_open else "]")


def test_the_warm_up_is_read_in_steps_or_as_a_share() -> None:
    assert "warmup_steps" not in completed({})
    assert completed({})["warmup_ratio"] == 0.1
    assert "warmup_ratio" not in completed({"warmup_steps": 500})
    assert completed({"warmup_steps": 500})["warmup_steps"] == 500
    assert list(conflicts({"warmup_steps": [10, 100], "warmup_ratio": 0.1})) == ["warmup_steps"]
    assert conflicts({"warmup_steps": [10, 100]}) == {}
    assert HYPERPARAMETERS["warmup_steps"].problem(0.5) == "0.5 is not a whole number"
