from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

from hpo.config import yaml
from hpo.core.errors import DataError
from hpo.tasks import loading as data
from hpo.tasks import metrics
from hpo.tasks.classification.checks import refuse_metric
from hpo.tasks.classification.keys import TextKeys
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.classification.quality import doubts
from hpo.tasks.classification.texts import TextSplit
from hpo.tasks.dataset import Dataset

CLEAN = {"text": [f"words of row {i}" for i in range(1500)], "label": ["a", "b", "c"] * 500}


def checked(folder: Path, columns: dict[str, list[Any]], metric: str = "accuracy", **settings: Any) -> list[str]:
    pd.DataFrame(columns).to_csv(folder / "train.csv", index=False)
    config = TextKeys.model_validate({"train": "train.csv", **settings})
    return [note.replace(f"{folder}/", "") for note in doubts(data.load(config, "auto", 0, folder), metric)]


def test_of_clean_data_nothing_is_said(tmp_path: Path) -> None:
    for metric in ("accuracy", "f1_macro", "roc_auc", "loss"):
        assert checked(tmp_path, CLEAN, metric) == []


def test_a_small_split_is_noted_with_what_it_can_tell(tmp_path: Path) -> None:
    notes = checked(tmp_path, CLEAN, validation=5, test=100)
    assert notes == [
        "validation has only 5 rows to measure accuracy on; a share of right answers is uncertain by up to 0.44 (95 %)"
    ]


def test_few_positives_are_noted_for_the_metrics_that_depend_on_them(tmp_path: Path) -> None:
    columns = {**CLEAN, "label": ["yes" if i % 50 == 0 else "no" for i in range(1500)]}
    expected = [
        "f1_binary depends on few rows of validation, as these labels have fewer than ten: 'yes' (3)",
        "f1_binary depends on few rows of test, as these labels have fewer than ten: 'yes' (3)",
    ]
    assert checked(tmp_path, columns, "f1_binary") == expected
    assert checked(tmp_path, columns, "f1_macro") == [note.replace("binary", "macro") for note in expected]
    assert checked(tmp_path, columns, "accuracy") == []
    negatives = {**CLEAN, "label": ["yes" if i % 50 else "no" for i in range(1500)]}
    assert checked(tmp_path, negatives, "f1_binary") == []  # the rows it is of are many


def test_labels_of_one_or_two_rows_and_absent_ones_are_named_with_their_first_row(tmp_path: Path) -> None:
    columns = {**CLEAN, "label": [*CLEAN["label"][:-3], "two", "one", "two"]}
    assert checked(tmp_path, columns) == [
        "labels of one or two rows of train, from which nothing reliable is learned: 'one' (1: row 1499 of train.csv), "
        "'two' (2: row 1498 of train.csv)",
        "no row of validation has the label 'one', 'two'",
        "no row of test has the label 'one', 'two'",
    ]


def test_columns_of_labels_are_counted_by_their_positives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"text": CLEAN["text"], "x": rng.integers(0, 2, 1500).tolist(), "y": [1] + [0] * 1499}
    notes = checked(tmp_path, columns, "f1_micro", label=["x", "y"])
    assert notes[0].endswith("nothing reliable is learned: 'y' (1: row 1 of train.csv)")
    assert notes[1:] == ["no row of validation has the label 'y'", "no row of test has the label 'y'"]


def test_labels_that_are_one_label_spelled_in_several_ways(tmp_path: Path) -> None:
    columns = {**CLEAN, "label": ["spam", "Spam", "spam ", "ham"] * 374 + ["ham", " "] * 2}
    notes = checked(tmp_path, columns, validation=300, test=300)
    assert "labels that differ only in case or blanks: 'Spam' (374: row " in notes[-2]
    assert "'spam ' (374: row " in notes[-2]
    assert "'ham'" not in notes[-2]
    assert notes[-2].endswith("data: {normalize_labels: true} makes them one")
    assert notes[-1].startswith("the label ' ' (2: row ")
    assert notes[-1].endswith("is blank")


