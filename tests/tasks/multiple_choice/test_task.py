"""Multiple choice as a task: rows of choices, loss, metrics, baselines, what is said of a model."""

from __future__ import annotations

from typing import Any

import choices
import numpy as np
import pytest
import sklearn.metrics
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import METRICS, score
from hpo.tasks.multiple_choice.baselines import references
from hpo.tasks.multiple_choice.keys import ChoiceKeys
from hpo.tasks.multiple_choice.predictions import ChoicePredictions
from hpo.tasks.multiple_choice.split import ChoiceSplit, Example
from hpo.tasks.registry import TASKS, task_for

TASK: Any = TASKS["multiple_choice"]


def split(*examples: Example) -> ChoiceSplit:
    return ChoiceSplit(list(examples), asks=True)


def encoded(*examples: Example, max_length: int = 64) -> Any:
    return TASK.encode(split(*examples), ChoiceKeys(), tiny.tokenizer(), max_length)


ONE = Example("w1 w2", "w3", ("fine", "dull w4"), 1)
TWO = Example("w5", "", ("w6", "w7"), 0)


# ---------------------------------------------------------------- rows


def test_a_choice_is_read_after_its_context_and_question() -> None:
    tokenizer = tiny.tokenizer()
    rows = encoded(ONE, TWO)
    texts = [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in rows.inputs["input_ids"]]
    assert texts == [
        "[CLS] w1 w2 [SEP] w3 fine [SEP]",
        "[CLS] w1 w2 [SEP] w3 dull w4 [SEP]",
        "[CLS] w5 [SEP] w6 [SEP]",
        "[CLS] w5 [SEP] w7 [SEP]",
    ]
    assert rows.inputs["token_type_ids"][1] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (rows.choices, rows.row_targets["labels"].tolist(), rows.units.tolist()) == (2, [1, 0], [1, 1])
    assert len(rows.without_tokens(1).inputs["input_ids"]) == 2


def test_the_right_choice_is_marked() -> None:
    rows = encoded(ONE, TWO)
    assert [TASK.marked(rows, i, ["t"], ()) for i in range(4)] == [
        "t -> choice 0, 'fine', is wrong",
        "t -> choice 1, 'dull w4', is RIGHT",
        "t -> choice 0, 'w6', is RIGHT",
        "t -> choice 1, 'w7', is wrong",
    ]


def test_choices_that_a_model_cannot_tell_apart_are_counted() -> None:
    long = " ".join(f"w{i}" for i in range(20))
    alike = Example("w1", "", (f"{long} fine", f"{long} dull"), 0)
    unknown = Example("w1", "", ("漢", "字"), 0)
    (note,) = TASK.row_notes({"train": encoded(ONE, alike, unknown, max_length=12)}, ChoiceKeys())
    assert note.startswith("2 of 3 rows of train have choices of the same tokens, which no model tells apart")
    assert TASK.row_notes({"train": encoded(ONE, alike)}, ChoiceKeys()) == []


def test_keys_that_name_a_column_twice_are_problems() -> None:
    keys = ChoiceKeys(context="a", choices=["b", "a"], label="b", group="b")
    assert list(TASK.key_problems(keys)) == [
        (("choices", "1"), "is column 'a', as data.context is; name a column of its own"),
        (("label",), "is column 'b', as data.choices.0 is; name a column of its own"),
        (("group",), "is column 'b', which is the label; name another column"),
    ]
    assert list(TASK.key_problems(ChoiceKeys(**choices.SWAG))) == []


def test_the_task_is_found_by_the_architecture() -> None:
    assert task_for("BertForMultipleChoice", None, 2) is TASK


