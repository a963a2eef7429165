"""Real tokens only: rows of different lengths lie end to end in one line of tokens for each slot.

Padded rows go into the model and come out of its layers; in between, all layers see [K, tokens, ...], and only
attention, to which a row is a row, gathers rows and hands tokens back. So a model is left as it is but for
hooks at these doors; whether it then says the same is checked, not assumed (`hpo/finetune/folded/equivalence.py`).
The line is as long for every batch, so that shapes, and with them a trial's numbers, are the study's.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class Packing:
    """Where the tokens of some rows are.

    Args:
        lengths: [K, b] real tokens of each row.
        tokens: Places of a slot's line, at least as many as its rows have tokens.
        length: Places of a row.
    """

    def __init__(self, lengths: torch.Tensor, tokens: int, length: int) -> None:
        (slots, rows), device = lengths.shape, lengths.device
        ends = lengths.cumsum(1)
        starts = ends - lengths
        places = torch.arange(tokens, device=device).expand(slots, -1).contiguous()
        row = torch.searchsorted(ends, places, right=True)
        self.filled = row < rows  # [K, tokens]; what fills the line up belongs to no row
        row = row.clamp(max=rows - 1)
        self.positions = torch.where(self.filled, places - starts.gather(1, row), 0)  # [K, tokens] in the row
        slot = torch.arange(slots, device=device)[:, None]
        self.row = slot * rows + row  # [K, tokens] among those of all slots
        self.in_rows = torch.where(self.filled, self.row * length + self.positions, 0)
        columns = torch.arange(length, device=device)
        self.real = (columns < lengths[..., None]).flatten(0, 1)  # [K * b, length]
        self.in_line = (slot * tokens + starts).view(-1, 1) + columns
        self.in_line = torch.where(self.real, self.in_line, 0)
        self.shape = (slots, tokens)

    def to_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Turn [K, tokens, ...] into [K * b, length, ...], zero where a row has ended."""
        return _gathered(x, self.in_line, self.real, self.in_rows, self.filled)

    def to_line(self, x: torch.Tensor) -> torch.Tensor:
        """Turn [K * b, length, ...] into [K, tokens, ...], zero where the line is filled up."""
        return _gathered(x, self.in_rows, self.filled, self.in_line, self.real)

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """Return the first token of each row of [K, tokens, ...]: [K * b, 1, ...]."""
        return _gathered(x, self.in_line[:, :1], self.real[:, :1], self.row, self.filled & (self.positions == 0))

    def is_line(self, x: torch.Tensor) -> bool:
        """Return whether something is still [K, tokens, ...]."""
        return x.shape[:2] == self.shape


class _Gather(torch.autograd.Function):
    """Places of one arrangement in those of another; back the same way, so that no two gradients meet in one place."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*places[2:])
        ctx.shape = x.shape
        return _taken(x, *places[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        index, valid = ctx.saved_tensors
        return _taken(gradients[0], index, valid).view(ctx.shape), None, None, None, None


def _gathered(x: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
    gathered: torch.Tensor = _Gather.apply(x, *places)  # type: ignore[no-untyped-call]
    return gathered


def _taken(x: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    found = x.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, *x.shape[2:])
    return found.masked_fill_(~valid.view(*valid.shape, *[1] * (x.ndim - 2)), 0)


# ---------------------------------------------------------------- the doors


class _Packed(threading.local):
    now: Packing | None = None


_packed = _Packed()


def current() -> Packing | None:
    """Return where the tokens of the present forward pass are, if they are packed."""
    return _packed.now


@contextmanager
def packed(packing: Packing | None) -> Iterator[None]:
    """Let the models that `install` changed compute on packed tokens."""
    _packed.now = packing
    try:
        yield
    finally:
        _packed.now = None


def install(model: PreTrainedModel, first_position: int) -> bool:
    """Give a model the doors through which rows become a line of tokens and rows again.

    Args:
        model: Goes on to take padded rows: `input_ids` and `attention_mask` [b, length].
        first_position: What the model counts positions from.

    Returns:
        Whether it has them: a model has to take positions, and not to decode.
    """
    base = model.base_model
    signature = inspect.signature(base.forward)
    if base is model or model.config.is_encoder_decoder or "position_ids" not in signature.parameters:
        return False

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packing = current()
        if packing is None:
            return None
        given = signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        for name in ("input_ids", "token_type_ids"):
            if given.get(name) is not None:
                given[name] = packing.to_line(given[name])
        # Transformers looks for several texts in a row only where no mask is given.
        given["attention_mask"] = torch.ones_like(packing.positions)
        given["position_ids"] = packing.positions + first_position
        return (), given

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        packing = current()
        if packing is not None and packing.is_line(output.last_hidden_state):
            output.last_hidden_state = packing.to_rows(output.last_hidden_state)
        return output

    base.register_forward_pre_hook(enter, with_kwargs=True)
    # Poolers get rows, where the base has one after its layers.
    layers = getattr(base, "encoder", None) or getattr(base, "transformer", None) or base
    layers.register_forward_hook(leave)
    return True
