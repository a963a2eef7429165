from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from hpo.analysis.separation import _rank_sum, separating


def trials(**columns: list[Any]) -> list[FrozenTrial]:
    """Return a trial a row of the columns."""
    return [
        create_trial(
            value=0.0,
            params=dict(zip(columns, row, strict=True)),
            distributions={name: CategoricalDistribution(tuple(dict.fromkeys(columns[name]))) for name in columns},
        )
        for row in zip(*columns.values(), strict=True)
    ]


VALUES = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=12)


@given(VALUES, VALUES)
def test_the_rank_sum_test_is_that_of_scipy(one: list[float], other: list[float]) -> None:
    if len({*one, *other}) == 1:
        return
    expected = scipy.stats.mannwhitneyu(one, other, method="asymptotic")
    chance, above = _rank_sum(one, other)
    assert chance == pytest.approx(min(1.0, expected.pvalue), abs=1e-9)
    assert above == pytest.approx(expected.statistic / (len(one) * len(other)))


@given(VALUES, VALUES)
def test_two_groups_swapped_are_apart_in_the_other_direction(one: list[float], other: list[float]) -> None:
    found, swapped = separating(trials(x=one), trials(x=other)), separating(trials(x=other), trials(x=one))
    assert (found is None) == (swapped is None)
    if found is not None and swapped is not None:
        assert {found.better, swapped.better} == {"lower", "higher"}
        assert (found.theirs, found.others) == (swapped.others, swapped.theirs)


def test_the_parameter_that_sets_a_group_apart_is_named_with_its_direction() -> None:
    group = trials(rate=[1.0, 2.0, 3.0, 4.0], size=[1, 2, 1, 2], kind=["a", "b", "a", "b"])
    others = trials(rate=[5.0, 6.0, 7.0, 8.0, 9.0], size=[2, 1, 2, 1, 1], kind=["b", "b", "b", "b", "b"])
    found = separating(group, others)
    assert found is not None
    assert (found.name, found.theirs, found.others, found.better) == ("rate", 2.5, 7.0, "higher")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], [1.0, 2.0]),
        ([1.0], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),  # one trial tells nothing
        ([1.0, 2.0], [3.0, 4.0]),  # apart, but so few that chance does it often
        ([1.0, 4.0, 5.0, 8.0], [2.0, 3.0, 6.0, 7.0]),
        ([1.0] * 5, [1.0] * 5),
        ([True] * 5, [False] * 5),
        (["a"] * 5, ["b"] * 5),
        ([None] * 5, [1.0] * 5),
    ],
)
def test_what_cannot_be_told_is_not_said(one: list[Any], other: list[Any]) -> None:
    assert separating(trials(x=one), trials(x=other)) is None


def test_many_parameters_have_to_be_clearer_than_one() -> None:
    one, other = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0]
    assert separating(trials(x=one), trials(x=other)) is not None
    same = {name: ([1.0, 2.0, 1.0], [1.0, 2.0, 1.0, 2.0, 1.0]) for name in ("a", "b", "c", "d")}
    columns = {name: values[0] for name, values in same.items()}, {name: values[1] for name, values in same.items()}
    assert separating(trials(x=one, **columns[0]), trials(x=other, **columns[1])) is None


def test_a_small_shift_of_many_trials_is_no_advice() -> None:
    one, other = [float(n % 100) for n in range(1000)], [float(n % 100 + 10) for n in range(1000)]
    assert _rank_sum(one, other)[0] < 1e-9
    assert separating(trials(x=one), trials(x=other)) is None