# ---------------------------------------------------------------- scores


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(0, 10_000), st.sampled_from([0.0, 0.1]))
def test_the_loss_is_pytorchs_cross_entropy(count: int, seed: int, smoothing: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = torch.from_numpy(rng.normal(size=(6, count))), torch.from_numpy(rng.integers(count, size=6))
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(TASK.loss((logits,), {"labels": labels}, smoothing, None), expected)
    of_slots = torch.full((6,), smoothing, dtype=torch.float64)
    torch.testing.assert_close(TASK.loss((logits,), {"labels": labels}, of_slots, None), expected)


def predictions(targets: Any, logits: Any) -> ChoicePredictions:
    logits = np.asarray(logits, dtype=float)
    return ChoicePredictions(np.asarray(targets), logits, [tuple(map(str, range(logits.shape[1])))] * len(logits))


@given(st.integers(0, 10_000))
def test_metrics_are_those_of_scikit_learn_and_add_up_over_examples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = predictions(rng.integers(3, size=12), rng.normal(size=(12, 3)))
    assert score("accuracy", found) == pytest.approx(sklearn.metrics.accuracy_score(found.targets, found.predicted))
    probabilities = found.probabilities
    assert score("loss", found) == pytest.approx(
        sklearn.metrics.log_loss(found.targets, probabilities, labels=range(3))
    )
    drawn = rng.integers(12, size=20)
    for metric in ("accuracy", "loss"):
        entry = METRICS[metric]
        assert entry.counts is not None
        assert entry.value(entry.counts(found)[drawn].sum(axis=0)) == pytest.approx(score(metric, found.take(drawn)))


def test_a_model_that_always_chooses_one_number_has_collapsed() -> None:
    found = predictions([0, 1, 2], [[0, 0, 1]] * 3)
    assert found.collapsed
    assert TASK.collapse(found) == "chooses number 2 (from 0) in every row"
    assert not predictions([2, 2], [[0, 0, 1]] * 2).collapsed  # all are right
    assert not predictions([0, 1], [[0, 1], [1, 0]]).collapsed


def test_the_breakdown_is_by_number_of_the_right_choice() -> None:
    found = TASK.breakdown(predictions([0, 0, 2], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]), ())
    assert found["tables"][0]["rows"] == [[0, 2, 1, 0.5], [1, 0, 1, "-"], [2, 1, 1, 1.0]]
    assert found["collapsed"] is False


def test_predicted_rows_have_the_text_its_number_and_all_probabilities() -> None:
    (row,) = TASK.predicted_rows(predictions([0], [[0.0, np.log(3.0)]]), ())
    assert (row["predicted"], row["predicted_choice"]) == ("1", 1)
    assert row["probability"] == pytest.approx(0.75)
    assert row["probabilities"] == pytest.approx({"0": 0.25, "1": 0.75})


# ---------------------------------------------------------------- baselines and notes


def data_of(train: list[Example], test: list[Example]) -> Dataset:
    return Dataset("multiple_choice", (), {"train": split(*train), "validation": split(*test), "test": split(*test)})


def test_each_rule_chooses_as_it_says() -> None:
    examples = [
        Example("the red hat", "", ("hat", "a long one", "b"), 0),
        Example("w", "blue", ("yes", "no", "blue yes"), 2),
        Example("w", "", ("x", "y", "zz"), 0),
    ]
    found = references(data_of(examples, examples))
    chosen = {name: each.predictions for name, each in found.items() if each is not None}
    assert {name: each.predicted.tolist() for name, each in chosen.items()} == {
        "majority": [0, 0, 0],
        "longest": [1, 2, 2],
        "overlap": [0, 2, 0],
    }
    assert found["majority"] is not None
    assert found["majority"].says == "Choosing number 0 always"
    np.testing.assert_allclose(chosen["majority"].probabilities[0], [2 / 3, 0, 1 / 3], atol=1e-9)
    np.testing.assert_allclose(chosen["overlap"].probabilities[0], [5 / 6, 1 / 12, 1 / 12])  # never certain
    assert all(each.finite for each in chosen.values())


def test_choices_that_are_not_shuffled_are_doubted() -> None:
    first = [Example(f"w{i}", "", ("x", "y", "z"), 0 if i < 8 else 1) for i in range(10)]
    even = [Example(f"w{i}", "", ("x", "y", "z"), i % 3) for i in range(12)]
    doubts = [note for note in TASK.doubts(data_of(first, even), "accuracy") if "shuffled" in note]
    assert len(doubts) == 1
    assert doubts[0].startswith("number 0 (from 0) is the right choice in 80% of the rows of train")
