import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.finetune.folded import packing

LENGTHS = torch.tensor([[3, 1, 4], [2, 0, 2]])  # 0: a row that fills a micro-batch up
PACKING = packing.Packing(LENGTHS, tokens=9, length=5)


def test_rows_lie_end_to_end_in_a_line_for_each_slot():
    rows = torch.arange(1.0, 31.0).view(6, 5, 1)
    line = PACKING.to_line(rows).squeeze(-1)
    assert line.tolist() == [[1, 2, 3, 6, 11, 12, 13, 14, 0], [16, 17, 26, 27, 0, 0, 0, 0, 0]]
    assert PACKING.positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0], [0, 1, 0, 1, 0, 0, 0, 0, 0]]
    assert PACKING.first(PACKING.to_line(rows)).flatten().tolist() == [1, 6, 11, 16, 0, 26]
    assert PACKING.is_line(line)
    assert not PACKING.is_line(rows)


@given(
    lengths=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4),
    spare=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_packed_tokens_are_unpacked_unchanged(lengths, spare):
    counts = torch.tensor(lengths)
    made = packing.Packing(counts, int(counts.sum(1).max()) + spare + 1, 6)
    rows = torch.randn(counts.numel(), 6, 2).masked_fill(~made.real[..., None], 0.0)
    assert torch.equal(made.to_rows(made.to_line(rows)), rows)
    assert torch.equal(made.first(made.to_line(rows)), rows[:, :1])


@pytest.mark.parametrize(("move", "shape"), [("to_rows", (2, 9, 2)), ("first", (2, 9, 2)), ("to_line", (6, 5, 2))])
def test_gradients_are_those_of_the_values(move, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(PACKING, move), (x,))


def test_nothing_is_packed_outside_of_the_context():
    with packing.packed(PACKING):
        assert packing.current() is PACKING
    assert packing.current() is None
