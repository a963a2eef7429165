"""A model divided over a process group (FSDP, Zhao et al., 2023; PyTorch's `fully_shard`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from hpo.finetune.models.initial_state import InitialState, draw, head_modules


def divide(model: PreTrainedModel, shards: int, device: torch.device, precision: str) -> None:
    """Divide a model over the process group: first each transformer block, then the rest.

    Gradients are summed over the processes, not averaged: each loss is divided by the whole batch already. With
    precision bf16 the weights are gathered as bf16; copies made by autocast would stay in memory until the backward
    pass.
    """
    bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (shards,))
    for part in (*_blocks(model), model):
        divided = fully_shard(
            part,
            mesh=mesh,
            reshard_after_forward=True,  # at the root too: else it would go on with weights from before a reset
            mp_policy=bf16 if precision == "bf16" else MixedPrecisionPolicy(),
        )
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)  # gloo cannot scale as it sums


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists of modules: the transformer blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


class DividedInitialState(InitialState):
    """Puts a divided model back to its start; see `InitialState`.

    Args:
        model: The divided model, with its pretrained weights.
        head: Names of the parameters that are not pretrained.
        heads: Name -> their modules, whole, from `copied_heads`. Each process draws all of a head and takes its part:
            random numbers drawn for a part of a tensor are not those of the whole tensor.
    """

    def __init__(self, model: PreTrainedModel, head: frozenset[str], heads: Mapping[str, nn.Module]) -> None:
        super().__init__(model, head)
        self._heads = heads

    def draw_head(self, model: PreTrainedModel) -> None:
        """Draw the head from torch's global generator; each process takes its part."""
        for prefix, module in self._heads.items():
            draw(model, module)
            fill(model, {f"{prefix}.{name}": p for name, p in module.named_parameters(recurse=False)})


def copied_heads(model: nn.Module, head: frozenset[str]) -> dict[str, nn.Module]:
    """Return name -> copy of each module whose parameters are not pretrained."""
    return {name: copy.deepcopy(module) for name, module in head_modules(model, head)}


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into a divided model; each process copies its own part."""
    parts = model.state_dict()
    for name, tensor in weights.items():
        part = parts[name]
        if isinstance(part, DTensor):
            tensor = distribute_tensor(tensor, part.device_mesh, part.placements, src_data_rank=None)
        part.copy_(tensor)
