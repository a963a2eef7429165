"""Packing: the real tokens of rows of different lengths lie end to end in one line of tokens for each slot.

The model takes padded rows, and its last layer returns padded rows. In between all layers compute on [K, tokens, ...];
only attention gathers rows from the line, and returns its output to the line. So a model needs only hooks at its
beginning and its end. Whether its outputs stay the same is checked (`hpo/finetune/folded/equivalence.py`).
The line has the same length for every batch of a study, so that shapes, and a trial's numbers, do not vary.
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
    """The positions of the tokens of some rows, in the line and in the rows.

    Args:
        lengths: [K, b] real tokens of each row.
        tokens: Length of a slot's line; at least the number of the rows' tokens.
        length: Length of a row.

    Attributes:
        filled: [K, tokens] whether there is a token; the end of the line may be empty.
        positions: [K, tokens] position of each token in its row.
        row: [K, tokens] row of each token, counted over all slots.
        in_rows: [K, tokens] position of each token in the flattened rows.
        real: [K * b, length] whether there is a token in the row.
        in_line: [K * b, length] position of each token in the flattened lines.
        shape: (K, tokens).
    """

    def __init__(self, lengths: torch.Tensor, tokens: int, length: int) -> None:
        (slots, rows), device = lengths.shape, lengths.device
        ends = lengths.cumsum(1)
        starts = ends - lengths
        places = torch.arange(tokens, device=device).expand(slots, -1).contiguous()
        row = torch.searchsorted(ends, places, right=True)
        self.filled = row < rows
        row = row.clamp(max=rows - 1)
        self.positions = torch.where(self.filled, places - starts.gather(1, row), 0)
        slot = torch.arange(slots, device=device)[:, None]
        self.row = slot * rows + row
        self.in_rows = torch.where(self.filled, self.row * length + self.positions, 0)
        columns = torch.arange(length, device=device)
        self.real = (columns < lengths[..., None]).flatten(0, 1)
        self.in_line = (slot * tokens + starts).view(-1, 1) + columns
        self.in_line = torch.where(self.real, self.in_line, 0)
        self.shape = (slots, tokens)

    def to_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Turn [K, tokens, ...] into [K * b, length, ...], with zeros after the end of a row."""
        return _gathered(x, self.in_line, self.real, self.in_rows, self.filled)

    def to_line(self, x: torch.Tensor) -> torch.Tensor:
        """Turn [K * b, length, ...] into [K, tokens, ...], with zeros at the end of the line."""
        return _gathered(x, self.in_rows, self.filled, self.in_line, self.real)

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """Return the first token of each row of [K, tokens, ...]: [K * b, 1, ...]."""
        return _gathered(x, self.in_line[:, :1], self.real[:, :1], self.row, self.filled & (self.positions == 0))

    def is_line(self, x: torch.Tensor) -> bool:
        """Return whether a tensor is [K, tokens, ...]."""
        return x.shape[:2] == self.shape


class _Gather(torch.autograd.Function):
    """Copies tokens from one arrangement to the other; the backward pass is a gather too, so it adds no gradients."""

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


# ---------------------------------------------------------------- in a model


class _Packed(threading.local):
    now: Packing | None = None


_packed = _Packed()


def current() -> Packing | None:
    """Return the packing of the present forward pass, if its tokens are packed."""
    return _packed.now


@contextmanager
def packed(packing: Packing | None) -> Iterator[None]:
    """Let models that `install` changed compute on packed tokens."""
    _packed.now = packing
    try:
        yield
    finally:
        _packed.now = None


def install(model: PreTrainedModel, first_position: int) -> bool:
    """Give a model hooks that turn rows into a line of tokens, and the line into rows again.

    Args:
        model: Still takes padded rows: `input_ids` and `attention_mask` [b, length].
        first_position: The number of a text's first position.

    Returns:
        Whether the model has the hooks: it must take positions, and must not be an encoder-decoder.
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
        # Given a mask, transformers does not take the positions for those of several texts in a row.
        given["attention_mask"] = torch.ones_like(packing.positions)
        given["position_ids"] = packing.positions + first_position
        return (), given

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        packing = current()
        if packing is not None and packing.is_line(output.last_hidden_state):
            output.last_hidden_state = packing.to_rows(output.last_hidden_state)
        return output

    base.register_forward_pre_hook(enter, with_kwargs=True)
    # After the layers, not after the base, so that a pooler gets rows.
    layers = getattr(base, "encoder", None) or getattr(base, "transformer", None) or base
    layers.register_forward_hook(leave)
    return True
