"""Reads and writes adapters in the format of `peft`, and merges them into the pretrained weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME

from hpo.core.errors import MissingExtraError, ModelError
from hpo.finetune.lora.adapters import Adapter, Lora
from hpo.finetune.models.loading import NO_CODE, from_pretrained, task_of
from hpo.recipe.training_params import TrainingParams

if TYPE_CHECKING:
    import peft

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft's names of weights


def library() -> Any:
    """Return the module `peft`.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Where bitsandbytes is installed, peft imports it; on some processors it warns of a package that is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError:
        raise MissingExtraError("A LoRA study (lora_rank in its space)", "lora") from None
    # peft causes this warning; hpo cannot avoid it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    return peft


def save(
    folder: Path, model: PreTrainedModel, lora: Lora, weights: Mapping[str, torch.Tensor], params: TrainingParams
) -> None:
    """Write a trial's adapters and head as a `peft` folder, with the model's configuration for its labels.

    Args:
        folder: Where to write.
        model: A model that `lora.install` changed; its weights are not read.
        lora: Where the adapters are.
        weights: Name -> tensor of the trial: adapters and head.
        params: The trial's hyperparameters.
    """
    layers, rank = lora.layers(model, [params.lora_targets]), params.lora_rank
    tensors = {name: weights[name] for name in lora.head}
    for name in layers:
        tensors[f"{name}.lora_A.weight"] = weights[f"{name}.adapter.A"][:rank]
        tensors[f"{name}.lora_B.weight"] = weights[f"{name}.adapter.B"][:, :rank]
    settings: peft.LoraConfig = library().LoraConfig(
        task_type=task_of(model.config).peft_type,
        inference_mode=True,
        base_model_name_or_path=_absolute(model.name_or_path),
        r=rank,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        target_modules=list(layers),
        modules_to_save=_trained_in_full(model, lora.head),
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    settings.save_pretrained(str(folder))
    model.config.save_pretrained(folder)
    save_file(
        {f"{PREFIX}{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


@torch.no_grad()
def read_into(model: PreTrainedModel, folder: Path, lora: Lora) -> None:
    """Put the adapters and the head of a folder that `save` wrote into a model.

    Args:
        model: A model that `lora.install` changed; its adapters may be of any trial.
        folder: Written for a trial of the same model.
        lora: Where the adapters are.
    """
    tensors = load_file(folder / WEIGHTS)
    settings = library().PeftConfig.from_pretrained(str(folder))
    for name, layer in lora.layers(model, lora.targets).items():
        adapter = layer.adapter
        assert isinstance(adapter, Adapter)
        for parameter in adapter.parameters():
            parameter.zero_()
        if (a := tensors.get(f"{PREFIX}{name}.lora_A.weight")) is not None:
            adapter.A[: len(a)] = a
            adapter.B[:, : len(a)] = tensors[f"{PREFIX}{name}.lora_B.weight"]
            adapter.scale.fill_(settings.lora_alpha / settings.r)
    for name in lora.head:
        model.get_parameter(name).copy_(tensors[f"{PREFIX}{name}"])


def merged(folder: Path) -> PreTrainedModel:
    """Return the model of a folder that `save` wrote: the pretrained model with the adapters added to its weights.

    Raises:
        MissingExtraError: `peft` is not installed.
        ModelError: The pretrained model is no longer where it was, or the folder cannot be read.
    """
    peft = library()
    if not (folder / WEIGHTS).is_file():  # else peft would look for a pickle, which can run code
        raise ModelError(f"the adapter in {folder} has no {WEIGHTS}; run the study again to have it written")
    base = None
    try:
        base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        config = AutoConfig.from_pretrained(folder, **NO_CODE)
        model, _ = from_pretrained(base, config, task_of(config).auto_model)
        whole: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        if (folder / GENERATION_CONFIG_NAME).is_file():
            whole.generation_config = GenerationConfig.from_pretrained(folder)
    except Exception as error:  # transformers, peft and safetensors raise errors of many kinds
        first = str(error).partition("\n")[0]
        raise ModelError(
            f"the adapter in {folder} cannot be added to its pretrained model {base!r} ({first}); the model has to be "
            "where it was when the study ran"
        ) from None
    return whole


def merge(folder: Path, target: Path) -> None:
    """Write the model that `merged` returns as a Hugging Face folder, with its tokenizer.

    Raises:
        MissingExtraError: `peft` is not installed.
        ModelError: As of `merged`.
    """
    merged(folder).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, **NO_CODE).save_pretrained(target)


def _absolute(name: str | None) -> str | None:
    """Return a model's name, as an absolute path if it is a local folder."""
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def _trained_in_full(model: PreTrainedModel, head: frozenset[str]) -> list[str]:
    """Return the largest modules all of whose parameters belong to the head."""

    def in_head(name: str) -> bool:
        own = [f"{name}.{parameter}" for parameter, _ in model.get_submodule(name).named_parameters()]
        return bool(own) and head.issuperset(own)

    # peft copies whole modules, and copies no containers; a head of several tasks holds the encoder of all.
    whole = nn.ModuleDict | PreTrainedModel
    names = [name for name, m in model.named_modules() if name and not isinstance(m, whole) and in_head(name)]
    return [name for name in names if name.rpartition(".")[0] not in names]
