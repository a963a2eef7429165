"""Where every trial starts: pretrained weights, a fresh head, the trial's dropout."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from hpo.finetune.models import dropout as dropouts


def digest(model: nn.Module, head: frozenset[str]) -> str:
    """Return the SHA-256 of the pretrained weights; the head is drawn anew for every trial."""
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
    """

    def __init__(self, model: PreTrainedModel, head: frozenset[str]) -> None:
        self.pristine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.head = head
        self.dropouts = dropouts.rates(model)

    def start(self, model: PreTrainedModel, seed: int, dropout: float | None) -> None:
        """Reset a model of the same configuration in place."""
        model.load_state_dict(self.pristine)
        torch.manual_seed(seed)
        for prefix, module in model.named_modules():
            own = {f"{prefix}.{name}": p for name, p in module.named_parameters(recurse=False)}
            if own and self.head.issuperset(own):
                for parameter in own.values():
                    parameter.__dict__.pop("_is_hf_initialized", None)  # or transformers would leave it
                # By the host's generator: the same head on every device, and after a program that a GPU could not
                # record, its own refuses to draw.
                place = next(iter(own.values())).device
                model._init_weights(module.cpu())  # type: ignore[no-untyped-call]
                module.to(place)
        for (name, rate), published in self.dropouts.items():
            kept = dropout is None or rate == "activation_dropout"
            setattr(model.get_submodule(name), rate, published if kept else dropout)
