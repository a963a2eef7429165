"""The metrics of question answering: SQuAD's exact match and F1, from counts that add up over questions."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo.tasks.metric import Metric, summed
from hpo.tasks.question_answering.scoring import RATES

TASK = "question_answering"


def _metric(name: str, aliases: tuple[str, ...]) -> Metric:
    def value(sums: np.ndarray[Any, Any]) -> float:
        return float(RATES[name](sums))

    return summed(lambda predictions: predictions.counts, value, (TASK,), aliases=aliases)


METRICS: dict[str, Metric] = {
    "answer_f1": _metric("answer_f1", ("f1", "squad_f1")),
    "exact_match": _metric("exact_match", ("em", "squad_em")),
}
