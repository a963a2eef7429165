from __future__ import annotations

import pytest

from hpo.core.formatting import columns, plain, size


def test_columns_are_aligned_by_their_width_in_a_terminal() -> None:
    lines = columns(["trial", "名前"], [["0", "x"], ["10", "日本"], ["2", ""]]).splitlines()
    assert lines == ["trial  名前", "0      x", "10     日本", "2"]
    assert columns(["wide", "x"], [["日本語", "1"]]).splitlines() == ["wide    x", "日本語  1"]


def test_a_table_without_rows_is_its_head() -> None:
    assert columns(["trial", "state"], []) == "trial  state"


def test_control_characters_and_line_breaks_in_a_cell_are_replaced() -> None:
    assert columns(["a", "b"], [["\x1b[31mred", "x\ny"]]).splitlines() == ["a         b", "�[31mred  x y"]
    assert plain("a\t\n b") == "a b"
    assert plain("a\u202eb") == "a�b"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (177_152, "177.2 kB"), (1_200_000, "1.2 MB"), (3 * 10**9, "3.0 GB")],
)
def test_a_size_has_the_largest_unit_that_it_fills(count: int, text: str) -> None:
    assert size(count) == text
