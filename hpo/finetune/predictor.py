"""Loads a fine-tuned model from its folder, for prediction: safetensors only, and no code from the folder is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from hpo.core.errors import ModelError
from hpo.finetune import device
from hpo.finetune.data.encoded import encode
from hpo.finetune.data.sources import Split
from hpo.finetune.lora.peft_files import CONFIG as ADAPTER
from hpo.finetune.lora.peft_files import merged
from hpo.finetune.models.loading import NO_CODE, load_model, load_tokenizer, longest_input
from hpo.tasks.classification import TASKS, Outputs

LONGEST = 512  # tokens after which a text is cut by default


class Predictor:
    """Predicts from texts.

    Args:
        folder: Written by `hpo export` or a study: weights, configuration, tokenizer; or a `peft` folder.
        max_length: Tokens after which a text is cut; None: `LONGEST`, or the most that the model takes.
        precision: `auto`, `bf16` or `fp32`.

    Attributes:
        task: Name in `TASKS`.
        labels: Names of the classes, by index; empty for regression.
        tokenizer: The model's tokenizer.
        model: The model, on the device.
        device: The first of cuda, mps, cpu that is available.
        precision: `bf16` or `fp32`.
        max_length: Tokens after which a text is cut.

    Raises:
        ModelError: The folder holds no such model, or its classifier was not trained.
    """

    def __init__(self, folder: Path, max_length: int | None = None, precision: str = "auto") -> None:
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
        self.precision = device.precision(precision, self.device)
        self.max_length = longest_input(max_length or LONGEST, self.tokenizer, self.model.config)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Outputs:
        """Return the model's outputs for n texts, or for n pairs of texts; the targets in them are zeros.

        Args:
            texts: One text or more.
            pairs: The second text of each pair.
        """
        split = Split(list(texts), None if pairs is None else list(pairs), np.zeros(len(texts), dtype=np.int64))
        tokens = encode(split, self.tokenizer, self.max_length, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = tokens.outputs(lambda inputs: self.model(**inputs).logits, device.scoring_batch(self.device))
        return Outputs(self.task, split.targets, logits)


def _purpose(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return the task and the labels that a folder's configuration names."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # transformers raises errors of many kinds
        first = str(error).partition("\n")[0]
        raise ModelError(
            f"the configuration in {folder} cannot be read ({first}); name what hpo export wrote"
        ) from None
    tasks = {task.problem_type: name for name, task in TASKS.items()}
    unnamed = "regression" if config.num_labels == 1 else "single_label"
    task = tasks.get(config.problem_type, unnamed)
    return task, () if task == "regression" else tuple(str(config.id2label[i]) for i in range(config.num_labels))
