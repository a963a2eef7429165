from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import squad_rows
from hypothesis import given
from hypothesis import strategies as st

from hpo.core.errors import DataError
from hpo.tasks.question_answering.questions import Columns, Problems, Question, questions_of
from hpo.tasks.question_answering.reading import read_rows

WRITTEN = squad_rows.written()
ANSWERED = [row for row in WRITTEN if row["answers"]["text"]]
CONTEXT = "The  cat sat on a mat; the cat slept."


def read_questions(path: Path, columns: Columns | None = None) -> list[Question]:
    return [question for question, _ in read_rows(path, columns or Columns())]


def row(answers: Any = None, **changes: Any) -> dict[str, Any]:
    answers = {"text": ["cat"], "answer_start": [5]} if answers is None else answers
    return {"id": "q", "question": "Who sat?", "context": CONTEXT, "answers": answers, **changes}


def said(tmp_path: Path, content: Any, name: str = "data.jsonl", columns: Columns | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_questions(squad_rows.write(tmp_path / name, content), columns)
    return str(caught.value)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.parquet"])
def test_rows_of_every_format_are_the_same_questions(tmp_path, name):
    found = read_questions(squad_rows.write(tmp_path / name, WRITTEN))
    unit = "line" if name.endswith("l") else "row"
    assert [each.place for each in found] == [
        f"{tmp_path / name}, {unit} {n} (id {r['id']!r})" for n, r in enumerate(WRITTEN, 1)
    ]
    for question, written in zip(found, WRITTEN, strict=True):
        pairs = zip(written["answers"]["text"], written["answers"]["answer_start"], strict=True)
        assert (question.id, question.question) == (written["id"], written["question"])
        assert question.context == question.group == written["context"]
        assert question.answers == tuple(pairs)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    text = squad_rows.write(tmp_path / "data.jsonl", WRITTEN).read_text()
    (tmp_path / "data.jsonl").write_text(text, encoding="utf-8-sig")
    assert len(read_questions(tmp_path / "data.jsonl")) == len(WRITTEN)


@pytest.mark.parametrize(("version", "rows"), [("1.1", ANSWERED), ("v2.0", WRITTEN)])
def test_squads_json_has_the_questions_of_its_rows(tmp_path, version, rows):
    found = read_questions(squad_rows.write(tmp_path / "squad.json", squad_rows.document(rows, version)))
    of_rows = read_questions(squad_rows.write(tmp_path / "rows.json", rows))
    assert [(q.id, q.question, q.context, q.answers) for q in found] == [
        (q.id, q.question, q.context, q.answers) for q in of_rows
    ]
    assert found[1].place == f"{tmp_path / 'squad.json'}, article 1, paragraph 1, question 2 (id 'w0-1')"


def test_both_forms_of_answers_and_other_names_of_columns_are_read(tmp_path):
    pairs = [{"text": "cat", "answer_start": 5}, {"text": "The  cat", "answer_start": 0}]
    renamed = {"key": 7, "query": "Who sat?", "passage": CONTEXT, "spans": pairs}
    columns = Columns(id="key", question="query", context="passage", answers="spans")
    (found,) = read_questions(squad_rows.write(tmp_path / "data.jsonl", [renamed]), columns)
    assert (found.id, found.answers) == ("7", (("cat", 5), ("The  cat", 0)))


def test_answers_in_arrays_as_pandas_reads_parquet_are_read(tmp_path):
    path = squad_rows.write(tmp_path / "data.parquet", WRITTEN)
    records = [("row", each) for each in pd.read_parquet(path).to_dict("records")]
    assert isinstance(records[0][1]["answers"]["text"], np.ndarray)
    pairs = np.array([{"text": "cat", "answer_start": np.int64(5)}], dtype=object)
    found = questions_of([*records, ("row", row(pairs))], Columns(), Problems("f"), answered=False)
    assert [each.answers for each in found] == [*(each.answers for each in read_questions(path)), (("cat", 5),)]


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("cat", 4, "elsewhere in the context: 1, the first in line 1 (id 'q'): 'cat' is expected at 4, where ' ca' is; "
         "the context has it at 5, 27. Correct answer_start"),
        ("cat", -32, "'cat' is expected at -32, where '' is; the context has it at 5, 27"),
        ("The cat", 0, "differ from the context in blanks: 1, the first in line 1 (id 'q'): 'The cat' is expected at "
         "0, where 'The  ca' is; the context has 'The  cat' at 0"),
        (" cat\n", 5, "in blanks: 1, the first in line 1 (id 'q'): ' cat\\n' is expected at 5, where 'cat s' is; the "
         "context has 'cat' at 5"),
        ("dog", 5, "answers that are not in the context: 1, the first in line 1 (id 'q'): 'dog' is expected at 5, "
         "where 'cat' is"),
        (" ", 3, "answers without a text: 1, the first in line 1 (id 'q'): it is ' '"),
        ("a", 16, None),
    ],
)  # fmt: skip
def test_an_answer_is_at_its_position_or_the_message_says_where(tmp_path, text, start, message):
    content = [row({"text": [text], "answer_start": [start]})]
    if message is None:
        read_questions(squad_rows.write(tmp_path / "data.jsonl", content))
    else:
        assert message in said(tmp_path, content)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(question=" ")], "questions without a text as 'question': 1, the first in line 1 (id 'q'): it is ' '"),
        ([row(context=None)], "questions without a text as 'context': 1, the first in line 1 (id 'q'): it is missing"),
        ([row(), row(), row()], "questions with the id of another: 2, the first in line 2: line 1 has the id 'q' too"),
        ([row(id=None)], "questions without an id: 1, the first in line 1: 'id' is missing"),
        ([row("cat")], "questions whose 'answers' cannot be read: 1, the first in line 1 (id 'q'): it is 'cat'"),
        ([row({"text": ["cat"], "answer_start": [5, 6]})], "cannot be read: 1"),
        ([row({"text": ["cat"], "answer_start": ["5"]})], "cannot be read: 1"),
        ([row({"text": "cat", "answer_start": 5})], "cannot be read: 1"),
        ([row(id="a"), {**row(), "answers": None}], "cannot be read: 1, the first in line 2 (id 'q'): it is missing"),
        ([row(is_impossible=True)], "marked is_impossible that have answers: 1, the first in line 1 (id 'q')"),
        ([row(is_impossible="no")], "neither true nor false: 1, the first in line 1 (id 'q'): it is 'no'"),
        ([row([], is_impossible=False)], "not marked is_impossible: 1, the first in line 1 (id 'q')"),
        ([row(), 5], "rows that are no objects: 1, the first in line 2: it is 5"),
        ([{"id": 1, "Question": "?", "context": "c", "answers": []}], "no row has: 1, the first in its rows: "
         "'question'; did you mean Question?"),
        ([row({"text": ["cat"], "answer_start": [10**400]})], "answers that are elsewhere in the context: 1"),
        ([row(context="a cat \ud83d sat")], "half a character in 'context': 1, the first in line 1 (id 'q'): its "
         "character 6 is '\\ud83d'"),
        ([], "data.jsonl has no questions"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(tmp_path, rows, message):
    assert message in said(tmp_path, rows)


def test_all_problems_of_a_file_are_counted_by_kind(tmp_path):
    wrong = [row({"text": ["cat"], "answer_start": [n]}, id=n) for n in range(3)]
    message = said(tmp_path, [*wrong, row(question="", id=2), row(id="fine")])
    assert message.splitlines()[0] == f"{tmp_path / 'data.jsonl'}: 5 problems"
    assert [re.search(r": (\d),", line)[1] for line in message.splitlines()[1:]] == ["3", "1", "1"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"data": [\n{]}', "a.json, line 2: not JSON"),
        ("a.jsonl", "{\n\n}\n", "a.jsonl: 2 problems\n  lines that are not JSON: 2, the first in line 1: Expecting"),
        ("a.jsonl", '{"id": 1}\n\n{', "a.jsonl: 4 problems\n  lines that are not JSON: 1, the first in line 3: Exp"),
        ("a.json", '"text"', "a.json is neither SQuAD's JSON"),
        ("a.json", '{"rows": []}', "objects without a list 'data': 1, the first in the file: it has the keys 'rows'"),
        ("a.json", '{"data": [3]}', "elements of 'data' that are no objects: 1, the first in article 1: it is 3"),
        ("a.json", '{"data": [{"paragraphs": [{}]}]}', "a list 'qas': 1, the first in article 1, paragraph 1"),
        ("a.parquet", "no", "a.parquet is not a Parquet file"),
        ("a.csv", "id", "a.csv: cannot read questions from .csv; use .json, .jsonl, .parquet"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_well_formed_is_named_with_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_questions(tmp_path / name)


def test_a_file_that_is_missing_or_not_utf_8_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json cannot be read: No such file"):
        read_questions(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(DataError, match=r"latin\.json is not UTF-8 text: line 1 has the byte 0xe9"):
        read_questions(tmp_path / "latin.json")


def test_only_version_2_has_questions_without_an_answer(tmp_path):
    message = said(tmp_path, squad_rows.document(WRITTEN, "1.1"), "data.json")
    assert "questions without answers: 7, the first in article 1, paragraph 1, question 5 (id 'w0-4')" in message
    assert len(message.splitlines()) == 2


def test_a_question_that_is_marked_needs_no_list_of_answers(tmp_path):
    content = copy.deepcopy(squad_rows.document(WRITTEN))
    for paragraph in content["data"][0]["paragraphs"]:
        for asked in paragraph["qas"]:
            if asked["is_impossible"]:
                del asked["answers"]
    found = read_questions(squad_rows.write(tmp_path / "data.json", content))
    assert sum(not question.answers for question in found) == 7


@given(st.text(min_size=1).filter(str.strip), st.data())
def test_every_piece_of_a_context_is_an_answer_at_its_position_and_nowhere_else(context, data):
    begin = data.draw(st.integers(0, len(context) - 1))
    text = context[begin : data.draw(st.integers(begin + 1, len(context)))]
    for start in range(-1, len(context) + 1):
        rows = [("row 1", row({"text": [text], "answer_start": [start]}, context=context))]
        right = start >= 0 and context.startswith(text, start) and bool(text.strip())
        if right:
            questions_of(rows, Columns(), Problems("f"), answered=False)
            continue
        with pytest.raises(DataError) as caught:
            questions_of(rows, Columns(), Problems("f"), answered=False)
        assert not text.strip() or f"at {context.index(text)}" in str(caught.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["data", "paragraphs", "qas", "id", "question", "context", "answers", "text"]), x)))  # fmt: skip
def test_whatever_json_a_file_holds_no_other_error_comes_out(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"any\.json"):
        read_questions(path)
