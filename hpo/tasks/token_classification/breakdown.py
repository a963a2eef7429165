"""A model's score by type of entity, or by tag where the tags write no entities."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo.tasks.classification.breakdown import LISTED, by_class
from hpo.tasks.classification.predictions import LabelPredictions
from hpo.tasks.token_classification.predictions import TagPredictions
from hpo.tasks.token_classification.scores import f1, precision, recall


def by_type(predictions: TagPredictions) -> dict[str, Any]:
    """Return the performance by type, with the keys of `hpo.tasks.classification.breakdown.by_class`.

    `counted` says what `support` and `predicted` count: entities or words. There is no confusion matrix of entities.
    """
    collapse = {"collapse": predictions.collapse} if predictions.collapsed else {}
    if not predictions.entities:
        logits = np.eye(len(predictions.labels))[predictions.predicted]
        found = by_class(LabelPredictions("single_label", predictions.gold, logits), predictions.labels)
        return {**(found or {}), "counted": "words", **collapse}
    counts = predictions.entity_counts.sum(axis=0)  # [types, 3]: right, predicted, actual
    types = predictions.types
    scores = {"precision": precision(counts), "recall": recall(counts), "f1": f1(counts)}
    defined = {"precision": counts[:, 1] > 0, "recall": counts[:, 2] > 0, "f1": counts[:, 1:].any(axis=1)}
    by_name = list(zip(types, counts, strict=True))
    listed = sorted(np.argsort(-counts[:, 2], kind="stable")[:LISTED].tolist())
    return {
        "count": len(types),
        "classes": [
            {"label": types[i]}
            | {name: float(values[i]) if defined[name][i] else None for name, values in scores.items()}
            | {"support": int(counts[i, 2]), "predicted": int(counts[i, 1])}
            for i in listed
        ],
        "never_predicted": [name for name, (_, given, actual) in by_name if actual and not given],
        "absent": [name for name, (*_, actual) in by_name if not actual],
        "collapsed": predictions.collapsed,
        "counted": "entities",
        **collapse,
    }
