"""Trials that share a frozen pretrained model and train adapters: LoRA (Hu et al., 2021).

The pretrained layers run once over the rows of all slots. Only adapters and head, a percent of the parameters, are
repeated for each slot. The frozen layers may be held in few bits while trials train. What is written, and scored for
the verdict, are the adapters on the pretrained weights as they were published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hpo.core.formatting import size
from hpo.finetune.adaptation import Tensors
from hpo.finetune.folded import equivalence
from hpo.finetune.lora import peft_files, quantised
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.lora.base_weights import hold_as_multiplied
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.recipe.training_params import TrainingParams


class LoraAdaptation:
    """Trains adapters and the head of a frozen model; see `Adaptation`.

    Args:
        lora: Where the adapters are.

    Attributes:
        lora: As given; after `install` with the names of the head.
        notes: After `install`, how much memory the base takes in few bits.

    Raises:
        MissingExtraError: `peft`, whose format is written, is not installed.
    """

    shares_weights = True

    def __init__(self, lora: Lora) -> None:
        peft_files.library()
        self.lora = lora
        self.notes: Sequence[str] = ()
        self.facts: Mapping[str, Any] = {}

    def install(self, setup: Setup) -> None:
        """Freeze the model except its head, add adapters, and hold frozen layers as the study asks.

        Raises:
            ModelError: The model has no layers of the kind that `lora_targets` names, or none to hold in few bits.
            MissingExtraError: `bitsandbytes` is needed and not installed.
        """
        model = setup.model
        pretrained = {name for name, _ in model.base_model.named_parameters(prefix=model.base_model_prefix)}
        classifier = {name for name, _ in model.named_parameters() if name not in pretrained}
        self.lora = replace(self.lora, head=setup.task.trained_in_full(setup.head, frozenset(classifier)))
        self.lora.install(model)
        if setup.config.base_weights is not None:
            self._quantise(model, setup.config.base_weights)
        if setup.precision == "bf16":
            hold_as_multiplied(model, torch.bfloat16)

    def _quantise(self, model: PreTrainedModel, form: str) -> None:
        before = quantised.size(model)
        layers = quantised.quantise(model, self.lora, form)
        self.facts = {"bitsandbytes": version("bitsandbytes")}
        model.config.update({"trained_on_base_weights": form})  # for who finds the adapter alone
        self.notes = (
            f"base_weights: {len(layers)} frozen layers are held in {form}, so the model takes "
            f"{size(quantised.size(model))} in place of {size(before)}; on a CPU a step takes longer. What is written, "
            "and scored for the verdict, has them in full",
        )

    def start(self, model: PreTrainedModel, params: TrainingParams, seed: int) -> None:
        """Draw the adapters of a trial."""
        self.lora.start(model, params, seed)

    def owned(self, weights: dict[str, torch.Tensor], trained: Tensors) -> dict[str, torch.Tensor]:
        """Return the trained weights; the others are shared."""
        return {name: weights[name] for name in trained}

    def save(self, folder: Path, slot: Slot, weights: dict[str, torch.Tensor], setup: Setup) -> None:
        """Write adapters and head as a `peft` folder, with the model's configuration."""
        peft_files.save(folder, slot.model, self.lora, weights, slot.params)

    def open(self, folder: Path, setup: Setup) -> PreTrainedModel:
        """Add the adapters to the pretrained weights, as `hpo export` does."""
        return peft_files.merged(folder)

    def as_trained(self, folder: Path, setup: Setup) -> PreTrainedModel | None:
        """Put the adapters into the study's model, whose base is held as it was while they were trained."""
        if setup.config.base_weights is None:
            return None
        peft_files.read_into(setup.model, folder, self.lora)
        return setup.model

    def difference(self, model: PreTrainedModel, *, packed: bool = False) -> str | None:
        """Compare two folded trials with two separate ones; see `hpo/finetune/folded/equivalence.py`."""
        return equivalence.check(type(model), model.config, self.lora, packed)

    def usual(self) -> Mapping[str, Any]:
        """Return a rank and a target that trials of this study may have."""
        return {"lora_rank": self.lora.rank, "lora_targets": self.lora.targets[0]}
