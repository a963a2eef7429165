"""Tiny models of every architecture that folds, and rows for several slots of them."""

from __future__ import annotations

import copy
from typing import Any

import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_BERT |= {"vocab_size": 100, "max_position_embeddings": 64}
_LLAMA = _BERT | {"num_key_value_heads": 2, "pad_token_id": 0}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}
_GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
_T5 |= {"decoder_start_token_id": 0}
_BART = {"d_model": 32, "vocab_size": 100, "max_position_embeddings": 64}
_BART |= {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in [("layers", 2), ("ffn_dim", 64)]}
_BART |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
_TWO_BERTS = {"encoder": {"model_type": "bert", **_BERT}, "decoder": {"model_type": "bert", **_BERT}}
_TWO_BERTS["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
_TWO_BERTS |= {"pad_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 3}
_MODERN = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}

CLASSIFY, MASKED, CAUSAL, TRANSLATE = (
    AutoModelForSequenceClassification,
    AutoModelForMaskedLM,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

ARCHITECTURES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "albert": ("albert", CLASSIFY, _BERT | {"embedding_size": 16}),
    "bart": ("bart", CLASSIFY, _BART),
    "bart-seq2seq": ("bart", TRANSLATE, _BART),
    "bert": ("bert", CLASSIFY, _BERT),
    "bert-masked": ("bert", MASKED, _BERT),
    "deberta-v2": ("deberta-v2", CLASSIFY, _BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-v3": ("deberta-v2", CLASSIFY, _BERT | tiny.DEBERTA_V3),
    "distilbert": (
        "distilbert",
        CLASSIFY,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100},
    ),
    "electra": ("electra", CLASSIFY, _BERT | {"embedding_size": 16}),
    "encoder-decoder": ("encoder-decoder", TRANSLATE, _TWO_BERTS),
    "gemma": ("gemma", CLASSIFY, _LLAMA | {"head_dim": 8}),
    "gpt2": (
        "gpt2",
        CLASSIFY,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64, "pad_token_id": 0},
    ),
    "gpt2-causal": ("gpt2", CAUSAL, _GPT2),
    "gpt2-untied": ("gpt2", CAUSAL, _GPT2 | {"tie_word_embeddings": False}),
    "gpt-neox-causal": ("gpt_neox", CAUSAL, _BERT),
    "llama": ("llama", CLASSIFY, _LLAMA),
    "llama-causal": ("llama", CAUSAL, _LLAMA),
    "llama-causal-tied": ("llama", CAUSAL, _LLAMA | {"tie_word_embeddings": True}),
    "marian": ("marian", TRANSLATE, _BART | {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "modernbert": ("modernbert", CLASSIFY, _BERT | _MODERN),
    "mpnet": ("mpnet", CLASSIFY, _BERT),
    "opt-causal": ("opt", CAUSAL, _BERT | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "qwen2": ("qwen2", CLASSIFY, _LLAMA),
    "qwen2-causal": ("qwen2", CAUSAL, _LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", CLASSIFY, _LLAMA | {"head_dim": 8}),
    "qwen3-causal": ("qwen3", CAUSAL, _LLAMA | {"head_dim": 8}),
    "roberta": ("roberta", CLASSIFY, _BERT | {"pad_token_id": 1}),
    "t5": ("t5", CLASSIFY, _T5),
    "t5-seq2seq": ("t5", TRANSLATE, _T5),
    "t5-untied": ("t5", TRANSLATE, _T5 | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "xlnet": ("xlnet", CLASSIFY, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 100}),
}


def heads(auto: Any) -> dict[str, tuple[type[PreTrainedModel], Any]]:
    """Return every architecture that has a model of an auto class, and its configuration."""
    found = {}
    for kind, _, settings in ARCHITECTURES.values():
        config = AutoConfig.for_model(kind, **settings)
        if type(config) in auto._model_mapping:
            found[f"{kind}-{len(settings)}"] = auto._model_mapping[type(config)], config
    return found


def configuration(name: str, **changes: Any) -> tuple[Any, Any]:
    """Return the auto class and the configuration of an architecture."""
    kind, task, settings = ARCHITECTURES[name]
    return task, AutoConfig.for_model(kind, num_labels=3, **(settings | changes))


def models(name: str, count: int, dtype: torch.dtype = torch.float32, **changes: Any) -> list[PreTrainedModel]:
    """Return models of one configuration with different weights, no dropout, and noise in all biases and norms."""
    task, config = configuration(name, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = task.from_config(config).to(dtype).eval()
    found = [first, *(copy.deepcopy(first) for _ in range(count - 1))]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for model in found:
            for p in filter(lambda p: p.requires_grad, model.parameters()):  # Marian's positions are fixed
                p.add_(torch.randn(p.shape, generator=generator, dtype=dtype), alpha=0.05)
    return found


def rows(
    model: PreTrainedModel, slots: int, count: int = 4, length: int = 12, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return inputs [K, count, length] with rows of every length, padded."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (slots, count, length), generator=generator)
    lengths = torch.randint(2, length + 1, (slots, count, 1), generator=generator)
    lengths[:, 0] = length
    columns = torch.arange(length)
    if config.is_encoder_decoder:  # it classifies at the end token
        ids = ids.where(columns != lengths - 1, config.eos_token_id)
    ids = ids.where(columns < lengths, config.pad_token_id or 0)
    inputs = {"input_ids": ids, "attention_mask": (columns < lengths).long()}
    if config.model_type == "xlnet":  # else some parameters do not change the output
        inputs["token_type_ids"] = (columns > 2).long().expand_as(ids)
    if config.is_encoder_decoder and "Classification" not in type(model).__name__:
        inputs["decoder_input_ids"] = ids[..., :5]
    return inputs


def flat(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return [K, count, ...] as [K * count, ...]."""
    return {name: x.flatten(0, 1) for name, x in inputs.items()}
