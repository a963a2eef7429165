"""Questions from files: SQuAD's JSON, or rows of a JSON array, JSONL or Parquet as the Hub has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.core.errors import DataError, nearest
from hpo.tasks.question_answering.questions import MARK, Columns, Problems, Question, Row, questions_of

ENDINGS = (".json", ".jsonl", ".parquet")
_SQUAD = "{data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}"


def read_questions(path: Path, columns: Columns | None = None) -> list[Question]:
    """Return the questions of a file.

    Args:
        path: SQuAD's JSON (`{"data": [{"paragraphs": [{"context", "qas"}]}]}`, version 1.1 or 2.0), or rows.
        columns: The names of the columns of rows; None is SQuAD's. SQuAD's JSON has its own.

    Raises:
        DataError: The file cannot be read, has no questions, or has some that cannot be used.
    """
    if path.suffix.lower() not in ENDINGS:
        ending = path.suffix or "a file without an ending"
        raise DataError(f"{path}: cannot read questions from {ending}; use {', '.join(ENDINGS)}")
    problems = Problems(str(path))
    if path.suffix.lower() == ".parquet":
        elements: Any = list(enumerate(_parquet(path), 1))
    else:
        elements = _json(path, problems)
    if isinstance(elements, Mapping):
        return questions_of(squad_rows(elements, problems), Columns(), problems, answered=True)
    columns = columns or Columns()
    rows = _rows(path, elements, problems)
    _refuse_missing_columns(rows, columns, problems)
    return questions_of(rows, columns, problems, answered=False)


def squad_rows(document: Mapping[str, Any], problems: Problems) -> list[Row]:
    """Return the questions of SQuAD's JSON as rows with the columns of `Columns()`; places count from 1."""
    return [
        (place, {**question, "context": paragraph.get("context")})
        for in_article, article in _objects(document, "data", "article", "", problems)
        for in_paragraph, paragraph in _objects(article, "paragraphs", "paragraph", in_article, problems)
        for place, question in _objects(paragraph, "qas", "question", in_paragraph, problems)
    ]


def _objects(
    parent: Mapping[str, Any], key: str, name: str, place: str, problems: Problems
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, object) of the objects that are listed under a key."""
    children = parent.get(key)
    if not isinstance(children, list):
        keys = ", ".join(map(repr, parent))
        detail = f"it has {f'the keys {keys}' if keys else 'no keys'}"
        problems.add(f"objects without a list {key!r}", place or "the file", f"{detail}. Write {_SQUAD}")
        return
    for number, child in enumerate(children, 1):
        where = f"{place}, {name} {number}" if place else f"{name} {number}"
        if isinstance(child, Mapping):
            yield where, child
        else:
            problems.add(f"elements of {key!r} that are no objects", where, f"it is {child!r:.60}")


# ---------------------------------------------------------------- files


def _json(path: Path, problems: Problems) -> Any:
    """Return what a file holds; elements of a JSON array and lines of JSONL with their numbers, from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: its byte {error.start} is none. Save it as UTF-8") from None
    if path.suffix.lower() == ".jsonl":
        return list(_lines(text, problems))
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(document, Mapping | list):
        raise DataError(f"{path} is neither SQuAD's JSON, an object with a list 'data', nor an array of questions")
    return list(enumerate(document, 1)) if isinstance(document, list) else document


def _lines(text: str, problems: Problems) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except json.JSONDecodeError as error:
            detail = f"{error.msg} at its character {error.colno}. Write one object a line"
            problems.add("lines that are not JSON", f"line {number}", detail)


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file ({error})") from None
    return rows


def _rows(path: Path, elements: Sequence[tuple[int, Any]], problems: Problems) -> list[Row]:
    unit = "line" if path.suffix.lower() == ".jsonl" else "row"
    for number, row in elements:
        if not isinstance(row, Mapping):
            problems.add("rows that are no objects", f"{unit} {number}", f"it is {row!r:.60}")
    return [(f"{unit} {number}", row) for number, row in elements if isinstance(row, Mapping)]


def _refuse_missing_columns(rows: Sequence[Row], columns: Columns, problems: Problems) -> None:
    """Refuse a file of which no row has some column, before every row is refused for it."""
    present = dict.fromkeys(key for _, row in rows for key in row)
    required = [name for name in vars(columns).values() if name != columns.answers or MARK not in present]
    missing = [name for name in required if rows and name not in present]
    for name in missing:
        detail = f"{name!r}{nearest(name, present)}. Name the columns under data:"
        problems.add("columns that no row has", "its rows", detail)
    if missing:
        problems.refuse()
