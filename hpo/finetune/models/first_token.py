"""Compute only the first token after the last attention, where the classifier reads nothing else.

BERT and its kin classify from the first token. What their last layer computes for the others after its
attention (nine twelfths of the layer's multiplications) is thrown away. Whether a model is of that kind is
checked, not assumed.
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
    before = output_check.outputs(model)
    hook = joint.register_forward_pre_hook(_first)
    try:
        same = output_check.same(before, output_check.outputs(model))
    except (RuntimeError, IndexError, TypeError):  # it wants the other tokens after all
        same = False
    if not same:
        hook.remove()
    return same


def _first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep position 0 of the attention's output and of the residual, both [b, length, hidden], or packed."""
    packing = packed_now()
    return tuple(x[:, :1] if packing is None else packing.first(x) for x in inputs)
