from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpo.core.seeds import derived_seed


@given(st.lists(st.integers(0, 99) | st.text("ab", max_size=2), min_size=1, max_size=4))
def test_a_derived_seed_is_a_function_of_its_path(parts: list[int | str]) -> None:
    assert derived_seed(*parts) == derived_seed(*parts)
    assert 0 <= derived_seed(*parts) < 2**32
    assert derived_seed(*parts, "more") != derived_seed(*parts)


def test_derived_seeds_do_not_change_between_versions() -> None:
    assert derived_seed(0, 3, "trial") == 2268388570
