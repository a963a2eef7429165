"""Scores of tokens: what is computed of a model's vocabulary-wide logits, which are never kept.

For each token of a row that has a target, a model's head computes `COLUMNS`, [rows, tokens, 3]; the others have zeros.
See `hpo/finetune/models/token_head.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hpo.tasks.task import Smoothing

COLUMNS = ("loss", "mean_loss", "right")
"""The cross-entropy of the target; the mean cross-entropy of all tokens of the vocabulary, for label smoothing; and 1
if the target is the most probable token, else 0."""


def losses(scores: torch.Tensor, smoothing: Smoothing) -> torch.Tensor:
    """Return the loss of each row [rows], summed over its tokens.

    Args:
        scores: [rows, tokens, 3], see `COLUMNS`.
        smoothing: Label smoothing, a float or [rows].
    """
    own, every = scores[..., 0].sum(dim=1), scores[..., 1].sum(dim=1)
    if isinstance(smoothing, float) and smoothing == 0:
        return own
    return (1 - smoothing) * own + smoothing * every


def sums(scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the sums over the tokens of each row, [rows] float64: `loss` and `right`."""
    wide = scores.double().sum(dim=1)
    return {"loss": wide[:, 0], "right": wide[:, 2]}
