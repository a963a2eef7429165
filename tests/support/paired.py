"""Pairs of sentences, and tiny encoder-decoder models with a trained tokenizer, built in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny

WORDS = {f"word{i}": f"palabra{i}" for i in range(30)}
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
SIDES = ("encoder", "decoder")

_HALVES = {f"{side}_{key}": n for side in SIDES for key, n in [("layers", 2), ("ffn_dim", 64), ("attention_heads", 4)]}
_ENDS = {"pad_token_id": 0, "eos_token_id": 1}
SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {"d_model": 32, **_HALVES, "max_position_embeddings": 64, "bos_token_id": 3, "decoder_start_token_id": 1},
    "marian": {"d_model": 32, **_HALVES, "max_position_embeddings": 64, "decoder_start_token_id": 0}
    | {"forced_eos_token_id": 1},
    "mbart": {"d_model": 32, **_HALVES, "max_position_embeddings": 64},
    "encoder-decoder": {**tiny.SIZES["bert"], "max_position_embeddings": 64},
}
KINDS = [kind for kind in SIZES if kind != "mbart"]


def pairs(count: int, seed: int = 0, low: int = 2, high: int = 9, words: int = 30) -> list[tuple[str, str]]:
    """Return sentences of so many words and their translations, word by word, without every fifth word."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        chosen = [str(word) for word in rng.choice(list(WORDS)[:words], rng.integers(low, high))]
        found.append((" ".join(chosen), " ".join(WORDS[word] for i, word in enumerate(chosen) if i % 5 != 4)))
    return found


def write_jsonl(path: Path, found: list[tuple[str, str]]) -> Path:
    """Write rows of a source and a target."""
    rows = [{"source": source, "target": target} for source, target in found]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenizer(of_encoder: bool = False) -> Any:
    """Return a trained BPE tokenizer, whose texts end as T5's do; or as BERT's, if it is of an encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = tiny.SPECIAL if of_encoder else SPECIAL
    inner = Tokenizer(models.BPE(unk_token="[UNK]" if of_encoder else "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    inner.train_from_iterator([*WORDS, *WORDS.values()], trainer)
    form = "[CLS] $A [SEP]" if of_encoder else "$A </s>"
    ends = [(token, number) for number, token in enumerate(special) if token in form.split()]
    inner.post_processor = processors.TemplateProcessing(single=form, special_tokens=ends)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    if of_encoder:
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)


def config(kind: str, vocabulary: int = 90, **changes: Any) -> Any:
    """Return the configuration of a tiny model."""
    from transformers import AutoConfig, BertConfig, EncoderDecoderConfig

    if kind != "encoder-decoder":
        return AutoConfig.for_model(kind, vocab_size=vocabulary, **_ENDS, **SIZES[kind], **changes)
    encoder, decoder = (BertConfig(vocab_size=vocabulary, pad_token_id=0, **SIZES[kind]) for _ in SIDES)
    ends = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2}
    return EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **{**ends, **changes})


def model(kind: str, seed: int = 0) -> Any:
    """Return a tiny model with its head."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSeq2SeqLM.from_config(config(kind))


def save_model(folder: Path, kind: str = "t5") -> Path:
    """Write a tiny model with its head, and its tokenizer."""
    model(kind).save_pretrained(folder)
    tokenizer(of_encoder=kind == "encoder-decoder").save_pretrained(folder)
    return folder


def study(folder: Path, kind: str = "t5", count: int = 140, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: a tiny model and pairs in `folder`, four random trials."""
    if not (folder / "model").exists():
        save_model(folder / "model", kind)
    if not (folder / "pairs.jsonl").exists():
        write_jsonl(folder / "pairs.jsonl", pairs(count))
    data = {"train": str(folder / "pairs.jsonl"), "validation": 30, "test": 30, **overrides.pop("data", {})}
    return tiny.study(folder, task="seq2seq", data=data, **{"max_length": 32, **overrides})
