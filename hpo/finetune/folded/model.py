"""One model that holds K trials: each parameter [...] becomes [K, ...], and a batch has the rows of all trials.

Layers without trained parameters are not repeated: all trials share them, as trials with LoRA share their base model.
Only modules that own parameters are changed (HFTA; Wang et al., MLSys 2021); the model's own code runs unchanged.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hpo.core.errors import NotFoldableError
from hpo.finetune.folded.families import ADAPTED_FAMILIES, FAMILIES
from hpo.finetune.folded.layers import (
    FoldedConv1D,
    FoldedEmbedding,
    FoldedLayerNorm,
    FoldedLinear,
    FoldedTokenHead,
    FoldedVectors,
    Shared,
    SharedTokenHead,
)
from hpo.finetune.lora.adapters import Adapter
from hpo.finetune.models.token_head import TokenHead

LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FoldedLinear,
    nn.Embedding: FoldedEmbedding,
    nn.LayerNorm: FoldedLayerNorm,
    Conv1D: FoldedConv1D,
    Adapter: Adapter,
    TokenHead: FoldedTokenHead,
}


def fold(model: PreTrainedModel, slots: int) -> PreTrainedModel:
    """Return a copy of a model that holds K trials, each with the model's weights.

    It takes K times the rows, slot by slot (input_ids [K * b, length]), and returns as many. All slots share buffers
    and the parameters of frozen layers; these parameters are shared with the given model too.

    Args:
        model: Any model; it is not changed.
        slots: K.

    Raises:
        NotFoldableError: Some modules cannot hold several trials; the first one is named.
    """
    folds = {name: _fold_of(module) for name, module in model.named_modules()}
    known = {id(p) for name, kind in folds.items() if kind for p in model.get_submodule(name).parameters(False)}
    unfoldable = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if trains(module) and any(id(p) not in known for p in module.parameters(recurse=False))
    ]
    if unfoldable:
        more = f" and {len(unfoldable) - 1} more" if len(unfoldable) > 1 else ""
        raise NotFoldableError(
            f"{type(model).__name__} cannot hold several trials at once: {unfoldable[0]}{more} would need code of its "
            "own (hpo/finetune/folded/families.py)"
        )
    shared = (p for m in model.modules() if not trains(m) for p in m.parameters(recurse=False))
    folded = copy.deepcopy(model, {id(p): p for p in shared})
    _stack(folded, slots)
    for name in reversed(folds):  # layers before the modules that hold them
        if (kind := folds[name]) is not None:
            _become(folded.get_submodule(name), kind)
            if issubclass(kind, Shared):
                folded.get_submodule(name).slots = slots  # type: ignore[assignment]
    return folded


def load_slot(model: PreTrainedModel, slot: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Put one trial's weights into a slot of a folded model.

    Args:
        model: As `fold` returns it.
        slot: From 0.
        weights: Name -> tensor as in the plain model's `state_dict()`; shared tensors are ignored.

    Raises:
        ValueError: A parameter is missing or has another shape.
    """
    filled = set()
    with torch.no_grad():
        for name, parameter in _repeated(model).items():
            if name in weights:
                if weights[name].shape != parameter.shape[1:]:
                    raise ValueError(f"{name} is {list(parameter.shape[1:])}, not {list(weights[name].shape)}")
                parameter[slot].copy_(weights[name])
                filled.add(id(parameter))
    missing = [name for name, parameter in _repeated(model).items() if id(parameter) not in filled]
    if missing:
        raise ValueError(f"weights lack {', '.join(missing)}")


def slot_weights(model: PreTrainedModel, slot: int) -> dict[str, torch.Tensor]:
    """Return one slot's weights, its own and shared ones, with the plain model's names and shapes; views."""
    own = _repeated(model)
    return {name: tensor[slot] if name in own else tensor for name, tensor in model.state_dict().items()}


