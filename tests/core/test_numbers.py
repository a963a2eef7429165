import math

import pytest

from hpo.core.numbers import finite_or_none, is_number


@pytest.mark.parametrize(("value", "is_one"), [(1, True), (0.5, True), (math.nan, True), (True, False), ("1", False)])
def test_a_truth_value_and_a_text_are_no_numbers(value, is_one):
    assert is_number(value) is is_one


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (0.5, 0.5), (math.nan, None), (-math.inf, None)])
def test_only_a_finite_number_is_kept_as_it_is(value, expected):
    found = finite_or_none(value)
    assert (found, type(found)) == (expected, type(expected))
