"""Questions, checked: every problem of a file's rows is noted, and those of one kind are counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from hpo.core.errors import DataError

MARK = "is_impossible"  # SQuAD 2.0's mark of a question without an answer
Row = tuple[str, Mapping[str, Any]]  # place, column -> value
Answer = tuple[str, int]  # text, position of its first character in the context

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write half of a character; no tokenizer takes it
_FORM = "{text: [...], answer_start: [...]} or a list of {text, answer_start}"


@dataclass(frozen=True)
class Columns:
    """The names of the columns. The defaults are SQuAD's."""

    id: str = "id"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        id: The id; a file has each id once.
        question: The question.
        context: The text that is searched for the answer.
        answers: The gold answers, each exactly at its position in the context; none if there is no answer.
        place: The file and the place in it, for messages.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    place: str

    @property
    def group(self) -> str:
        """The context: questions about one context are not independent."""
        return self.context


@dataclass
class Problems:
    """The problems of one file. Of each kind the first is shown and all are counted.

    Attributes:
        source: The file.
        count: Kind -> number of problems.
        first: Kind -> the first problem, with its place.
    """

    source: str
    count: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of problems of all kinds."""
        return sum(self.count.values())

    def add(self, kind: str, place: str, detail: str) -> None:
        """Note a problem."""
        self.count[kind] = self.count.get(kind, 0) + 1
        self.first.setdefault(kind, f"the first in {place}: {detail}")

    def refuse(self) -> None:
        """Raise a DataError that names all problems, if there are any."""
        if self.count:
            lines = [f"  {kind}: {count}, {self.first[kind]}" for kind, count in self.count.items()]
            raise DataError("\n".join([f"{self.source}: {self.total} problem{'s' * (self.total > 1)}", *lines]))


def questions_of(rows: Sequence[Row], columns: Columns, problems: Problems, answered: bool) -> list[Question]:
    """Return the questions of rows.

    Args:
        rows: Place and columns of each question. If any row has the column `is_impossible`, it says which questions
            have no answer, as in SQuAD 2.0.
        columns: The names of the other columns.
        problems: The problems found so far; those of the rows are added.
        answered: Whether every question must have an answer where no row has `is_impossible`, as in SQuAD 1.1.
            Otherwise an empty list of answers says that there is none, as on the Hub.

    Raises:
        DataError: There are problems, or no questions.
    """
    checker = _Checker(columns, problems, marked=any(MARK in row for _, row in rows), answered=answered)
    found = [question for place, row in rows if (question := checker.question(place, row))]
    problems.refuse()
    if not found:
        raise DataError(f"{problems.source} has no questions; name the file that has them")
    return found


def asked(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[Question]:
    """Return questions of rows whose answers are not known.

    Raises:
        DataError: A row has no question or no context.
    """
    problems = Problems("the questions")
    checker = _Checker(columns, problems, marked=False, answered=False)
    found = [
        Question(
            f"row {number}",
            checker.text(f"row {number}", columns.question, row),
            checker.text(f"row {number}", columns.context, row),
            (),
            f"row {number}",
        )
        for number, row in enumerate(rows, 1)
    ]
    problems.refuse()
    return found


@dataclass
class _Checker:
    """Makes questions of rows, and notes what is wrong with them."""

    columns: Columns
    problems: Problems
    marked: bool
    answered: bool
    places: dict[str, str] = field(default_factory=dict)  # id -> place

    def question(self, place: str, row: Mapping[str, Any]) -> Question | None:
        """Return a row's question; None if it has a problem."""
        before = self.problems.total
        name = self._id(place, row.get(self.columns.id))
        if name:
            place = f"{place} (id {name!r})"
        question = self.text(place, self.columns.question, row)
        context = self.text(place, self.columns.context, row)
        answers = self._answers(place, row.get(self.columns.answers))
        if answers is not None:
            self._check_mark(place, row.get(MARK, False), answers)
            for answer in answers:
                self._check_answer(place, answer, context)
        if self.problems.total > before:
            return None
        return Question(name, question, context, tuple(answers or ()), f"{self.problems.source}, {place}")

    def _id(self, place: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer) or not str(value).strip():
            self.problems.add(
                "questions without an id", place, f"{self.columns.id!r} is {_shown(value)}. Give each question its own"
            )
            return ""
        name = str(value)
        if name in self.places:
            detail = f"{self.places[name]} has the id {name!r} too. Give each question its own"
            self.problems.add("questions with the id of another", place, detail)
        self.places.setdefault(name, place)
        return name

    def text(self, place: str, column: str, row: Mapping[str, Any]) -> str:
        """Return a row's question or context."""
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            detail = f"it is {_shown(value)}. Write a text"
            self.problems.add(f"questions without a text as {column!r}", place, detail)
            return ""
        if broken := _SURROGATE.search(value):
            detail = f"its character {broken.start()} is {broken[0]!r}. Write the whole character, or remove it"
            self.problems.add(f"questions with half a character in {column!r}", place, detail)
        return value

    def _answers(self, place: str, value: Any) -> list[Answer] | None:
        """Return the answers of either form; None if they have neither."""
        if value is None and self.marked:
            return []
        answers = _pairs(_plain(value))
        if answers is None:
            advice = f"Write {_FORM}; an empty list if there is no answer"
            detail = f"it is {_shown(value)}. {advice}"
            self.problems.add(f"questions whose {self.columns.answers!r} cannot be read", place, detail)
        return answers

    def _check_mark(self, place: str, mark: Any, answers: Sequence[Answer]) -> None:
        if mark not in (True, False):
            detail = f"it is {_shown(mark)}. Write true or false"
            self.problems.add(f"questions whose {MARK} is neither true nor false", place, detail)
        elif self.marked and mark and answers:
            detail = f"its first answer is {answers[0][0]!r}. Remove the mark or the answers"
            self.problems.add(f"questions marked {MARK} that have answers", place, detail)
        elif self.marked and not mark and not answers:
            detail = f"write {MARK}: true, or add the answer"
            self.problems.add(f"questions without answers that are not marked {MARK}", place, detail)
        elif not self.marked and self.answered and not answers:
            detail = f"no question of the file has {MARK}, as in SQuAD 1.1. Mark it, or add the answer"
            self.problems.add("questions without answers", place, detail)

    def _check_answer(self, place: str, answer: Answer, context: str) -> None:
        text, start = answer
        found = context[max(start, 0) : max(start + len(text), 0)]
        if not text.strip():
            detail = "Write an empty list of answers if there is no answer"
            self.problems.add("answers without a text", place, f"it is {text!r}. {detail}")
        elif context and found != text:
            kind, detail = _misplaced(text, context)
            self.problems.add(kind, place, f"{text!r} is expected at {start}, where {_shown(found)} is; {detail}")


