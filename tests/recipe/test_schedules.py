from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, optimization

from hpo.recipe.schedules import SCHEDULES, multiplier, warmup_steps
from hpo.recipe.training_params import TrainingParams

OWN: dict[str, Any] = {"num_cycles": 3, "power": 2.5, "decay_ratio": 0.3}


def _wsd(optimizer: torch.optim.Optimizer, warmup: int, total: int, params: dict[str, Any]) -> LambdaLR:
    decay = min(math.ceil(params["decay_ratio"] * total), total - warmup)
    return optimization.get_wsd_schedule(optimizer, warmup, decay, num_training_steps=total)


PEERS: dict[str, Callable[[torch.optim.Optimizer, int, int, dict[str, Any]], LambdaLR]] = {
    "constant": lambda o, w, t, p: optimization.get_constant_schedule_with_warmup(o, w),
    "linear": lambda o, w, t, p: optimization.get_linear_schedule_with_warmup(o, w, t),
    "cosine": lambda o, w, t, p: optimization.get_cosine_schedule_with_warmup(o, w, t),
    "cosine_with_restarts": lambda o, w, t, p: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(
        o, w, t, num_cycles=p["num_cycles"]
    ),
    "polynomial": lambda o, w, t, p: optimization.get_polynomial_decay_schedule_with_warmup(
        o, w, t, lr_end=0.0, power=p["power"]
    ),
    "inverse_sqrt": lambda o, w, t, p: optimization.get_inverse_sqrt_schedule(o, w),
    "warmup_stable_decay": _wsd,
}


def theirs(name: str, warmup: int, total: int, params: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rule = PEERS[name](optimizer, warmup, total, params).lr_lambdas[0]
    return [rule(step) for step in range(total)]


def ours(name: str, ratio: float, total: int, params: dict[str, Any]) -> list[float]:
    return [
        multiplier(step, total, TrainingParams.of({"schedule": name, "warmup_ratio": ratio, **params}))
        for step in range(total)
    ]


def test_every_schedule_has_a_peer_in_transformers() -> None:
    assert set(PEERS) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 7), (1, 1), (1, 10), (3, 10), (9, 10), (10, 10), (37, 400)])
def test_equals_transformers_step_by_step(name: str, warmup: int, total: int) -> None:
    assert ours(name, warmup / total, total, OWN) == pytest.approx(theirs(name, warmup, total, OWN), abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@given(
    warmup=st.integers(0, 60),
    rest=st.integers(0, 60),
    cycles=st.integers(1, 6),
    power=st.floats(0.1, 10),
    decay=st.floats(0, 1),
)
def test_equals_transformers_for_any_trial(
    name: str, warmup: int, rest: int, cycles: int, power: float, decay: float
) -> None:
    total = max(1, warmup + rest)
    ratio = (warmup - 0.5) / total if warmup else 0.0  # the half step makes the result independent of rounding
    params = {"num_cycles": cycles, "power": power, "decay_ratio": decay}
    multipliers = ours(name, ratio, total, params)
    assert multipliers == pytest.approx(theirs(name, warmup, total, params), abs=1e-12)
    assert all(0.0 <= value <= 1.0 for value in multipliers)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_reaches_the_peak_right_after_warm_up(name: str) -> None:
    assert ours(name, 0.2, 50, OWN)[10] == 1.0
    assert ours(name, 0.2, 50, OWN)[:10] == [step / 10 for step in range(10)]


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 5000))
def test_warm_up_is_rounded_as_transformers_does(ratio: float, total: int) -> None:
    arguments = TrainingArguments.__new__(TrainingArguments)
    arguments.warmup_steps = ratio
    assert warmup_steps(TrainingParams.of({"warmup_ratio": ratio}), total) == arguments.get_warmup_steps(total)


def test_a_warm_up_of_one_is_the_whole_trial() -> None:
    assert warmup_steps(TrainingParams.of({"warmup_ratio": 1.0}), 40) == 40  # transformers would take 1 as one step


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_warm_up_in_steps_is_that_of_transformers(steps: int, total: int) -> None:
    arguments = TrainingArguments.__new__(TrainingArguments)
    arguments.warmup_steps = steps
    assert warmup_steps(TrainingParams.of({"warmup_steps": steps}), total) == arguments.get_warmup_steps(total)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (1, 10), (3, 10), (10, 10), (37, 400)])
def test_warm_up_in_steps_equals_transformers_step_by_step(name: str, warmup: int, total: int) -> None:
    params = TrainingParams.of({"schedule": name, "warmup_steps": warmup, **OWN})
    assert [multiplier(step, total, params) for step in range(total)] == pytest.approx(
        theirs(name, warmup, total, OWN), abs=1e-12
    )


def test_a_trial_shorter_than_its_warm_up_only_rises() -> None:
    params = TrainingParams.of({"warmup_steps": 20})
    assert [multiplier(step, 4, params) for step in range(4)] == [0.0, 0.05, 0.1, 0.15]


def test_an_unknown_schedule_cannot_run() -> None:
    with pytest.raises(KeyError, match="triangular"):
        multiplier(5, 10, TrainingParams.of({"schedule": "triangular", "warmup_ratio": 0.0}))
