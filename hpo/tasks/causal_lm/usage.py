"""The code that a model card shows: an answer to a prompt, by a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.tasks.causal_lm.keys import PLAIN

_CODE = """\
from transformers import pipeline

folder, prompt = "FOLDER", "PROMPT"
write = pipeline("text-generation", folder, tokenizer=folder)
answer = write({prompt}, return_full_text=False{longest})[0]["generated_text"]
print(answer)
"""


def code(settings: Mapping[str, Any]) -> str:
    """Return code that continues a prompt, or answers it as the first message of a conversation.

    Args:
        settings: The study's settings.
    """
    data = settings.get("data") or {}
    plainly = data.get("chat_template") == PLAIN or data.get("form") == "text"
    # With `generate`, the exported folder says how text is generated.
    longest = "" if settings.get("generate") else ", do_sample=False, max_new_tokens=64"
    message = '[{"role": "user", "content": prompt}]'
    return _CODE.format(prompt="prompt" if plainly else message, longest=longest)
