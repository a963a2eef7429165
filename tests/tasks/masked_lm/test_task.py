"""Masked language models as a task: windows, units, scores, and rows that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import documents
import numpy as np
import pandas as pd
import pytest
import tiny

from hpo.core.errors import DataError
from hpo.tasks.loading import load
from hpo.tasks.masked_lm.documents import DocumentSplit
from hpo.tasks.masked_lm.keys import DocumentKeys
from hpo.tasks.metrics import score
from hpo.tasks.registry import TASKS, task_for
from hpo.tasks.rows import IGNORED

TASK: Any = TASKS["masked_lm"]


def encoded(*texts: str, max_length: int = 8, masked: float = 0.5) -> Any:
    return TASK.encode(DocumentSplit(list(texts)), DocumentKeys(masked=masked), documents.tokenizer(), max_length)


def test_a_document_is_divided_into_windows_one_after_the_other() -> None:
    tokenizer = documents.tokenizer()
    rows = encoded("w1 w2 w3", " ".join(f"w{i}" for i in range(14)))
    texts = [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in rows.inputs["input_ids"]]
    assert texts == [
        "[CLS] w1 w2 w3 [SEP]",
        "[CLS] w0 w1 w2 w3 w4 w5 [SEP]",
        "[CLS] w6 w7 w8 w9 w10 w11 [SEP]",
        "[CLS] w12 w13 [SEP]",
    ]
    assert rows.example.tolist() == [0, 1, 1, 1]
    assert rows.units.tolist() == rows.row_targets["masked"].tolist() == [2, 3, 3, 1]
    for ids, labels in zip(rows.inputs["input_ids"], rows.token_targets["labels"], strict=True):
        assert labels[[0, -1]].tolist() == [IGNORED] * 2
        assert np.array_equal(labels[1:-1], ids[1:-1])
    assert rows.masking.vocabulary == len(tokenizer)
    assert TASK.marked(rows, 0, ["a", "b"], ()) == "a b -> 2 of them are masked, others in every step"


def test_of_a_short_window_one_token_is_masked() -> None:
    assert encoded("w1", masked=0.15).units.tolist() == [1]


def test_documents_without_tokens_have_no_rows_and_are_told() -> None:
    rows = encoded("w1", " ", "w2")
    assert rows.example.tolist() == [0, 2]
    (note,) = TASK.row_notes({"train": rows}, DocumentKeys())
    assert note.startswith("1 documents of train have no tokens and are left out")
    with pytest.raises(DataError, match="the documents have no tokens"):
        encoded(" ")


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"has no mask token.*write task: causal_lm"):
        TASK.encode(DocumentSplit(["w1"]), DocumentKeys(), tiny.tokenizer(), 8)


def test_scores_are_of_the_masked_tokens() -> None:
    rows = encoded("w1 w2 w3", " ".join(f"w{i}" for i in range(14)))
    answers = {"loss": np.array([2.0, 3.0, 4.0, 2.0]), "right": np.array([1.0, 3.0, 0.0, 1.0])}
    found = TASK.predictions(DocumentSplit(["a", "b"]), rows, answers, DocumentKeys())
    assert (found.losses.tolist(), found.units.tolist()) == ([2, 9], [2, 7])
    assert score("loss", found) == pytest.approx(11 / 9)
    assert score("perplexity", found) == pytest.approx(np.exp(11 / 9))
    assert score("token_accuracy", found) == pytest.approx(5 / 9)
    assert TASK.predicted_rows(found, ())[1] == {"predicted": None, "loss": 9 / 7, "tokens": 7, "right": 4}


def test_rows_without_a_text_are_left_out_and_told(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": [*documents.texts(40), "", None, " "]})
    table.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    keys = DocumentKeys(train=str(tmp_path / "rows.jsonl"))
    data = load(keys, "masked_lm", 0, tmp_path)
    assert sum(len(split) for split in data.splits.values()) == 40
    assert data.notes[0].startswith("3 of 43 rows of train have no text and are left out, first row 41 of ")
    assert TASK.facts(data)["masked"].startswith("15% of the tokens of a window")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="column 'text' of train has no text; name the column"):
        load(DocumentKeys(train=str(tmp_path / "empty.jsonl")), "masked_lm", 0, tmp_path)
    with pytest.raises(DataError, match="1 rows have no text, the first is row 2"):
        TASK.unlabelled([{"text": "w1"}, {"text": ""}], DocumentKeys())


def test_the_task_is_found_by_the_architecture() -> None:
    assert task_for("BertForMaskedLM", None, 2) is TASK
