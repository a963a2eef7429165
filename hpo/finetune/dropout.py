"""Dropout for a CPU, where drawing the mask otherwise costs an eighth of a training step.

A 64-bit random number makes four mask elements in place of one: p is met to 1 in 65,536. Masks come from the
generator of the trial in whose thread they are drawn, so that trials can train side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_thread = threading.local()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let the masks that this thread draws come from a generator."""
    _thread.generator = generator
    try:
        yield
    finally:
        _thread.generator = None


def mask(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask of 0 (with probability `p`) and 1 / (1 - p)."""
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(
        -(2**63), None, generator=getattr(_thread, "generator", None)
    )
    draws = words.view(torch.int16)[:count].view(shape)  # uniform over -32768 ... 32767
    return (draws >= round(p * 65536) - 32768).to(dtype).mul_(1.0 / (1.0 - p))


class CpuDropout(nn.Dropout):
    """`nn.Dropout` with the cheap mask."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero elements with probability `p` and scale the rest up, in training."""
        if not self.training or self.p == 0.0:
            return input
        return input * mask(input.shape, self.p, input.dtype)


def install(model: nn.Module) -> None:
    """Put the cheap dropout in the place of every `nn.Dropout` of a model."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, CpuDropout(child.p))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    p: float,
    scaling: float,
) -> torch.Tensor:
    """Attend with dropout on the probabilities, in float32 and with the scores written out.

    PyTorch does the same for rows with dropout on a CPU, with a mask that costs more.

    Args:
        query: [b, heads, length, d].
        key: As query.
        value: As query.
        attention_mask: [b, 1, length or 1, length], True where a token may be attended to.
        p: Dropout probability.
        scaling: What scores are multiplied by.

    Returns:
        [b, length, heads, d], as transformers' attention functions do.
    """
    scores = (query.float() * scaling) @ key.float().transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    return (weights * mask(weights.shape, p, weights.dtype) @ value.float()).transpose(1, 2).contiguous()
