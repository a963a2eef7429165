"""AdamW with the parameter groups of fine-tuning: with or without decay, and a learning rate by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from hpo.recipe.schedules import multiplier
from hpo.recipe.training_params import TrainingParams

BETAS, EPSILON = (0.9, 0.999), 1e-8

_LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def depths(names: Iterable[str], head: frozenset[str]) -> dict[str, int]:
    """Return how far below the head each parameter is: head 0, top layer 2, ..., embeddings the most.

    ELECTRA's numbering (Clark et al., 2020; `_get_layer_lrs`), in which the head is two above the top layer.
    """
    names = list(names)
    layers = {name: int(m[1]) for name in names if (m := _LAYER.search(f".{name}"))}
    count = max(layers.values(), default=-1) + 1
    # A parameter in no layer is an embedding if it comes before the first layer, else part of the top.
    first = next((i for i, name in enumerate(names) if name in layers), 0)
    found = {}
    for i, name in enumerate(names):
        if name in layers:
            found[name] = count + 1 - layers[name]
        elif name in head or i > first:
            found[name] = 0
        else:
            found[name] = count + 2
    return found


def build(parameters: Mapping[str, nn.Parameter], head: frozenset[str], params: TrainingParams) -> torch.optim.AdamW:
    """Return a fused AdamW (Loshchilov and Hutter, 2019) over groups of one depth and decay.

    The trial's learning rate is multiplied by each group's `scale`.
    """
    depth = depths(parameters, head)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            below = depth[name] if params.layer_decay != 1.0 else 0  # fewer groups mean fewer and longer operations
            groups.setdefault((below, decays(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "weight_decay": params.weight_decay if decayed else 0.0,
                "scale": params.layer_decay**below,
            }
            for (below, decayed), members in groups.items()
        ],
        lr=params.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )


def decays(parameter: torch.Tensor) -> bool:
    """Return whether a parameter is decayed: matrices are, biases and norms are not, as in BERT."""
    return parameter.ndim > 1


def clip(optimizer: torch.optim.AdamW, max_norm: float) -> None:
    """Scale the next step's gradients down to a norm of `max_norm`, if their norm is larger.

    The fused step divides by `grad_scale` when it reads the gradients, which saves a pass over all of them.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    norm = norm.float()  # the dtype of the fused step's scale, whatever that of the weights
    optimizer.grad_scale = torch.clamp((norm + 1e-6) / max_norm, min=1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = torch.zeros_like(norm)  # type: ignore[attr-defined]


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total: int, params: TrainingParams) -> None:
    """Set every group's learning rate for an optimiser step (from 0) of `total`."""
    rate = params.learning_rate * multiplier(step, total, params)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def decay_of_unused_rows(optimizer: torch.optim.Optimizer) -> float:
    """Return the factor that one step's weight decay leaves of an embedding row without gradient.

    The embeddings are in the deepest decayed group, which has the smallest `scale`.
    """
    group = min((g for g in optimizer.param_groups if g["weight_decay"] > 0), key=lambda g: g["scale"], default=None)
    return 1.0 if group is None else 1.0 - group["lr"] * group["weight_decay"]
