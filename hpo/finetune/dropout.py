"""Dropout whose masks are the trial's own: drawn from its generator, at its rate, whoever trains beside it.

On a CPU it is cheap too, where drawing a mask otherwise costs an eighth of a training step: a 64-bit random number
makes four mask elements in place of one, and p is met to 1 in 65,536.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Rates = float | tuple[float, ...]
"""A dropout probability, or one for each slot of a folded model."""

# Where models keep their probabilities: in modules, and in attributes that they hand to functions.
RATES = ("p", "dropout", "attention_dropout", "activation_dropout")

_thread = threading.local()


@contextmanager
def drawing_from(*generators: torch.Generator) -> Iterator[None]:
    """Let the masks that this thread draws come from these generators, one for each slot."""
    _thread.generators = generators
    try:
        yield
    finally:
        _thread.generators = ()


class OwnFunction(TorchFunctionMode):
    """Within it, `torch.nn.functional.dropout` draws the trial's own masks, for models that call it themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace dropout; leave everything else to torch."""
        if func is nn.functional.dropout:
            return _dropped(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropped(input: torch.Tensor, p: Rates = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return input * mask(input.shape, p, input) if training and any_rate(p) else input


def mask(shape: torch.Size, rates: Rates, like: torch.Tensor, rows: int = 0) -> torch.Tensor:
    """Return a mask of 0 (with the slot's probability p) and 1 / (1 - p).

    Args:
        shape: Of the mask; [..., slots * rows, ...] where there are several rates.
        rates: One, or one for each slot.
        like: Has the mask's dtype and device.
        rows: Which dimension the slots' rows are.
    """
    generators: Sequence[torch.Generator | None] = getattr(_thread, "generators", ()) or (None,)
    if not isinstance(rates, tuple):
        return _mask(shape, rates, like, generators[0])
    own = torch.Size((*shape[:rows], shape[rows] // len(rates), *shape[rows + 1 :]))
    return torch.cat([_mask(own, p, like, g) for p, g in zip(rates, generators, strict=True)], dim=rows)


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
    rows_second = False  # in [length, rows, hidden], as XLNet computes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero elements with probability `p` and scale the rest up, in training."""
        if not self.training or not any_rate(self.p):
            return input
        return input * mask(input.shape, self.p, input, int(self.rows_second and input.ndim == 3))


def any_rate(rates: Rates) -> bool:
    """Return whether anything is dropped."""
    return any(rates) if isinstance(rates, tuple) else rates != 0.0


def install(model: nn.Module) -> None:
    """Put `OwnDropout` in the place of every `nn.Dropout` of a model."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                own = OwnDropout(float(child.p))
                own.rows_second = type(parent).__module__.endswith(".modeling_xlnet")
                setattr(parent, name, own)


def rates(model: nn.Module) -> dict[tuple[str, str], float]:
    """Return the probabilities that a model has, by module and attribute."""
    found = {}
    for name, module in model.named_modules():
        for rate in RATES if isinstance(module, nn.Dropout) else RATES[1:]:
            value = getattr(module, rate, None)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name, rate] = float(value)
    return found


@contextmanager
def everywhere(model: nn.Module, p: float) -> Iterator[None]:
    """Let a model drop with one probability, wherever it can."""
    before = rates(model)
    try:
        for name, rate in before:
            setattr(model.get_submodule(name), rate, p)
        yield
    finally:
        for (name, rate), value in before.items():
            setattr(model.get_submodule(name), rate, value)


def set_rates(folded: nn.Module, slot: int, slots: int, trial: nn.Module) -> None:
    """Give a slot of a folded model the dropout that a model of the trial's own has."""
    for (name, rate), value in rates(trial).items():
        module = folded.get_submodule(name)
        every = getattr(module, rate)
        every = list(every) if isinstance(every, tuple) else [0.0] * slots
        every[slot] = value
        setattr(module, rate, tuple(every))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    rates: Rates,
    scaling: float,
    causal: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with dropout on the probabilities, in float32 at least and with the scores written out.

    PyTorch does the same for rows with dropout on a CPU, with a mask that costs more.

    Args:
        query: [b, heads, length, d].
        key: [b, heads or fewer, keys, d].
        value: As key.
        attention_mask: [b, 1, length or 1, keys], True where a token may be attended to, or added to the scores.
        rates: Dropout probability, or one for each slot.
        scaling: What scores are multiplied by.
        causal: Whether a token attends to none after it, where there is no mask.
        bias: [b or 1, heads, length, keys], added to the scores.

    Returns:
        [b, length, heads, d], as transformers' attention functions do.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.to(wide).repeat_interleave(groups, dim=1) if groups > 1 else x.to(wide) for x in (key, value))
    scores = (query.to(wide) * scaling) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1)
    if any_rate(rates):
        weights = weights * mask(weights.shape, rates, weights)
    return (weights @ value).transpose(1, 2).contiguous()
