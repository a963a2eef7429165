"""The code that a model card shows: transformers has no pipeline for multiple choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CODE = """\
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

folder, context, choices = "FOLDER", "CONTEXT", ["CHOICE", "CHOICE"]{question}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMultipleChoice.from_pretrained(folder)
length = min({max_length}, tokenizer.model_max_length)
inputs = tokenizer([context] * len(choices), {endings}, truncation=True, max_length=length, padding=True,
                   return_tensors="pt")
with torch.no_grad():
    logits = model(**{{name: inputs[name][None] for name in tokenizer.model_input_names}}).logits[0]
answer = choices[logits.argmax()]  # logits.softmax(0) are the probabilities
"""


def code(settings: Mapping[str, Any]) -> str:
    """Return code that chooses with an exported model.

    Args:
        settings: The study's settings.
    """
    asks = bool((settings.get("data") or {}).get("question"))
    return _CODE.format(
        max_length=int(settings["max_length"]),
        question='\nquestion = "QUESTION"  # or the beginning of all choices' if asks else "",
        endings='[f"{question} {choice}".strip() for choice in choices]' if asks else "choices",
    )
