"""The keys of `data:` for causal language models: what form the rows have, and which tokens are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from hpo.core.settings import Mark
from hpo.data.keys import DataKeys, Place

PLAIN = "plain"
"""The chat template of prompts that are continued as they are."""


class ChatKeys(DataKeys):
    """Rows of conversations, of prompts with completions, of instructions as Alpaca's, or of plain text."""

    form: Literal["auto", "messages", "prompt", "instruction", "text"] = "auto"
    """What the rows are; `auto` tells by the columns."""
    messages: str | None = None
    """Column of the conversations; `messages`, `conversations`, `dialog` or `dialogue` if empty."""
    tools: Annotated[str, Mark.NEWER] = "tools"
    """Column of the tools that the assistant may call: a list of JSON schemas, given to the chat template."""
    prompt: str = "prompt"
    """Column of the prompts: a text, or a list of messages."""
    completion: str = "completion"
    """Column of the completions: a text, or a list of messages."""
    instruction: str = "instruction"
    """Column of the instructions."""
    input: str = "input"
    """Column of what an instruction is about, which may be missing or empty."""
    output: str = "output"
    """Column of the answers to instructions."""
    text: str = "text"
    """Column of the documents of plain text."""
    chat_template: str | None = None
    """File of a Jinja template; the tokenizer's own if empty. `plain` continues prompts without one."""
    trained: Literal["completions", "last", "all"] = "completions"
    """The tokens that are trained: those of all turns of the assistant, of its last one, or all."""

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        needed = {"messages": ("messages",), **COLUMNS}.get(self.form, ())
        yield from (((key,), getattr(self, key)) for key in needed if getattr(self, key) is not None)
        yield from super().columns()


COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""Form -> the keys of the columns that its rows have."""
