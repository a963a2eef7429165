"""The weights of all slots in one buffer, and AdamW over it in a dozen operations, however many slots there are.

Every slot has its own rates, decays, clipping and number of steps, and steps when its own batch is complete. Nothing
is summed over slots, nothing asks the device for an answer, and a slot that does not step keeps every bit.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hpo.finetune.optimizer import depths

# Rows of a slot are dense, its parameters' views need not be; sums into them are in place all the same.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

BETAS = (0.9, 0.999)
EPS = 1e-8

# Norms are taken in two stages: a sum of fixed length is added up in one order, whatever K is.
CHUNK = 1024
# Parameters start at multiples of 64 bytes, or a matmul of one slot could be summed in another order than the next's.
ALIGNED = 16


class FlatAdamW:
    """AdamW (Loshchilov and Hutter, 2019) as `optimizer.build` makes it, for the slots of a folded model.

    The model's trainable parameters become views into `weights`, their gradients views into `gradients`: never set
    them to None. What a group of parameters shares is its depth below the head, and whether it is decayed. A
    parameter that no loss reaches decays here, where `torch.optim` would skip it: freeze it.

    Args:
        model: As `fold` returns it, on its device.
        head: Names of the parameters that are not pretrained.

    Attributes:
        groups: (depth, decayed) of every group, in the order of their columns.
        weights: [K, P], as the three below.
        gradients: What backward passes add up.
        first: The gradients' running mean.
        second: The squared gradients' running mean.
        steps: [K], steps taken.
    """

    def __init__(self, model: nn.Module, head: frozenset[str]) -> None:
        depth = depths(model, head)
        # A matrix has three dimensions here; all else is not decayed.
        group = {p: (depth[name], p.ndim > 2) for name, p in model.named_parameters() if p.requires_grad}
        self.groups = sorted(set(group.values()))
        parameters = sorted(group, key=lambda p: group[p])
        sizes = [p[0].numel() + -p[0].numel() % ALIGNED for p in parameters]
        sizes[-1] += -sum(sizes) % CHUNK
        device, slots = parameters[0].device, len(parameters[0])
        numbers = [self.groups.index(group[p]) for p in parameters]
        self._group_of = torch.tensor(numbers).repeat_interleave(torch.tensor(sizes)).to(device, torch.int32)  # [P]
        self.weights = parameters[0].new_zeros(slots, sum(sizes))
        self.gradients, self.first, self.second = (torch.zeros_like(self.weights) for _ in range(3))
        self.steps = self.weights.new_zeros(slots)
        for p, start in zip(parameters, itertools.accumulate(sizes, initial=0), strict=False):
            place = slice(start, start + p[0].numel())
            weights = self.weights[:, place].view(p.shape)
            weights.copy_(p.detach())
            p.data = weights
            p.grad = self.gradients[:, place].view(p.shape)

    def rates(self, params: Mapping[str, Any]) -> list[float]:
        """Return a trial's peak learning rate of every group."""
        return [params["learning_rate"] * params["layer_decay"] ** depth for depth, _ in self.groups]

    def decays(self, params: Mapping[str, Any]) -> list[float]:
        """Return a trial's weight decay of every group."""
        return [params["weight_decay"] if decayed else 0.0 for _, decayed in self.groups]

    def reset(self, slot: int) -> None:
        """Forget a slot's gradients, moments and steps; its weights stay."""
        for each in (self.gradients, self.first, self.second, self.steps):
            each[slot].zero_()

    def norms(self) -> torch.Tensor:
        """Return the norm of each slot's gradients, [K]."""
        chunks = self.gradients.view(len(self.gradients), -1, CHUNK)
        norms: torch.Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(chunks, dim=2), dim=1)
        return norms

    @torch.no_grad()
    def step(self, stepping: torch.Tensor, rates: torch.Tensor, decays: torch.Tensor, max_norms: torch.Tensor) -> None:
        """Let some slots take a step and clear their gradients; the others keep all they have, to the bit.

        Args:
            stepping: [K], bool.
            rates: [K, groups], learning rates of this step; those of slots that do not step are of no account.
            decays: [K, groups].
            max_norms: [K], what gradients are clipped to.
        """
        excess = torch.clamp((self.norms() + 1e-6) / max_norms, min=1.0)  # as `optimizer.clip`
        gradients = self.gradients / excess[:, None]
        first = self.first.lerp(gradients, 1 - BETAS[0])
        second = (self.second * BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
        steps = self.steps + 1
        # 1 - beta ** steps, which float32 would round badly
        corrections = [-torch.expm1(steps * math.log(beta))[:, None] for beta in BETAS]
        scale = (rates / corrections[0]).index_select(1, self._group_of)
        weights = self.weights * (1 - rates * decays).index_select(1, self._group_of)
        weights.addcdiv_(first * scale, second.div(corrections[1]).sqrt_().add_(EPS), value=-1)
        # A choice, never a product with the mask: 0 x NaN is NaN.
        for kept, new in ((self.weights, weights), (self.first, first), (self.second, second)):
            torch.where(stepping[:, None], new, kept, out=kept)
        torch.where(stepping, steps, self.steps, out=self.steps)
        self.gradients.masked_fill_(stepping[:, None], 0.0)
