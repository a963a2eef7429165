"""Two tiny models of different families, one of which reads words and the other characters."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import tiny
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MODELS = ["words", "characters"]


def characters() -> Any:
    """Return a tokenizer whose tokens are characters."""
    pieces = [*tiny.SPECIAL, *string.ascii_lowercase, *string.digits]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)


def save(folder: Path) -> None:
    """Write both models, a folder each."""
    tiny.save_model(folder / "words")
    tiny.save_model(folder / "characters", "distilbert", seed=1)
    characters().save_pretrained(folder / "characters")


def study(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content, as `tiny.study` does, of both models; relative to the folder."""
    if not (folder / "words").exists():
        save(folder)
    return tiny.study(folder, **{"model": MODELS, **overrides})