def _misplaced(text: str, context: str) -> tuple[str, str]:
    """Return the kind of an answer that is not at its position, and where it is instead."""
    places = [str(match.start()) for match in islice(re.finditer(re.escape(text), context), 4)]
    if places:
        shown = ", ".join(places[:3]) + (" and more" if len(places) > 3 else "")
        return (
            "answers that are elsewhere in the context",
            f"the context has it at {shown}. Correct answer_start, which counts characters from 0",
        )
    if match := re.search(r"\s+".join(map(re.escape, text.split())), context):
        return (
            "answers that differ from the context in blanks",
            f"the context has {match[0]!r} at {match.start()}. Copy the answer from the context",
        )
    return "answers that are not in the context", "the context has it nowhere. Copy the answer from the context"


def _pairs(value: Any) -> list[Answer] | None:
    """Return (text, position) of each answer; None if the value has neither form."""
    if isinstance(value, Mapping):
        texts, starts = _plain(value.get("text")), _plain(value.get("answer_start"))
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return None
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        pairs = [(each.get("text"), each.get("answer_start")) for each in value]
    else:
        return None
    whole = all(isinstance(text, str) and _is_whole(start) for text, start in pairs)
    return [(text, int(start)) for text, start in pairs] if whole else None


def _is_whole(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return float(value).is_integer()
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return an array of a Parquet file as a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _shown(value: Any, width: int = 60) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."
