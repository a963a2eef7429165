"""The loss of an answer's first and last token, in training and of predictions; imported where torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hpo.tasks.task import Smoothing

Array = np.ndarray[Any, Any]
CHUNK = 4096  # windows whose losses are computed at once, to bound the memory


def span_losses(
    start_logits: torch.Tensor, end_logits: torch.Tensor, targets: Mapping[str, torch.Tensor], smoothing: Smoothing
) -> torch.Tensor:
    """Return the mean of the cross-entropies of start and end [rows], as transformers' models compute it.

    Padding is left out, so that the loss of a row does not depend on the rows beside it. transformers counts the logits
    of padding too; without padding both are equal.

    Args:
        start_logits: [rows, tokens].
        end_logits: [rows, tokens].
        targets: `starts`, `ends` and `lengths`, each [rows].
        smoothing: Label smoothing over the tokens of a row, a float or [rows].
    """
    inside = torch.arange(start_logits.shape[1], device=start_logits.device) < targets["lengths"][:, None]
    start = _cross_entropy(start_logits, targets["starts"], inside, smoothing)
    return (start + _cross_entropy(end_logits, targets["ends"], inside, smoothing)) / 2


def _cross_entropy(
    logits: torch.Tensor, places: torch.Tensor, inside: torch.Tensor, smoothing: Smoothing
) -> torch.Tensor:
    log_probabilities = F.log_softmax(logits.masked_fill(~inside, -torch.inf), dim=-1)
    own = -log_probabilities.gather(1, places[:, None])[:, 0]
    if isinstance(smoothing, float) and smoothing == 0:
        return own
    every = -log_probabilities.masked_fill(~inside, 0).sum(dim=1) / inside.sum(dim=1)
    return (1 - smoothing) * own + smoothing * every


def losses_of_questions(start_logits: Array, end_logits: Array, targets: Mapping[str, Array], example: Array) -> Array:
    """Return the loss of each question, summed over its windows, in float64.

    Args:
        start_logits: [windows, tokens].
        end_logits: [windows, tokens].
        targets: As of `span_losses`.
        example: [windows] question of each window.
    """
    losses = np.empty(len(example))
    for first in range(0, len(example), CHUNK):
        chunk = slice(first, first + CHUNK)
        start, end = (torch.from_numpy(logits[chunk]).double() for logits in (start_logits, end_logits))
        of_chunk = {name: torch.from_numpy(values[chunk]) for name, values in targets.items()}
        losses[chunk] = span_losses(start, end, of_chunk, 0.0).numpy()
    return np.bincount(example, weights=losses)
