"""Writes the model of each of several tasks as a Hugging Face folder of its own: the encoder with the task's head."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from hpo.core.errors import ModelError
from hpo.finetune.lora import peft_files
from hpo.finetune.models import multi_head
from hpo.finetune.models.loading import NO_CODE, from_pretrained
from hpo.tasks.multitask.rows import named
from hpo.tasks.multitask.task import ARCHITECTURE


def divide(source: Path, target: Path, tasks: Iterable[str]) -> None:
    """Write a folder for each task, which `transformers.pipeline` loads.

    Args:
        source: Folder of the weights of all tasks, as a study saves them; or of their adapters.
        target: Folder of the folders.
        tasks: Names of the tasks.

    Raises:
        ModelError: The weights cannot be read, or are not of these tasks.
        MissingExtraError: The weights are adapters, and `peft` is not installed.
    """
    if (source / peft_files.CONFIG).is_file():
        model = peft_files.merged(source)
    else:
        config = AutoConfig.from_pretrained(source, **NO_CODE)
        model, info = from_pretrained(str(source), config, ARCHITECTURE)
        if missing := info["missing_keys"]:
            raise ModelError(f"the weights in {source} lack {', '.join(sorted(missing))}; run the study again")
    weights, tokenizer = model.state_dict(), AutoTokenizer.from_pretrained(source, **NO_CODE)
    for name in tasks:
        whole = multi_head.alone(model.config, weights, name)
        fitted = named(model.config.to_dict(), name)
        whole.config.update(fitted)
        whole.save_pretrained(target / name)
        tokenizer.save_pretrained(target / name)
