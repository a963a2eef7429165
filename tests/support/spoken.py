"""Tiny translators that know languages, each with a tokenizer of its family, built from their configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paired
import tiny

HALVES = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in [("layers", 2), ("ffn_dim", 64)]}
HALVES |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
HALVES |= {f"{side}_layerdrop": 0.0 for side in ("encoder", "decoder")}

SOURCE, TARGET = "source_language", "target_language"
LANGUAGES = {
    "mbart": {SOURCE: "en_XX", TARGET: "es_XX"},
    "mbart-50": {SOURCE: "en_XX", TARGET: "es_XX"},
    "nllb": {SOURCE: "eng_Latn", TARGET: "spa_Latn"},
}
"""Family -> the codes of its languages. A target of mBART ends with its language; one of the others begins with it."""


def tokenizer(family: str) -> Any:
    """Return the tokenizer of a family, whose words are those of `paired`."""
    from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer

    words = [f"▁{word}" for word in (*paired.WORDS, *paired.WORDS.values())]
    if family == "nllb":
        letters = dict.fromkeys("".join(words))
        vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
        codes = ["deu_Latn", "eng_Latn", "spa_Latn"]
        return NllbTokenizer(vocab=vocabulary, merges=[], additional_special_tokens=codes, model_max_length=128)
    ends = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    codes = ["de_DE", "en_XX", "es_XX"]
    vocabulary = [*ends, ("▁", -2.0), *((word, -1.0) for word in words), *((code, 0.0) for code in codes)]
    made = MBartTokenizer if family == "mbart" else MBart50Tokenizer
    return made(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=128)


def save_model(folder: Path, family: str) -> Path:
    """Write a tiny translator and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    words = tokenizer(family)
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    ends |= {} if family == "mbart" else {"decoder_start_token_id": 2}
    kind = "m2m_100" if family == "nllb" else "mbart"
    sizes = {"d_model": 32, "max_position_embeddings": 128, **HALVES}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(words), **sizes, **ends)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def study(folder: Path, family: str, count: int = 140, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: a tiny translator, its languages and pairs in `folder`, four random trials."""
    if not (folder / "model").exists():
        save_model(folder / "model", family)
        paired.write_jsonl(folder / "pairs.jsonl", paired.pairs(count))
    data = {"train": str(folder / "pairs.jsonl"), "validation": 30, "test": 30, **LANGUAGES[family]}
    data |= overrides.pop("data", {})
    return tiny.study(folder, task="seq2seq", data=data, **{"max_length": 96, **overrides})
