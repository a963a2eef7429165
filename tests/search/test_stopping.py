from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.search.stopping import best_index, out_of_patience

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
