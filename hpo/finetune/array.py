"""Fine-tuning as a `TrialArray`: slots that each hold a trial of one pretrained model on data kept on the device."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from hpo.config.schema import StudyConfig
from hpo.core.errors import DivergedError, OutOfMemoryError
from hpo.core.interrupts import Halt
from hpo.core.trainer import Evaluation, Seen, TrialSpec
from hpo.execution.checkpoint_store import Kept
from hpo.finetune import device
from hpo.finetune import optimizer as optimizers
from hpo.finetune.data.batches import WINDOW, boundaries, epoch_batches
from hpo.finetune.data.encoded import Tokens, encode
from hpo.finetune.data.sources import Dataset
from hpo.finetune.device import out_of_memory, widened
from hpo.finetune.models import dropout, first_token
from hpo.finetune.models.loading import Starter, digest, load_model, load_tokenizer, longest_input
from hpo.finetune.models.vocabulary import Vocabulary
from hpo.finetune.slot import Slot
from hpo.recipe.hyperparameters import defaults
from hpo.search.samplers import derived_seed
from hpo.tasks import metrics
from hpo.tasks.classification import TASKS, Outputs, class_weights
from hpo.tasks.metrics import METRICS, score

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)


# Raised when hpo computes other numbers from the same study.
NUMERICS = 4


class FineTuneArray:
    """Trains trials of one pretrained model.

    Args:
        config: The study's settings.
        data: Its rows.
        folder: The study file's folder.
        horizon_epochs: Most epochs that the space allows.

    Raises:
        ModelError: The model or its tokenizer cannot be loaded.
        DataError: The metric is not defined for the task, or on a split.
    """

    needs_own_masks = False  # whether every mask has to be drawn from the trial's own generator

    window = WINDOW  # batches of like lengths

    def __init__(self, config: StudyConfig, data: Dataset, folder: Path, horizon_epochs: int) -> None:
        assert config.model is not None
        self.slots = 1 if config.slots == "auto" else config.slots
        scored = {name: data.splits[name].targets for name in ("validation", "test")}
        self.metric = metrics.chosen(config.metric, data.task, len(data.labels), scored)
        self.notes: Sequence[str] = ()
        if self.metric.endswith("_binary"):
            self.notes = (f"{self.metric} is that of {data.labels[-1]!r}, the last label in order",)
        self.evaluations_per_epoch = config.evaluations_per_epoch
        self.micro_batch = config.micro_batch
        self.device = device.chosen(config.device)
        self.precision = device.precision(config.precision, self.device)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.task = TASKS[data.task]
        self.data = data
        log.info("loading the model %s", config.model)
        self._class_weights = class_weights(data.task, data.splits["train"].targets, len(data.labels), self.device)
        self.tokenizer = load_tokenizer(config.model, folder)
        model, head = load_model(config.model, folder, data.task, data.labels, self.tokenizer.pad_token_id)
        model.to(self.device)  # type: ignore[arg-type]
        first_token.shorten(model)
        if self.needs_own_masks or self.device.type == "cpu":
            dropout.install(model)
        self.max_length = longest_input(config.max_length, self.tokenizer, model.config)
        encoded = {name: self._encoded(name) for name in data.splits}
        log.info("preparing the model")
        weights_digest = digest(model, head)
        self._vocabulary = Vocabulary(model, np.unique(torch.cat([t.ids for t in encoded.values()]).cpu()))
        self.tokens: dict[str, Tokens] = {
            name: replace(tokens, ids=self._vocabulary.renumber(tokens.ids)) for name, tokens in encoded.items()
        }
        self._adapt(model, head)
        # Only a model that asks for its masks by itself pays for a look at every call.
        self._masks: type[AbstractContextManager[Any]] = nullcontext
        if not (own := self._draws_all_masks(model)):
            self._masks = dropout.OwnFunction
            own = self._draws_all_masks(model)
        self._own_masks = own
        self.halted = Halt()
        self.threads = self._threads_a_trial(config.slots)
        self._spare = [model]
        self._starter = Starter(model, head)
        rows = len(data.splits["train"])
        self.segment = boundaries(rows, self.evaluations_per_epoch, 1)[0]
        self.horizon: int | None = rows * horizon_epochs
        self._occupied: dict[int, Slot] = {}
        self.facts: Mapping[str, Any] = {
            "task": data.task,
            "metric": self.metric,
            "data": data.digest,
            "weights": weights_digest,
            "precision": self.precision,
            "device": self.device.type,
            "numerics": NUMERICS,
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers.__version__,
        }
        if self.device.type == "cpu":  # where sums are split among them
            self.facts = {**self.facts, "threads": self.threads}

    def _encoded(self, split: str) -> Tokens:
        rows = self.data.splits[split]
        log.info("tokenising %s rows of %s", f"{len(rows):,}", split)
        return encode(rows, self.tokenizer, self.max_length, self.device)

    def _threads_a_trial(self, slots: int | str) -> int:
        """Return with how many threads a trial trains, however many slots have one: its numbers depend on that."""
        total = torch.get_num_threads()
        if not self._own_masks:
            return total
        return 1 if slots == "auto" else max(1, total // int(slots))

    def settle(self, facts: Mapping[str, Any]) -> None:
        """Go on with the threads a trial that a study was begun with, however many there are here."""
        threads = facts.get("threads")
        if "threads" not in self.facts or not isinstance(threads, int) or threads < 1 or threads == self.threads:
            return
        self.notes = (*self.notes, f"trials have {threads} threads each, as the study was begun (not {self.threads})")
        self.threads = threads
        self.facts = {**self.facts, "threads": threads}

    def _adapt(self, model: PreTrainedModel, head: frozenset[str]) -> None:
        """Change the model before any trial starts from it."""

    # ------------------------------------------------------------ the moves

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot: at its start, or where it is to go on from."""
        trial = self._completed(trial)
        if not self._spare:
            self._spare.append(copy.deepcopy(self._any_model()))
        model = self._spare[-1]
        self._start(model, trial)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = optimizers.build(parameters, self._starter.head, trial.params)
        begun = self._begun(trial, model, model.state_dict(), parameters, lambda n: optimizer.state[parameters[n]])
        begun.optimizer = optimizer
        self._occupied[slot] = begun
        self._spare.pop()  # only now: had the start failed, the model would still be there for the next trial

    def _start(self, model: PreTrainedModel, trial: TrialSpec) -> None:
        self._starter.start(model, derived_seed(trial.seed, "head"), trial.params["dropout"])

    def _completed(self, trial: TrialSpec) -> TrialSpec:
        return replace(trial, params={**defaults(trial.params), **trial.params})

    def _begun(
        self,
        trial: TrialSpec,
        model: PreTrainedModel,
        weights: dict[str, torch.Tensor],
        parameters: Mapping[str, torch.Tensor],
        moments: Callable[[str], dict[str, torch.Tensor]],
    ) -> Slot:
        """Return a trial at its start, or where it is to go on from; the arguments are as in `Slot`."""
        rows, size, epochs = len(self.tokens["train"].lengths), trial.params["batch_size"], trial.params["epochs"]
        slot = Slot(
            replace(trial, kept=None),  # which has its memory back once it is restored
            model,
            weights,
            dict(parameters),
            moments,
            boundaries(rows, self.evaluations_per_epoch, epochs),
            total_steps=epochs * math.ceil(rows / size),
        )
        if trial.kept is not None:
            slot.restore(trial.kept)
        slot.batches = self._batches(trial, slot.step)
        return slot

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train every occupied slot to its next boundary and score it on the validation split."""
        if not self._occupied:
            return {}
        with device.threaded(self.threads):
            return self._advance()

    def _advance(self) -> dict[int, Evaluation | Exception]:
        trained = self._joint() if self._side_by_side else {n: self._trained(s) for n, s in self._occupied.items()}
        return {n: self._outcome(self._occupied[n], found) for n, found in trained.items() if found is not None}

    def _joint(self) -> dict[int, Outputs | Exception | None]:
        """Train all slots to their boundaries, each beside the others."""
        count = len(self._occupied)
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(self.threads,)) as pool:
            futures = {number: pool.submit(self._trained, slot) for number, slot in self._occupied.items()}
            try:
                return {number: future.result() for number, future in futures.items()}
            except BaseException:
                self.halted.set()  # the pool waits for its threads: they end at their next step
                raise

    def seen(self, slot: int) -> Seen | None:
        """Return the examples that the slot's trial has seen, and those of its whole training."""
        held = self._occupied.get(slot)
        return None if held is None else (held.seen, held.boundaries[-1])

    def save(self, slot: int) -> Kept | None:
        """Return what the slot's trial needs to go on from its last whole step."""
        return self._occupied[slot].saved()

    def pause(self, slot: int) -> bool:
        """Trials are held in slots only."""
        return False

    def keep(self, slot: int, folder: Path) -> bool:
        """Write the best evaluation's weights as a Hugging Face folder: safetensors, configuration, tokenizer."""
        held = self._occupied[slot]
        if not held.best_weights:
            return False
        weights = self._vocabulary.restored(held.best_weights, held.best_decay)
        held.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        return True

    def unload(self, slot: int) -> None:
        """Empty a slot; its model is used again."""
        if slot in self._occupied:
            self._spare.append(self._occupied.pop(slot).model)

    # ------------------------------------------------------------ training

    def _outcome(self, slot: Slot, trained: Outputs | Exception) -> Evaluation | Exception:
        """Return what a segment came to; the end of one trial is not that of the others."""
        if isinstance(trained, Exception):
            return trained
        try:
            return self._scored(slot, trained)
        except Exception as error:
            return _told(error)

    def _trained(self, slot: Slot) -> Outputs | Exception | None:
        try:
            return self._segment(slot)
        except Exception as error:
            return _told(error)

    @property
    def _side_by_side(self) -> bool:
        return self.slots > 1 and self._own_masks

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second: on a CPU with all threads in use, elsewhere one."""
        return max(1, min(torch.get_num_threads() // self.threads, most)) if self._own_masks else 1

    def _draws_all_masks(self, model: PreTrainedModel) -> bool:
        """Return whether all that is random in training is drawn from a trial's own generator.

        Trials can then train side by side, a thread each, and get what they would have got alone. On a CPU two
        trials in two threads are faster than one after the other with two: a step has many small operations.
        """
        if not (self.needs_own_masks or self.device.type == "cpu"):
            return False
        rows = np.arange(min(4, len(self.tokens["train"].lengths)))
        inputs, _ = self.tokens["train"].batch(rows)
        outputs = []
        with dropout.everywhere(model, 0.1):  # a trial may ask for it where the model was published without
            for seed in (0, 1):
                torch.manual_seed(seed)  # whoever draws from the global generator gives another answer now
                with torch.no_grad(), self._masked(0):
                    outputs.append(model.train()(**inputs).logits)
        return torch.equal(*outputs)

    def _any_model(self) -> PreTrainedModel:
        return next(iter(self._occupied.values())).model

    def _batches(self, trial: TrialSpec, step: int = 0) -> Iterator[Array]:
        """Yield the rows of each step, from one on."""
        lengths, size = self.tokens["train"].lengths, trial.params["batch_size"]
        first, done = divmod(step, math.ceil(len(lengths) / size))
        for epoch in range(first, trial.params["epochs"]):
            yield from epoch_batches(lengths, size, derived_seed(trial.seed, "order"), epoch, self.window)[done:]
            done = 0

    def _segment(self, slot: Slot) -> Outputs | None:
        """Train a slot to its boundary and return what it then says of the validation split; None if halted before."""
        slot.model.train()
        loss = torch.zeros((), device=self.device)
        while slot.seen < slot.boundary and not self.halted.is_set():
            loss += self._step(slot, next(slot.batches))
        slot.loss += loss.item()  # the only time in a segment that the host waits for the device
        return None if slot.seen < slot.boundary else self.predict(slot.model, "validation")

    def _scored(self, slot: Slot, outputs: Outputs) -> Evaluation:
        """Return the evaluation at the end of a slot's segment, and hold on to its weights if they are its best."""
        boundary, loss = slot.boundary, slot.loss
        slot.evaluations, slot.loss = slot.evaluations + 1, 0.0
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss is not finite after {slot.seen} examples")
        value = score(self.metric, outputs)
        if not np.isfinite(outputs.logits).all():
            raise DivergedError(f"the model's outputs are not finite after {boundary} examples")
        if not math.isfinite(value):
            raise DivergedError(f"{self.metric} is {value} after {boundary} examples")
        better = value > slot.best if METRICS[self.metric].direction == "maximize" else value < slot.best
        if better or not slot.best_weights:
            slot.best, slot.best_decay = value, slot.decay
            slot.best_weights = {name: tensor.clone() for name, tensor in slot.weights.items()}
        return Evaluation(
            value,
            at=boundary,
            metrics={"loss": score("loss", outputs)},
            of=slot.boundaries[-1],
            last=slot.evaluations == len(slot.boundaries),
            notes={"collapsed": outputs.collapsed},
        )

    def _step(self, slot: Slot, rows: Array) -> torch.Tensor:
        """Take one optimiser step and return the batch's mean loss, on the device.

        Out of memory halves the micro-batch, for this step and all that follow.
        """
        assert slot.optimizer is not None
        while True:
            seed = derived_seed(slot.trial.seed, "dropout", slot.step)
            if not self._side_by_side:
                torch.manual_seed(seed)
            try:
                loss = self._accumulate(slot, rows, seed)
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                slot.optimizer.zero_grad()
                if self.micro_batch == 1:
                    raise OutOfMemoryError("one example at a time does not fit in memory") from None
                self.micro_batch = min(self.micro_batch, len(rows)) // 2 or 1
        self._update(slot, len(rows))
        slot.optimizer.zero_grad()
        return loss

    def _update(self, slot: Slot, examples: int) -> None:
        """Let the optimiser step on the gradients of a whole batch."""
        params = slot.trial.params
        assert slot.optimizer is not None
        optimizers.clip(slot.optimizer, params["max_grad_norm"])
        optimizers.set_learning_rate(slot.optimizer, slot.step, slot.total_steps, params)
        slot.optimizer.step()
        slot.decay *= optimizers.decay_of_unused_rows(slot.optimizer)
        slot.step += 1
        slot.seen += examples

    def _accumulate(self, slot: Slot, rows: Array, seed: int) -> torch.Tensor:
        """Add up the gradients of a batch's micro-batches; each loss is divided by the whole batch."""
        total = torch.zeros((), device=self.device)
        for number, start in enumerate(range(0, len(rows), self.micro_batch)):
            inputs, targets = self.tokens["train"].batch(rows[start : start + self.micro_batch])
            with self._masked(dropout.key(seed, number)), self._autocast():
                logits = slot.model(**inputs).logits
            loss = self._losses(slot, logits, targets).sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _losses(self, slot: Slot, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example [n], times its class's weight.

        The weights' mean over the training rows is 1, so a sum is divided by rows, not by the weights of a batch.
        """
        params = slot.trial.params
        chosen = params["class_weights"]
        weights = None if chosen == "none" else self._class_weights[chosen]
        return self.task.loss(widened(logits), targets, params["label_smoothing"], weights)

    @contextmanager
    def _masked(self, *keys: int) -> Iterator[None]:
        """Draw the masks of a pass from keys, one for each slot."""
        with self._masks(), dropout.drawing_from(torch.tensor(keys, device=self.device)):
            yield

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    # ------------------------------------------------------------ scoring

    @torch.no_grad()  # and not inference mode, in which autocast would cast the weights anew for every chunk
    def predict(self, model: PreTrainedModel, split: str) -> Outputs:
        """Return a model's outputs on a split, in the split's order."""
        model.train(False)
        with self._autocast():  # one for all: weights are cast once
            logits = self.tokens[split].outputs(
                lambda inputs: model(**inputs).logits, device.scoring_batch(self.device)
            )
        return Outputs(self.data.task, self.data.splits[split].targets, logits)

    def outputs_of(self, folder: Path, split: str) -> Outputs:
        """Return the outputs of weights that `keep` wrote."""
        model, _ = load_model(str(folder.resolve()), folder, self.data.task, self.data.labels)
        model.to(self.device)  # type: ignore[arg-type]
        self._vocabulary.cut(model)
        return self.predict(model, split)

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split; no weight is changed."""
        log.info("measuring how fast a trial trains")
        batches = epoch_batches(self.tokens["train"].lengths, min(16, len(self.tokens["train"].lengths)), 0, 0)
        model = self._spare[-1].train()
        examples, began = 0, 0.0
        for i, rows in enumerate(batches[:6]):
            if i == 2:  # the first ones warm up
                examples, began = 0, time.perf_counter()
            inputs, targets = self.tokens["train"].batch(rows)
            with self._autocast():
                logits = model(**inputs).logits
            self.task.loss(widened(logits), targets, 0.0).mean().backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)
            examples += len(rows)
        return (time.perf_counter() - began) / examples if began else 0.0


def _told(error: Exception) -> Exception:
    """Return what ends a trial: memory that ran out outside the passes that can be halved, or the error itself."""
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return OutOfMemoryError(f"the optimiser, the scoring or the best weights do not fit in memory ({error})")
    return error
