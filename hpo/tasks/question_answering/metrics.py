"""The metrics of question answering: SQuAD's F1, from counts that add up over questions.

Exact match is in `hpo/tasks/metrics.py`, as generated text has it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo.tasks.metric import Metric, summed
from hpo.tasks.question_answering.scoring import RATES

TASK = "question_answering"


def _answer_f1(sums: np.ndarray[Any, Any]) -> float:
    return float(RATES["answer_f1"](sums))


METRICS: dict[str, Metric] = {
    "answer_f1": summed(lambda predictions: predictions.counts, _answer_f1, (TASK,), aliases=("f1", "squad_f1")),
}
