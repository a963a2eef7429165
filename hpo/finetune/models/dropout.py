"""Dropout whose masks depend on the trial alone, not on the trials that train beside it.

A mask element is a hash of a key (trial seed, step and micro-batch), of the number of the mask in the forward pass,
and of the element's position. There is no generator with a state, so a program that is replayed with other keys draws
other masks. A 64-bit hash makes four elements, and the precision of p is 1 in 65,536; on a CPU this is twice as fast
as `bernoulli_`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# Attributes with which models say their dropout probabilities: of `nn.Dropout`, and of modules that call a function.
RATES = ("p", "dropout", "attention_dropout", "activation_dropout")


class SlotRates:
    """The dropout probabilities of the slots of a folded model, at one place in the model.

    Their memory on the device does not move when a slot gets another trial.

    Attributes:
        thresholds: [K] int16; an element whose draw is lower is dropped.
        scales: [K] factors of elements that are not dropped.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self._rates = [0.0] * slots
        self.thresholds = torch.full((slots,), _threshold(0.0), dtype=torch.int16, device=device)
        self.scales = torch.ones(slots, device=device)

    def set(self, slot: int, p: float) -> None:
        """Give a slot its probability."""
        self._rates[slot] = p
        self.thresholds[slot] = _threshold(p)
        self.scales[slot] = 1.0 / (1.0 - p)

    def __bool__(self) -> bool:
        return any(self._rates)


Rates = float | SlotRates
"""A dropout probability, or one for each slot of a folded model."""


def _threshold(p: float) -> int:
    return min(round(p * 65536) - 32768, 32767)  # draws are uniform over -32768 ... 32767


# ---------------------------------------------------------------- masks


class _Drawing(threading.local):
    keys: torch.Tensor | None = None
    masks = 0  # drawn so far in this forward pass
    functions = 0  # how many `OwnFunction` are in force


_drawing = _Drawing()


@contextmanager
def drawing_from(keys: torch.Tensor) -> Iterator[None]:
    """Draw the masks of one forward pass in this thread from these keys: [K] int64, one for each slot."""
    _drawing.keys, _drawing.masks = keys, 0
    try:
        yield
    finally:
        _drawing.keys = None


class Drawing(NamedTuple):
    """How far the drawing of masks in a forward pass is.

    Attributes:
        keys: [K], or None outside of `drawing_from`.
        masks: Masks drawn so far.
        functions: Whether the function `dropout` draws from the keys too.
    """

    keys: torch.Tensor | None
    masks: int
    functions: bool


def drawing() -> Drawing:
    """Return how far this thread is."""
    return Drawing(_drawing.keys, _drawing.masks, _drawing.functions > 0)


@contextmanager
def drawing_as(then: Drawing) -> Iterator[None]:
    """Draw once more the masks that were drawn after a moment, in any thread."""
    now = drawing()
    with OwnFunction() if then.functions else nullcontext():
        _drawing.keys, _drawing.masks = then.keys, then.masks
        try:
            yield
        finally:
            _drawing.keys, _drawing.masks = now.keys, now.masks


def key(seed: int, micro_batch: int = 0) -> int:
    """Return the key of a micro-batch of a step; `seed` is the step's 32-bit seed."""
    return seed + (micro_batch << 32)


def seed(keys: torch.Tensor) -> torch.Tensor:
    """Return the steps' seeds of which keys were made: all micro-batches of a step have one."""
    return keys & 0xFFFFFFFF


def drop(input: torch.Tensor, rates: Rates, rows: int = 0) -> torch.Tensor:
    """Zero elements with probability p and scale the rest up.

    Args:
        input: [..., slots * rows, ...] if there is a rate for each slot.
        rates: One, or one for each slot.
        rows: The dimension of the rows.
    """
    number = _drawing.masks
    _drawing.masks += 1  # even if nothing is dropped: other slots may drop here, and numbers must agree
    return input * _mask(input.shape, rates, input, rows, number) if rates else input


