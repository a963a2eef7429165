"""AdamW of K trials at once: each trial is a row of one matrix, and a step reads no values of the host.

Weights, gradients and both moments are matrices [K, P], of which the model's parameters are views. A row is a trial.
In it, parameters that are decayed come before those that are not, and in each part every depth (of layer-wise decay)
is one slice. So a step is a few operations for each slot, whatever the model. All values in which trials differ are
tensors, so the same program serves every later trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hpo.finetune.optimizer import BETAS, EPSILON, decays, depths
from hpo.recipe.schedules import multiplier
from hpo.recipe.training_params import TrainingParams

Array = np.ndarray[Any, Any]


class FoldedAdamW:
    """Steps the trained parameters of a folded model, which it moves into its own matrices.

    Args:
        model: As `fold` returns it, [K, ...].
        trained: Names of the parameters to step; the others never get a gradient.
        head: Names of the parameters that are not pretrained.
        by_depth: Whether a trial may have layer-wise decay; if not, all parameters are of one depth.

    Attributes:
        weights: [K, P].
        gradients: [K, P], to which the model's backward passes add.
        depths: The depths of the parameters, in increasing order; see `hpo.finetune.optimizer.depths`.
    """

    def __init__(self, model: nn.Module, trained: Iterable[str], head: frozenset[str], by_depth: bool = True) -> None:
        self._by_depth = by_depth
        parameters = dict(model.named_parameters())
        depth = depths(parameters, head) if by_depth else dict.fromkeys(parameters, 0)
        trained = sorted(trained, key=lambda name: (not decays(parameters[name][0]), depth[name]))
        slots = len(parameters[trained[0]])
        sizes = [parameters[name][0].numel() for name in trained]
        ends = list(itertools.accumulate(sizes))
        like = parameters[trained[0]].detach()
        self.weights, self.gradients, self._first, self._second = (like.new_zeros(slots, ends[-1]) for _ in range(4))
        self._steps = torch.zeros(slots, device=like.device)
        self._places = {name: slice(end - size, end) for name, size, end in zip(trained, sizes, ends, strict=True)}
        self._shapes = {name: parameters[name].shape[1:] for name in trained}
        self.depths = sorted({depth[name] for name in trained})
        self._slices: list[list[tuple[slice, bool]]] = []  # of each depth: the slices, and whether each is decayed
        for each in self.depths:
            of_depth = [name for name in trained if depth[name] == each]
            self._slices.append(
                [
                    (slice(self._places[group[0]].start, self._places[group[-1]].stop), decayed)
                    for decayed in (True, False)
                    if (group := [name for name in of_depth if decays(parameters[name][0]) == decayed])
                ]
            )
        with torch.no_grad():
            for name in trained:
                self._view(self.weights, name).copy_(parameters[name])
        for name in trained:
            parameters[name].data = self._view(self.weights, name)
            parameters[name].grad = self._view(self.gradients, name)

    def _view(self, matrix: torch.Tensor, name: str) -> torch.Tensor:
        return matrix[:, self._places[name]].view(len(matrix), *self._shapes[name])

    def clear(self, slot: int) -> None:
        """Set a slot's gradients, moments and step count to zero."""
        for matrix in (self.gradients, self._first, self._second, self._steps):
            matrix[slot].zero_()

    def parameters(self, slot: int) -> dict[str, torch.Tensor]:
        """Return name -> one slot's parameters; views."""
        return {name: self._view(self.weights, name)[slot] for name in self._places}

    def moments(self, slot: int, name: str) -> dict[str, torch.Tensor]:
        """Return the optimiser's state of a slot's parameter, by `MOMENTS`; views."""
        first, second = (self._view(matrix, name)[slot] for matrix in (self._first, self._second))
        return {"exp_avg": first, "exp_avg_sq": second, "step": self._steps[slot]}

    def rates(self, step: int, total: int, params: TrainingParams) -> list[float]:
        """Return a trial's learning rate at every depth for an optimiser step (from 0) of `total`."""
        assert self._by_depth or params.layer_decay == 1.0
        rate = params.learning_rate * multiplier(step, total, params)
        return [rate * params.layer_decay**depth for depth in self.depths]

    def decay_of_unused_rows(self, rates: Sequence[float], weight_decay: float) -> float:
        """Return the factor that one step leaves of an embedding row without gradient; embeddings are the deepest."""
        return 1.0 - rates[-1] * weight_decay

    @torch.no_grad()
    def step(
        self, stepping: torch.Tensor, rates: torch.Tensor, weight_decay: torch.Tensor, max_norm: torch.Tensor
    ) -> None:
        """Step the slots whose batch is complete, and set their gradients to zero; the other slots do not change.

        The fused kernel divides gradients by `grad_scale` when it reads them, and does nothing where `found_inf` is 1.

        Args:
            stepping: [K] 1 for a slot that steps, else 0; float32.
            rates: [K, depths] learning rates, of the dtype that `rates_dtype` names.
            weight_decay: [K].
            max_norm: [K] the norm to which a slot's gradients are clipped.
        """
        norms = torch.stack([self._norm(row) for row in self.gradients])
        scales = torch.clamp((norms.float() + 1e-6) / max_norm, min=1.0)
        waiting = 1.0 - stepping
        left = (1.0 - rates * (weight_decay * stepping)[:, None]).to(self.weights.dtype)
        for number, slices in enumerate(self._slices):
            for place, decayed in slices:
                if decayed:
                    self.weights[:, place].mul_(left[:, number, None])
        self._steps += stepping
        for slot, (number, slices) in itertools.product(range(len(norms)), enumerate(self._slices)):
            torch._fused_adamw_(
                [self.weights[slot, place] for place, _ in slices],
                [self.gradients[slot, place] for place, _ in slices],
                [self._first[slot, place] for place, _ in slices],
                [self._second[slot, place] for place, _ in slices],
                [],
                [self._steps[slot]] * len(slices),
                lr=rates[slot, number],
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=0.0,  # done above: the kernel takes a number, not a tensor
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
                grad_scale=scales[slot],
                found_inf=waiting[slot],
            )
        self.gradients.masked_fill_(stepping.bool()[:, None], 0.0)

    def _norm(self, row: torch.Tensor) -> torch.Tensor:
        """Return the norm of one slot's gradients, from those of its parameters: the same for every K."""
        norms = torch._foreach_norm([row[place] for place in self._places.values()])
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm


def rates_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of the fused kernel's learning rate."""
    return torch.float64 if device.type == "cpu" else torch.float32
