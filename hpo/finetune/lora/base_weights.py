"""The weights of frozen layers, held in the dtype in which autocast multiplies them.

Autocast casts a weight at every use: those of frozen layers for every slot, because it keeps casts of trained weights
only. Held in bf16, they are cast once, and take half the memory. Layers that compute in float32 under autocast, such as
norms and embeddings, keep float32. A check of the outputs decides whether a model computes the same with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hpo.core.errors import NotFoldableError
from hpo.finetune.folded.model import fold
from hpo.finetune.lora.adapters import Adapter
from hpo.finetune.models import dropout, output_check


def hold_as_multiplied(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Hold the weights and biases of frozen linear layers in a dtype, if no bit of the outputs changes.

    Args:
        model: A model that `Lora.install` changed.
        dtype: The dtype of autocast.

    Returns:
        Whether they are held so. They are not where the model's code reads the weights otherwise than by calling their
        layers (DeBERTa-v2; T5 with gated layers), or where it does not fold.
    """
    wide = {parameter: parameter.data for parameter in _only_multiplied(model)}
    try:
        published = _outputs(model, dtype)
    except NotFoldableError:
        return False
    for parameter in wide:
        parameter.data = parameter.data.to(dtype)
    try:
        found = _outputs(model, dtype)
        same = all(torch.equal(value, found[name]) for name, value in published.items())
    except RuntimeError:  # the model's code needs one dtype
        same = False
    if not same:
        for parameter, data in wide.items():
            parameter.data = data
    return same


def _only_multiplied(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the frozen parameters that linear layers own, and no other modules, such as a tied embedding."""
    owners: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter].append(module)
    for parameter, modules in owners.items():
        if not parameter.requires_grad and all(isinstance(module, nn.Linear | Conv1D) for module in modules):
            yield parameter


@torch.no_grad()
def _outputs(model: PreTrainedModel, dtype: torch.dtype) -> output_check.Outputs:
    """Return the outputs of one slot in training under autocast, with dropout everywhere and adapters that add."""
    with dropout.everywhere(model, 0.1):
        folded = fold(model, 1)
    generator = torch.Generator().manual_seed(0)
    for parameter in _of_adapters(folded):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    keys = torch.zeros(1, dtype=torch.long, device=model.device)
    with torch.autocast(model.device.type, dtype), dropout.OwnFunction(), dropout.drawing_from(keys):
        return output_check.logits_of(folded.train()(**output_check.inputs(model)))


def _of_adapters(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for module in model.modules() if isinstance(module, Adapter) for p in module.parameters())
