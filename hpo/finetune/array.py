"""Fine-tuning as a `TrialArray`: an engine trains the trials in the slots, and their evaluations are scored here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from hpo.config.schema import Decoding
from hpo.core.errors import DivergedError
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, Seen, TrialCheckpoint, TrialSpec
from hpo.finetune.adaptation import Adaptation
from hpo.finetune.device import memory_error, threaded
from hpo.finetune.engine import Engine, Trained
from hpo.finetune.generation import decoded
from hpo.finetune.memory import Before, Memory
from hpo.finetune.models.loading import NO_CODE, load_model
from hpo.finetune.scorable import OneModelArray
from hpo.finetune.setup import Setup
from hpo.finetune.slot import Slot
from hpo.finetune.trial_model import whole_on_device
from hpo.tasks.metrics import METRICS, of_generated_text, score
from hpo.tasks.task import COLLAPSE, Predictions, Task

Array = np.ndarray[Any, Any]


class FineTuneArray:
    """Trains trials of one pretrained model.

    Args:
        setup: The data, the model and the settings that trials share.
        engine: Trains the trials in the slots.
        adaptation: What of the model is trained, and how it is written.
        horizon_epochs: Most epochs that the space allows.
        before: The memory before the model was loaded.

    Attributes:
        setup: As given.
        engine: As given.
        adaptation: As given.
        metric: What trials are scored by; a name in `METRICS`.
        notes: What the user should know of how it runs.
        segment: Examples between two evaluations.
        horizon: Examples of the longest trial that the space allows.
    """

    def __init__(
        self,
        setup: Setup,
        engine: Engine,
        adaptation: Adaptation,
        horizon_epochs: int,
        before: Before | None = None,
    ) -> None:
        self.setup, self.engine, self.adaptation, self._before = setup, engine, adaptation, before
        self.metric = setup.metric
        self._reported = dict.fromkeys(("loss", *setup.data.others))
        self.notes: Sequence[str] = (*setup.notes, *adaptation.notes, *engine.notes)
        self.segment = setup.segment
        self.horizon: int | None = setup.train_rows * horizon_epochs

    @property
    def models(self) -> Mapping[str, OneModelArray]:
        """Its one model -> itself."""
        return {str(self.setup.config.model): self}

    def of(self, params: Mapping[str, Any]) -> OneModelArray:
        """Return itself: all trials have its model."""
        return self

    @property
    def slots(self) -> int:
        """How many trials it holds at once."""
        return self.engine.slots

    @slots.setter
    def slots(self, count: int) -> None:
        self.engine.slots = count

    @property
    def stop_request(self) -> StopRequest:
        """Once set, `advance` returns as soon as the step under way is done."""
        return self.engine.stop_request

    @stop_request.setter
    def stop_request(self, request: StopRequest) -> None:
        self.engine.stop_request = request

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on besides the study file."""
        facts = {**self.setup.facts, **self.adaptation.facts, **self.engine.facts}
        if self.setup.device.type == "cpu":  # sums are split among threads, which changes their last bits
            facts["threads"] = self.engine.threads
        return facts

    def resume_with(self, facts: Mapping[str, Any]) -> None:
        """Take over the threads of each trial with which the study was begun, whatever the number of threads here."""
        threads = facts.get("threads")
        if "threads" not in self.facts or not isinstance(threads, int) or threads < 1:
            return
        if threads != self.engine.threads:
            note = f"trials have {threads} threads each, as the study was begun (not {self.engine.threads})"
            self.notes = (*self.notes, note)
            self.engine.threads = threads

    # ------------------------------------------------------------ trials in slots

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot: at its start, or where its checkpoint left it."""
        self.engine.load(slot, trial)

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train every occupied slot to its next boundary and score it on the validation split."""
        occupied = self.engine.occupied
        if not occupied:
            return {}
        with threaded(self.engine.threads):
            trained = self.engine.train()
            outcomes = {n: self._outcome(occupied.get(n), found) for n, found in trained.items() if found is not None}
            return self.engine.make_room(self._with_generated(outcomes, trained))

    def seen(self, slot: int) -> Seen | None:
        """Return the examples that the slot's trial has seen, and those of its whole training."""
        held = self.engine.occupied.get(slot)
        return None if held is None else (held.seen, held.boundaries[-1])

    def save(self, slot: int) -> TrialCheckpoint | None:
        """Return what the slot's trial needs to go on from its last whole step."""
        return self.engine.occupied[slot].checkpoint()

    def pause(self, slot: int) -> bool:
        """Return False: trials are held in slots only."""
        return False

    def save_weights(self, slot: int, folder: Path) -> bool:
        """Write the best evaluation's weights as a Hugging Face folder: safetensors, configuration, tokenizer."""
        held = self.engine.occupied[slot]
        weights = self.engine.whole(held.best_weights)
        if weights:
            held.model.config.update(held.fitted)
            self.adaptation.save(folder, held, weights, self.setup)
            self.setup.tokenizer.save_pretrained(folder)
            if self.setup.generation is not None:
                self.setup.generation.save_pretrained(folder)
        return bool(held.best_weights)

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in."""
        self.engine.unload(slot)

    # ------------------------------------------------------------ scoring

    def _outcome(self, slot: Slot | None, trained: Predictions | Exception) -> Evaluation | Exception:
        """Return the evaluation of a segment, or the exception that ends this slot's trial alone."""
        if isinstance(trained, Exception):
            return trained
        assert slot is not None
        try:
            return self._scored(slot, trained)
        except Exception as error:
            return memory_error(error)

    def _scored(self, slot: Slot, predictions: Predictions) -> Evaluation:
        """Return the evaluation at the end of a slot's segment, and copy the weights if they are the best so far.

        Raises:
            DivergedError: The loss, an output or the metric is not finite.
        """
        boundary, loss = slot.boundary, slot.loss
        slot.evaluations, slot.loss = slot.evaluations + 1, 0.0
        if not math.isfinite(loss):
            raise DivergedError(f"the training loss is not finite after {slot.seen} examples")
        if not predictions.finite:
            raise DivergedError(f"the model's outputs are not finite after {boundary} examples")
        task = self.setup.task
        fitted = task.fitted(predictions, self.metric, self.setup.data.keys)
        predictions = task.with_fitted(predictions, fitted)
        value = score(self.metric, predictions)
        if not math.isfinite(value):
            raise DivergedError(f"{self.metric} is {value} after {boundary} examples")
        better = value > slot.best if METRICS[self.metric].direction == "maximize" else value < slot.best
        if better or not slot.best_weights:
            slot.hold(value, fitted)
        return Evaluation(
            value,
            at=boundary,
            metrics={name: score(name, predictions) for name in self._reported} | task.scores_beside(predictions),
            of=slot.boundaries[-1],
            last=slot.evaluations == len(slot.boundaries),
            notes=_notes(self.setup.task, predictions),
        )

    def predictions_of(self, folder: Path, split: str, *, decoding: Decoding | None = None) -> Predictions:
        """Return the predictions for a split of weights that `save_weights` wrote.

        Args:
            folder: The weights.
            split: Name of the split.
            decoding: How a text is generated for each example; None generates none.
        """
        return self._predictions(self.adaptation.open(folder, self.setup), split, decoding)

    def written(self, folder: Path, split: str, rows: Array, decodings: Sequence[Decoding]) -> Iterator[list[str]]:
        """Load weights, and return what they generate for rows of a split; see `OneModelArray`."""
        model = whole_on_device(self.setup, self.adaptation.open(folder, self.setup))
        prompts = [self.setup.prompts[split][row] for row in rows]
        return (self.setup.generated(model, prompts, decoding=decoding)[0] for decoding in decodings)

    def set_decoding(self, folder: Path, decoding: Decoding) -> None:
        """Write a way of decoding into the settings of written weights."""
        decoded(GenerationConfig.from_pretrained(folder), decoding).save_pretrained(folder)

    def as_trained(self, folder: Path, split: str) -> Predictions | None:
        """Return the predictions of written weights on the base that they were trained on; see `ScorableArray`."""
        model = self.adaptation.as_trained(folder, self.setup)
        if model is None:
            return None
        fitted = AutoConfig.from_pretrained(folder, **NO_CODE).to_dict()
        predictions: Any = self.setup.predict(model, split)
        return cast("Predictions", self.setup.task.with_fitted(predictions, fitted))

    def untuned(self, split: str, *, decoding: Decoding | None = None) -> Predictions | None:
        """Return the predictions of the model as it was published; see `ScorableArray`."""
        setup = self.setup
        if not setup.task.emits_tokens or setup.head:
            return None
        assert isinstance(setup.config.model, str)
        pad = setup.tokenizer.pad_token_id
        model, _ = load_model(setup.config.model, setup.folder, setup.task, setup.data.labels, pad)
        return self._predictions(model, split, decoding)

    def _predictions(self, model: PreTrainedModel, split: str, decoding: Decoding | None) -> Predictions:
        """Return the predictions for a split of a whole model."""
        predictions: Any = self.setup.task.with_fitted(self.engine.predictions_of(model, split), model.config.to_dict())
        if decoding is not None:
            (texts,) = self.setup.generated(model, self.setup.prompts[split], decoding=decoding)
            predictions = replace(predictions, generated=texts)
        return cast("Predictions", predictions)

    # ------------------------------------------------------------ generating

    def _with_generated(
        self, outcomes: dict[int, Evaluation | Exception], trained: Mapping[int, Trained]
    ) -> dict[int, Evaluation | Exception]:
        """Return the outcomes; the trials at their last evaluation generate, with their best weights, in one call."""
        last = {n: found for n, found in outcomes.items() if isinstance(found, Evaluation) and found.last}
        if self.setup.generation is None or not last:
            return outcomes
        began, rows = time.perf_counter(), self.setup.sampled("validation")
        slots = [self.engine.occupied[n] for n in last]
        prompts = [self.setup.prompts["validation"][row] for row in rows]
        try:
            with ExitStack() as weights:
                for slot in slots:
                    weights.enter_context(slot.at_best())
                texts = self.engine.generate(list(last), prompts)
        except InterruptedError:  # a stop is due: from their checkpoints they are scored again, and generate
            for slot in slots:
                slot.take_back()
            return {n: outcome for n, outcome in outcomes.items() if n not in last}
        except Exception as error:
            return {**outcomes, **dict.fromkeys(last, memory_error(error))}
        seconds = (time.perf_counter() - began) / len(last)
        return {**outcomes, **{n: self._of_text(last[n], trained[n], rows, texts[n], seconds) for n in last}}

    def _of_text(
        self, evaluation: Evaluation, predictions: Any, rows: Array, texts: list[str], seconds: float
    ) -> Evaluation:
        """Return a trial's last evaluation with the scores of what it generated for rows of the validation split."""
        task = self.setup.task
        found = replace(predictions.take(rows), generated=texts)
        return replace(
            evaluation,
            of_best={name: score(name, found) for name in of_generated_text(task.name)},
            at_end={"generation_seconds": round(seconds, 3), **_notes(task, found)},
        )

    # ------------------------------------------------------------ measuring

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second; more than `most` are not needed."""
        return self.engine.fastest_slots(most)

    def seconds_per_example(self) -> float:
        """Measure forward and backward passes over a few batches of the train split; no weight is changed."""
        return self.engine.seconds_per_example()

    def memory(self) -> Memory | None:
        """Estimate the peak of the memory that training takes."""
        if self.setup.device.type == "mps":
            return None
        with threaded(self.engine.threads):
            return self.engine.memory(Before.now(self.setup.device).free)

    def memory_used(self) -> int | None:
        """Return how far the peak until now is above what was used before the model was loaded."""
        return None if self._before is None else self._before.used_since()

    def memory_free(self) -> int | None:
        """Return what was free before the model was loaded."""
        return None if self._before is None else self._before.free


def _notes(task: Task, predictions: Predictions) -> dict[str, Any]:
    """Return whether a model has collapsed; and to what, if its task can say."""
    if not predictions.collapsed:
        return {"collapsed": False}
    collapse = task.collapse(predictions)
    return {"collapsed": True} | ({} if collapse == COLLAPSE else {"collapse": collapse})
