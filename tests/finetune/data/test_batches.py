import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.finetune.data.batches import boundaries, by_length, epoch_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300).map(np.array)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 9), st.integers(0, 3))
def test_every_row_is_in_one_batch_and_only_the_last_is_short(lengths, size, seed, epoch):
    batches = epoch_batches(lengths, size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == -(-len(lengths) // size)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.arange(1, 101)

    def order(seed, epoch):
        return np.concatenate(epoch_batches(lengths, 8, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_batches_of_like_lengths_pad_little():
    lengths = np.random.default_rng(0).integers(5, 61, 2000)
    padded = sum(lengths[b].max() * len(b) for b in epoch_batches(lengths, 16, 0, 0)) / lengths.sum()
    shuffled = np.random.default_rng(1).permutation(2000).reshape(-1, 16)
    plain = sum(lengths[b].max() * len(b) for b in shuffled) / lengths.sum()
    assert padded < 1.08 < 1.5 < plain


@pytest.mark.parametrize(
    ("rows", "evaluations", "epochs", "expected"),
    [(100, 2, 1, [50, 100]), (101, 2, 2, [50, 101, 152, 202]), (10, 1, 3, [10, 20, 30]), (7, 4, 1, [2, 4, 5, 7])],
)
def test_boundaries(rows, evaluations, epochs, expected):
    assert boundaries(rows, evaluations, epochs) == expected


@given(LENGTHS, st.integers(1, 64))
def test_scoring_batches_hold_every_row_once_in_order_of_length(lengths, size):
    batches = by_length(lengths, size)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) >= 0).all()
    assert max(map(len, batches)) <= size


def test_a_window_of_one_batch_leaves_the_rows_as_they_were_shuffled():
    lengths = np.arange(24)[::-1].copy()
    batches = epoch_batches(lengths, 8, 1, 0, window=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(24))
    assert not any(np.array_equal(batch, np.sort(batch)[::-1]) for batch in batches)
