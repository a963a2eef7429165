"""Dropout whose masks are the trial's own: drawn from its generator, at its rate, whoever trains beside it.

On a CPU it is cheap too, where drawing a mask otherwise costs an eighth of a training step: a 64-bit random number
makes four mask elements in place of one, and p is met to 1 in 65,536.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

Rates = float | tuple[float, ...]
"""A dropout probability, or one for each slot of a folded model."""

_thread = threading.local()


@contextmanager
def drawing_from(*generators: torch.Generator) -> Iterator[None]:
    """Let the masks that this thread draws come from these generators, one for each slot."""
    _thread.generators = generators
    try:
        yield
    finally:
        _thread.generators = ()


def mask(shape: torch.Size, rates: Rates, like: torch.Tensor) -> torch.Tensor:
    """Return a mask of 0 (with the slot's probability p) and 1 / (1 - p).

    Args:
        shape: Of the mask; [slots * rows, ...] where there are several rates.
        rates: One, or one for each slot.
        like: Has the mask's dtype and device.
    """
    generators: Sequence[torch.Generator | None] = getattr(_thread, "generators", ()) or (None,)
    if not isinstance(rates, tuple):
        return _mask(shape, rates, like, generators[0])
    own = torch.Size((shape[0] // len(rates), *shape[1:]))
    return torch.cat([_mask(own, p, like, g) for p, g in zip(rates, generators, strict=True)])


def _mask(shape: torch.Size, p: float, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    if p == 0.0:
        return torch.ones(shape, dtype=like.dtype, device=like.device)
    count = shape.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    draws = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count].view(shape)
    # Draws are uniform over -32768 ... 32767.
    return (draws >= round(p * 65536) - 32768).to(like.dtype).mul_(1.0 / (1.0 - p))


class OwnDropout(nn.Dropout):
    """`nn.Dropout` with the trial's own masks; `p` is a number, or one for each slot."""

    p: Rates  # type: ignore[assignment]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero elements with probability `p` and scale the rest up, in training."""
        if not self.training or not any_rate(self.p):
            return input
        return input * mask(input.shape, self.p, input)


def any_rate(rates: Rates) -> bool:
    """Return whether anything is dropped."""
    return any(rates) if isinstance(rates, tuple) else rates != 0.0


def install(model: nn.Module) -> None:
    """Put `OwnDropout` in the place of every `nn.Dropout` of a model."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, OwnDropout(child.p))


def set_rates(folded: nn.Module, slot: int, slots: int, trial: nn.Module) -> None:
    """Give a slot of a folded model the dropout that a model of the trial's own has, attention's too."""
    for name, module in trial.named_modules():
        for rate in ("p", "attention_dropout"):
            own, of = getattr(module, rate, None), folded.get_submodule(name)
            if isinstance(own, float):
                rates = getattr(of, rate)
                rates = list(rates) if isinstance(rates, tuple) else [0.0] * slots
                rates[slot] = own
                setattr(of, rate, tuple(rates))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    rates: Rates,
    scaling: float,
) -> torch.Tensor:
    """Attend with dropout on the probabilities, in float32 at least and with the scores written out.

    PyTorch does the same for rows with dropout on a CPU, with a mask that costs more.

    Args:
        query: [b, heads, length, d].
        key: As query.
        value: As query.
        attention_mask: [b, 1, length or 1, length], True where a token may be attended to.
        rates: Dropout probability, or one for each slot.
        scaling: What scores are multiplied by.

    Returns:
        [b, length, heads, d], as transformers' attention functions do.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * scaling) @ key.to(wide).transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if any_rate(rates):
        weights = weights * mask(weights.shape, rates, weights)
    return (weights @ value.to(wide)).transpose(1, 2).contiguous()
