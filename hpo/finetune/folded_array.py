"""Trials that train as one: the slots of one folded model, refilled as trials end.

while a slot has not reached its boundary:
    every slot gives a micro-batch     rows of its own batch; nothing where it waits for the others
    one forward, one backward          losses are summed over slots: each gets the gradient it would get alone
    the slots whose batch is whole step, each with its own optimiser

All shapes are the study's: `micro_batch` rows of `length` tokens a slot, whatever its batch size and whoever its
neighbours are, so that a trial's result depends on neither.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hpo.errors import GaveWayError, NotFoldableError, OutOfMemoryError
from hpo.finetune import dropout, fold_check
from hpo.finetune.array import FineTuneArray
from hpo.finetune.batches import by_length
from hpo.finetune.device import SCORING_BATCH, out_of_memory, widened
from hpo.finetune.folded import fold, load_slot, slot_weights
from hpo.finetune.tasks import Outputs
from hpo.objective import Evaluation, TrialSpec
from hpo.samplers import derived_seed

Array = np.ndarray[Any, Any]


@dataclass
class _Batch:
    """What a slot has still to do of its batch."""

    size: int = 0
    left: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    masks: torch.Generator = field(default_factory=torch.Generator)


class FoldedArray(FineTuneArray):
    """Trains trials of one pretrained model as slots of one folded model; see `FineTuneArray`."""

    needs_own_masks = True

    def __init__(self, *args: Any, smallest_batch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        template = self._spare[0]
        if not self._own_masks:
            raise NotFoldableError(f"{type(template).__name__} draws dropout masks in a way of its own")
        if wrong := self._check(template):
            raise NotFoldableError(wrong)
        self.micro_batch = min(self.micro_batch, smallest_batch)
        self.length = int(self.tokens["train"].lengths.max())
        self.facts = {**self.facts, "program": "folded"}
        self._model: PreTrainedModel | None = None
        self._batches_of: dict[int, _Batch] = {}

    def _check(self, template: PreTrainedModel) -> str | None:
        """Return what is wrong with folding the model, or None."""
        return fold_check.check(type(template), template.config)

    def _threads_a_trial(self, slots: int | str) -> int:
        return torch.get_num_threads()  # which all slots share, one after the other

    # ------------------------------------------------------------ the moves

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot: at its start, or where it is to go on from."""
        trial = self._completed(trial)
        template = self._spare[0]
        self._start(template, trial)
        if self._model is None:
            self._model = fold(template, self.slots)
        load_slot(self._model, slot, template.state_dict())
        dropout.set_rates(self._model, slot, self.slots, template)
        weights = slot_weights(self._model, slot)
        own = {name: nn.Parameter(weights[name]) for name, p in self._model.named_parameters() if p.requires_grad}
        self._clear(slot)
        self._occupied[slot] = self._begun(trial, template, self._held(weights, own), own)
        self._batches_of[slot] = _Batch(masks=torch.Generator(self.device))

    def _held(self, weights: dict[str, torch.Tensor], trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return which of its weights a slot's best evaluation holds on to."""
        return weights

    def _advance(self) -> dict[int, Evaluation | Exception]:
        try:
            self._train()
            ended = [number for number, slot in self._occupied.items() if slot.seen >= slot.boundary]
            logits = self._predict_all("validation") if ended else np.empty(0)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return self._give_way()
        targets = self.data.splits["validation"].targets
        return {
            number: self._outcome(self._occupied[number], Outputs(self.data.task, targets, logits[number]))
            for number in ended
        }

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in."""
        self._occupied.pop(slot, None)

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second, found by doubling them while memory holds.

        Args:
            most: More are not needed.
        """
        best, fastest = 1, 0.0
        while best < most or not fastest:
            slots = min(2 * best, most) if fastest else 1
            try:
                with self._threaded():
                    speed = self._speed(slots)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                break
            if speed < 1.1 * fastest:  # not worth the memory
                break
            best, fastest = slots, speed
        self._forget()
        return best

    def _speed(self, slots: int) -> float:
        """Return the examples that some slots train a second, holding all that trials hold at their most."""
        self._forget()
        self.slots = slots
        params = {"batch_size": self.micro_batch, "epochs": 10_000}
        for number in range(slots):
            self.load(number, TrialSpec(number, params, number))
        assert self._model is not None
        best_weights = [{name: w.clone() for name, w in slot.weights.items()} for slot in self._occupied.values()]
        self._predict_all("validation")
        self._model.train()
        for steps in (2, 6):  # the first ones warm up
            began = time.perf_counter()
            for _ in range(steps):
                losses = self._micro_step(self._model, list(self._occupied))
            losses.tolist()  # wait for the device
        del best_weights
        return slots * self.micro_batch * 6 / (time.perf_counter() - began)

    def _forget(self) -> None:
        """Empty all slots and give back their memory; the next `load` builds the model anew."""
        self._occupied.clear()
        self._batches_of.clear()
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _give_way(self) -> dict[int, Evaluation | Exception]:
        """Halve the slots, then the micro-batch; what was loaded has to start again."""
        if self.slots > 1:
            self.slots //= 2
            change = f"the array goes on with {self.slots} slot{'s' if self.slots > 1 else ''}"
        elif self.micro_batch > 1:
            self.micro_batch //= 2
            change = f"the array goes on with micro-batches of {self.micro_batch}"
        else:
            return dict.fromkeys(self._occupied, OutOfMemoryError("one example at a time does not fit in memory"))
        occupied = list(self._occupied)
        self._forget()
        return dict.fromkeys(occupied, GaveWayError(f"out of memory: {change}"))

    # ------------------------------------------------------------ training

    def _train(self) -> None:
        """Train to the boundaries."""
        assert self._model is not None
        self._model.train()
        losses = torch.zeros(self.slots, device=self.device)
        while behind := [number for number, slot in self._occupied.items() if slot.seen < slot.boundary]:
            if self.halted.is_set():
                break
            losses += self._micro_step(self._model, behind)
        sums = losses.tolist()  # the only time in a segment that the host waits for the device
        for number, slot in self._occupied.items():
            slot.loss += sums[number]

    def _micro_step(self, model: PreTrainedModel, behind: list[int]) -> torch.Tensor:
        """Add the gradients of a micro-batch of every slot that is behind its boundary, and return their losses [K]."""
        rows = np.zeros((self.slots, self.micro_batch), dtype=np.int64)
        shares = np.zeros((self.slots, self.micro_batch))  # 0 where a row is there to fill up
        smoothing = np.zeros((self.slots, self.micro_batch))
        for number in behind:
            slot, batch = self._occupied[number], self._batches_of[number]
            if not len(batch.left):
                batch.left = next(slot.batches)
                batch.size = len(batch.left)
                batch.masks.manual_seed(derived_seed(slot.trial.seed, "dropout", slot.step))
            part, batch.left = np.split(batch.left, [self.micro_batch])
            rows[number, : len(part)] = part
            shares[number, : len(part)] = 1 / batch.size
            smoothing[number] = slot.trial.params["label_smoothing"]
        idle = torch.Generator(self.device)
        masks = [self._batches_of[n].masks if n in behind else idle for n in range(self.slots)]
        inputs, targets = self.tokens["train"].batch(rows.reshape(-1), self.length)
        with self._masks(), dropout.drawing_from(*masks), self._autocast():
            logits = model(**inputs).logits
        logits = widened(logits)
        losses = self.task.loss(logits, targets, self._like(logits, smoothing).view(-1)).view(shares.shape)
        weighted = losses * self._like(logits, shares)
        weighted.sum().backward()  # type: ignore[no-untyped-call]
        for number in behind:
            if not len(self._batches_of[number].left):
                self._step_slot(model, number)
        return weighted.detach().sum(dim=1)

    def _step_slot(self, model: PreTrainedModel, number: int) -> None:
        """Step on a slot's part of the gradients, and clear it."""
        slot = self._occupied[number]
        for name, parameter in model.named_parameters():
            if (own := slot.parameters.get(name)) is not None:
                own.grad = None if parameter.grad is None else parameter.grad[number]
        self._update(slot, self._batches_of[number].size)
        self._clear(number)

    def _clear(self, number: int) -> None:
        assert self._model is not None
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad[number].zero_()

    def _like(self, tensor: torch.Tensor, values: Array) -> torch.Tensor:
        return torch.from_numpy(values).to(tensor.dtype).to(self.device, non_blocking=True)

    # ------------------------------------------------------------ scoring

    @torch.inference_mode()
    def _predict_all(self, split: str) -> Array:
        """Return what every slot says of a split, in its order: [K, rows, outputs]."""
        assert self._model is not None
        self._model.train(False)
        tokens = self.tokens[split]
        chunks = by_length(tokens.lengths, SCORING_BATCH[self.device.type])
        logits = []
        for rows in chunks:
            inputs, _ = tokens.batch(rows)
            with self._masks(), self._autocast():
                repeated = {name: tensor.repeat(self.slots, 1) for name, tensor in inputs.items()}
                logits.append(self._model(**repeated).logits.float().unflatten(0, (self.slots, -1)))
        order = np.argsort(np.concatenate(chunks))
        stacked: Array = torch.cat(logits, dim=1).cpu().numpy()[:, order]
        return stacked
