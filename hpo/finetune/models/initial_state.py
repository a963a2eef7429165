"""The state in which every trial starts: pretrained weights, a fresh head, the trial's dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from hpo.finetune.models import dropout as dropouts


def digest(model: nn.Module, head: frozenset[str]) -> str:
    """Return the SHA-256 of the pretrained weights; without the head, which is drawn for every trial."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in head:
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class InitialState:
    """Puts a model back to where every trial starts: pretrained weights, a fresh head, the trial's dropout.

    Args:
        model: A model as `load_model` returns it.
        head: Names of the parameters that are not pretrained.

    Attributes:
        pristine: Copy of the model's `state_dict`.
        head: As given.
        dropouts: The published dropout probabilities, by module and attribute.
    """

    def __init__(self, model: PreTrainedModel, head: frozenset[str]) -> None:
        self.pristine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.head = head
        self.dropouts = dropouts.rates(model)

    def start(self, model: PreTrainedModel, seed: int, dropout: float | None) -> None:
        """Reset a model of the same configuration in place.

        Args:
            model: The model.
            seed: Seed of its head.
            dropout: The trial's dropout; None leaves the published probabilities.
        """
        model.load_state_dict(self.pristine)
        torch.manual_seed(seed)
        self.draw_head(model)
        for (name, rate), published in self.dropouts.items():
            unchanged = dropout is None or rate == "activation_dropout"
            setattr(model.get_submodule(name), rate, published if unchanged else dropout)

    def draw_head(self, model: PreTrainedModel) -> None:
        """Draw the head from torch's global generator on the CPU, whatever the model's device.

        So a head is the same on every device. Also, a GPU's generator refuses to draw after the recording of a
        program has failed.
        """
        for _, module in head_modules(model, self.head):
            device = next(module.parameters(recurse=False)).device
            draw(model, module.cpu())
            module.to(device)


def head_modules(model: nn.Module, head: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules, with their names, that own parameters of which none is pretrained."""
    for prefix, module in model.named_modules():
        own = {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
        if own and head.issuperset(own):
            yield prefix, module


def draw(model: PreTrainedModel, module: nn.Module) -> None:
    """Draw a module's own parameters as the model's class initialises them."""
    for parameter in module.parameters(recurse=False):
        parameter.__dict__.pop("_is_hf_initialized", None)  # with this mark transformers would not draw it
    model._init_weights(module)  # type: ignore[no-untyped-call]
