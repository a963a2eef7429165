"""Compute only the first token after the last attention, where the classifier reads nothing else.

BERT and similar models classify from the first token. What their last layer computes for the other tokens after its
attention (nine twelfths of the layer's multiplications) is not used. A check of the outputs decides whether a model is
of this kind.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hpo.finetune.folded.packing import current as packed_now
from hpo.finetune.models import output_check

_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.\d+$")


def shorten(model: PreTrainedModel) -> bool:
    """Let the last layer continue with the first token only, if the outputs stay the same.

    Args:
        model: A sequence classifier; its last layer gets a hook.

    Returns:
        Whether the model was changed.
    """
    layers = [module for name, module in model.named_modules() if _LAYER.search(name)]
    attention_output = getattr(getattr(layers[-1], "attention", None), "output", None) if layers else None
    if not isinstance(attention_output, nn.Module):
        return False
    before = output_check.outputs(model)
    hook = attention_output.register_forward_pre_hook(_first)
    try:
        same = output_check.same(before, output_check.outputs(model))
    except (RuntimeError, IndexError, TypeError):  # the model needs the other tokens
        same = False
    if not same:
        hook.remove()
    return same


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep position 0 of the attention's output and of the residual, both [b, length, hidden], or packed."""
    packing = packed_now()
    return tuple(x[:, :1] if packing is None else packing.first(x) for x in inputs)
