"""The folded engine: trials train together, in the slots of one folded model; a slot is refilled when its trial ends.

until every slot has reached its boundary:
    plan        each slot's batches become micro-batches, up to its boundary
    program     micro-step after micro-step, on the device (`hpo/finetune/folded/program.py`)
    score       all slots in one pass over the validation split

All shapes are the same for the whole study. They depend neither on a trial's batch size nor on its neighbours, so a
trial's result does not depend on its neighbours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hpo.core.errors import ArrayShrankError, ModelError, NotFoldableError, OutOfMemoryError
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.finetune import device
from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.encoded import Tensors, Tokens
from hpo.finetune.device import out_of_memory
from hpo.finetune.engine import Trained
from hpo.finetune.folded.memory import estimated
from hpo.finetune.folded.model import narrowed
from hpo.finetune.folded.program import MicroBatch, Program
from hpo.finetune.folded.program_builder import ProgramBuilder
from hpo.finetune.memory import Memory
from hpo.finetune.models import dropout, frozen
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.finetune.trial_model import measured_seconds, predict_whole
from hpo.finetune.trial_start import batches, new_slot, reset
from hpo.recipe.training_params import TrainingParams
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

DISPLACED = (
    "the last bits of a trial's result may depend on its slot and its neighbours: products in this process depend on "
    "where their operands lie in memory; start it with MKL_CBWR={mode} in the environment"
)


class FoldedEngine:
    """Holds trials in the slots of one folded model; see `Engine`.

    Args:
        setup: What trials share, made for folding.
        adaptation: What of the model they train.
        smallest_batch: The smallest batch size that a trial may have.
        by_depth: Whether a trial may have layer-wise decay; if so, each step is one operation for each depth and slot.

    Attributes:
        window: As in `epoch_batches`; rows are not sorted by length, because all are padded to one length or packed.
        micro_batch: Rows of each slot in one pass; halved after a lack of memory.

    Raises:
        NotFoldableError: Folded trials would differ from separate trials.
    """

    window = 1

    def __init__(self, setup: Setup, adaptation: Adaptation, smallest_batch: int, by_depth: bool) -> None:
        self.setup, self.adaptation = setup, adaptation
        slots = setup.config.slots
        self.slots = 1 if slots == "auto" else slots
        self.threads = torch.get_num_threads()  # for one slot after the other
        self.occupied: dict[int, Slot] = {}
        self.stop_request = StopRequest()
        displaced = setup.device.type == "cpu" and not device.reproducible_products()
        self.notes: Sequence[str] = (DISPLACED.format(mode=device.reproducible_mode()),) if displaced else ()
        template = setup.model
        if not setup.own_masks:
            raise NotFoldableError(f"{type(template).__name__} draws dropout masks in a way of its own")
        # With one slot and shared weights no trials can be mixed up, so there is nothing to check.
        self._alone = slots == 1 and adaptation.shares_weights
        if not self._alone and (wrong := adaptation.difference(template)):
            raise NotFoldableError(wrong)
        self.micro_batch = min(setup.config.micro_batch, smallest_batch)
        self._builder = ProgramBuilder(setup, adaptation, by_depth)
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """The program that trains the slots; there is none before the first `load`."""
        assert self._program is not None
        return self._program

    @property
    def facts(self) -> Mapping[str, Any]:
        """Which program trains: sums over packed tokens and over padded rows differ in their last bits."""
        return {"program": "packed" if self._builder.shape(self.micro_batch).line else "folded"}

    # ------------------------------------------------------------ trials in slots

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot: at its start, or where its checkpoint left it.

        Raises:
            ArrayShrankError: So many slots do not fit in memory; their number is now halved.
            OutOfMemoryError: One slot does not fit in memory.
        """
        params, template = TrainingParams.of(trial.params), self.setup.model
        reset(self.setup, self.adaptation, template, trial, params)
        if self._program is None:
            self._program = self._built()
        weights = self.program.load(slot, template, params)
        optimizer = self.program.optimizer
        own = optimizer.parameters(slot)
        self.occupied[slot] = new_slot(
            self.setup,
            trial,
            params,
            template,
            self.adaptation.owned(frozen.above(template, weights), own),
            own,
            lambda name: optimizer.moments(slot, name),
            self.window,
        )

    def _built(self) -> Program:
        """Return the program, with all slots empty.

        Raises:
            ArrayShrankError: So many slots do not fit in memory; their number is now halved.
            OutOfMemoryError: One slot does not fit in memory.
        """
        try:
            return self._builder.program(self.slots, self._train_rows(), self._builder.shape(self.micro_batch))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Outside of the handler, in which the traceback keeps the tensors alive.
        if self.slots == 1:
            raise OutOfMemoryError("one trial's weights, gradients and moments do not fit in memory")
        raise ArrayShrankError(self._halved())

    def _train_rows(self) -> Tokens:
        """Return the train split, which the program gathers batches from on the device.

        Raises:
            ModelError: The states of frozen layers do not fit in the device's memory.
        """
        tokens = self.setup.split_for(self.setup.model, "train")
        if tokens.states is not None and tokens.states.device.type != self.setup.device.type:
            raise ModelError("the states of the frozen layers do not fit in the device's memory; write fold: false")
        return tokens

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in."""
        self.occupied.pop(slot, None)

    # ------------------------------------------------------------ training

    def train(self) -> Mapping[int, Trained]:
        """Train every occupied slot to its boundary; after a lack of memory all trials have to start again."""
        try:
            self._train()
            ended = [number for number, slot in self.occupied.items() if slot.seen >= slot.boundary]
            answers = self._answers_of_all("validation") if ended else {}
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return self._give_way()
        return {
            number: self.setup.predictions("validation", {name: array[number] for name, array in answers.items()})
            for number in ended
        }

    def make_room(self, outcomes: dict[int, Evaluation | Exception]) -> dict[int, Evaluation | Exception]:
        """Return the outcomes; if a copy of best weights did not fit in memory, all trials have to start again."""
        if any(isinstance(outcome, OutOfMemoryError) for outcome in outcomes.values()):
            return dict(self._give_way())
        return outcomes

    def _train(self) -> None:
        """Train to the boundaries."""
        program = self.program
        plans = {number: self._planned(slot) for number, slot in self.occupied.items() if slot.seen < slot.boundary}
        for step in range(program.write(plans)):
            if self.stop_request.is_set():
                self._rewind(plans)
                break
            self._micro_step(program, step)
            for number, plan in plans.items():
                if step < len(plan):
                    self._done(self.occupied[number], plan[step])
        sums = program.losses.tolist()  # the only time in a segment that the host waits for the device
        for number, slot in self.occupied.items():
            slot.loss += sums[number]

    def _micro_step(self, program: Program, step: int) -> None:
        program.step(step)

    def _planned(self, slot: Slot) -> list[MicroBatch]:
        """Return a slot's micro-batches up to the first whole step at or after its boundary."""
        optimizer, shape, tokens = self.program.optimizer, self.program.shape, self.setup.tokens["train"]
        plan: list[MicroBatch] = []
        step, seen = slot.step, slot.seen
        while seen < slot.boundary:
            rows = next(slot.batches)
            seed = derived_seed(slot.trial.seed, "dropout", step)
            parts = shape.parts(rows, tokens.totals)
            rates = optimizer.rates(step, slot.total_steps, slot.params)
            units = max(1.0, float(tokens.units[rows].sum()))
            for number, part in enumerate(parts):
                ends = number == len(parts) - 1
                key = dropout.key(seed, number)
                plan.append(MicroBatch(part, len(rows), units, key, rates if ends else None))
            step, seen = step + 1, seen + len(rows)
        return plan

    def _rewind(self, numbers: Iterable[int]) -> None:
        """Put slots that were stopped within a segment back to their last whole step."""
        for number in numbers:
            self.program.optimizer.gradients[number].zero_()
            self.occupied[number].batches = batches(self.setup, self.occupied[number], self.window)

    def _done(self, slot: Slot, micro: MicroBatch) -> None:
        """Count a micro-batch that is done."""
        if micro.rates is not None:
            decay = slot.params.weight_decay
            slot.decay *= self.program.optimizer.decay_of_unused_rows(micro.rates, decay)
            slot.step += 1
            slot.seen += micro.batch

    # ------------------------------------------------------------ scoring

    @torch.no_grad()  # not inference mode, in which autocast would cast the weights again for every chunk
    def _answers_of_all(self, split: str) -> dict[str, Array]:
        """Return the answers of every slot about a split, in its order, by name: [K, rows, ...]."""
        model = self.program.model.train(False)

        def answer(inputs: Tensors, targets: Tensors) -> Tensors:
            inputs, targets = self._for_every_slot(inputs), self._for_every_slot(targets)
            answers = self.setup.task.answers(self.setup.outputs(model, inputs, targets), targets)
            return {name: tensor.view(self.slots, -1, *tensor.shape[1:]) for name, tensor in answers.items()}

        with self.setup.intercepted(), self.setup.autocast():  # one context for all chunks: weights are cast once
            size = device.scoring_batch(self.setup.device, self.slots)
            return self.setup.split_for(self.setup.model, split).answers(answer, size)

    def _for_every_slot(self, tensors: Tensors) -> Tensors:
        return {name: tensor.repeat(self.slots, *[1] * (tensor.ndim - 1)) for name, tensor in tensors.items()}

    def generate(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> Mapping[int, list[str]]:
        """Return what some slots generate for prompts, in one call of the model.

        On a CPU only the slots between them generate too, as each costs its own arithmetic. Elsewhere all slots do: the
        last bits depend on the number of slots there.
        """
        first, last = 0, self.slots
        if self.setup.device.type == "cpu":
            first, last = min(slots), max(slots) + 1
        with narrowed(self.program.model, first, last):
            texts = self.setup.generated(self.program.model, prompts, last - first, stop=self.stop_request)
        return {number: texts[number - first] for number in slots}

    def whole(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights."""
        return dict(weights)

    def predictions_of(self, model: PreTrainedModel, split: str) -> Predictions:
        """Return the predictions for a split of a whole model."""
        return predict_whole(self.setup, model, split)

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes of one trial's model."""
        return measured_seconds(self.setup, self.setup.model)

    # ------------------------------------------------------------ slots and memory

    def memory(self, free: int | None) -> Memory:
        """Estimate the memory that the trials in all slots take."""
        self._forget()
        return estimated(self._builder, self.slots, self._builder.shape(self.micro_batch), free)

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second, found by doubling them while they fit in memory."""
        if self._alone:
            return 1
        best, fastest = 1, 0.0
        while best < most or not fastest:
            slots = min(2 * best, most) if fastest else 1
            log.info("measuring how fast %s trials train at once (slots: auto)", slots)
            try:
                with device.threaded(self.threads):
                    speed = self._speed(slots)
            except (ArrayShrankError, OutOfMemoryError):
                break
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
        """Return the examples a second with a number of slots, with all memory in use that trials use at most."""
        self._forget()
        self.slots = slots
        params = {**self.adaptation.usual(), "batch_size": self.micro_batch, "epochs": 10_000}
        params["frozen_layers"] = self.setup.frozen_layers[0]  # folded, all trials have as many
        for number in range(slots):
            self.load(number, TrialSpec(number, params, number))
        best_weights = [{name: w.clone() for name, w in slot.weights.items()} for slot in self.occupied.values()]
        self._answers_of_all("validation")
        written = self.program.write({number: self._planned(slot) for number, slot in self.occupied.items()})
        for steps in (3, 6):  # the first three warm up
            began = time.perf_counter()
            for step in range(steps):
                self.program.step(step % written)
            self.program.losses.tolist()  # wait for the device
        del best_weights
        return slots * self.micro_batch * 6 / (time.perf_counter() - began)

    def _forget(self) -> None:
        """Empty all slots and free their memory; the next `load` builds the model again."""
        self.occupied.clear()
        self._program = None
        if self.setup.device.type == "cuda":
            torch.cuda.empty_cache()

    def _give_way(self) -> dict[int, Exception]:
        """Halve the slots, or the micro-batch of one slot, and return outcomes by which all trials start again."""
        occupied = list(self.occupied)
        if self.slots == self.micro_batch == 1:
            return dict.fromkeys(occupied, OutOfMemoryError("one example at a time does not fit in memory"))
        self._forget()
        return dict.fromkeys(occupied, ArrayShrankError(self._halved()))

    def _halved(self) -> str:
        """Halve the slots, or the micro-batch of one slot, and return a message about it."""
        if self.slots > 1:
            self.slots //= 2
            change = f"{self.slots} slot{'s' if self.slots > 1 else ''}"
        else:
            self.micro_batch //= 2
            change = f"micro-batches of {self.micro_batch}"
        return f"out of memory: the array goes on with {change}"
