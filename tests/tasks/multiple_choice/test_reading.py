"""From rows to examples: forms of choices, ways of writing labels, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import choices
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.core.errors import DataError
from hpo.tasks.multiple_choice.keys import ChoiceKeys
from hpo.tasks.multiple_choice.reading import EXAMPLE, listed, prepared, unlabelled

LETTERS = "ABCD"
TEXTS = [f"text {letter}" for letter in LETTERS]


def examples(table: list[dict[str, Any]], **keys: Any) -> tuple[list[Any], list[str]]:
    """Return the examples of rows, and the notes."""
    index = pd.MultiIndex.from_tuples([("rows.jsonl", i) for i in range(1, len(table) + 1)])
    frames = {"train": pd.DataFrame(table, index=index)}
    notes = prepared(frames, ChoiceKeys(**keys))
    return list(frames["train"][EXAMPLE]), notes


def row(label: Any, texts: Any = TEXTS, context: str = "c") -> dict[str, Any]:
    return {"context": context, "choices": texts, "label": label}


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2, 3], ["0", "1", "2", "3"], [0.0, 1.0, 2.0, 3.0], [1, 2, 3, 4], list("ABCD"), ["a.", "(b)", "C", "d)"],
     TEXTS],
    ids=["from 0", "text", "floats", "from 1", "letters", "marked letters", "texts"],
)  # fmt: skip
def test_every_way_to_name_a_choice_is_read(labels: list[Any]) -> None:
    found, notes = examples([row(label) for label in labels])
    assert [each.label for each in found] == [0, 1, 2, 3]
    assert notes == []


@given(st.permutations(range(4)), st.sampled_from(["from 0", "from 1", "letters", "texts"]))
def test_the_way_of_most_labels_is_that_of_all(order: list[int], way: str) -> None:
    writes = {"from 0": str, "from 1": lambda i: str(i + 1), "letters": LETTERS.__getitem__, "texts": TEXTS.__getitem__}
    found, _ = examples([row(writes[way](number)) for number in order])
    assert [each.label for each in found] == list(order)


def test_choices_that_are_numbers_are_named_by_their_texts_where_that_fits_more_labels() -> None:
    found, notes = examples([row("3", ["2", "3"]), row("7", ["7", "1"])])
    assert [each.label for each in found] == [1, 0]
    assert notes == []


def test_labels_that_can_be_read_in_two_ways_are_told() -> None:
    found, (note,) = examples([row("1", ["1", "0"]), row("0", ["1", "0"])])
    assert [each.label for each in found] == [1, 0]
    assert note.startswith(
        "the labels can be read as numbers from 0 and as texts of the choices; they are read as numb"
    )


def test_names_of_choices_come_first() -> None:
    named = {"text": ["one", "two", "three"], "label": ["1", "2", "3"]}  # ARC has such rows
    found, _ = examples([row("1", named), row("2", named)])
    assert [each.label for each in found] == [0, 1]
    assert found[0].choices == ("one", "two", "three")


# ---------------------------------------------------------------- choices


@pytest.mark.parametrize("cell", [["x", "y"], ("x", "y"), np.array(["x", "y"]), '["x", "y"]', {"text": ["x", "y"]}])
def test_forms_of_a_list(cell: Any) -> None:
    found = listed([cell], True)
    assert found is not None
    assert found.texts == ("x", "y")


@pytest.mark.parametrize("cell", [None, "x", 3, "{", {"texts": ["x"]}, [["x"], ["y"]]])
def test_what_is_no_list(cell: Any) -> None:
    assert listed([cell], True) is None


def test_a_column_for_each_choice() -> None:
    (found,), _ = examples([{"c": "a", "q": "b", "x": "1st", "y": 2, "l": 1}], context="c", question="q",
                           choices=["x", "y"], label="l")  # fmt: skip
    assert (found.choices, found.label) == (("1st", "2"), 1)
    assert found.endings() == ["b 1st", "b 2"]


# ---------------------------------------------------------------- rows that cannot be used


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no list": (row(0, "text"), "rows whose choices are no list of texts: 1", "Write a list of texts"),
    "fewer": (row(0, TEXTS[:3]), "rows with another number of choices than most: 1", "rows.jsonl: 3, not 4"),
    "empty": (row(0, [*TEXTS[:3], " "]), "rows with an empty choice: 1", "number 3 of 0 to 3"),
    "no label": (row(None), "rows without a label: 1", "column 'label' is empty"),
    "wrong label": (row(4), "rows whose label is none of their choices: 1", "'4' of 4 choices"),
    "negative": (row(-1), "rows whose label is none of their choices: 1", "'-1' of 4 choices"),
    "twice": (row(0, ["x", "x", "y", "z"]), "rows that have the right choice twice: 1", "'x'"),
}


@pytest.mark.parametrize(("bad", "kind", "detail"), BAD.values(), ids=BAD)
def test_a_row_that_cannot_be_used_is_named_with_its_cause(bad: dict[str, Any], kind: str, detail: str) -> None:
    with pytest.raises(DataError) as error:
        examples([*(row(i) for i in (0, 1, 2, 3)), bad])
    said = str(error.value)
    assert kind in said
    assert "row 5 of rows.jsonl" in said
    assert detail in said


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(DataError) as error:
        examples([row(0), row(1), row(2), *(bad for bad, *_ in BAD.values())])
    assert "the data have 7 faults" in str(error.value)
    assert all(kind.rpartition(":")[0] in str(error.value) for _, kind, _ in BAD.values())


def test_one_choice_is_none() -> None:
    with pytest.raises(DataError, match="1, not 2"):
        examples([row(0, ["x"]), row(0, ["y"])])


def test_what_is_allowed_is_noted() -> None:
    found, notes = examples([row(0), row(0, ["x", "y", "y", "z"]), row(3, context=" ")])
    assert len(found) == 3
    assert notes == [
        "rows that have a wrong choice twice: 1, first row 2 of rows.jsonl",
        "rows whose texts before the choices are empty: 1, first row 3 of rows.jsonl",
    ]


def test_a_hub_split_without_public_labels() -> None:
    index = pd.MultiIndex.from_tuples([("swag (test)", 1)])
    with pytest.raises(DataError, match=r"the test split of 'swag' has no public labels; set test: 0\.1"):
        prepared({"test": pd.DataFrame([row(None)], index=index)}, ChoiceKeys(dataset="swag"))


def test_rows_to_predict_need_no_label_and_are_checked() -> None:
    keys = ChoiceKeys()
    (found,) = unlabelled([{"context": "c", "choices": json.dumps(TEXTS)}], keys)
    assert found.choices == tuple(TEXTS)
    with pytest.raises(DataError) as error:
        unlabelled([row(0), row(0), row(0, ["x"]), row(0, "x")], keys)
    assert "row 3: 1, not 4" in str(error.value)
    assert "row 4: 'x'" in str(error.value)


# ---------------------------------------------------------------- files


def test_files_in_two_forms_are_the_same_data(tmp_path: Path) -> None:
    found = choices.rows(60)
    swag = choices.read(tmp_path / "a.jsonl", found, **choices.SWAG)
    lists = [
        {"context": row["sent1"], "question": row["sent2"], "label": LETTERS[row["label"]],
         "choices": [row[f"ending{i}"] for i in range(4)]}
        for row in found
    ]  # fmt: skip
    other = choices.read(tmp_path / "b.jsonl", lists, question="question")
    assert swag.digest == other.digest
    assert {name: len(split) for name, split in swag.splits.items()} == {"train": 48, "validation": 6, "test": 6}
    pd.DataFrame([{**each, "choices": json.dumps(each["choices"])} for each in lists]).to_csv(tmp_path / "b.csv")
    keys = ChoiceKeys(train=str(tmp_path / "b.csv"), question="question")
    from hpo.tasks.loading import load

    assert load(keys, "multiple_choice", 0, tmp_path).digest == swag.digest


def test_rows_of_the_same_texts_stay_in_one_split(tmp_path: Path) -> None:
    found = choices.rows(30)
    data = choices.read(tmp_path / "a.jsonl", found + found, **choices.SWAG)
    contents = [set(split.contents) for split in data.splits.values()]
    assert contents[0].isdisjoint(contents[1] | contents[2])