def _mask(shape: torch.Size, rates: Rates, like: torch.Tensor, rows: int, number: int) -> torch.Tensor:
    """Return a mask of 0 (with the slot's probability p), and of 1 / (1 - p) elsewhere."""
    if not isinstance(rates, SlotRates):
        draws = _draws(1, shape.numel(), number, like.device).view(shape)
        return _at_least(draws, _threshold(rates), like.dtype).mul_(1.0 / (1.0 - rates))
    slots = len(rates.scales)
    of_one_slot = (*shape[:rows], shape[rows] // slots, *shape[rows + 1 :])
    draws = _draws(slots, shape.numel() // slots, number, like.device)
    mask = _at_least(draws, rates.thresholds[:, None], like.dtype).mul_(rates.scales[:, None].to(like.dtype))
    return mask.view(slots, *of_one_slot).movedim(0, rows).reshape(shape)


def _at_least(draws: torch.Tensor, threshold: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return 1 where a draw is not below a threshold, else 0; without a bool tensor, which is slow on a CPU."""
    return torch.ge(draws, threshold, out=torch.empty(draws.shape, dtype=dtype, device=draws.device))


GOLDEN, _FIRST, _SECOND, _MASK = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, 0x632BE59BD9B4E019


def _draws(slots: int, count: int, number: int, device: torch.device) -> torch.Tensor:
    """Return uniform int16 draws [slots, count]: SplitMix64 (Steele et al., 2014) of key and position."""
    keys = _drawing.keys
    if keys is None:  # a pass outside of `drawing_from`, whose masks do not matter
        keys = torch.zeros(slots, dtype=torch.int64, device=device)
    offset = (number * _MASK + 2**63) % 2**64 - 2**63
    words = torch.add((keys + offset)[:, None], torch.arange((count + 3) // 4, device=device), alpha=GOLDEN)
    return mixed(words).view(torch.int16)[:, :count]


def mixed(words: torch.Tensor) -> torch.Tensor:
    """Return int64 words, changed in place by the mixing function of SplitMix64: equal words stay equal."""
    shifted = torch.empty_like(words)
    for bits, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        torch.bitwise_right_shift(words, bits, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << 64 - bits) - 1))  # without the copies of the sign bit
        if factor is not None:
            words.mul_(factor)
    return words


# ---------------------------------------------------------------- in a model


class OwnFunction(TorchFunctionMode):
    """Within it, `torch.nn.functional.dropout` draws masks from keys, for models whose code calls that function."""

    def __enter__(self) -> Any:
        """Begin to replace it, in this thread."""
        _drawing.functions += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """End it."""
        _drawing.functions -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace dropout; call every other function as it is."""
        if func is nn.functional.dropout:
            return _dropped(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropped(input: torch.Tensor, p: Rates = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return drop(input, p) if training else input


class OwnDropout(nn.Dropout):
    """`nn.Dropout` with masks from keys.

    Attributes:
        p: One probability, or one for each slot.
        rows_second: Whether inputs are [length, rows, hidden], as in XLNet.
    """

    p: Rates  # type: ignore[assignment]
    rows_second = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero elements with probability `p` and scale the rest up, in training."""
        return drop(input, self.p, int(self.rows_second and input.ndim == 3)) if self.training else input


def install(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of a model by `OwnDropout`."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                own = OwnDropout(float(child.p))
                own.rows_second = type(parent).__module__.endswith(".modeling_xlnet")
                setattr(parent, name, own)


def rates(model: nn.Module) -> dict[tuple[str, str], float]:
    """Return a model's dropout probabilities, by module and attribute."""
    found = {}
    for name, module in model.named_modules():
        for rate in RATES if isinstance(module, nn.Dropout) else RATES[1:]:
            value = getattr(module, rate, None)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name, rate] = float(value)
    return found


@contextmanager
def everywhere(model: nn.Module, p: float) -> Iterator[None]:
    """Set all dropout probabilities of a model to one value."""
    before = rates(model)
    try:
        for name, rate in before:
            setattr(model.get_submodule(name), rate, p)
        yield
    finally:
        for (name, rate), value in before.items():
            setattr(model.get_submodule(name), rate, value)


def set_rates(folded: nn.Module, slot: int, slots: int, trial: nn.Module) -> None:
    """Give a slot of a folded model the dropout probabilities of a trial's model."""
    device = next(folded.parameters()).device
    for (name, rate), value in rates(trial).items():
        module = folded.get_submodule(name)
        if not isinstance(getattr(module, rate), SlotRates):
            setattr(module, rate, SlotRates(slots, device))
        getattr(module, rate).set(slot, value)


def places(folded: nn.Module) -> tuple[bool, ...]:
    """Return for every place in a folded model whether any slot drops there."""
    every = (getattr(module, rate, None) for module in folded.modules() for rate in RATES)
    return tuple(bool(rates) for rates in every if isinstance(rates, SlotRates))


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
    """Attend with dropout on the probabilities, in float32 or more, and without a fused kernel.

    With dropout on a CPU PyTorch computes in the same way, with a slower mask that has one rate for all rows.

    Args:
        query: [b, heads, length, d].
        key: [b, heads or fewer, keys, d].
        value: As key.
        attention_mask: [b, 1, length or 1, keys]; bool, True where a token may be attended to, or added to the scores.
        rates: Dropout probability, or one for each slot.
        scaling: Factor of the scores.
        causal: Without a mask, whether a token attends to no later tokens.
        bias: [b or 1, heads, length, keys], added to the scores.

    Returns:
        [b, length, heads, d], as transformers' attention functions do.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // key.shape[1]
    # Contiguous, as products need them, in the same copy as the cast: else each is copied twice.
    query, key, value = (x.to(wide, memory_format=torch.contiguous_format) for x in (query, key, value))
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query * scaling) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:  # adding is cheaper than filling
        attention_mask = torch.where(attention_mask, 0.0, torch.finfo(torch.float32).min)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = drop(scores.softmax(dim=-1), rates)
    return (weights @ value).transpose(1, 2).contiguous()
