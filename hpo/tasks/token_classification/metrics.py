"""The metrics of token classification: entity scores by seqeval's rules."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from hpo.tasks.metric import Metric, summed
from hpo.tasks.token_classification.predictions import TASK, TagPredictions
from hpo.tasks.token_classification.scores import ENTITY_SCORES

Array = np.ndarray[Any, Any]

STRICT = "_strict"


def _counts(predictions: TagPredictions, strict: bool) -> Array:
    """Return [n, 3]: entities of all types that are right, predicted and actual."""
    counts = predictions.strict_counts if strict else predictions.entity_counts
    return np.asarray(counts.sum(axis=1), dtype=float)


def _entities(name: str, *aliases: str, strict: bool = False) -> Metric:
    score = ENTITY_SCORES[name]
    return summed(partial(_counts, strict=strict), lambda sums: float(score(sums)), (TASK,), aliases=aliases)


METRICS: dict[str, Metric] = {
    "entity_f1": _entities("f1", "f1", "overall_f1", "seqeval"),
    "entity_precision": _entities("precision", "precision", "overall_precision"),
    "entity_recall": _entities("recall", "recall", "overall_recall"),
    **{f"entity_{name}{STRICT}": _entities(name, strict=True) for name in ENTITY_SCORES},
}


def is_of_entities(metric: str) -> bool:
    """Return whether a metric counts entities."""
    return metric.startswith("entity_")
