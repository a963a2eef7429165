"""Loads the pretrained model and its tokenizer, and replaces the model's attention."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from hpo.core.errors import HpoError, MissingExtraError, ModelError
from hpo.core.paths import locate, model_source
from hpo.finetune.folded.packing import current as packed_now
from hpo.finetune.models import dropout as own_dropout
from hpo.finetune.models import multi_head, output_check
from hpo.tasks.multitask.predictions import TASK
from hpo.tasks.registry import task_for
from hpo.tasks.task import Task

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


# Given at each call: without it, transformers asks on the terminal whether to run code from a model's folder.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}

# RoBERTa and similar models count positions from the padding id on, so a text may have fewer tokens than their tables
# have rows.
POSITIONS_AFTER_PADDING = {
    "roberta",
    "xlm-roberta",
    "roberta-prelayernorm",
    "camembert",
    "data2vec-text",
    "mpnet",
}


# ---------------------------------------------------------------- attention


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: own_dropout.Rates = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers does, fused; on a CPU in float32, because the bf16 backward is three times slower there.

    Packed tokens are gathered into rows, and the output is packed again.

    Fused attention has one dropout rate for all rows, so with a rate for each slot attention is not fused. That is so
    even if all rates are zero: the last bits differ between the two, and must not depend on a trial's neighbours.
    """
    if kwargs.get("softcap") is not None:  # Gemma 2 bounds its logits; with small ones the outputs hardly differ
        raise ValueError("fused attention does not bound its logits")
    packing = packed_now()
    if packing is not None:
        query, key, value = (packing.to_rows(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
    on_cpu, folded = query.device.type == "cpu", isinstance(dropout, own_dropout.SlotRates)
    with torch.autocast(query.device.type, enabled=False) if on_cpu or folded else nullcontext():
        if isinstance(dropout, own_dropout.SlotRates) or (on_cpu and dropout > 0):
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            causal = attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True)
            bias = kwargs.get("position_bias")
            output = own_dropout.attention(query, key, value, attention_mask, dropout, scaling, causal, bias)
        else:
            wide = torch.promote_types(query.dtype, torch.float32) if on_cpu else query.dtype
            q, k, v = query.to(wide), key.to(wide), value.to(wide)
            if kwargs.get("position_bias") is not None:
                kwargs["position_bias"] = kwargs["position_bias"].to(wide)
            output, _ = sdpa_attention_forward(module, q, k, v, attention_mask, dropout, scaling, **kwargs)
    output = output.to(query.dtype)
    return (output if packing is None else packing.to_line(output)), None


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Make transformers' mask without its shortcuts for rows of one length, which wait for the device."""
    kwargs |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    packing = packed_now()
    if packing is not None:  # a mask for the rows that the tokens are gathered into
        rows, length = packing.real.shape
        kwargs |= {"batch_size": rows, "q_length": length, "kv_length": length, "attention_mask": packing.real}
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register("hpo", _attention)
AttentionMaskInterface.register("hpo", _mask)


# ---------------------------------------------------------------- loading


def _explained(name: str, folder: Path, what: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"model {name!r}: its {what} needs Python code that it brings along, which hpo never runs. Choose a model "
            "whose classes are part of transformers"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    local = locate(name, folder) is not None
    searched = "" if local else f"There is no such folder in {Path.cwd()} or in {folder}. "
    offline = os.environ.get("HF_HUB_OFFLINE") == "1" or any(w in str(error).lower() for w in ("connect", "couldn't"))
    if offline and not local:
        hint = (
            "If it is a Hub name, it is not in the local cache and the Hub cannot be reached: download the model where "
            "there is a network and name its folder, e.g. model: ./bert-base-uncased"
        )
    else:
        hint = "Name a folder that save_pretrained() wrote (safetensors), or a name on huggingface.co"
    return ModelError(f"model {name!r}: its {what} cannot be loaded ({first}). {searched}{hint}")


def _lacking(name: str, what: str, error: ImportError) -> HpoError:
    """Return the error about a package that a tokenizer needs: those of Marian and M2M100 need SentencePiece."""
    message = " ".join(str(error).split())
    if "sentencepiece" in message.lower():
        return MissingExtraError(f"model {name!r}: its {what}", "translation")
    return ModelError(f"model {name!r}: its {what} needs a package. {message.partition(' Check out')[0]}")


def load_tokenizer(name: str, folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with a padding token.

    Args:
        name: Local folder, `package:` name or Hub name.
        folder: The study file's folder.
        options: Of the tokenizer.

    Raises:
        ModelError: The model or its tokenizer cannot be found or read.
    """
    source = model_source(name, folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **NO_CODE, **options)
    except ImportError as error:
        raise _lacking(name, "tokenizer", error) from None
    except Exception as error:  # transformers, tokenizers and the Hub raise errors of many kinds
        raise _explained(name, folder, "tokenizer", error) from None
    if len(tokenizer) <= len(
        tokenizer.all_special_ids
    ):  # transformers returns such a tokenizer for a folder without one
        raise ModelError(
            f"model {name!r} has no tokenizer; save it beside the weights: tokenizer.save_pretrained(folder)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"model {name!r}: its tokenizer has no token to pad with; add a pad_token and save it")
    return tokenizer


def load_model(
    name: str, folder: Path, task: Task, labels: Iterable[str], pad: int | None = None
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load a model of a task, with a head for these labels.

    Args:
        name: Local folder, `package:` name or Hub name.
        folder: The study file's folder.
        task: The task.
        labels: Label names; empty where the task has none.
        pad: Id of the padding token, for models whose configuration names none.

    Returns:
        The model in float32 on the CPU, and the names of the parameters that are not pretrained (the head).

    Raises:
        ModelError: The model cannot be found or read, or has no safetensors.
    """
    source = model_source(name, folder)
    names = list(labels)
    try:
        config = AutoConfig.from_pretrained(source, **NO_CODE)
        if multi_head.has_heads(config) and task.name != TASK:
            raise ModelError(
                f"model {name!r} has the heads of several tasks; write the model of each task into a folder of its own "
                "with hpo export STUDY -o FOLDER, and name FOLDER/TASK"
            )
        task.configure(config, names)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad
        model, info = from_pretrained(source, config, task.auto_model)
    except ModelError:
        raise
    except Exception as error:  # as above
        raise _explained(name, folder, "weights", error) from None
    return model, frozenset(info["missing_keys"]) | {key for key, *_ in info.get("mismatched_keys", ())}


def from_pretrained(source: str, config: Any, auto_model: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model with this module's attention.

    Args:
        source: Folder or Hub name.
        config: Its configuration.
        auto_model: The class of transformers that loads it.

    Returns:
        The model, and transformers' loading info: missing and mismatched keys.
    """
    if not multi_head.has_heads(config):
        return _loaded(source, config, getattr(transformers, auto_model))
    if multi_head.has_heads(AutoConfig.from_pretrained(source, **NO_CODE)):  # written by hpo, with heads
        return _loaded(source, config, multi_head.MultiTaskModel)
    model, info = multi_head.pretrained(config, lambda own, kind: from_pretrained(source, own, kind))
    model.config.architectures = [type(model).__name__]
    attend(model)
    return model, info


def _loaded(source: str, config: Any, kind: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    options: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "use_safetensors": True,  # the other format is a pickle, which can run code
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # a head for other labels is drawn again
        **NO_CODE,
    }
    model, info = kind.from_pretrained(source, attn_implementation="eager", **options)
    model.config.architectures = [type(model).__name__]
    for module in model.modules():
        if type(module).__name__.endswith("SinusoidalPositionalEmbedding"):
            module.requires_grad_(False)  # Marian's and Pegasus's class says so, and transformers forgets it in loading
    attend(model)
    return model, info


def task_of(config: Any) -> Task:
    """Return the task that a model's configuration is for."""
    architectures = getattr(config, "architectures", None) or [""]
    return task_for(str(architectures[0]), config.problem_type, config.num_labels)


def attend(model: PreTrainedModel) -> None:
    """Let a model attend with hpo's function, if its outputs are those of transformers' own function.

    Some classes accept any attention function, but then compute their own attention and misread the mask.
    """
    published = output_check.outputs(model)
    try:
        _attend_with(model, "hpo")
        if output_check.same(output_check.outputs(model), published):
            return
    except (ValueError, RuntimeError):  # the class does not allow its attention to be replaced
        pass
    _attend_with(model, "eager")


def _attend_with(model: PreTrainedModel, name: str) -> None:
    for part in model.modules():
        if isinstance(part, PreTrainedModel):  # T5's encoder and decoder have configurations of their own
            part.set_attn_implementation(name)


def longest_input(wanted: int, tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """Return the number of tokens after which a text is cut: the wanted number, or the most that the model takes."""
    limits = [wanted, int(tokenizer.model_max_length)]
    for part in output_check.parts(config):
        positions = getattr(part, "max_position_embeddings", None) or 0
        if positions > 0:  # XLNet has no limit and says -1
            limits.append(positions - first_position(part))
    return min(limits)


def first_position(config: Any) -> int:
    """Return the number of a text's first position."""
    return (config.pad_token_id or 0) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
