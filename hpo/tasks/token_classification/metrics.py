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
FEWEST_ENTITIES = 5  # entities below which resampling tells nothing about others


def _counts(predictions: TagPredictions, strict: bool) -> Array:
    """Return [n, 3]: entities of all types that are right, predicted and actual."""
    counts = predictions.strict_counts if strict else predictions.entity_counts
    return np.asarray(counts.sum(axis=1), dtype=float)


def _entities(name: str, *aliases: str, strict: bool = False) -> Metric:
    score = ENTITY_SCORES[name]
    counts = partial(_counts, strict=strict)
    return summed(counts, lambda sums: float(score(sums)), (TASK,), aliases=aliases, too_few=_too_few)


def _too_few(sums: Array) -> str | None:
    """Return why there are too few actual entities to compare models, or None."""
    found = int(sums[2])
    return None if found >= FEWEST_ENTITIES else f"the test sentences have {found} entit{'y' if found == 1 else 'ies'}"


METRICS: dict[str, Metric] = {
    "entity_f1": _entities("f1", "f1", "overall_f1", "seqeval"),
    "entity_precision": _entities("precision", "precision", "overall_precision"),
    "entity_recall": _entities("recall", "recall", "overall_recall"),
    **{f"entity_{name}{STRICT}": _entities(name, strict=True) for name in ENTITY_SCORES},
}


def is_of_entities(metric: str) -> bool:
    """Return whether a metric counts entities."""
    return metric.startswith("entity_")
