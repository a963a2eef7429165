"""Loads a fine-tuned model from its folder, for prediction: safetensors only, and no code from the folder is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hpo.config.schema import GenerateConfig
from hpo.core.errors import ModelError
from hpo.data.keys import DataKeys
from hpo.finetune import device, generation
from hpo.finetune.data.encoded import Tensors, on_device
from hpo.finetune.lora.peft_files import CONFIG as ADAPTER
from hpo.finetune.lora.peft_files import merged
from hpo.finetune.models import token_head
from hpo.finetune.models.loading import NO_CODE, load_model, load_tokenizer, longest_input, task_of
from hpo.tasks.task import Task

DEFAULT_GENERATE = GenerateConfig()
LONGEST = 512  # tokens after which a text is cut by default


class Predictor:
    """Predicts from rows.

    Args:
        folder: Written by `hpo export` or a study: weights, configuration, tokenizer; or a `peft` folder.
        max_length: Tokens after which a text is cut; None: `LONGEST`, or the most that the model takes.
        precision: `auto`, `bf16` or `fp32`.
        generate: How text is generated, if the model's task does.

    Attributes:
        task: The task of the model.
        labels: Names of the classes, by index; empty for regression.
        tokenizer: The model's tokenizer.
        model: The model, on the device.
        device: The first of cuda, mps, cpu that is available.
        precision: `bf16` or `fp32`.
        max_length: Tokens after which a text is cut.

    Raises:
        ModelError: The folder holds no such model, or its classifier was not trained.
    """

    def __init__(
        self,
        folder: Path,
        max_length: int | None = None,
        precision: str = "auto",
        generate: GenerateConfig = DEFAULT_GENERATE,
    ) -> None:
        self.task, self.labels = _purpose(folder)
        self.tokenizer = load_tokenizer(str(folder), folder)
        if (folder / ADAPTER).is_file():
            self.model = merged(folder)
        else:
            self.model, untrained = load_model(str(folder), folder, self.task, self.labels, self.tokenizer.pad_token_id)
            if untrained:
                raise ModelError(
                    f"the model in {folder} is not fine-tuned: it has no weights for {', '.join(sorted(untrained))}. "
                    "Name a folder that hpo export wrote"
                )
        self.device = device.chosen("auto")
        self.model.to(self.device).train(False)  # type: ignore[arg-type]
        if self.task.emits_tokens:
            token_head.install(self.model)
        self.precision = device.precision(precision, self.device)
        self.max_length = longest_input(max_length or LONGEST, self.tokenizer, self.model.config)
        self._generate = generate

    @torch.no_grad()
    def __call__(self, rows: Sequence[Mapping[str, Any]], keys: DataKeys) -> list[dict[str, Any]]:
        """Return the model's predictions for n rows, as JSON values.

        Args:
            rows: One row or more, with the columns that the keys name.
            keys: The keys of `data:` of the task.

        Raises:
            DataError: A row is not as the task needs it.
        """
        task = self.task
        split = task.unlabelled(rows, keys)
        if task.generates:
            return [{"predicted": text} for text in self._generated(task, split, keys)]
        encoded = task.for_model(task.encode(split, keys, self.tokenizer, self.max_length), self.model)
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)

        def answer(inputs: Tensors, targets: Tensors) -> Tensors:
            answers = task.answers(token_head.outputs(task, self.model, inputs, targets), targets)
            return {name: tensor[None] for name, tensor in answers.items()}

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            answers = on_device(encoded, pad, self.device).answers(answer, device.scoring_batch(self.device))
        predictions = task.predictions(split, encoded, {name: array[0] for name, array in answers.items()}, keys)
        return task.predicted_rows(task.with_fitted(predictions, self.model.config.to_dict()), self.labels)

    def _generated(self, task: Any, split: Any, keys: DataKeys) -> list[str]:
        """Return what the model generates for the examples of a split."""
        room = generation.longest_prompt(self.model, self._generate, self.max_length)
        prompts = task.prompts(split, keys, self.tokenizer, room)
        settings = generation.settings_of(self.model, self.tokenizer, self._generate)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return generation.generated(self.model, self.tokenizer, settings, prompts)[0]


def _purpose(folder: Path) -> tuple[Task, tuple[str, ...]]:
    """Return the task and the labels that a folder's configuration names."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # transformers raises errors of many kinds
        first = str(error).partition("\n")[0]
        raise ModelError(
            f"the configuration in {folder} cannot be read ({first}); name what hpo export wrote"
        ) from None
    task = task_of(config)
    return task, task.labels_of(config)
