"""The scores of questions with and without an answer apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpo.tasks.question_answering.predictions import ALWAYS, AnswerPredictions
from hpo.tasks.question_answering.scoring import RATES

HEADS = ["questions", "count", "answered", "exact match", "F1"]


def by_kind(predictions: AnswerPredictions) -> dict[str, Any]:
    """Return the scores by kind of question, as JSON values.

    Returns:
        `collapsed`, as of classes; and `tables`: one table with its `title`, `heads` and `rows`.
    """
    has = predictions.scores.has_answer
    kinds = {"all": np.ones(len(has), dtype=bool)}
    if not has.all():
        kinds |= {"with an answer": has, "without an answer": ~has}
    rows = [[kind, *_scored(predictions, chosen)] for kind, chosen in kinds.items() if chosen.any()]
    title = "By kind of question, on the test split"
    if predictions.threshold != ALWAYS:
        title += (
            f"; no answer is given where it scores better than the best answer by more than {predictions.threshold:.4g}"
        )
    return {"collapsed": predictions.collapsed, "tables": [{"title": title, "heads": HEADS, "rows": rows}]}


def _scored(predictions: AnswerPredictions, chosen: np.ndarray[Any, Any]) -> list[int | float]:
    sums = predictions.counts[chosen].sum(axis=0)
    scores = [float(RATES[name](sums)) for name in ("exact_match", "answer_f1")]
    assert not any(map(math.isnan, scores))
    return [int(chosen.sum()), int(predictions.answered[chosen].sum()), *scores]
