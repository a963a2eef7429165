"""What all trials of a study share: rows on the device, the pretrained model, and the settings of training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from hpo.config.schema import Decoding, StudyConfig
from hpo.core.interrupts import StopRequest
from hpo.core.seeds import derived_seed
from hpo.finetune import device, generation
from hpo.finetune.data.batches import boundaries
from hpo.finetune.data.encoded import Tensors, Tokens, on_device
from hpo.finetune.frozen_states import FrozenStates
from hpo.finetune.models import dropout, first_token, frozen, recomputed_layers, token_head
from hpo.finetune.models.initial_state import InitialState, digest
from hpo.finetune.models.loading import load_model, load_tokenizer, longest_input
from hpo.finetune.models.vocabulary import Vocabulary
from hpo.recipe.training_params import TrainingParams
from hpo.tasks.dataset import Dataset
from hpo.tasks.language.task import GeneratingTask
from hpo.tasks.registry import TASKS
from hpo.tasks.rows import EncodedRows
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

# Increased when hpo computes other numbers from the same study.
NUMERICS = 4

HOLDS_LOGITS = (
    "{model} changes its logits after its last projection, so those of a whole batch are held at once: it takes more "
    "memory"
)

SHOWN = 3  # rows of a split whose tokens `hpo check` can show


class Setup:
    """The data, the model and the settings of a study, read once.

    Args:
        config: The study's settings.
        data: Its data.
        folder: The study file's folder.
        folded: Whether its trials are slots of one folded model.
        frozen_layers: The numbers of frozen layers that a trial may have.

    Attributes:
        metric: Name in `METRICS`.
        device: Where trials train.
        precision: `bf16` or `fp32`.
        task: The task, with what the data says of it.
        tokenizer: The model's tokenizer.
        model: The pretrained model on the device; an engine trains it, or copies of it.
        head: Names of its parameters that are not pretrained.
        max_length: Tokens after which a text is cut.
        prompts: Split -> what a model continues, or its encoder reads, for each example; nothing for `train`.
        generation: How text is generated, which the model's own settings are replaced by; None if none is.
        vocabulary: The rows of the embedding table that the data uses.
        rows: Split -> its rows as the task encoded them, with the tokens of the first `SHOWN` only.
        tokens: Split -> all its rows on the device.
        class_weights: Setting of `class_weights` -> weights [classes]; nothing for a task without classes.
        own_masks: Whether all dropout masks are drawn from keys of the trial, so that trials can train side by side;
            set by `finish`.
        initial: Puts a model back to where every trial starts; set by `finish`.
        frozen_layers: As given, in order.
        frozen: What frozen layers yield for the rows; None if no trial has frozen layers.

    Raises:
        ModelError: The model or its tokenizer cannot be loaded, its layers cannot be frozen as asked, or it cannot
            learn the task.
        DataError: An example does not fit.
    """

    def __init__(
        self,
        config: StudyConfig,
        data: Dataset,
        folder: Path,
        *,
        folded: bool = False,
        frozen_layers: Iterable[int] = (0,),
    ) -> None:
        assert isinstance(config.model, str)
        if folded:
            device.reproducible_products()  # before the model's first product
        self.config, self.data, self.folder = config, data, folder
        self.task = TASKS[data.task].for_data(data)
        self.metric = data.metric
        self.device = device.chosen(config.device)
        self.precision = device.precision(config.precision, self.device)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        log.info("loading the model %s", config.model)
        self.class_weights = {
            name: torch.from_numpy(weights).to(self.device, torch.float32)
            for name, weights in self.task.class_weights(data).items()
        }
        self.tokenizer = load_tokenizer(config.model, folder)
        if options := self.task.tokenizer_options(self.tokenizer, data.keys):
            self.tokenizer = load_tokenizer(config.model, folder, **options)
        self.model, self.head = load_model(config.model, folder, self.task, data.labels, self.tokenizer.pad_token_id)
        self.model.to(self.device)  # type: ignore[arg-type]
        self._holds_logits = self.task.emits_tokens and not token_head.install(self.model)
        self.frozen_layers = sorted(set(frozen_layers))
        line = self._line()
        if line is None or self.frozen_layers[-1] < line.count:  # the line is after whole layers
            first_token.shorten(self.model)
        self._masks_of_trials = folded or self.device.type == "cpu"
        if self._masks_of_trials:
            dropout.install(self.model)
        self.max_length = longest_input(config.max_length, self.tokenizer, self.model.config)
        self.rows: dict[str, EncodedRows] = {}
        encoded = {name: self._encoded(name) for name in data.splits}
        self.task.refuse_model(self.model, self.rows["train"])
        log.info("preparing the model")
        self._weights_digest = digest(self.model, self.head)
        used = np.unique(torch.cat([tokens.ids for tokens in encoded.values()]).cpu())
        if self.task.generates:
            task = cast(GeneratingTask, self.task)
            generation.end_at(self.model, task.ends(self.rows["train"]))
            task.begin(self.model, data.keys, self.tokenizer)
        self.generation = generation.prepared(config.generate, self.model, self.tokenizer, self.max_length)
        self.prompts = self._prompts() if config.generate else {}
        self.vocabulary = Vocabulary(self.model, None if self.task.emits_tokens else used)
        self.tokens: dict[str, Tokens] = {
            name: tokens.with_ids(self.vocabulary.renumber(tokens.ids)) for name, tokens in encoded.items()
        }
        self.frozen = None if line is None else FrozenStates(self.tokens, line.like, self.autocast, self._of_states)

    def _line(self) -> frozen.Line | None:
        """Prepare the model for frozen layers, if any trial has some, and return the line."""
        if self.frozen_layers[-1] == 0:
            return None
        with self.autocast():
            return frozen.install(self.model, self.frozen_layers)

    def _encoded(self, name: str) -> Tokens:
        """Encode a split; its tokens are on the device only, as lists of numbers take many times their memory."""
        split, pad = self.data.splits[name], self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        log.info("tokenising %s %ss of %s", f"{len(split):,}", self.task.example, name)
        rows = self.task.encode(split, self.data.keys, self.tokenizer, self.max_length)
        rows = self.task.for_model(rows, self.model)
        self.rows[name] = rows.without_tokens(SHOWN)
        return on_device(rows, pad, self.device, derived_seed(self.config.seed, "masks", name))

    def _prompts(self) -> dict[str, list[list[int]]]:
        task = cast(GeneratingTask, self.task)
        return {
            name: task.prompts(self.data.splits[name], self.data.keys, self.tokenizer, self.max_length)
            for name in ("validation", "test")
        }

    @property
    def train_rows(self) -> int:
        """Rows of train: examples, or windows of long ones."""
        return len(self.tokens["train"].lengths)

    @property
    def segment(self) -> int:
        """Rows between two evaluations, for every batch size."""
        return boundaries(self.train_rows, self.config.evaluations_per_epoch, 1)[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the metric and on the rows for the user."""
        notes = self.task.row_notes(self.rows, self.data.keys)
        if self.metric.endswith("_binary"):
            notes = [f"{self.metric} is that of {self.data.labels[-1]!r}, the last label in order", *notes]
        if self._holds_logits:
            notes = [*notes, HOLDS_LOGITS.format(model=type(self.model).__name__)]
        return tuple(notes)

    def finish(self) -> None:
        """Examine the model again, after an adaptation has changed it and before any trial starts from it."""
        # Interception costs a little at every call; only a model that calls dropout as a function needs it.
        self._intercept: Callable[[], AbstractContextManager[Any]] = nullcontext
        if not (own := self._draws_all_masks()):
            self._intercept = dropout.OwnFunction
            own = self._draws_all_masks()
        self.own_masks = own
        if self.config.gradient_checkpointing:
            recomputed_layers.install(self.model, own)
        self.initial = InitialState(self.model, self.head)
        frozen.freeze(self.model, self.frozen_layers[len(self.frozen_layers) // 2])  # to measure a usual trial

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

    @property
    def _of_states(self) -> dict[str, Any]:
        """What the states of frozen layers depend on besides the rows."""
        named = ("weights", "precision", "device", "numerics", "torch", "transformers")
        return {name: self.facts[name] for name in named}

    def _draws_all_masks(self) -> bool:
        """Return whether all dropout masks are drawn from keys of the trial, and none from torch's global generator.

        Trials can then train side by side, a thread each, with the results that they would have alone. On a CPU two
        trials in two threads are faster than one after the other with two threads: a step has many small operations.
        """
        if not self._masks_of_trials:
            return False
        inputs, targets = self.tokens["train"].batch(np.arange(min(4, self.train_rows)))
        outputs: list[tuple[torch.Tensor, ...]] = []
        with dropout.everywhere(self.model, 0.1):  # a trial may ask for it where the model was published without
            for seed in (0, 1):
                torch.manual_seed(seed)  # a model that draws from the global generator gives other outputs now
                with torch.no_grad(), self.autocast(), self.masked(0):
                    outputs.append(self.outputs(self.model.train(), inputs, targets))
        return all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))

    # ------------------------------------------------------------ frozen layers

    def compute_frozen(self) -> None:
        """Compute what frozen layers yield, for all numbers of layers, before any trial starts.

        Raises:
            StudyError: It cannot be kept.
        """
        for layers in self.frozen_layers:
            if layers:
                assert self.frozen is not None
                self.frozen.of(self.model, layers)

    def split_for(self, model: PreTrainedModel, split: str) -> Tokens:
        """Return the rows of a split as a model takes them: with states, if it has frozen layers."""
        line = frozen.of(model)
        if line is None or not line.layers:
            return self.tokens[split]
        assert self.frozen is not None
        return self.frozen.of(model, line.layers)[split]

    def measurable(self, model: PreTrainedModel) -> Tokens:
        """Return the train split for passes whose outputs do not matter: states are zeros."""
        line = frozen.of(model)
        if line is None or not line.layers:
            return self.tokens["train"]
        assert self.frozen is not None
        return self.frozen.stand_in("train")

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

    def outputs(self, model: PreTrainedModel, inputs: Tensors, targets: Tensors) -> tuple[torch.Tensor, ...]:
        """Return the outputs of a forward pass that the task reads, in float32 or wider."""
        return token_head.outputs(self.task, model, inputs, targets)

    def losses(self, params: TrainingParams, outputs: tuple[torch.Tensor, ...], targets: Tensors) -> torch.Tensor:
        """Return the loss of each row [n], summed over its units, times the weights of their classes.

        The weights' mean over the training rows is 1, so a sum is divided by units, not by the weights of a batch.
        """
        chosen = params.class_weights
        weights = None if chosen == "none" else self.class_weights[chosen]
        return self.task.loss(outputs, targets, params.label_smoothing, weights)

    @torch.no_grad()  # not inference mode, in which autocast would cast the weights again for every chunk
    def predict(self, model: PreTrainedModel, split: str) -> Predictions:
        """Return a model's predictions for the examples of a split."""
        model.train(False)

        def answer(inputs: Tensors, targets: Tensors) -> Tensors:
            answers = self.task.answers(self.outputs(model, inputs, targets), targets)
            return {name: tensor[None] for name, tensor in answers.items()}

        with self.autocast():  # one context for all chunks, so that weights are cast once
            answers = self.split_for(model, split).answers(answer, device.scoring_batch(self.device))
        return self.predictions(split, {name: array[0] for name, array in answers.items()})

    def sampled(self, split: str) -> Array:
        """Return the rows of a split for which trials generate, drawn from the study's seed."""
        assert self.config.generate is not None
        rng = np.random.default_rng(derived_seed(self.config.seed, "generate"))
        return np.sort(rng.permutation(len(self.data.splits[split]))[: self.config.generate.rows])

    def generated(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        slots: int = 1,
        decoding: Decoding | None = None,
        stop: StopRequest | None = None,
    ) -> list[list[str]]:
        """Return what every slot of a model generates for prompts, [K][prompts]; see `hpo/finetune/generation.py`.

        Without `decoding`, text is decoded in the first way of the study file.
        """
        assert self.generation is not None
        settings = self.generation if decoding is None else generation.decoded(self.generation, decoding)
        if (line := frozen.of(model)) is not None:
            line.states = None  # an encoder is called by itself, and must not read those of the last pass
        with self.intercepted(), self.autocast():
            return generation.generated(model, self.tokenizer, settings, prompts, slots, stop)

    def predictions(self, split: str, answers: Mapping[str, Array]) -> Predictions:
        """Return answers about the rows of a split, by name [n, ...], as predictions for its examples."""
        return self.task.predictions(self.data.splits[split], self.rows[split], answers, self.data.keys)
