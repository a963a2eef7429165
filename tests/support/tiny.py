"""Tiny models, tokenizers and data: real formats, built in milliseconds."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np

TOPICS = {"good": ["fine", "warm", "bright", "lovely"], "bad": ["dull", "cold", "grim", "stale"]}
FILLER = [f"w{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = [*SPECIAL, *TOPICS["good"], *TOPICS["bad"], *FILLER]

DEBERTA_V3 = {"relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}
DEBERTA_V3 |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0}

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "electra": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "deberta-v2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    | DEBERTA_V3,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "albert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "mpnet": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "modernbert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "qwen3": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    | {"num_key_value_heads": 2, "head_dim": 8},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {"d_model": 32, "encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 4}
    | {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
}
ENDS = {"eos_token_id": 3, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3}


def sentence(rng: np.random.Generator, label: str, low: int = 3, high: int = 12) -> str:
    """Return a sentence with two words of the label's topic among filler."""
    words = [*rng.choice(FILLER, rng.integers(low, high)), *rng.choice(TOPICS[label], 2)]
    rng.shuffle(words)
    return " ".join(words)


def rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return (text, label) rows, half of each label."""
    rng = np.random.default_rng(seed)
    return [(sentence(rng, label), label) for label in ["good", "bad"] * (count // 2)]


def write_csv(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Write a labelled CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows(count, seed))
    return path


def tokenizer() -> Any:
    """Return a word-level tokenizer of `VOCABULARY`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **names)


@functools.cache
def _config(kind: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, vocab_size=200, pad_token_id=0, **ENDS, **SIZES[kind])


def save_model(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """Write a tiny pretrained model without a head, and its tokenizer."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(seed)
    AutoModel.from_config(_config(kind)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def study(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: tiny model and data in `folder`, four random trials of two epochs."""
    if not (folder / "model").exists():
        save_model(folder / "model")
    if not (folder / "data.csv").exists():
        write_csv(folder / "data.csv")
    return {
        "name": "tiny",
        "model": str(folder / "model"),
        "data": {"train": str(folder / "data.csv"), "validation": 30, "test": 30},
        "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": [8, 16], "epochs": 2},
        "sampler": "random",
        "pruner": "none",
        "trials": 4,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        **overrides,
    }
