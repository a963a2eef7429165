"""A model with random weights, its tokenizer, and rows for each task, made of the same sentences of two classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


def prepare(settings: dict[str, Any], folder: Path) -> None:
    """Write the model, its tokenizer and the three splits."""
    shape = BertConfig(
        vocab_size=settings["vocabulary"],
        hidden_size=settings["hidden"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["hidden"],
    )
    torch.manual_seed(0)
    BertModel(shape).save_pretrained(folder / "model")  # without a head: both sides initialise one for each trial
    words = [f"w{i}" for i in range(settings["vocabulary"] - 5)]
    _tokenizer(words).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for split, rows in (
        ("train", settings["rows"]),
        ("validation", settings["validation"]),
        ("test", settings.get("test", 10)),
    ):
        WRITERS[settings.get("task", "classification")](folder / split, _sentences(rng, words, rows))


def _tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer in which every word is one token: n words make n tokens, [CLS] and [SEP]."""
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *words])}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": token for name, token in special.items()}
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


def _is_cue(word: str) -> bool:
    return int(word[1:]) < 20


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path, Sentences], None]] = {
    "classification": _labelled,
    "token_classification": _tagged,
    "question_answering": _asked,
}
"""Task -> what writes the rows of a split, given its path without an ending."""
