"""The code that a model card shows: transformers has no pipelines for translation and summarisation any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.tasks.seq2seq.keys import PairKeys

_CODE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder, text = "FOLDER", "TEXT"
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
length = min({max_length}, tokenizer.model_max_length)
inputs = tokenizer({text}, truncation=True, max_length=length, return_token_type_ids=False, return_tensors="pt")
found = model.generate(**inputs{longest})
print(tokenizer.decode(found[0], skip_special_tokens=True))
"""


def code(settings: Mapping[str, Any]) -> str:
    """Return code that makes a target of a source.

    Args:
        settings: The study's settings.
    """
    data = settings.get("data") or {}
    keys = PairKeys.model_validate({key: value for key, value in data.items() if key in PairKeys.model_fields})
    text = f"{keys.prefix!r} + text" if keys.prefix else "text"
    # With `generate`, the exported folder says how text is generated.
    longest = "" if settings.get("generate") else f", max_new_tokens={keys.max_target_length}"
    return _CODE.format(max_length=int(settings["max_length"]), text=text, longest=longest)
