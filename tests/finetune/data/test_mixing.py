"""The rows of an epoch of several tasks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.finetune.data.batches import epoch_batches
from hpo.finetune.data.mixing import drawn, mixed

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(SIZES, st.floats(1, 1000))
def test_an_epoch_has_as_many_rows_as_the_split(sizes, temperature):
    counts = drawn(np.array(sizes), temperature)
    assert counts.sum() == sum(sizes)
    assert (counts >= 0).all()


@given(SIZES)
def test_at_temperature_1_each_row_is_there_once(sizes):
    assert drawn(np.array(sizes), 1.0).tolist() == sizes


@pytest.mark.parametrize(
    ("sizes", "temperature", "expected"),
    [
        ([900, 100], 1.0, [900, 100]),
        ([900, 100], 2.0, [750, 250]),  # 30 : 10
        ([900, 100], 1000.0, [501, 499]),
        ([640, 10, 10], 3.0, [440, 110, 110]),  # 4 : 1 : 1
    ],
)
def test_shares_are_those_of_temperature_scaled_mixing(sizes, temperature, expected):
    """n ** (1 / temperature), as in section 3.5.2 of Raffel et al., 2020."""
    assert drawn(np.array(sizes), temperature).tolist() == expected


@given(SIZES, st.floats(1, 50), st.integers(0, 9), st.integers(1, 6))
def test_the_rows_of_a_task_are_seen_equally_often(sizes, temperature, seed, epochs):
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    seen = np.concatenate([mixed(tasks, temperature, seed, epoch) for epoch in range(epochs)])
    times = np.bincount(seen, minlength=len(tasks))
    for task in range(len(sizes)):
        own = times[tasks == task]
        assert own.max() - own.min() <= 1


def test_rows_are_a_function_of_seed_and_epoch():
    tasks = np.repeat([0, 1], [50, 20])
    one = mixed(tasks, 3.0, 5, 1)
    assert one.tolist() == mixed(tasks, 3.0, 5, 1).tolist()
    assert one.tolist() != mixed(tasks, 3.0, 6, 1).tolist()
    assert one.tolist() != mixed(tasks, 3.0, 5, 2).tolist()


def test_batches_have_the_rows_of_the_epoch():
    lengths, rows = np.arange(1, 21), np.array([3, 3, 3, 7, 8, 8, 19])
    batches = epoch_batches(lengths, 2, 0, 0, rows=rows)
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
