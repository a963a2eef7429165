from __future__ import annotations

from hpo.core.formatting import columns, plain


def test_columns_are_aligned_as_a_terminal_counts() -> None:
    lines = columns(["trial", "名前"], [["0", "x"], ["10", "日本"], ["2", ""]]).splitlines()
    assert lines == ["trial  名前", "0      x", "10     日本", "2"]
    assert columns(["wide", "x"], [["日本語", "1"]]).splitlines() == ["wide    x", "日本語  1"]


def test_columns_of_no_rows_are_their_heads() -> None:
    assert columns(["trial", "state"], []) == "trial  state"


def test_a_cell_steers_no_terminal_and_stays_on_its_line() -> None:
    assert columns(["a", "b"], [["\x1b[31mred", "x\ny"]]).splitlines() == ["a         b", "�[31mred  x y"]
    assert plain("a\t\n b") == "a b"
    assert plain("a\u202eb") == "a�b"
