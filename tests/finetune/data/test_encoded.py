import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from trials import open_array

from hpo.finetune.data.encoded import on_device, one_of_few
from hpo.tasks.task import EncodedRows

CPU = torch.device("cpu")


def tokens(*rows):
    count = np.arange(len(rows))
    labels = {"tags": [[10 * token for token in row] for row in rows]}
    return on_device(EncodedRows({"input_ids": rows}, {"labels": count}, labels, np.ones(len(rows)), count), 9, CPU)


def test_a_batch_is_padded_and_masked():
    inputs, targets = tokens([1, 2, 3], [4], [5, 6]).batch(np.array([2, 1]))
    assert inputs["input_ids"].tolist() == [[5, 6], [4, 9]]
    assert inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert targets["labels"].tolist() == [2, 1]
    assert targets["tags"].tolist() == [[50, 60], [40, -100]]


def test_a_batch_may_have_a_length_of_its_own():
    inputs, _ = tokens([1, 2, 3], [4]).batch(np.array([1]), length=2)
    assert inputs["input_ids"].tolist() == [[4, 9]]


def test_rows_are_never_padded_beyond_the_longest_of_the_split():  # which may be all that the model can read
    split = tokens([1] * 17, [1] * 33)
    assert [split.batch(np.array([row]))[0]["input_ids"].shape[1] for row in (0, 1)] == [18, 33]


@given(st.integers(1, 8192))
def test_one_of_few_lengths_is_hardly_longer(length):
    assert length <= one_of_few(length) <= length * 9 / 8
    assert one_of_few(one_of_few(length)) == one_of_few(length)
    assert one_of_few(2 * one_of_few(length)) == 2 * one_of_few(length)  # twice the rows of half the length


def test_lengths_are_few():
    assert len({one_of_few(length) for length in range(1, 513)}) == 48 + 8


def test_answers_come_in_the_order_of_the_rows_and_are_padded_to_one_length():
    split = tokens([1, 2, 3], [4], [5, 6])

    def answer(inputs, targets):
        return {"ids": inputs["input_ids"][None], "rows": targets["labels"][None, :, None] + torch.tensor([[0], [10]])}

    found = split.answers(lambda i, t: {n: v if n == "ids" else v[..., 0] for n, v in answer(i, t).items()}, 1)
    assert found["ids"].tolist() == [[[1, 2, 3], [4, 0, 0], [5, 6, 0]]]
    assert found["rows"].shape[1:] == (3,)


def test_only_the_first_rows_stay_as_lists(tmp_path):
    setup = open_array(tmp_path).setup
    for split, rows in setup.rows.items():
        assert [len(values) for values in rows.inputs.values()] == [3] * len(rows.inputs)
        assert len(rows.example) == len(rows.units) == len(setup.tokens[split].lengths) > 3
        first = setup.tokens[split].batch(np.arange(1))[0]["input_ids"][0]
        assert len(first) >= len(rows.inputs["input_ids"][0])
