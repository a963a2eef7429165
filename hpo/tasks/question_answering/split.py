"""The questions of one split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpo.tasks.dataset import Split
from hpo.tasks.question_answering.questions import Question
from hpo.tasks.question_answering.scoring import Gold

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuestionSplit(Split):
    """Questions with their contexts and gold answers.

    Attributes:
        questions: n questions.
        unanswerable: Whether a model may say that there is no answer: whether any question of train has none.
    """

    questions: list[Question]
    unanswerable: bool

    @property
    def contents(self) -> list[tuple[str, str]]:
        """The question and the context of each example."""
        return [(each.question, each.context) for each in self.questions]

    @property
    def contexts(self) -> list[str]:
        """The context of each question."""
        return [each.context for each in self.questions]

    @cached_property
    def groups(self) -> Array:
        """[n] int64: questions with the same number are about one context, or of one group."""
        from hpo.data.splits import together

        return together(self.contexts, self.members)

    @cached_property
    def gold(self) -> Gold:
        """The gold answers, normalised."""
        return Gold.of([[text for text, _ in each.answers] for each in self.questions])

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield questions, contexts and answers."""
        for each in self.questions:
            yield json.dumps([name, each.question, each.context, each.answers]).encode()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return id, question and gold answers; the context, which many questions share, is left out."""
        return [
            {"id": each.id, "question": each.question, "answers": [text for text, _ in each.answers]}
            for each in self.questions
        ]
