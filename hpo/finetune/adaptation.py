"""Which part of a pretrained model a trial trains: the whole model here, adapters in `hpo/finetune/lora/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from hpo.finetune.folded import equivalence
from hpo.finetune.models import frozen
from hpo.finetune.models.loading import load_model
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.recipe.training_params import TrainingParams

Tensors = Mapping[str, torch.Tensor]  # by name


class Adaptation(Protocol):
    """How a pretrained model is changed and trained.

    Attributes:
        shares_weights: Whether all slots use the same pretrained weights.
        notes: What the user should know of how the model is held.
        facts: What the results depend on because of that, besides the study file.
    """

    shares_weights: bool
    notes: Sequence[str]
    facts: Mapping[str, Any]

    def install(self, setup: Setup) -> None:
        """Change the model before any trial starts from it.

        Raises:
            ModelError: The model cannot be changed in this way.
        """

    def start(self, model: PreTrainedModel, params: TrainingParams, seed: int) -> None:
        """Put what was installed in a model to where a trial starts.

        Args:
            model: Has its pretrained weights and a fresh head.
            params: The trial's hyperparameters.
            seed: Seed of what is drawn.
        """

    def owned(self, weights: dict[str, torch.Tensor], trained: Tensors) -> dict[str, torch.Tensor]:
        """Return the weights of a slot that belong to its trial alone; those of the best evaluation are copied.

        Args:
            weights: All weights of the slot.
            trained: The trained ones.
        """

    def save(self, folder: Path, slot: Slot, weights: dict[str, torch.Tensor], setup: Setup) -> None:
        """Write the best weights of a slot's trial, as `owned` chose them, in a Hugging Face folder."""

    def open(self, folder: Path, setup: Setup) -> PreTrainedModel:
        """Return the whole model that `save` wrote, on the CPU.

        Raises:
            ModelError: It cannot be loaded.
        """

    def as_trained(self, folder: Path, setup: Setup) -> PreTrainedModel | None:
        """Return the model of `save` with the frozen weights that it was trained on, ready to predict.

        None if those are the weights that `open` returns. It is the study's model, so call it while no trial is in
        training.
        """

    def difference(self, model: PreTrainedModel, *, packed: bool = False) -> str | None:
        """Return a sentence that says how folded trials differ from separate trials; None if they do not differ.

        Args:
            model: The model after `install`.
            packed: Whether to compare with tokens packed.
        """

    def usual(self) -> Mapping[str, Any]:
        """Return hyperparameters of a trial with which speed is measured; the others have their defaults."""


class WholeModel:
    """Trains all parameters of the model."""

    shares_weights = False
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = {}

    def install(self, setup: Setup) -> None:
        """Leave the model as it is."""

    def start(self, model: PreTrainedModel, params: TrainingParams, seed: int) -> None:
        """Leave the model as it is."""

    def owned(self, weights: dict[str, torch.Tensor], trained: Tensors) -> dict[str, torch.Tensor]:
        """Return all weights."""
        return weights

    def save(self, folder: Path, slot: Slot, weights: dict[str, torch.Tensor], setup: Setup) -> None:
        """Write safetensors and the configuration, with the whole vocabulary."""
        if slot.params.frozen_layers:  # the embeddings among them, which are not decayed
            whole = setup.vocabulary.restored({**setup.initial.pristine, **weights}, 1.0)
        else:
            whole = setup.vocabulary.restored(weights, slot.best_decay)
        slot.model.save_pretrained(folder, state_dict=whole)

    def open(self, folder: Path, setup: Setup) -> PreTrainedModel:
        """Load the folder."""
        model, _ = load_model(str(folder.resolve()), folder, setup.task, setup.data.labels)
        return model

    def as_trained(self, folder: Path, setup: Setup) -> None:
        """Return None: a model is written as it was trained."""

    def difference(self, model: PreTrainedModel, *, packed: bool = False) -> str | None:
        """Compare two folded trials with two separate models; see `hpo/finetune/folded/equivalence.py`."""
        return equivalence.check(type(model), model.config, packed=packed, frozen=frozen.of(model) is not None)

    def usual(self) -> Mapping[str, Any]:
        """Return nothing: the defaults will do."""
        return {}
