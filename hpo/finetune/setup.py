"""What all trials of a study share: rows on the device, the pretrained model, and the settings of training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from hpo.config.schema import StudyConfig
from hpo.core.seeds import derived_seed
from hpo.core.trainer import TrialSpec
from hpo.finetune import device
from hpo.finetune.data.batches import boundaries, epoch_batches
from hpo.finetune.data.encoded import Tokens, encode
from hpo.finetune.data.sources import Dataset
from hpo.finetune.models import dropout, first_token
from hpo.finetune.models.initial_state import InitialState, digest
from hpo.finetune.models.loading import load_model, load_tokenizer, longest_input
from hpo.finetune.models.vocabulary import Vocabulary
from hpo.finetune.slot import Slot
from hpo.recipe.training_params import TrainingParams
from hpo.tasks import metrics
from hpo.tasks.classification import TASKS, Outputs, class_weights

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

# Increased when hpo computes other numbers from the same study.
NUMERICS = 4


class Setup:
    """The data, the model and the settings of a study, read once.

    Args:
        config: The study's settings.
        data: Its data.
        folder: The study file's folder.
        folded: Whether its trials are slots of one folded model.

    Attributes:
        metric: Name in `METRICS`.
        device: Where trials train.
        precision: `bf16` or `fp32`.
        task: The entry of `TASKS`.
        tokenizer: The model's tokenizer.
        model: The pretrained model on the device; an engine trains it, or copies of it.
        head: Names of its parameters that are not pretrained.
        max_length: Tokens after which a text is cut.
        vocabulary: The rows of the embedding table that the data uses.
        tokens: Split -> its rows on the device.
        class_weights: Setting of `class_weights` -> weights [classes]; nothing for a task without one label a row.
        own_masks: Whether all dropout masks are drawn from keys of the trial, so that trials can train side by side;
            set by `finish`.
        initial: Puts a model back to where every trial starts; set by `finish`.

    Raises:
        ModelError: The model or its tokenizer cannot be loaded.
        DataError: The metric is not defined for the task, or on a split.
    """

    def __init__(self, config: StudyConfig, data: Dataset, folder: Path, *, folded: bool = False) -> None:
        assert config.model is not None
        if folded:
            device.reproducible_products()  # before the model's first product
        self.config, self.data, self.folder = config, data, folder
        scored = {name: data.splits[name].targets for name in ("validation", "test")}
        self.metric = metrics.chosen(config.metric, data.task, len(data.labels), scored)
        self.device = device.chosen(config.device)
        self.precision = device.precision(config.precision, self.device)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.task = TASKS[data.task]
        log.info("loading the model %s", config.model)
        self.class_weights = class_weights(data.task, data.splits["train"].targets, len(data.labels), self.device)
        self.tokenizer = load_tokenizer(config.model, folder)
        self.model, self.head = load_model(config.model, folder, data.task, data.labels, self.tokenizer.pad_token_id)
        self.model.to(self.device)  # type: ignore[arg-type]
        first_token.shorten(self.model)
        self._masks_of_trials = folded or self.device.type == "cpu"
        if self._masks_of_trials:
            dropout.install(self.model)
        self.max_length = longest_input(config.max_length, self.tokenizer, self.model.config)
        encoded = {name: self._encoded(name) for name in data.splits}
        log.info("preparing the model")
        self._weights_digest = digest(self.model, self.head)
        used = np.unique(torch.cat([tokens.ids for tokens in encoded.values()]).cpu())
        self.vocabulary = Vocabulary(self.model, used)
        self.tokens: dict[str, Tokens] = {
            name: replace(tokens, ids=self.vocabulary.renumber(tokens.ids)) for name, tokens in encoded.items()
        }

    def _encoded(self, split: str) -> Tokens:
        rows = self.data.splits[split]
        log.info("tokenising %s rows of %s", f"{len(rows):,}", split)
        return encode(rows, self.tokenizer, self.max_length, self.device)

    @property
    def segment(self) -> int:
        """Examples between two evaluations, for every batch size."""
        return boundaries(len(self.data.splits["train"]), self.config.evaluations_per_epoch, 1)[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the metric for the user."""
        if not self.metric.endswith("_binary"):
            return ()
        return (f"{self.metric} is that of {self.data.labels[-1]!r}, the last label in order",)

    def finish(self) -> None:
        """Examine the model again, after an adaptation has changed it and before any trial starts from it."""
        # Interception costs a little at every call; only a model that calls dropout as a function needs it.
        self._intercept: Callable[[], AbstractContextManager[Any]] = nullcontext
        if not (own := self._draws_all_masks()):
            self._intercept = dropout.OwnFunction
            own = self._draws_all_masks()
        self.own_masks = own
        self.initial = InitialState(self.model, self.head)

    def use(self, where: torch.device) -> None:
        """Train on another device than the one the model was read on, and move the rows there."""
        self.device = where
        self.tokens = {name: tokens.to(where) for name, tokens in self.tokens.items()}
        self.class_weights = {name: weights.to(where) for name, weights in self.class_weights.items()}

    def release_model(self) -> None:
        """Drop the model, which other processes hold in parts."""
        del self.model
        self.initial.pristine.clear()

    @property
    def facts(self) -> dict[str, Any]:
        """What the results depend on besides the study file."""
        return {
            "task": self.data.task,
            "metric": self.metric,
            "data": self.data.digest,
            "weights": self._weights_digest,
            "precision": self.precision,
            "device": self.device.type,
            "numerics": NUMERICS,
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers.__version__,
        }

    def _draws_all_masks(self) -> bool:
        """Return whether all dropout masks are drawn from keys of the trial, and none from torch's global generator.

        Trials can then train side by side, a thread each, with the results that they would have alone. On a CPU two
        trials in two threads are faster than one after the other with two threads: a step has many small operations.
        """
        if not self._masks_of_trials:
            return False
        inputs, _ = self.tokens["train"].batch(np.arange(min(4, len(self.tokens["train"].lengths))))
        outputs = []
        with dropout.everywhere(self.model, 0.1):  # a trial may ask for it where the model was published without
            for seed in (0, 1):
                torch.manual_seed(seed)  # a model that draws from the global generator gives other outputs now
                with torch.no_grad(), self.masked(0):
                    outputs.append(self.model.train()(**inputs).logits)
        return torch.equal(*outputs)

    # ------------------------------------------------------------ trials

    def new_slot(
        self,
        trial: TrialSpec,
        params: TrainingParams,
        model: PreTrainedModel,
        weights: dict[str, torch.Tensor],
        parameters: Mapping[str, torch.Tensor],
        moments: Callable[[str], dict[str, torch.Tensor]],
        window: int,
    ) -> Slot:
        """Return a trial at its start, or where its checkpoint left it.

        The first arguments are as in `Slot`, `window` is as in `epoch_batches`.

        Raises:
            ValueError: The checkpoint is another trial's, or another model's.
            KeyError: The checkpoint lacks something.
        """
        rows = len(self.tokens["train"].lengths)
        slot = Slot(
            replace(trial, checkpoint=None),  # so that its memory is free after it is restored
            params,
            model,
            weights,
            dict(parameters),
            moments,
            boundaries(rows, self.config.evaluations_per_epoch, params.epochs),
            total_steps=params.epochs * math.ceil(rows / params.batch_size),
        )
        if trial.checkpoint is not None:
            slot.restore(trial.checkpoint)
        slot.batches = self.batches(slot, window)
        return slot

    def batches(self, slot: Slot, window: int) -> Iterator[Array]:
        """Yield the row numbers of each step of a trial, from its present step on."""
        lengths, size = self.tokens["train"].lengths, slot.params.batch_size
        first, done = divmod(slot.step, math.ceil(len(lengths) / size))
        for epoch in range(first, slot.params.epochs):
            yield from epoch_batches(lengths, size, derived_seed(slot.trial.seed, "order"), epoch, window)[done:]
            done = 0

    # ------------------------------------------------------------ passes

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the study's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def intercepted(self) -> AbstractContextManager[Any]:
        """Replace the function `dropout` for models whose code calls it."""
        return self._intercept()

    @contextmanager
    def masked(self, *keys: int) -> Iterator[None]:
        """Draw the dropout masks of a pass from keys, one for each slot."""
        with self.intercepted(), dropout.drawing_from(torch.tensor(keys, device=self.device)):
            yield

    def losses(self, slot: Slot, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example [n], times the weight of its class.

        The weights' mean over the training rows is 1, so a sum is divided by rows, not by the weights of a batch.
        """
        chosen = slot.params.class_weights
        weights = None if chosen == "none" else self.class_weights[chosen]
        return self.task.loss(device.widened(logits), targets, slot.params.label_smoothing, weights)

    @torch.no_grad()  # not inference mode, in which autocast would cast the weights again for every chunk
    def predict(self, model: PreTrainedModel, split: str) -> Outputs:
        """Return a model's outputs on a split, in the split's order."""
        model.train(False)
        with self.autocast():  # one context for all chunks, so that weights are cast once
            logits = self.tokens[split].outputs(
                lambda inputs: model(**inputs).logits, device.scoring_batch(self.device)
            )
        return self.outputs(split, logits)

    def outputs(self, split: str, logits: Array) -> Outputs:
        """Return logits [n, outputs] of a split together with its targets."""
        return Outputs(self.data.task, self.data.splits[split].targets, logits)
