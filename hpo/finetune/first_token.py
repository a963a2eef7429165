"""Compute only the first token after the last attention, where the classifier reads nothing else.

BERT and its kin classify from the first token. What their last layer computes for the others after its
attention (nine twelfths of the layer's multiplications) is thrown away. Whether a model is of that kind is
checked, not assumed.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.\d+$")


def shorten(model: PreTrainedModel) -> bool:
    """Let the last layer go on with the first token only, if the outputs stay the same.

    Args:
        model: A sequence classifier; gets a hook on its last layer.

    Returns:
        Whether the model is now shorter.
    """
    layers = [module for name, module in model.named_modules() if _LAYER.search(name)]
    joint = getattr(getattr(layers[-1], "attention", None), "output", None) if layers else None
    if not isinstance(joint, nn.Module):
        return False
    before = _outputs(model)
    hook = joint.register_forward_pre_hook(_first)
    try:
        same = torch.allclose(before, _outputs(model), rtol=1e-4, atol=1e-5)
    except (RuntimeError, IndexError, TypeError):  # it wants the other tokens after all
        same = False
    if not same:
        hook.remove()
    return same


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep position 0 of the attention's output and of the residual, both [b, length, hidden]."""
    return tuple(x[:, :1] for x in inputs)


@torch.no_grad()
def _outputs(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of three short rows of arbitrary tokens, the last ones padded."""
    device, training = model.device, model.training
    size = model.config.vocab_size
    ids = torch.arange(24, device=device).view(3, 8) * 37 % size
    mask = (torch.arange(8, device=device) < torch.tensor([[8], [5], [2]], device=device)).long()
    model.train(False)
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    model.train(training)
    return logits
