"""Compares a model's outputs before and after a change."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

Outputs = dict[str, torch.Tensor]

PER_TOKEN = ("start_logits", "end_logits")
"""Ends of the names of outputs [rows, tokens]; others are per token if they have three dimensions."""


def logits_of(result: Mapping[str, Any]) -> Outputs:
    """Return the outputs of a model that losses are computed from, by name."""
    return {name: value for name, value in result.items() if name.endswith("logits") and torch.is_tensor(value)}


def parts(config: Any) -> tuple[Any, ...]:
    """Return a configuration, and those of the encoder and the decoder of an `EncoderDecoderModel`."""
    own = (getattr(config, name, None) for name in ("encoder", "decoder"))
    return (config, *(part for part in own if isinstance(part, PreTrainedConfig)))


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return three short rows of arbitrary tokens, two of them padded: `input_ids` and `attention_mask` [3, 8].

    Of a model for multiple choice they are [3, 1, 8].
    """
    config, device = model.config, model.device
    columns, lengths = torch.arange(8, device=device), torch.tensor([[8], [5], [2]], device=device)
    sizes = [part.vocab_size for part in parts(config) if getattr(part, "vocab_size", None)]
    size = min([*sizes, getattr(model.get_input_embeddings(), "num_embeddings", sizes[0])])  # the table may be cut
    ids = torch.arange(24, device=device).view(3, 8) * 37 % size
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and end < size:  # some models classify at the end token, of which a text must have just one
        ids = torch.where(ids == end, (end + 1) % size, ids).masked_fill(columns == lengths - 1, end)
    real = columns < lengths
    ids = ids.masked_fill(~real, getattr(config, "pad_token_id", None) or 0)
    found = {"input_ids": ids, "attention_mask": real.long()}
    if config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        found |= {"decoder_input_ids": ids, "decoder_attention_mask": real.long()}
    return as_taken(model, found)


def as_taken(model: PreTrainedModel, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return inputs [..., tokens] as a model takes them: of a model for multiple choice, each row has one choice."""
    chooses = type(model).__name__.endswith("ForMultipleChoice")
    return {name: each[..., None, :] if chooses else each for name, each in rows.items()}


@torch.no_grad()
def outputs(model: PreTrainedModel, **more: torch.Tensor) -> Outputs:
    """Return the outputs for the rows of `inputs`, and `more` inputs; none about padding."""
    rows, training = inputs(model), model.training
    real = rows["attention_mask"].flatten(0, -2).bool()
    model.train(False)
    found = about_tokens(logits_of(model(**rows, **more)), real)
    model.train(training)
    return found


def about_tokens(found: Outputs, real: torch.Tensor) -> Outputs:
    """Return outputs about tokens without those about padding, [tokens, ...]; others as they are.

    Args:
        found: Outputs by name, [rows, ...].
        real: [rows, tokens] whether a token is not padding.
    """
    per_token = {name for name, value in found.items() if name.endswith(PER_TOKEN) or value.ndim == 3}
    return {name: value[real] if name in per_token else value for name, value in found.items()}


def same(one: Outputs, other: Outputs) -> bool:
    """Return whether two models' outputs are equal up to rounding."""
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.allclose(value, other[name], rtol=1e-4, atol=1e-5)
        for name, value in one.items()
    )
