"""Tiny translators that know languages, each with a tokenizer of its family, built from their configurations."""

from __future__ import annotations

import json
import tempfile
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
    "m2m100": {SOURCE: "en", TARGET: "es"},
}
"""Family -> the codes of its languages. A target of mBART ends with its language; one of the others begins with it."""


def token(family: str, code: str) -> str:
    """Return the token of a language in the texts of a family."""
    return f"__{code}__" if family == "m2m100" else code


def pieces(folder: Path, name: str, texts: list[str]) -> tuple[str, list[str]]:
    """Train a SentencePiece model on texts, and return its file and its pieces."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    file = folder / name
    settings = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(texts), model_prefix=str(file), **settings)
    model = SentencePieceProcessor(model_file=f"{file}.model")
    return f"{file}.model", [model.id_to_piece(i) for i in range(3, model.get_piece_size())]  # <unk>, <s>, </s> first


def of_files(family: str) -> Any:
    """Return the tokenizer of M2M100 or of Marian, which are read from files of SentencePiece."""
    from transformers import M2M100Tokenizer, MarianTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source, known = pieces(folder, "source", list(paired.WORDS))
        target, more = pieces(folder, "target", list(paired.WORDS.values()))
        ends = ["</s>", "<unk>", "<pad>"] if family == "marian" else ["<s>", "<pad>", "</s>", "<unk>"]
        if family == "m2m100":
            source, known = pieces(folder, "both", [*paired.WORDS, *paired.WORDS.values()])
        vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*ends, *known, *more]))}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        if family == "marian":
            return MarianTokenizer(source, target, str(folder / "vocab.json"), model_max_length=128)
        return M2M100Tokenizer(str(folder / "vocab.json"), source, model_max_length=128)


def tokenizer(family: str) -> Any:
    """Return the tokenizer of a family, whose words are those of `paired`."""
    from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer

    if family in ("marian", "m2m100"):
        return of_files(family)
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
    kind = {"nllb": "m2m_100", "m2m100": "m2m_100", "marian": "marian"}.get(family, "mbart")
    if family == "marian":
        ends = {"eos_token_id": 0, "pad_token_id": words.pad_token_id, "decoder_start_token_id": words.pad_token_id}
    sizes = {"d_model": 32, "max_position_embeddings": 128, **HALVES}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = words.get_lang_id("zu") + 1 if family == "m2m100" else len(words)  # its languages are not counted
        config = AutoConfig.for_model(kind, vocab_size=size, **sizes, **ends)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def study(folder: Path, family: str, count: int = 140, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: a tiny translator, its languages and pairs in `folder`, four random trials."""
    if not (folder / "model").exists():
        save_model(folder / "model", family)
        paired.write_jsonl(folder / "pairs.jsonl", paired.pairs(count))
    data = {"train": str(folder / "pairs.jsonl"), "validation": 30, "test": 30, **LANGUAGES.get(family, {})}
    data |= overrides.pop("data", {})
    return tiny.study(folder, task="seq2seq", data=data, **{"max_length": 96, **overrides})
