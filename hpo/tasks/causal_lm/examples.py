"""Conversations and documents: the examples of causal language models, checked."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.tasks.remarks import Kind, Remarks

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}
"""What a role is called in files -> what chat templates call it."""

UNKNOWN = Kind(
    "turns with a role that is not known",
    f"The roles are system, user, assistant and tool; {', '.join(sorted(set(ROLES) - set(ROLES.values())))} are read "
    "too. Leave these rows out",
)
ORDER = Kind(
    "conversations whose roles do not alternate",
    "After a turn of the system, if there is one, the user's and the assistant's turns alternate, the user's first. "
    "Where the assistant calls tools, what they return follows, and then the assistant. "
    "Join successive turns of one role, or leave the rows out",
)
UNANSWERED = Kind(
    "conversations that end with a turn of the user",
    "The assistant's last turn is what is expected: add it, or leave the turn of the user out",
)
RETURNED = Kind(
    "conversations that end with what a tool returns",
    "The assistant's last turn is what is expected: add it, or leave the turn of the tool out",
)
CALLING = Kind(
    "conversations that end with a call of a tool, which no score of generated text judges",
    "Leave `generate` out: the loss judges them; or leave the rows out",
)
EMPTY = Kind("turns without a text", "A turn of blanks alone teaches nothing: add its text, or leave the rows out")


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: The text; of a tool, what it returns.
        more: What else chat templates read, as a JSON object: `tool_calls` of the assistant, `name` and `tool_call_id`
            of a tool. Empty if there is nothing.
    """

    role: str
    content: str
    more: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The turn as chat templates read it."""
        return {"role": self.role, "content": self.content} | (json.loads(self.more) if self.more else {})

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of tools, each with a `function` that has `name` and `arguments`."""
        found: list[dict[str, Any]] = self.message.get("tool_calls", [])
        return found

    @property
    def text(self) -> str:
        """The text for people, with each call of a tool in a line of its own."""
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in self.calls]
        return "\n".join([*([self.content] if self.content or not calls else []), *calls])


@dataclass(frozen=True)
class Conversation:
    """Turns of a user, an assistant and the tools that it calls.

    Attributes:
        turns: The turns; the last one is the assistant's, if it is known.
        given: Number of first turns that belong to a prompt: what the assistant says in them is not trained.
        plain: The prompt as it is written without a chat template; None if that is not defined.
        tools: The tools that the assistant may call, as a JSON list; empty if there are none.
    """

    turns: tuple[Turn, ...]
    given: int = 0
    plain: str | None = None
    tools: str = ""

    @property
    def answered(self) -> bool:
        """Whether the last turn is the assistant's."""
        return self.turns[-1].role == "assistant"

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the last one of the assistant."""
        return self.turns[:-1] if self.answered else self.turns

    @property
    def says(self) -> Hashable:
        """What the model is given; equal ones are duplicates."""
        return (self.tools, self.prompt) if self.tools else self.prompt

    @property
    def expected(self) -> str:
        """The assistant's last turn; empty if it is not known."""
        return self.turns[-1].text if self.answered else ""

    @property
    def source(self) -> str:
        """The prompt for people: the text of the one turn, or a line for each with its role."""
        if self.plain is not None:
            return self.plain
        if len(self.prompt) == 1:
            return self.prompt[0].content
        return "\n".join(f"{turn.role}: {turn.text}" for turn in self.prompt)


@dataclass(frozen=True)
class Document:
    """A plain text, all of which is trained.

    Attributes:
        expected: The text.
    """

    expected: str
    source: str = ""

    @property
    def answered(self) -> bool:
        """Whether there is something to be trained."""
        return True

    @property
    def says(self) -> Hashable:
        """The text; equal ones are duplicates."""
        return self.expected


Example = Conversation | Document


def check(conversation: Conversation, place: str, remarks: Remarks, *, answered: bool = True) -> None:
    """Record the faults of a conversation.

    Args:
        conversation: One turn or more, with roles of `ROLES`.
        place: The file and the row.
        remarks: Where faults are recorded.
        answered: Whether the last turn must be the assistant's.
    """
    turns = conversation.turns
    spoken = turns[1:] if turns[0].role == "system" else turns
    allowed = [("user",), *map(_followers, spoken)]
    wrong = next((i for i, turn in enumerate(spoken) if turn.role not in allowed[i]), None)
    if wrong is not None:
        number = wrong + 1 + len(turns) - len(spoken)
        remarks.fault(
            ORDER, place, f"turn {number} is the {spoken[wrong].role}'s, where the {allowed[wrong][0]}'s is expected"
        )
    elif answered and not conversation.answered:
        kind = RETURNED if turns[-1].role == "tool" else UNANSWERED
        remarks.fault(kind, place, f"its last turn is {turns[-1].content!r:.60}")
    for number, turn in enumerate(turns, 1):
        if not turn.text.strip() and turn.role != "tool":
            remarks.fault(EMPTY, place, f"turn {number}, the {turn.role}'s, is {turn.content!r:.20}")


def _followers(turn: Turn) -> tuple[str, ...]:
    """Return the roles that may follow a turn; some data sets have calls of tools in the text of the assistant."""
    if turn.role == "assistant":
        return ("tool",) if turn.calls else ("user", "tool")
    return ("assistant", "tool") if turn.role == "tool" else ("assistant",)


def alternating(texts: Sequence[str]) -> tuple[Turn, ...]:
    """Return texts as turns: the user's, the assistant's, and so on."""
    return tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts))
