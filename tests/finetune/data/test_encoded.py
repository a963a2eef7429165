import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from trials import open_array

from hpo.finetune.data.encoded import on_device, one_of_few
from hpo.tasks.rows import EncodedRows

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


def pairs(sources, targets):
    count = np.arange(len(sources))
    given = {"decoder_input_ids": [[1, *row[:-1]] for row in targets]}
    return on_device(
        EncodedRows({"input_ids": sources}, {}, {"labels": targets}, np.ones(len(sources)), count, None, given), 9, CPU
    )


def test_the_rows_of_a_decoder_have_lengths_of_their_own():
    split = pairs([[11, 12, 13], [14], [15, 16]], [[21], [22, 23, 24], [25, 26]])
    inputs, targets = split.batch(np.array([1, 2]))
    assert inputs["input_ids"].tolist() == [[14, 9], [15, 16]]
    assert inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert inputs["decoder_input_ids"].tolist() == [[1, 22, 23], [1, 25, 9]]
    assert inputs["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert targets["labels"].tolist() == [[22, 23, 24], [25, 26, -100]]
    assert split.sizes.tolist() == [4, 4, 4]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8), st.data())
def test_both_parts_of_a_row_are_gathered_whole(lengths, data):
    sources = [[100 * row + i for i in range(1, n + 1)] for row, (n, _) in enumerate(lengths, 1)]
    targets = [[100 * row - i for i in range(1, n + 1)] for row, (_, n) in enumerate(lengths, 1)]
    split = pairs(sources, targets).to(CPU)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=4))
    fixed = split.gather(torch.tensor(chosen), max(n for n, _ in lengths), max(n for _, n in lengths))
    for inputs, found in (split.batch(np.array(chosen)), fixed):
        for place, row in enumerate(chosen):
            own, given_out = inputs["attention_mask"][place].bool(), inputs["decoder_attention_mask"][place].bool()
            assert inputs["input_ids"][place][own].tolist() == sources[row]
            assert inputs["decoder_input_ids"][place][given_out].tolist() == [1, *targets[row][:-1]]
            assert found["labels"][place][given_out].tolist() == targets[row]
            assert (found["labels"][place][~given_out] == -100).all()


def test_rows_are_answered_in_order_of_the_length_of_both_parts():
    split = pairs([[1] * 3, [1], [1] * 2], [[1], [1] * 9, [1]])
    seen = []

    def answer(inputs, targets):
        seen.append(inputs["input_ids"].shape[1] + inputs["decoder_input_ids"].shape[1])
        return {"length": inputs["decoder_attention_mask"].sum(1)[None]}

    assert split.answers(answer, 1)["length"].tolist() == [[1, 9, 1]]
    assert seen == [3, 4, 10]


def test_decoder_inputs_of_the_first_rows_only_stay_as_lists():
    rows = EncodedRows({"input_ids": [[1], [2]]}, decoder_inputs={"decoder_input_ids": [[3], [4]]})
    assert rows.without_tokens(1).decoder_inputs == {"decoder_input_ids": [[3]]}


def test_rows_of_several_choices_are_padded_to_the_longest_choice():
    rows = [[1, 2, 3], [4], [5], [6, 7]]
    encoded = EncodedRows({"input_ids": rows}, {"labels": np.array([1, 0])}, {}, np.ones(2), np.arange(2), choices=2)
    split = on_device(encoded, 9, CPU)
    assert (split.choices, split.lengths.tolist(), split.totals.tolist()) == (2, [3, 2], [4, 3])
    inputs, targets = split.batch(np.array([1, 0]))
    assert inputs["input_ids"].tolist() == [[[5, 9, 9], [6, 7, 9]], [[1, 2, 3], [4, 9, 9]]]
    assert inputs["attention_mask"].tolist() == [[[1, 0, 0], [1, 1, 0]], [[1, 1, 1], [1, 0, 0]]]
    assert targets["labels"].tolist() == [0, 1]