@contextmanager
def narrowed(model: PreTrainedModel, first: int, last: int) -> Iterator[None]:
    """Let a folded model hold some slots only, those from `first` to `last` - 1; nothing is copied.

    Its parameters are views of those of all slots, which it has again afterwards.
    """
    own = [
        (module, name, p)
        for module in model.modules()
        if trains(module)
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    views = {p: nn.Parameter(p.detach()[first:last], p.requires_grad) for _, _, p in own}  # tied ones stay tied
    shared = [module for module in model.modules() if isinstance(module, Shared)]
    slots = [module.slots for module in shared]
    try:
        for module, name, p in own:
            setattr(module, name, views[p])
        for each in shared:
            each.slots = last - first
        yield
    finally:
        for module, name, p in own:
            setattr(module, name, p)
        for each, count in zip(shared, slots, strict=True):
            each.slots = count


def trains(module: nn.Module) -> bool:
    """Return whether any of a module's own parameters is trained; if not, all slots share the module."""
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _repeated(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter [K, ...] of a folded model, under all the names that a parameter has."""
    return {
        f"{prefix}.{name}".removeprefix("."): parameter
        for prefix, module in model.named_modules(remove_duplicate=False)
        if trains(module)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }


# ---------------------------------------------------------------- how a module folds


def _fold_of(module: nn.Module) -> type | None:
    """Return the class with which a module holds several trials; None if there is none, or none is needed."""
    families = FAMILIES if _trains_within(module) else ADAPTED_FAMILIES
    family = families.get(f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}")
    if family is not None:
        return family
    if not trains(module):
        if isinstance(module, Shared):  # made to be shared
            return type(module)
        if isinstance(module, TokenHead):
            return SharedTokenHead
        return Shared if isinstance(module, nn.Linear | Conv1D) else None
    if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq or module.sparse):
        return None
    if type(module) in LAYERS:
        return LAYERS[type(module)]
    own = list(module.parameters(recurse=False))
    if not own or next(module.children(), None) is not None:
        return None
    kind = next((fold for layer, fold in LAYERS.items() if isinstance(module, layer)), FoldedVectors)
    if kind is FoldedVectors and any(p.ndim != 1 for p in own):
        return None
    return kind if _folds(module, kind) else None


def _trains_within(module: nn.Module) -> bool:
    """Return whether any module within a module is trained that is not an adapter."""
    return any(trains(each) for each in module.modules() if not isinstance(each, Adapter))


def _stack(module: nn.Module, slots: int) -> None:
    """Repeat the parameters of every trained layer K times; tied parameters stay tied."""
    stacked: dict[nn.Parameter, nn.Parameter] = {}
    for each in filter(trains, module.modules()):
        for name, p in each.named_parameters(recurse=False, remove_duplicate=False):
            if p not in stacked:
                stacked[p] = nn.Parameter(p.detach().expand(slots, *p.shape).clone(), p.requires_grad)
            setattr(each, name, stacked[p])


def _become(module: nn.Module, kind: type) -> None:
    """Change a module's class to its folded one."""
    cls: Any = type(module)
    module.__class__ = _folded_class(cls, kind)
    if hasattr(kind, "folded"):
        kind.folded(module)


@functools.cache
def _folded_class(cls: type, kind: type) -> Any:
    """Return a class that derives from both: a module's own class comes first for layers, the mixin first otherwise."""
    if issubclass(kind, cls):
        return kind
    bases = (cls, kind) if issubclass(kind, nn.Module) else (kind, cls)
    return type(f"Folded{cls.__name__}", bases, {})


def _folds(layer: nn.Module, kind: type) -> bool:
    """Return whether the outputs of two slots of a folded layer are those of two layers, by a trial run."""
    alone = [copy.deepcopy(layer) for _ in range(2)]
    folded = copy.deepcopy(layer)
    _stack(folded, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in folded.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
            for slot, each in enumerate(alone):
                each.get_parameter(name).copy_(p[slot])
        width = p.shape[-1] if kind is not FoldedLinear else p.shape[1]
        x = torch.randn(4, 3, width, generator=generator).to(p)
        if isinstance(layer, nn.Embedding):
            # Two ids only: OPT's positions take a mask.
            x = torch.arange(12, device=p.device).view(4, 3) % min(2, layer.num_embeddings)
        try:
            _become(folded, kind)
            return torch.allclose(folded(x), torch.cat([alone[0](x[:2]), alone[1](x[2:])]), rtol=1e-4, atol=1e-5)
        except Exception:  # unknown code may raise anything on unexpected inputs
            return False
