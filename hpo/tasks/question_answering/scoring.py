"""Exact match and F1 of answers, by the rules of SQuAD's official scripts for versions 1.1 and 2.0.

Sources: Rajpurkar et al., 2016 (https://arxiv.org/abs/1606.05250) and 2018 (https://arxiv.org/abs/1806.03822), and
their scripts `evaluate-v1.1.py` and `evaluate-v2.0.py`. Scores are from 0 to 1; the scripts print them times 100.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and English articles, its words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(predicted: str, gold: str) -> float:
    """Return the F1 of the words of two normalised texts, counted with repetition; 0 if they have none in common."""
    words, wanted = predicted.split(), gold.split()
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


@dataclass(frozen=True)
class Gold:
    """The gold answers of n questions.

    Attributes:
        texts: The normalised answers of each question, each once; for a question without an answer the empty text.
        has_answer: [n] whether the question has an answer.
    """

    texts: tuple[tuple[str, ...], ...]
    has_answer: Array

    @classmethod
    def of(cls, answers: Sequence[Sequence[str]]) -> Gold:
        """Return the gold answers of questions.

        Version 2.0's rules apply where any question has no answer, else 1.1's. They differ in answers without a word,
        such as `the`: 2.0 ignores them, and two texts without a word have an F1 of 1, where 1.1 gives 0.

        Args:
            answers: The texts of each question's answers; none if it has no answer.
        """
        has_answer = np.array([len(texts) > 0 for texts in answers], dtype=bool)
        texts = tuple(tuple(dict.fromkeys(map(normalized, texts))) for texts in answers)
        if not has_answer.all():
            texts = tuple(tuple(text for text in each if text) or ("",) for each in texts)
        return cls(texts, has_answer)

    @property
    def unanswerable(self) -> bool:
        """Whether any question has no answer, so that version 2.0's rules apply."""
        return not bool(self.has_answer.all())


@dataclass(frozen=True)
class Scores:
    """Scores of each of n questions for an answer that is not empty, and whether the model prefers no answer.

    Attributes:
        exact: [n] 1 if the answer is equal to a gold answer after `normalized`, else 0.
        f1: [n] the largest F1 with a gold answer.
        has_answer: [n] whether the question has an answer.
        null_differences: [n] score of no answer minus score of the answer; None where all questions have an answer.
    """

    exact: Array
    f1: Array
    has_answer: Array
    null_differences: Array | None = None

    def counts(self, threshold: float = 0.0) -> Array:
        """Return counts of each question that add up: a sum over any questions has all that `RATES` need.

        Args:
            threshold: The answer is dropped where its null difference is larger.

        Returns:
            [n, 5] float64: exact match, F1 and 1 for a question that has an answer; 1 if right, and 1, for one that
            has none.
        """
        kept, has = self.answered(threshold), self.has_answer
        exact, overlap = (np.where(kept, score, ~has) for score in (self.exact, self.f1))
        return np.stack([exact * has, overlap * has, has, exact * ~has, ~has], axis=1).astype(float)

    def take(self, questions: Array) -> Scores:
        """Return the scores of some questions."""
        null = None if self.null_differences is None else self.null_differences[questions]
        return Scores(self.exact[questions], self.f1[questions], self.has_answer[questions], null)

    def answered(self, threshold: float) -> Array:
        """[n] whether the answer is not dropped at a threshold."""
        if self.null_differences is None:
            return np.ones(len(self.exact), dtype=bool)
        return np.asarray(self.null_differences <= threshold)


def score(answers: Sequence[str], gold: Gold, null_differences: Array | None = None) -> Scores:
    """Score the best answer of each question.

    Args:
        answers: n texts, one for each question, also for those for which no answer is preferred.
        gold: The gold answers.
        null_differences: [n] score of no answer minus score of the answer; None if no answer is impossible.
    """
    texts = [normalized(answer) for answer in answers]
    exact = [text in golds for text, golds in zip(texts, gold.texts, strict=True)]
    overlap = [max(f1(text, each) for each in golds) for text, golds in zip(texts, gold.texts, strict=True)]
    if gold.unanswerable:
        overlap = [float(same) if not text else value for text, same, value in zip(texts, exact, overlap, strict=True)]
    return Scores(np.array(exact, dtype=float), np.array(overlap, dtype=float), gold.has_answer, null_differences)


RATES: dict[str, Callable[[Array], Array]] = {
    "exact_match": lambda sums: _ratio(sums[..., 0] + sums[..., 3], sums[..., 2] + sums[..., 4]),
    "answer_f1": lambda sums: _ratio(sums[..., 1] + sums[..., 3], sums[..., 2] + sums[..., 4]),
    "has_answer_exact_match": lambda sums: _ratio(sums[..., 0], sums[..., 2]),
    "has_answer_f1": lambda sums: _ratio(sums[..., 1], sums[..., 2]),
    "no_answer_accuracy": lambda sums: _ratio(sums[..., 3], sums[..., 4]),
}
"""Name -> function of summed counts [..., 5] -> scores [...], NaN where there is no question of the kind."""


def _ratio(right: Array, of: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.true_divide(right, of))


def best_threshold(scores: Scores, metric: str = "answer_f1") -> float:
    """Return the smallest threshold of the null difference with the best score on these questions.

    The official script for version 2.0 sweeps over the sorted differences as well, and takes one of them. Here the
    threshold is halfway to the next one, so that rounding does not decide about a question; beyond all differences it
    is 1 from the nearest. Questions with equal differences are taken together, for no threshold divides them. A
    threshold that was found on a split is fitted to it: score it on another.

    Args:
        scores: Scores with null differences.
        metric: `exact_match`; any other name is F1's.

    Raises:
        ValueError: There are no null differences.
    """
    if scores.null_differences is None:
        raise ValueError("a threshold needs null differences")
    answered = scores.exact if metric == "exact_match" else scores.f1
    order = np.argsort(scores.null_differences, kind="stable")
    differences = scores.null_differences[order].astype(float)
    gains = np.cumsum((answered - ~scores.has_answer)[order])
    last = np.append(differences[1:] != differences[:-1], True)  # of equal differences
    distinct = differences[last]
    between = (distinct[1:] + distinct[:-1]) / 2
    thresholds = np.concatenate([[distinct[0] - 1], between, [distinct[-1] + 1]])
    return float(thresholds[np.concatenate([[0.0], gains[last]]).argmax()])
