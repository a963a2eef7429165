"""Metrics of the tokens of texts, whose counts add up over texts, and of generated text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpo.tasks.language import text_metrics
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.metric import Metric, summed

Array = np.ndarray[Any, Any]

TASKS = ("causal_lm", "seq2seq", "masked_lm")

OF_TOKENS = frozenset({"loss", "perplexity", "token_accuracy"})
"""Means over tokens: of models whose tokenizers divide a text into other tokens, they cannot be compared."""


def _losses(predictions: TextPredictions) -> Array:
    return np.stack([predictions.losses, predictions.units], axis=1)


def _perplexity(sums: Array) -> float:
    """Return e to the mean loss of a token; infinite where that is no float."""
    try:
        return math.exp(sums[0] / max(1, sums[1]))
    except OverflowError:
        return math.inf


METRICS: dict[str, Metric] = {
    "perplexity": summed(_losses, _perplexity, TASKS, "minimize", aliases=("ppl",)),
    # The bytes of a text do not depend on the tokenizer, so models with different tokenizers can be compared.
    "bits_per_byte": summed(
        lambda predictions: np.stack([predictions.losses, predictions.bytes], axis=1),
        lambda sums: float(sums[0] / math.log(2) / max(1, sums[1])),
        ("causal_lm", "seq2seq"),
        "minimize",
        aliases=("bpb",),
    ),
    **text_metrics.METRICS,
}