def test_one_text_with_two_labels_is_named_with_both_rows(tmp_path: Path) -> None:
    columns = {"text": [*CLEAN["text"][:1400], *CLEAN["text"][:100]], "label": ["a"] * 700 + ["b"] * 800}
    notes = checked(tmp_path, columns)
    assert notes[0].startswith("texts with several labels: 100, in 200 rows; first: row ")
    assert " of train.csv has 'a', row 14" in notes[0]


def test_rows_that_repeat_earlier_ones_are_counted_in_their_split(tmp_path: Path) -> None:
    columns = {"text": CLEAN["text"][:300] * 5, "label": ["a", "b"] * 750}
    notes = checked(tmp_path, columns)[2:]
    assert " repeat the text of an earlier one, first row 301 of train.csv that of row 1 of train.csv" in notes[0]
    counts = ["960 of 1200 rows of train", "120 of 150 rows of validation", "120 of 150 rows of test"]
    assert [note.split(" repeat")[0] for note in notes] == counts


def test_rows_that_belong_together_count_as_one_where_a_splits_size_is_judged(tmp_path: Path) -> None:
    columns = {"text": CLEAN["text"][:300] * 5, "label": ["a", "b"] * 750}
    assert checked(tmp_path, columns)[:2] == [
        f"{name} has 150 rows, but only 30 that do not belong together, to measure accuracy on; a share of right "
        "answers is uncertain by up to 0.18 (95 %)"
        for name in ("validation", "test")
    ]
    groups = {**CLEAN, "who": [f"g{i // 10}" for i in range(1500)]}
    notes = checked(tmp_path, groups, group="who")
    assert [note.split(", to measure")[0] for note in notes] == [
        f"{name} has 150 rows, but only 15 that do not belong together" for name in ("validation", "test")
    ]


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        (lambda i: str(i), True),
        (lambda i: f"user_{i}", True),
        (lambda i: f"{i * 7919:08x}-{i:04x}", True),
        (lambda i: f"word{chr(97 + i % 26)}", False),
        (lambda i: f"row {i}", False),
        (lambda i: f"{i % 900} stars", False),
        (lambda i: str(i % 900), False),  # a number that comes again may be what tells
        (lambda i: f"\u6211\u67093\u4e2a\u82f9\u679c{i}", False),  # a sentence without blanks
    ],
)
def test_a_column_of_identifiers_is_noted(tmp_path: Path, text: Any, identifier: bool) -> None:
    notes = checked(tmp_path, {"text": [text(i) for i in range(1500)], "label": ["a", "b"] * 750})
    assert any("looks like an identifier" in note for note in notes) == identifier


def test_a_text_that_is_always_the_same_is_noted_beside_one_that_is_not(tmp_path: Path) -> None:
    notes = checked(tmp_path, {**CLEAN, "question": ["why?"] * 1500}, text_pair="question")
    assert notes == ["the column of data.text_pair has the same text in every row of train: 'why?'"]


def test_numbers_are_checked_without_classes(tmp_path: Path) -> None:
    columns = {"text": [*CLEAN["text"][:-1], CLEAN["text"][0]], "label": [str(i / 7) for i in range(1500)]}
    notes = checked(tmp_path, columns, "spearman")
    assert (
        notes[0]
        == "texts with several labels: 1, in 2 rows; first: row 1 of train.csv has 0, row 1500 of train.csv 214.143"
    )


# ---------------------------------------------------------------- what cannot be measured


