"""Rows of files as conversations and documents. What form the rows have is told by their columns."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.causal_lm.examples import ROLES, UNKNOWN, Conversation, Document, Example, Turn, alternating, check
from hpo.tasks.causal_lm.keys import COLUMNS, PLAIN, ChatKeys
from hpo.tasks.remarks import Kind, Remarks

CONVERSATIONS = ("messages", "conversations", "dialog", "dialogue")
"""The columns that conversations are looked for in."""

ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}{input}\n\n### Response:"
)
"""The prompt of Stanford Alpaca (Taori et al., 2023, `train.py`)."""
PAIRED = ", paired with an input that provides further context"

NO_TEXT = Kind("values that are no text", "Write text; in JSON, in double quotes")
NO_TURNS = Kind(
    "values that are no conversation",
    'Write a list of messages, [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], of '
    '{"from": "human", "value": "..."}, or of texts',
)
CALLS = Kind(
    "calls of tools that are not a name and arguments",
    'Write e.g. "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]; '
    "arguments may be JSON in a text",
)
TOOLS = Kind(
    "values that are no list of tools",
    'Write e.g. "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}]; it may be JSON in '
    "a text",
)
ODD = "conversations of an odd number of texts, whose last text, the user's, is left out"


# ---------------------------------------------------------------- forms


def form_of(keys: ChatKeys, columns: Collection[str], name: str) -> dict[str, str]:
    """Return the keys of the columns of a file's form -> their names, the form itself under `form`.

    Args:
        keys: The keys of `data:`.
        columns: The file's columns.
        name: The file.

    Raises:
        DataError: The columns are of no form, or of several.
    """
    offered = {form: {key: getattr(keys, key) for key in needed} for form, needed in COLUMNS.items()}
    listed = [keys.messages] if keys.messages is not None else CONVERSATIONS
    offered["messages"] = {"messages": next((column for column in listed if column in columns), listed[0])}
    found = [form for form, needed in offered.items() if set(needed.values()) <= set(columns)]
    if keys.form != "auto":
        found = [form for form in found if form == keys.form]
    elif len(found) > 1:
        found = [form for form in found if form != "text"]  # beside others a text is one of them, written out
    if not found:
        raise DataError(_no_form(keys, offered, columns, name))
    if len(found) > 1:
        raise DataError(
            f"{name} has the columns of {' and of '.join(map(repr, found))}: say what its rows are, e.g. data: "
            f"{{form: {found[-1]}}}"
        )
    chosen = {"form": found[0], **offered[found[0]]}
    more = {"instruction": "input", "messages": "tools", "prompt": "tools"}.get(found[0], "")
    return chosen | ({more: getattr(keys, more)} if more and getattr(keys, more) in columns else {})


def _no_form(keys: ChatKeys, offered: Mapping[str, Mapping[str, str]], columns: Collection[str], name: str) -> str:
    wanted = offered if keys.form == "auto" else {keys.form: offered[keys.form]}
    listed = [f"{', '.join(map(repr, needed.values()))} ({form})" for form, needed in sorted(wanted.items())]
    return (
        f"{name} has not the columns {'; or '.join(listed)}; it has {', '.join(map(repr, columns))}. Name the columns "
        f"under data: {', '.join(dict.fromkeys(key for needed in wanted.values() for key in needed))}"
    )


def said(form: Mapping[str, str]) -> str:
    """Return what rows of a form are read as, in words."""
    named = {key: repr(column) for key, column in form.items() if key != "form"}
    if form["form"] == "messages":
        tools = f", with the tools of the column {named['tools']}" if "tools" in named else ""
        return f"conversations, from the column {named['messages']}{tools}"
    if form["form"] == "text":
        return f"plain text, from the column {named['text']}, a document a row"
    asked = " and ".join(named[key] for key in ("prompt", "instruction", "input") if key in named)
    answer = named["completion" if form["form"] == "prompt" else "output"]
    return f"prompts and completions: a turn of the user from {asked}, and the assistant's from {answer}"


# ---------------------------------------------------------------- rows


def example(
    row: Mapping[str, Any], form: str, place: str, remarks: Remarks, *, answered: bool = True
) -> Example | None:
    """Return a row as a conversation or a document; None if it has a fault.

    Args:
        row: Key of `data:` -> value.
        form: As in `ChatKeys`.
        place: The file and the row.
        remarks: Where faults and notes are recorded.
        answered: Whether what is expected must be known.
    """
    if form == "text":
        text = _text(row, "text", place, remarks)
        return None if text is None else Document(text)
    before = remarks.count
    found = _FORMS[form](row, place, remarks, answered)
    if found is None:
        return None
    check(found, place, remarks, answered=answered)
    return found if remarks.count == before else None


def _messages(row: Mapping[str, Any], place: str, remarks: Remarks, answered: bool) -> Conversation | None:
    turns, tools = _turns(row.get("messages"), place, remarks), _tools(row.get("tools"), place, remarks)
    return Conversation(turns, tools=tools) if turns else None


def _prompt(row: Mapping[str, Any], place: str, remarks: Remarks, answered: bool) -> Conversation | None:
    prompt, completion = (_plain(row.get(key)) for key in ("prompt", "completion"))
    tools = _tools(row.get("tools"), place, remarks)
    if isinstance(prompt, list) or isinstance(completion, list):
        first = _turns(prompt, place, remarks)
        rest = _turns(completion, place, remarks) if answered else ()
        return Conversation(first + rest, len(first), tools=tools) if first and rest is not None else None
    asked = _text(row, "prompt", place, remarks)
    found = _of_two(asked, _text(row, "completion", place, remarks) if answered else "", asked, answered)
    return replace(found, tools=tools) if found is not None else None


def _instruction(row: Mapping[str, Any], place: str, remarks: Remarks, answered: bool) -> Conversation | None:
    instruction = _text(row, "instruction", place, remarks)
    given = row.get("input")
    more = given.strip() if isinstance(given, str) else ""
    if instruction is None:
        return None
    plain = ALPACA.format(
        instruction=instruction, input=more and f"\n\n### Input:\n{more}", paired=PAIRED if more else ""
    )
    asked = f"{instruction}\n\n{more}" if more else instruction
    return _of_two(asked, _text(row, "output", place, remarks) if answered else "", plain, answered)


_FORMS = {"messages": _messages, "prompt": _prompt, "instruction": _instruction}


def _of_two(asked: str | None, answer: str | None, plain: str | None, answered: bool) -> Conversation | None:
    if asked is None or answer is None:
        return None
    user = Turn("user", asked)
    return Conversation((user, Turn("assistant", answer)) if answered else (user,), plain=plain)


# ---------------------------------------------------------------- values


def _text(row: Mapping[str, Any], key: str, place: str, remarks: Remarks) -> str | None:
    value = row.get(key)
    if isinstance(value, str) and (value.strip() or key != "text"):
        return value
    remarks.fault(NO_TEXT, place, f"its {key} is {value!r:.60}")
    return None


def _turns(value: Any, place: str, remarks: Remarks) -> tuple[Turn, ...]:
    """Return a list of messages as turns; none if they have a fault."""
    listed = _plain(value)
    if not isinstance(listed, list) or not listed:
        remarks.fault(NO_TURNS, place, f"it is {listed!r:.60}")
        return ()
    if all(isinstance(text, str) for text in listed):
        if len(listed) % 2 and len(listed) > 1:
            remarks.note(ODD, place)
        return alternating(listed[: max(1, len(listed) - len(listed) % 2)])
    turns = [_turn(message, f"{place}, turn {number}", remarks) for number, message in enumerate(listed, 1)]
    found = [turn for turn in turns if turn is not None]
    return tuple(found) if len(found) == len(turns) else ()


def _turn(message: Any, place: str, remarks: Remarks) -> Turn | None:
    if not isinstance(message, Mapping):
        remarks.fault(NO_TURNS, place, f"it is {message!r:.60}")
        return None
    role, content = (message.get(key, message.get(other)) for key, other in (("role", "from"), ("content", "value")))
    if str(role) not in ROLES:
        remarks.fault(UNKNOWN, place, f"its role is {role!r:.40}")
        return None
    more = _more(message, ROLES[str(role)], place, remarks)
    if more is None:
        return None
    if content is None and "tool_calls" in more:
        content = ""
    if isinstance(content, Mapping | list) and role == "tool":
        content = json.dumps(content, ensure_ascii=False)
    if not isinstance(content, str):
        remarks.fault(NO_TEXT, place, f"its content is {content!r:.60}")
        return None
    return Turn(ROLES[str(role)], content, more)


def _plain(value: Any) -> Any:
    """Return a list of Parquet, or a JSON list in a text, as a list; any other value unchanged."""
    if isinstance(value, np.ndarray):
        return _of_arrow(value)
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _of_arrow(value: Any) -> Any:
    """Return a value of Parquet as JSON has it: Arrow gives all objects of a column the keys of all, with nulls."""
    if isinstance(value, np.ndarray | list):
        return [_of_arrow(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _of_arrow(each) for key, each in value.items() if each is not None}
    return value.item() if isinstance(value, np.generic) else value


# ---------------------------------------------------------------- tools


def _more(message: Mapping[str, Any], role: str, place: str, remarks: Remarks) -> str | None:
    """Return what a message has besides role and content, as `Turn.more` has it; None if it has a fault."""
    given = _plain(message.get("tool_calls"))
    if role == "assistant" and given is not None and given != []:
        calls = [_call(each) for each in given] if isinstance(given, list) else [None]
        if None in calls:
            remarks.fault(CALLS, place, f"its tool_calls are {given!r:.60}")
            return None
        return json.dumps({"tool_calls": calls}, ensure_ascii=False)
    known = {key: message[key] for key in ("name", "tool_call_id") if isinstance(message.get(key), str)}
    return json.dumps(known, ensure_ascii=False) if role == "tool" and known else ""


def _call(value: Any) -> dict[str, Any] | None:
    """Return a call of a tool with its arguments as an object, which templates write as JSON; None if it is none."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str) or not name:
        return None
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            return None
    if not isinstance(arguments, Mapping):
        return None
    known = {"id": value["id"]} if isinstance(value.get("id"), str) else {}
    return {**known, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _tools(value: Any, place: str, remarks: Remarks) -> str:
    """Return a list of tools as `Conversation.tools` has it; empty if there are none, or if it has a fault."""
    listed = _plain(value)
    if listed is None or listed == [] or listed in ("", "[]") or (isinstance(listed, float) and math.isnan(listed)):
        return ""
    if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
        remarks.fault(TOOLS, place, f"it is {listed!r:.60}")
        return ""
    return json.dumps(listed, ensure_ascii=False)


# ---------------------------------------------------------------- without what is expected


def with_prompts(rows: Sequence[Mapping[str, Any]], keys: ChatKeys) -> list[dict[str, Any]]:
    """Return rows of conversations, instructions or texts with their prompts; as they are if they are none of these.

    Raises:
        DataError: A row has no prompt.
    """
    listed = (keys.messages,) if keys.messages is not None else CONVERSATIONS
    offered = [*(("messages", column) for column in listed), ("instruction", keys.instruction), ("text", keys.text)]
    form, column = next((each for each in offered if each[1] in rows[0]), ("", ""))
    if not form:
        return [dict(row) for row in rows]
    named = {form: column, "input": keys.input, "tools": keys.tools}
    remarks = Remarks()
    found = [
        example({key: row.get(column) for key, column in named.items()}, form, f"row {number}", remarks, answered=False)
        for number, row in enumerate(rows, 1)
    ]
    remarks.refuse_faults()
    prompts = [_asked(each, keys) for each in found if each is not None]
    return [{**row, keys.prompt: prompt} for row, prompt in zip(rows, prompts, strict=True)]


def _asked(found: Example, keys: ChatKeys) -> str | list[dict[str, Any]]:
    if isinstance(found, Document):
        return found.expected
    if found.plain is None:
        return [turn.message for turn in found.prompt]
    return found.plain if keys.chat_template == PLAIN else found.turns[0].content


def unanswered(rows: Sequence[Mapping[str, Any]], column: str, tools: str = "tools") -> list[Example]:
    """Return rows of prompts, each a text or a list of messages, as conversations whose answers are not known.

    Args:
        rows: The rows.
        column: Their column of prompts.
        tools: That of tools, which may be missing.

    Raises:
        DataError: A row has no prompt.
    """
    remarks = Remarks()
    found = [
        example(
            {"prompt": row.get(column), "tools": row.get(tools)}, "prompt", f"row {number}", remarks, answered=False
        )
        for number, row in enumerate(rows, 1)
    ]
    remarks.refuse_faults()
    return [replace(each, turns=each.prompt) for each in found if isinstance(each, Conversation)]
