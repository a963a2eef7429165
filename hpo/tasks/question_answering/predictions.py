"""A model's answers to the questions of a split, with their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hpo.tasks.question_answering.answers import Answers
from hpo.tasks.question_answering.scoring import Scores, normalized

Array = np.ndarray[Any, Any]

ALWAYS = math.inf
"""The threshold of a model that always answers."""


@dataclass(frozen=True)
class AnswerPredictions:
    """A model's answers to n questions; see `hpo.tasks.task.Predictions`.

    Attributes:
        answers: The best answers that are not empty, and the scores of no answer.
        texts: The texts of the best answers.
        expected: A gold answer of each question, normalised; the empty text if it has none.
        scores: What the best answers score.
        losses: [n] the loss of each question, summed over its windows.
        units: [n] the windows of each question.
        finite: Whether all outputs of the model were finite.
        threshold: There is no answer where the null difference is larger; `ALWAYS` if there always is one.
    """

    answers: Answers
    texts: Sequence[str]
    expected: Sequence[str]
    scores: Scores
    losses: Array
    units: Array
    finite: bool
    threshold: float

    @property
    def task(self) -> str:
        """Name in `TASKS`."""
        return "question_answering"

    def __len__(self) -> int:
        """Return n."""
        return len(self.texts)

    def take(self, examples: Array) -> AnswerPredictions:
        """Return the predictions for some questions."""
        return replace(
            self,
            answers=self.answers.take(examples),
            texts=[self.texts[i] for i in examples],
            expected=[self.expected[i] for i in examples],
            scores=self.scores.take(examples),
            losses=self.losses[examples],
            units=self.units[examples],
        )

    @property
    def answered(self) -> Array:
        """[n] whether the model gives an answer."""
        return self.scores.answered(self.threshold)

    @cached_property
    def predicted(self) -> list[str]:
        """The model's answers; the empty text where there is none."""
        return [text if kept else "" for text, kept in zip(self.texts, self.answered, strict=True)]

    @cached_property
    def counts(self) -> Array:
        """[n, 5]: counts that add up, see `Scores.counts`."""
        return self.scores.counts(self.threshold)

    @property
    def exact_matches(self) -> Array:
        """[n, 2]: whether the answer is a right one, and 1."""
        counts = self.counts
        return np.stack([counts[:, 0] + counts[:, 3], counts[:, 2] + counts[:, 4]], axis=1)

    @property
    def varied(self) -> bool:
        """Whether different answers are expected."""
        return len(set(self.expected)) > 1

    @property
    def collapsed(self) -> bool:
        """Whether the model gives every question the same answer, or none, although different ones are expected."""
        return len(set(map(normalized, self.predicted))) == 1 and self.varied
