"""Compares a model's outputs before and after a change."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def outputs(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of three short rows of arbitrary tokens, two of them padded."""
    config, device, training = model.config, model.device, model.training
    columns, lengths = torch.arange(8, device=device), torch.tensor([[8], [5], [2]], device=device)
    ids = torch.arange(24, device=device).view(3, 8) * 37 % config.vocab_size
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int):  # some models classify at the end token, of which a text must have just one
        ids = torch.where(ids == end, (end + 1) % config.vocab_size, ids).masked_fill(columns == lengths - 1, end)
    ids = ids.masked_fill(columns >= lengths, getattr(config, "pad_token_id", None) or 0)
    inputs = {"input_ids": ids, "attention_mask": (columns < lengths).long()}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    model.train(False)
    logits: torch.Tensor = model(**inputs).logits
    model.train(training)
    return logits


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two models' outputs are equal up to rounding."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)
