"""A trial at its start, or where its checkpoint left it: its model, its slot and the batches to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hpo.core.seeds import derived_seed
from hpo.core.trainer import TrialSpec
from hpo.finetune import optimizer as optimizers
from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.batches import boundaries, epoch_batches
from hpo.finetune.data.mixing import mixed
from hpo.finetune.models import frozen
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.recipe.training_params import TrainingParams

Array = np.ndarray[Any, Any]


def begin(setup: Setup, adaptation: Adaptation, model: PreTrainedModel, trial: TrialSpec, window: int) -> Slot:
    """Return a trial that trains a model with an optimiser of its own.

    Args:
        setup: What trials share.
        adaptation: What of the model is trained.
        model: The trial's model; changed in place.
        trial: The trial.
        window: As in `epoch_batches`.

    Raises:
        ValueError: The checkpoint is another trial's, or another model's.
        KeyError: The checkpoint lacks something.
        StudyError: What frozen layers yield cannot be kept.
    """
    params = TrainingParams.of(trial.params)
    reset(setup, adaptation, model, trial, params)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizers.build(dict(model.named_parameters()), setup.head, params)
    weights = adaptation.owned(frozen.above(model, model.state_dict()), parameters)
    slot = new_slot(
        setup, trial, params, model, weights, parameters, lambda name: optimizer.state[parameters[name]], window
    )
    slot.optimizer = optimizer
    return slot


def reset(
    setup: Setup, adaptation: Adaptation, model: PreTrainedModel, trial: TrialSpec, params: TrainingParams
) -> None:
    """Put a model to where a trial starts: pretrained weights, and a head and adapters drawn from the trial's seed.

    Raises:
        StudyError: What frozen layers yield cannot be kept.
    """
    setup.initial.start(model, derived_seed(trial.seed, "head"), params.dropout)
    adaptation.start(model, params, derived_seed(trial.seed, "adapters"))
    frozen.freeze(model, params.frozen_layers)
    setup.split_for(model, "train")  # what frozen layers yield is computed here, before the trial trains


def new_slot(
    setup: Setup,
    trial: TrialSpec,
    params: TrainingParams,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
    moments: Callable[[str], dict[str, torch.Tensor]],
    window: int,
) -> Slot:
    """Return a trial whose model is at the trial's start.

    The arguments between `setup` and `window` are as in `Slot`, `window` is as in `epoch_batches`.

    Raises:
        ValueError: The checkpoint is another trial's, or another model's.
        KeyError: The checkpoint lacks something.
    """
    rows = setup.train_rows
    slot = Slot(
        replace(trial, checkpoint=None),  # so that its memory is free after it is restored
        params,
        model,
        weights,
        dict(parameters),
        moments,
        boundaries(rows, setup.config.evaluations_per_epoch, params.epochs),
        total_steps=params.epochs * math.ceil(rows / params.batch_size),
    )
    if trial.checkpoint is not None:
        slot.restore(trial.checkpoint)
    slot.batches = batches(setup, slot, window)
    return slot


def batches(setup: Setup, slot: Slot, window: int) -> Iterator[Array]:
    """Return the row numbers of each step of a trial, from its present step on.

    The iterator does not refer to the slot, which refers to it: so an unloaded trial's memory is free at once.
    """
    return _batches(setup, slot.params, slot.trial.seed, slot.step, window)


def _batches(setup: Setup, params: TrainingParams, seed: int, step: int, window: int) -> Iterator[Array]:
    sizes, size = setup.tokens["train"].sizes, params.batch_size
    first, done = divmod(step, math.ceil(len(sizes) / size))
    for epoch in range(first, params.epochs):
        rows = _mixed(setup, params, seed, epoch)
        yield from epoch_batches(sizes, size, derived_seed(seed, "order"), epoch, window, rows)[done:]
        done = 0


def _mixed(setup: Setup, params: TrainingParams, seed: int, epoch: int) -> Array | None:
    """Return the rows of an epoch where several tasks are mixed in other proportions than those of their rows."""
    tasks, temperature = setup.task.tasks_of(setup.rows["train"]), params.sampling_temperature
    if tasks is None or temperature == 1:
        return None
    return mixed(tasks, temperature, derived_seed(seed, "tasks"), epoch)
