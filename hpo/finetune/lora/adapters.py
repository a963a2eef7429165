"""LoRA (Hu et al., 2021): the pretrained weights are frozen, and a product of two narrow matrices is learnt.

`scale * B A dropout(x)` is added to the output of a target layer, scale = alpha / rank. All trials of a study have
adapters at the same layers and of the same rank, the largest of the space. The part that a trial does not use is zero
in A and in B; so its gradient is exactly zero, and AdamW leaves it at zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hpo.core.errors import ModelError
from hpo.finetune.models.dropout import OwnDropout
from hpo.finetune.models.token_head import projection
from hpo.recipe.hyperparameters import LORA_TARGETS
from hpo.recipe.training_params import TrainingParams


class Adapter(nn.Module):
    """Computes what is added to a layer's output, for one trial or for K trials.

    Attributes:
        A: [rank, in], or [K, rank, in].
        B: [out, rank], or [K, out, rank].
        scale: [1], or [K, 1]; not trained.
        dropout: Of the input, with masks from the trial's keys.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.dropout = OwnDropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [b, ..., in], or [K * b, ..., in], to [..., out]."""
        rows = self.dropout(x).reshape(*self.A.shape[:-2], -1, x.shape[-1])
        narrow: torch.Tensor = rows @ self.A.mT * self.scale[..., None]
        return (narrow @ self.B.mT).view(*x.shape[:-1], self.B.shape[-2])


def _add(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Add the output of a layer's adapter, as a forward hook; the model's code is unchanged."""
    adapter: Adapter = layer.adapter  # type: ignore[assignment]
    added: torch.Tensor = adapter(inputs[0])
    return output + added


@dataclass(frozen=True)
class Lora:
    """Where the adapters of a study are.

    Attributes:
        targets: Names in `LORA_TARGETS` that trials may have; adapters are at the layers of all of them.
        rank: The largest rank that a trial may have.
        head: Names of the parameters that are trained in full; see `Task.trained_in_full`.
    """

    targets: tuple[str, ...]
    rank: int
    head: frozenset[str] = frozenset()

    def install(self, model: PreTrainedModel) -> None:
        """Freeze a model except its head, and give it adapters that add zero.

        Raises:
            ModelError: A target names no layers of this model.
        """
        missing = [target for target in self.targets if not self.layers(model, [target])]
        if missing:
            raise ModelError(
                f"{type(model).__name__} has no layers that lora_targets: {missing[0]} means; "
                "write lora_targets: all_linear"
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.head)
        for layer in self.layers(model, self.targets).values():
            outputs, inputs = layer.weight.shape[:: -1 if isinstance(layer, Conv1D) else 1]
            layer.adapter = Adapter(inputs, outputs, self.rank).to(layer.weight)
            layer.register_forward_hook(_add)

    def start(self, model: PreTrainedModel, params: TrainingParams, seed: int) -> None:
        """Put a model's adapters to where a trial starts: A is uniform, as peft draws it, and B is zero.

        Args:
            model: A model that `install` changed.
            params: The trial's hyperparameters.
            seed: Seed of what is drawn.
        """
        generator, rank = torch.Generator().manual_seed(seed), params.lora_rank
        used = self.layers(model, [params.lora_targets])
        for name, layer in self.layers(model, self.targets).items():
            adapter = layer.adapter
            assert isinstance(adapter, Adapter)
            with torch.no_grad():
                adapter.A.zero_()
                adapter.B.zero_()
                adapter.scale.fill_(params.lora_alpha / rank)
                if name in used:
                    drawn = torch.empty(rank, adapter.A.shape[1])
                    adapter.A[:rank] = nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            adapter.dropout.p = params.lora_dropout if name in used else 0.0

    def layers(self, model: PreTrainedModel, targets: Iterable[str]) -> dict[str, nn.Linear | Conv1D]:
        """Return name -> layer of all layers of a model that some targets name."""
        patterns = [re.compile(LORA_TARGETS[target], re.IGNORECASE) for target in targets]
        vocabulary = projection(model)  # peft leaves it out too
        return {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and module is not vocabulary
            and f"{name}.weight" not in self.head
            and any(pattern.search(name) for pattern in patterns)
        }
