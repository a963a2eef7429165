"""One trial in training, and its checkpoint, from which it can go on in another process.

A checkpoint holds no state of a random generator: the order of the rows derives from the trial's seed and the epoch,
and the masks of dropout derive from the seed and the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hpo.core.numbers import finite_or_none
from hpo.core.trainer import TrialCheckpoint, TrialSpec
from hpo.finetune import optimizer as optimizers
from hpo.recipe.training_params import TrainingParams

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, torch.Tensor]  # by name

COUNTS = ("step", "seen", "evaluations")
NUMBERS = ("loss", "best", "best_decay", "decay")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # the state of a parameter in AdamW


@dataclass
class Slot:
    """One trial in training.

    Attributes:
        trial: Its number and seed; without a checkpoint.
        params: Its hyperparameters.
        model: A model of its own, or one model for all trials of a folded engine.
        weights: The present weights that belong to the trial alone, by their names in the model's `state_dict`; views.
        parameters: The weights that the optimiser steps, each under one name; views.
        moments: Name of a parameter -> its state in AdamW, by `MOMENTS`; it may be empty before the first step.
        boundaries: Examples seen at each evaluation.
        total_steps: Optimiser steps of the whole training.
        optimizer: Its own; None for a folded trial.
        batches: The row numbers of each step to come.
        step: Optimiser steps done.
        seen: Examples seen.
        evaluations: Evaluations done.
        loss: Sum over the steps of the present segment; only whether it is finite is used.
        best: Value of the best evaluation; NaN before the first.
        best_weights: Copy of `weights` at the best evaluation.
        best_decay: `decay` at the best evaluation.
        fitted: What the task fitted to the predictions of the best evaluation; see `Task.fitted`.
        decay: Factor that weight decay has left of an embedding row that no text uses.
    """

    trial: TrialSpec
    params: TrainingParams
    model: PreTrainedModel
    weights: dict[str, torch.Tensor]
    parameters: dict[str, torch.Tensor]
    moments: Callable[[str], dict[str, torch.Tensor]]
    boundaries: list[int]
    total_steps: int
    optimizer: torch.optim.AdamW | None = None
    batches: Iterator[Array] = field(default_factory=lambda: iter(()))
    step: int = 0
    seen: int = 0
    evaluations: int = 0
    loss: float = 0.0
    best: float = math.nan
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    best_decay: float = 1.0
    fitted: dict[str, Any] = field(default_factory=dict)
    decay: float = 1.0

    @property
    def boundary(self) -> int:
        """Examples seen at the end of the present segment."""
        return self.boundaries[self.evaluations]

    def update(self, examples: int) -> None:
        """Let the trial's own optimiser step on the gradients of a whole batch of `examples`."""
        assert self.optimizer is not None
        optimizers.clip(self.optimizer, self.params.max_grad_norm)
        optimizers.set_learning_rate(self.optimizer, self.step, self.total_steps, self.params)
        self.optimizer.step()
        self.decay *= optimizers.decay_of_unused_rows(self.optimizer)
        self.step += 1
        self.seen += examples

    def hold(self, value: float, fitted: Mapping[str, Any]) -> None:
        """Copy the weights as those of the best evaluation so far, which has this value."""
        self.best, self.best_decay, self.fitted = value, self.decay, dict(fitted)
        self.best_weights = {name: tensor.clone() for name, tensor in self.weights.items()}

    def take_back(self) -> None:
        """Forget the last evaluation, which is computed again; a best one stays, as it will be no better."""
        self.evaluations -= 1
        if self.evaluations == 0:
            self.best, self.best_decay, self.fitted, self.best_weights = math.nan, 1.0, {}, {}

    @contextmanager
    def at_best(self) -> Iterator[None]:
        """Give the model the weights of the best evaluation, and afterwards the present ones again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the present weights and the best ones; a tied weight, which has several names, once."""
        once = {weight.data_ptr(): name for name, weight in self.weights.items()}
        for name in once.values():
            present = self.weights[name].clone()
            self.weights[name].copy_(self.best_weights[name])
            self.best_weights[name].copy_(present)

    def checkpoint(self) -> TrialCheckpoint:
        """Return what the trial needs to go on from its last whole step, in CPU memory of its own."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            moments = self.moments(name)
            tensors[f"weights.{name}"] = parameter
            tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moments}
            if self.best_weights:
                tensors[f"best.{name}"] = self.best_weights[name]
        state: dict[str, Any] = {name: getattr(self, name) for name in COUNTS}
        for name in NUMBERS:
            state[name] = finite_or_none(float(getattr(self, name)))  # JSON has no NaN
        state["fitted"] = self.fitted
        return TrialCheckpoint(
            self.trial.number, state, {n: t.detach().to("cpu", copy=True) for n, t in tensors.items()}
        )

    def restore(self, checkpoint: TrialCheckpoint) -> None:
        """Put a trial that is at its start to where its checkpoint left it.

        Raises:
            ValueError: The checkpoint is another trial's, or another model's.
            KeyError: The checkpoint lacks something.
        """
        self._restore_state(checkpoint)
        tensors = dict(checkpoint.tensors)
        stepped: Tensors = {name: p for name, p in self.parameters.items() if f"step.{name}" in tensors}
        like = {"step": dict.fromkeys(stepped, torch.zeros(()))}
        weights = _taken(tensors, "weights", self.parameters)
        moments = {moment: _taken(tensors, moment, like.get(moment, stepped)) for moment in MOMENTS}
        best = _taken(tensors, "best", self.parameters if self.evaluations else {})
        if tensors or (self.step and not stepped):
            raise ValueError(
                f"the checkpoint of trial {checkpoint.trial} has other tensors than the model and its optimiser"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        for name, parameter in stepped.items():
            held = self.moments(name)
            for moment in MOMENTS:
                if moment in held:
                    held[moment].copy_(moments[moment][name])
                else:
                    held[moment] = moments[moment][name].to(parameter.device, copy=True)
        if best:
            self._restore_best(best)

    def _restore_state(self, checkpoint: TrialCheckpoint) -> None:
        for name in COUNTS:
            setattr(self, name, int(checkpoint.state[name]))
        for name in NUMBERS:
            value = checkpoint.state[name]
            setattr(self, name, math.nan if value is None else float(value))
        self.fitted = dict(checkpoint.state.get("fitted", {}))  # former versions stored none
        within = 0 <= self.step <= self.total_steps and 0 <= self.evaluations < len(self.boundaries)
        if checkpoint.trial != self.trial.number or not within:
            raise ValueError(f"the checkpoint of trial {checkpoint.trial} is no state of trial {self.trial.number}")

    def _restore_best(self, best: Tensors) -> None:
        """Set the best weights: untrained ones are still as they were, and a tied one has several names."""
        names = {parameter.data_ptr(): name for name, parameter in self.parameters.items()}
        self.best_weights = {
            name: best.get(names.get(weight.data_ptr(), ""), weight).to(weight.device, copy=True)
            for name, weight in self.weights.items()
        }


def _taken(tensors: dict[str, torch.Tensor], kind: str, wanted: Tensors) -> dict[str, torch.Tensor]:
    """Take the tensors of one kind out of a checkpoint's tensors.

    Raises:
        ValueError: One has another shape or dtype.
        KeyError: One is missing.
    """
    taken = {}
    for name, like in wanted.items():
        found = tensors.pop(f"{kind}.{name}")
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{kind}.{name} is {found.dtype} {list(found.shape)}, not {like.dtype} {list(like.shape)}")
        taken[name] = found
    return taken
