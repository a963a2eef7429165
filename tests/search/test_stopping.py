from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.stopping import StudyLimits, best_index, out_of_patience

SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("values", "direction", "index"),
    [([0.1, 0.3, 0.3, 0.2], "maximize", 1), ([0.5, 0.2, 0.2, 0.9], "minimize", 1), ([1.0], "maximize", 0)],
)
def test_the_best_is_the_first_of_equals(values: list[float], direction: str, index: int) -> None:
    assert best_index(values, direction) == index


@pytest.mark.parametrize(
    ("values", "patience", "direction", "over"),
    [
        ([], 1, "maximize", False),
        ([0.5], 1, "maximize", False),
        ([0.5, 0.5], 1, "maximize", True),  # no better is not better
        ([0.5, 0.4], 2, "maximize", False),
        ([0.5, 0.4, 0.3], 2, "maximize", True),
        ([0.5, 0.4, 0.3], 2, "minimize", False),
        ([0.5, 0.4, 0.6], 2, "maximize", False),
        ([0.5, 0.4, 0.3, 0.2], None, "maximize", False),
    ],
)
def test_patience_counts_evaluations_since_the_best(
    values: list[float], patience: int | None, direction: str, over: bool
) -> None:
    assert out_of_patience(values, patience, direction) is over


@given(SCORES, st.integers(1, 5))
def test_the_two_directions_mirror_each_other(values: list[float], patience: int) -> None:
    mirrored = [-value for value in values]
    assert best_index(values, "maximize") == best_index(mirrored, "minimize")
    assert out_of_patience(values, patience, "maximize") == out_of_patience(mirrored, patience, "minimize")


@given(SCORES, st.integers(1, 5))
def test_a_trial_that_just_improved_always_goes_on(values: list[float], patience: int) -> None:
    assert not out_of_patience([*values, max(values) + 1], patience, "maximize")


# ---------------------------------------------------------------- of a study


def trial(number: int, value: float | None, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    made = create_trial(state=state, value=value, intermediate_values={100: value or 0.0}, user_attrs=attrs)
    made.number = number
    return made


PRUNED = TrialState.PRUNED
ROWS = [
    trial(0, 0.5, device_seconds=1800.0),
    trial(1, 0.8, device_seconds=900.0),
    trial(2, 0.8),  # no better is not better
    trial(3, 0.8, duplicate_of=1),
    trial(4, None, TrialState.FAIL),
    trial(5, 0.1, PRUNED),
    trial(6, 0.2, TrialState.RUNNING),
]


@pytest.mark.parametrize(
    ("limits", "direction", "reason"),
    [
        ({}, "maximize", None),
        ({"examples": 601}, "maximize", None),
        ({"examples": 600}, "maximize", "the trials have trained on 600 examples, and stop.examples is 600; to go on"),
        ({"device_hours": 0.8}, "maximize", None),
        ({"device_hours": 0.75}, "maximize", "training has taken 0.75 device hours, and stop.device_hours is 0.75;"),
        ({"target": 0.81}, "maximize", None),
        ({"target": 0.8}, "maximize", "trial 1 has reached 0.8, and stop.target is 0.8;"),
        ({"target": 0.1}, "minimize", None),  # a pruned trial reaches nothing
        ({"target": 0.5}, "minimize", "trial 0 has reached 0.5, and stop.target is 0.5;"),
        ({"plateau": 3}, "maximize", None),  # neither a duplicate nor a failed trial counts, nor one that runs
        ({"plateau": 2}, "maximize", "none of 2 trials after trial 1 was better, and stop.plateau is 2;"),
        ({"plateau": 3}, "minimize", "none of 3 trials after trial 0 was better, and stop.plateau is 3;"),
    ],
)
def test_a_study_ends_when_a_limit_is_reached(limits: dict[str, Any], direction: str, reason: str | None) -> None:
    said = StudyLimits(**limits).reached(ROWS, direction)
    assert (said is None) == (reason is None)
    assert (said or "").startswith(reason or "")


def test_trials_that_run_count_towards_device_hours() -> None:
    assert StudyLimits(device_hours=0.8).reached(ROWS, "maximize", 179.0) is None
    assert StudyLimits(device_hours=0.8).reached(ROWS, "maximize", 181.0) is not None


def test_nothing_is_reached_before_a_trial_has_completed() -> None:
    assert StudyLimits(target=0.0, plateau=1).reached(ROWS[4:], "maximize") is None
