"""Models with random weights, a tokenizer, and rows for each task, made of the same sentences of two classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)


def prepare(settings: dict[str, Any], folder: Path) -> None:
    """Write the model, its tokenizer and the three splits."""
    torch.manual_seed(0)
    MODELS.get(settings.get("task", ""), _encoder)(settings).save_pretrained(folder / "model")
    words = [f"w{i}" for i in range(settings["vocabulary"] - 5)]
    _tokenizer(words, settings.get("task", "")).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for split, rows in (
        ("train", settings["rows"]),
        ("validation", settings["validation"]),
        ("test", settings.get("test", 10)),
    ):
        WRITERS[settings.get("task", "classification")](folder / split, _sentences(rng, words, rows))


def _encoder(settings: dict[str, Any]) -> PreTrainedModel:
    """Return a BERT without a head: both sides draw one for each trial."""
    return BertModel(
        BertConfig(
            vocab_size=settings["vocabulary"],
            hidden_size=settings["hidden"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            intermediate_size=4 * settings["hidden"],
        )
    )


def _decoder(settings: dict[str, Any]) -> PreTrainedModel:
    """Return a Llama with three query heads to a key, as SmolLM2 has."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings["vocabulary"],
            hidden_size=settings["hidden"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            num_key_value_heads=max(1, settings["heads"] // 3),
            intermediate_size=settings["hidden"] * 8 // 3,
            tie_word_embeddings=True,
            **SPECIAL,
        )
    )


def _encoder_decoder(settings: dict[str, Any]) -> PreTrainedModel:
    """Return a T5 with as many layers in the encoder as in the decoder."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=settings["vocabulary"],
            d_model=settings["hidden"],
            d_kv=settings["hidden"] // settings["heads"],
            d_ff=4 * settings["hidden"],
            num_layers=settings["layers"],
            num_heads=settings["heads"],
            decoder_start_token_id=0,
            **SPECIAL,
        )
    )


SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # of the tokenizer
MODELS: dict[str, Callable[[dict[str, Any]], PreTrainedModel]] = {"causal_lm": _decoder, "seq2seq": _encoder_decoder}
"""Task -> what makes its model; of other tasks `_encoder`."""


def _tokenizer(words: Sequence[str], task: str) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer in which every word is one token: n words make n tokens, [CLS] and [SEP].

    What a causal model continues has neither; a text that a model writes ends with [SEP].
    """
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *words])}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if task != "causal_lm":
        pieces.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": token for name, token in special.items()}
    if task in MODELS:
        names["eos_token"] = special["sep"]
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=512, **names)


def _sentences(rng: np.random.Generator, words: Sequence[str], rows: int) -> list[tuple[str, str]]:
    """Return (text, label) of sentences of 5 to 60 words, 24 on average, with word frequencies of real text (Zipf).

    A seventh of the words is drawn from ten words that occur only in sentences of that label.
    """
    cues, common = np.array(words[:20]).reshape(2, 10), np.array(words[20:])
    shares = 1.0 / (np.arange(len(common)) + 2.7)
    lengths = np.clip(rng.gamma(4.0, 6.0, rows).round().astype(int), 5, 60)
    sentences = []
    for length in lengths:
        label = int(rng.integers(2))
        plain = rng.choice(common, length, p=shares / shares.sum())
        text = np.where(rng.random(length) < 1 / 7, rng.choice(cues[label], length), plain)
        sentences.append((" ".join(text), ("negative", "positive")[label]))
    return sentences


# ---------------------------------------------------------------- rows of each task

Sentences = Sequence[tuple[str, str]]


def _labelled(path: Path, sentences: Sentences) -> None:
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sentences])


def _tagged(path: Path, sentences: Sentences) -> None:
    """Tag the words that only one class of sentences has as entities of that class."""
    rows = []
    for text, label in sentences:
        words = text.split()
        rows.append({"tokens": words, "tags": [f"B-{label[:3].upper()}" if _is_cue(word) else "O" for word in words]})
    _write_lines(path, rows)


def _asked(path: Path, sentences: Sentences) -> None:
    """Ask for the word after the first word that only one class of sentences has; else after the first word."""
    rows = []
    for number, (text, _) in enumerate(sentences):
        words = text.split()[:48]  # with the question, no row is longer than the longest that is not cut
        asked = next((i for i, word in enumerate(words[:-1]) if _is_cue(word)), 0)
        answers = {"text": [words[asked + 1]], "answer_start": [len(" ".join(words[: asked + 1])) + 1]}
        question = f"{words[asked]} {words[asked]}"
        rows.append({"id": str(number), "question": question, "context": " ".join(words), "answers": answers})
    _write_lines(path, rows)


def _continued(path: Path, sentences: Sentences) -> None:
    """Let a model continue a sentence after its first third; `[SEP]` ends it."""
    rows = []
    for text, _ in sentences:
        words = text.split()
        first = max(1, len(words) // 3)
        rows.append({"prompt": " ".join(words[:first]), "completion": " " + " ".join(words[first:])})
    _write_lines(path, rows)


def _shortened(path: Path, sentences: Sentences) -> None:
    """Let a model write the words that only one class of sentences has, or the first word."""
    rows = []
    for text, _ in sentences:
        words = text.split()
        rows.append({"source": text, "target": " ".join(filter(_is_cue, words)) or words[0]})
    _write_lines(path, rows)


def _is_cue(word: str) -> bool:
    return int(word[1:]) < 20


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path, Sentences], None]] = {
    "classification": _labelled,
    "token_classification": _tagged,
    "question_answering": _asked,
    "causal_lm": _continued,
    "seq2seq": _shortened,
}
"""Task -> what writes the rows of a split, given its path without an ending."""
