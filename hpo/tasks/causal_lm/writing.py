"""Examples as one text each, as the model reads them, with the characters that the assistant writes."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from hpo.core.errors import DataError
from hpo.tasks.causal_lm.examples import Conversation, Document, Example, Turn
from hpo.tasks.causal_lm.keys import PLAIN
from hpo.tasks.remarks import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

DATE = "26 Jul 2024"
"""The date of Llama 3's template where it is not given; rows must not depend on the day on which they are written."""
MARKERS, CLOSING = (re.compile(rf"\{{%(-?)\s*{name}\s*(-?)%\}}") for name in ("generation", "endgeneration"))
OPEN, CLOSE = "\ue000", "\ue001"  # private characters, which stand where the marks are
_OPENED = rf"{{%\1 if true %}}{{{{ '{OPEN}' }}}}{{% if true \2%}}"  # blocks again, so that blanks are trimmed alike
_CLOSED = rf"{{%\1 endif %}}{{{{ '{CLOSE}' }}}}{{% endif \2%}}"

FAILS = Kind(
    "conversations that the chat template refuses",
    "Change the rows as it says, or give another template: data: {chat_template: FILE}",
)
UNFAITHFUL = Kind(
    "conversations in which it cannot be told what the chat template writes for the assistant",
    "Give a template that marks it by {% generation %} and {% endgeneration %}: data: {chat_template: FILE}; or train "
    "on the last answers alone, data: {trained: last}, if earlier ones are meant; or on all tokens, {trained: all}",
)


UNUSED = Kind(
    "conversations whose calls or tools the chat template does not write",
    "Give a template that does: data: {chat_template: FILE}; or leave the rows out",
)


class UnwrittenError(Exception):
    """An example cannot be written.

    Attributes:
        kind: Kind of the fault.
    """

    def __init__(self, kind: Kind, what: str) -> None:
        super().__init__(what)
        self.kind = kind


@dataclass(frozen=True)
class Written:
    """An example as a text.

    Attributes:
        text: What the model reads.
        spans: Start and end of each piece of the text that is trained, in characters.
        closed: Whether the spans contain what ends a turn. If not, it follows them.
    """

    text: str
    spans: tuple[Span, ...]
    closed: bool = True


class Writer(ABC):
    """Writes examples as texts.

    Attributes:
        lead: Ids of the tokens that stand before each text.
        tail: Ids of the tokens that stand after each text, and are trained.
    """

    lead: list[int]
    tail: list[int]

    @abstractmethod
    def write(self, example: Example, trained: str) -> Written:
        """Return an example as a text.

        Args:
            example: What is expected is known, or all of it is a prompt.
            trained: As in `ChatKeys`.

        Raises:
            UnwrittenError: It cannot be written.
        """

    @abstractmethod
    def prompt(self, example: Example) -> str:
        """Return the text that the model continues with what is expected.

        Raises:
            UnwrittenError: It cannot be written.
        """


def writer_of(examples: Sequence[Example], template: str | None, tokenizer: PreTrainedTokenizerBase) -> Writer:
    """Return what writes the examples of a split.

    Args:
        examples: The examples, all of one form.
        template: Text of a chat template; `plain`; None for the tokenizer's own.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: The tokenizer lacks what is needed, or the template writes the date of today.
    """
    if not tokenizer.is_fast:
        raise DataError(
            "the tokenizer does not tell which characters its tokens are of (it is no fast one): choose a model with a "
            "tokenizer.json"
        )
    if template == PLAIN or isinstance(examples[0], Document):
        return PlainWriter(tokenizer)
    own = template if template is not None else _own_template(examples, tokenizer)
    if "strftime_now" in own and "date_string" not in own:
        raise DataError(
            "the chat template writes the date of today (strftime_now), so rows would change from day to day: copy it "
            "into a file, write a fixed date there, and set data: {chat_template: FILE}"
        )
    return ChatWriter(tokenizer, own)