@pytest.mark.parametrize(
    ("metric", "task", "targets", "labels"),
    [
        ("f1_binary", "single_label", np.zeros(5, dtype=int), 2),
        ("matthews", "single_label", np.ones(5, dtype=int), 2),
        ("spearman", "regression", np.full(5, 2.0), 0),
        ("f1_micro", "multi_label", np.zeros((5, 3)), 3),
    ],
)
def test_a_metric_by_which_nothing_can_be_chosen_is_refused(
    metric: str, task: str, targets: np.ndarray[Any, Any], labels: int
) -> None:
    with pytest.raises(DataError, match="is 0 on the validation split even where every row is right"):
        refuse_metric(metric, task, _data(task, labels, targets, targets))
    better = targets.copy()
    better[0] = 1 - better[0]
    refuse_metric(metric, task, _data(task, labels, better, targets))


def _data(task: str, labels: int, validation: np.ndarray[Any, Any], test: np.ndarray[Any, Any]) -> Dataset:
    names = tuple(map(str, range(labels)))
    texts = {name: TextSplit([""] * 5, None, targets) for name, targets in (("validation", validation), ("test", test))}
    return Dataset(task, names, texts)


# ---------------------------------------------------------------- groups


def test_the_worst_group_is_the_one_with_the_worst_score() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 90)
    groups = ["x"] * 30 + ["y"] * 30 + ["z"] * 30
    wrong = np.array([0.1] * 30 + [0.5] * 30 + [0.2] * 30) > rng.random(90)
    outputs = LabelPredictions("single_label", targets, np.eye(2)[np.where(wrong, 1 - targets, targets)])
    found = metrics.worst_group("accuracy", outputs, groups)
    assert found == metrics.GroupScore("y", pytest.approx(1 - wrong[30:60].mean()), 30, 3)
    shuffled = rng.permutation(90)
    again = metrics.worst_group("accuracy", outputs.take(shuffled), [groups[i] for i in shuffled])
    assert again is not None
    assert (again.name, again.rows) == ("y", 30)
    assert again.score == pytest.approx(found.score)


def test_of_losses_the_worst_is_the_highest() -> None:
    targets = np.array([0.0, 1.0] * 10)
    logits = targets[:, None] + np.array([[0.1]] * 10 + [[3.0]] * 10)
    found = metrics.worst_group("loss", LabelPredictions("regression", targets, logits), ["near"] * 10 + ["far"] * 10)
    assert found is not None
    assert (found.name, found.score) == ("far", pytest.approx(9.0))


def test_groups_that_cannot_be_scored_are_left_out() -> None:
    targets = np.array([0, 1] * 10 + [0, 1] * 5 + [0] * 10 + [0, 1] * 4)
    groups = ["both"] * 20 + ["both again"] * 10 + ["one label"] * 10 + ["small"] * 8
    outputs = LabelPredictions("single_label", targets, np.eye(2)[1 - targets])
    found = metrics.worst_group("f1_binary", outputs, groups)
    assert found is not None
    assert (found.name, found.compared) == ("both", 2)
    means = metrics.worst_group("accuracy", outputs, groups)
    assert means is not None
    assert means.compared == 3
    assert metrics.worst_group("accuracy", outputs, [str(i) for i in range(48)]) is None
    assert metrics.worst_group("f1_binary", outputs, ["one group"] * 30 + groups[30:]) is None


# ---------------------------------------------------------------- the command


def test_check_does_not_call_doubtful_data_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    yaml.write(tiny.study(tmp_path), Path("s.yaml"))
    code, printed = call("check", "s.yaml")
    assert code == 0
    assert "note: test has only 30 rows to measure accuracy on" in printed
    assert "nothing is wrong" not in printed
    assert "it can run, but read the notes first; nothing has been written" in printed


def test_a_run_says_too_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tiny.study(tmp_path, trials=1)
    with Path("data.csv").open("a") as file:
        file.write("no label,\n")
    yaml.write({**study, "data": {**study["data"], "unlabelled": "drop"}}, Path("s.yaml"))
    code, printed = call("run", "s.yaml")
    assert code == 0
    assert "1 of 121 rows of train have no label and are left out, first row 121 of" in printed