def _own_template(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's template; of several the one for tools, if there are tools."""
    example, tools = examples[0], [each for each in examples if isinstance(each, Conversation) and each.tools]
    try:
        return tokenizer.get_chat_template(tools=[] if tools else None)
    except ValueError:  # it has none, or several without a default
        several = isinstance(tokenizer.chat_template, dict)
        has = "several chat templates and no default one" if several else "no chat template"
        plain = isinstance(example, Conversation) and example.plain is not None
        other = f", or data: {{chat_template: {PLAIN}}} to continue the prompts as they are" if plain else ""
        raise DataError(
            f"the model's tokenizer has {has}, and conversations need one. Name a file of a Jinja template, data: "
            f"{{chat_template: FILE}}{other}"
        ) from None


# ---------------------------------------------------------------- without a template


class PlainWriter(Writer):
    """Writes a prompt, then its completion; or a document. The tokenizer's tokens of beginning and end are added."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the model's tokenizer has no token that ends a text (eos_token): without it the model does not learn "
                "where to end. Set it, and save the tokenizer"
            )
        framed = tokenizer("a", return_special_tokens_mask=True)
        mask = list(framed["special_tokens_mask"])
        self.lead = list(framed["input_ids"][: mask.index(0)]) if 0 in mask else []
        self.tail = [int(tokenizer.eos_token_id)]

    def write(self, example: Example, trained: str) -> Written:
        """Return prompt and completion, or a document."""
        if isinstance(example, Document):
            return Written(example.expected, ((0, len(example.expected)),))
        prompt = self.prompt(example)
        text = prompt + example.expected
        return Written(text, ((0 if trained == "all" else len(prompt), len(text)),))

    def prompt(self, example: Example) -> str:
        """Return the prompt as it is."""
        if isinstance(example, Document) or example.plain is None:
            raise UnwrittenError(FAILS, f"messages need a chat template, and data.chat_template is {PLAIN}")
        if example.tools:
            raise UnwrittenError(UNUSED, f"tools need a chat template, and data.chat_template is {PLAIN}")
        return example.plain


# ---------------------------------------------------------------- with a template


class ChatWriter(Writer):
    """Writes conversations by a chat template.

    Where the template does not mark what the assistant writes, it is found by rendering. A turn begins where the
    conversation before it ends, written with the prompt for an answer. Its text ends where the rendered conversation
    begins to be equal again to one whose turn is another: has one letter more, or for a turn that calls tools, is one
    letter without a call.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.lead, self.tail = [], []

    def render(self, turns: Sequence[Turn], tools: str = "", *, prompt: bool = False) -> str:
        """Return turns as the template writes them, with what asks for an answer if `prompt`."""
        try:
            text = self.tokenizer.apply_chat_template(
                [turn.message for turn in turns],
                tools=json.loads(tools) if tools else None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
                date_string=DATE,
            )
        except Exception as error:  # a template may fail in any way
            raise UnwrittenError(FAILS, f"{error or type(error).__name__}"[:200]) from None
        return str(text)

    def prompt(self, example: Example) -> str:
        """Return the conversation up to the answer that is expected."""
        assert isinstance(example, Conversation)
        self._refuse_unused(example.prompt, example.tools)
        return self.render(example.prompt, example.tools, prompt=True)

    def write(self, example: Example, trained: str) -> Written:
        """Return a conversation."""
        assert isinstance(example, Conversation)
        self._refuse_unused(example.turns, example.tools)
        whole = self.render(example.turns, example.tools)
        if trained == "all":
            return Written(whole, ((0, len(whole)),))
        if MARKERS.search(self.template):
            return Written(whole, tuple(self._marked(example, trained, whole)))
        numbers = [i for i, turn in enumerate(example.turns) if turn.role == "assistant" and i >= example.given]
        chosen = numbers[-1:] if trained == "last" else numbers
        return Written(whole, tuple(self._span(example, number, whole) for number in chosen), closed=False)

    def _refuse_unused(self, turns: Sequence[Turn], tools: str) -> None:
        """Refuse tools, calls of tools, and what tools return, that the template leaves out."""
        marked, words = _marked_calls(turns)
        text = self.render(marked, tools) if words else ""
        lost = [what for word, what in words.items() if word not in text]
        if tools and not lost:
            with suppress(UnwrittenError):  # a template that refuses turns without their tools has a use for them
                lost = ["the tools"] if self.render(turns) == self.render(turns, tools) else []
        if lost:
            raise UnwrittenError(UNUSED, f"it leaves out {lost[0]}")

    def _span(self, example: Conversation, number: int, whole: str) -> Span:
        """Return where the text of a turn of the assistant begins and ends."""
        turns, tools = example.turns, example.tools
        before = self.render(turns[:number], tools, prompt=True)
        end = self._end(turns, number, tools, whole)
        if not whole.startswith(before) or end <= len(before):
            asked = before[_common(before, whole) :][:40]
            what = f"it asks for an answer with {asked!r}, and does not write it so" if asked else "it leaves it out"
            raise UnwrittenError(UNFAITHFUL, f"turn {number + 1}: {what}")
        return len(before), end

    def _end(self, turns: tuple[Turn, ...], number: int, tools: str, whole: str) -> int:
        """Return where the text of a turn ends, in characters of the whole conversation."""
        turn, after = turns[number], turns[number + 1 :]
        if not turn.calls:
            letter = "y" if turn.content.endswith("x") else "x"
            changed = self.render((*turns[:number], Turn(turn.role, turn.content + letter), *after), tools)
            return _end_before_common(whole, changed)
        others = [Turn(turn.role, letter) for letter in "xy"]  # what is called may end with one of them
        try:
            plain = [self.render((*turns[:number], other, *after), tools) for other in others]
        except UnwrittenError:  # it refuses what tools return where nothing was called
            upto = self.render(turns[: number + 1], tools)
            plain = [self.render((*turns[:number], other), tools) for other in others]
            end = max(_end_before_common(upto, each) for each in plain)
            return end if whole.startswith(upto[:end]) else 0
        return max(_end_before_common(whole, each) for each in plain)

    def _marked(self, example: Conversation, trained: str, whole: str) -> list[Span]:
        """Return what the template marks as written by the assistant."""
        signed = CLOSING.sub(_CLOSED, MARKERS.sub(_OPENED, self.template))
        pieces = re.split(f"[{OPEN}{CLOSE}]", ChatWriter(self.tokenizer, signed).render(example.turns, example.tools))
        if "".join(pieces) != whole or len(pieces) % 2 == 0:
            raise UnwrittenError(UNFAITHFUL, "its {% generation %} marks cannot be followed")
        ends = list(accumulate(map(len, pieces)))
        given = self.render(example.turns[: example.given], example.tools, prompt=True) if example.given else ""
        spans = [(start, end) for start, end in zip(ends[::2], ends[1::2], strict=False) if start >= len(given)]
        if not spans:
            raise UnwrittenError(UNFAITHFUL, "it marks nothing by {% generation %}")
        return spans[-1:] if trained == "last" else spans


def _marked_calls(turns: Sequence[Turn]) -> tuple[list[Turn], dict[str, str]]:
    """Return turns with a word for the name of each call, and for each text that a tool returns.

    Returns:
        The turns, and the words -> what they stand for.
    """
    found, words = list[Turn](), dict[str, str]()

    def word(what: str) -> str:
        made = f"zq{len(words)}qz"
        words[made] = what
        return made

    for number, turn in enumerate(turns, 1):
        message = turn.message
        for call in message.get("tool_calls", ()):
            call["function"]["name"] = word(f"turn {number}, the call of {call['function']['name']!r}")
        if turn.role == "tool":
            message["content"] = word(f"turn {number}, what a tool returns")
        role, content = message.pop("role"), message.pop("content")
        found.append(Turn(role, content, json.dumps(message) if message else ""))
    return found, words


def _end_before_common(text: str, other: str) -> int:
    """Return where a text begins to be equal to the end of another one."""
    return len(text) - _common(text[::-1], other[::-1])


def _common(one: str, other: str) -> int:
    """Return the number of first characters that two texts have in common."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    low, high = 0, min(len(one), len(other))
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low
