"""Calls of tools: how they are read, and what of them is trained, against tables made by hand."""

import copy
import json

import chats
import numpy as np
import pandas as pd
import pytest
import word_pieces

from hpo.core.errors import DataError
from hpo.tasks.causal_lm.encoding import encode
from hpo.tasks.causal_lm.examples import Conversation, Turn
from hpo.tasks.causal_lm.keys import ChatKeys
from hpo.tasks.causal_lm.reading import unanswered, with_prompts
from hpo.tasks.causal_lm.split import EXAMPLE, TextSplit, parse, read_table
from hpo.tasks.causal_lm.writing import writer_of
from hpo.tasks.registry import TASKS

TASK = TASKS["causal_lm"]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}]


def call(city, arguments=None):
    return {"type": "function", "function": {"name": "weather", "arguments": arguments or {"city": city}}}


MESSAGES = [
    {"role": "user", "content": "rain?"},
    {"role": "assistant", "content": "", "tool_calls": [call("ax"), call("by")]},
    {"role": "tool", "content": "1"},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "both", "tool_calls": [call("c")]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "fine"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "well"},
]
ROW = {"messages": MESSAGES, "tools": TOOLS}


def written_call(city):
    return f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


QWEN = (
    f"<|im_start|>system\nTools: {json.dumps(TOOLS[0])}<|im_end|>\n<|im_start|>user\nrain?<|im_end|>\n"
    f"<|im_start|>assistant\n[[{written_call('ax')}\n{written_call('by')}<|im_end|>]]\n"
    "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    f"<|im_start|>assistant\n[[both\n{written_call('c')}<|im_end|>]]\n"
    "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n[[fine<|im_end|>]]\n"
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[[well<|im_end|>]]\n"
)


def function(city):
    return f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}'


MISTRAL = (
    f"<s>[AVAILABLE_TOOLS] {json.dumps(TOOLS)}[/AVAILABLE_TOOLS][INST] rain? [/INST]"
    f"[[[TOOL_CALLS] [{function('ax')}, {function('by')}]</s>]][TOOL_RESULTS] 1[/TOOL_RESULTS]"
    f"[TOOL_RESULTS] 2[/TOOL_RESULTS][[[TOOL_CALLS] [{function('c')}]</s>]][TOOL_RESULTS] 3[/TOOL_RESULTS]"
    "[[fine</s>]][INST] hi [/INST][[well</s>]]"
)
MARKED = QWEN.replace("assistant\n[[<tool", "assistant[[\n<tool").replace("assistant\n[[both", "assistant[[\nboth")
MARKED = MARKED.replace("[[fine<|im_end|>]]", "fine<|im_end|>").replace("[[well<|im_end|>]]", "well<|im_end|>")


def read(folder, rows, name="train.jsonl", **keys):
    wanted = ChatKeys.model_validate({"train": name, **keys})
    if name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(folder / name)
    else:
        chats.write(folder / name, rows)
    frames = {"train": read_table(wanted, "train", wanted.train, folder)}
    notes = parse(frames, wanted)
    return list(frames["train"][EXAMPLE]), notes


def words(template):
    found = copy.deepcopy(word_pieces.roberta(add_prefix_space=False))
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found.chat_template = template
    return found


def shown(example, template, trained="completions"):
    """Return a row's text with each run of trained tokens between double brackets."""
    tokenizer = words(template)
    rows = encode([example], ["row 1"], writer_of([example], None, tokenizer), tokenizer, trained, 2000)
    ids, labels = np.array(rows.inputs["input_ids"][0]), np.array(rows.token_targets["labels"][0])
    is_trained = np.append(False, labels[:-1] != -100)
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(is_trained)) + 1)
    texts = [tokenizer.decode(ids[run], clean_up_tokenization_spaces=False) for run in runs]
    return "".join(f"[[{text}]]" if is_trained[run[0]] else text for run, text in zip(runs, texts, strict=True))


def refused(folder, *rows):
    with pytest.raises(DataError) as error:
        read(folder, list(rows))
    return str(error.value)


# ---------------------------------------------------------------- written


@pytest.mark.parametrize(
    ("template", "expected"),
    [(chats.QWEN_TOOLS, QWEN), (chats.MISTRAL_TOOLS, MISTRAL), (chats.MARKED_TOOLS, MARKED)],
    ids=["qwen", "mistral", "with marks"],
)
def test_calls_are_trained_and_what_tools_return_is_not(tmp_path, template, expected):
    (example,), _ = read(tmp_path, [ROW])
    assert shown(example, template) == expected
    own = words(template).apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False)
    assert expected.replace("[[[", "[").replace("[[", "").replace("]</s>]]", "]</s>").replace(">]]", ">") == own


def test_the_last_turn_alone_may_be_a_call(tmp_path):
    (example,), _ = read(tmp_path, [{"messages": MESSAGES[:5], "tools": TOOLS}])
    found = shown(example, chats.QWEN_TOOLS, "last")
    assert found.endswith(f"<|im_start|>assistant\n[[both\n{written_call('c')}<|im_end|>]]\n")
    assert found.count("[[") == 1
    assert example.expected == f"both\n{function('c')}"


@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        (chats.CHATML, {"messages": MESSAGES}, "row 1: it leaves out turn 2, the call of 'weather'"),
        (chats.QWEN_TOOLS.replace("+ m.content + '\n</", "+ '\n</"), ROW, "leaves out turn 3, what a tool returns"),
        (chats.QWEN_TOOLS.replace("{% if tools %}", "{% if false %}"), ROW, "row 1: it leaves out the tools"),
        (chats.CHATML, {"messages": chats.messages("hi", "fine"), "tools": TOOLS}, "it leaves out the tools"),
        ("plain", {"prompt": "hi", "completion": "fine", "tools": TOOLS}, "tools need a chat template"),
    ],
)
def test_a_template_without_a_use_for_tools_is_refused(tmp_path, template, row, said):
    (example,), _ = read(tmp_path, [row])
    tokenizer = words(None if template == "plain" else template)
    writer = writer_of([example], template if template == "plain" else None, tokenizer)
    with pytest.raises(DataError, match=r"the chat template does not write: 1") as error:
        encode([example], ["row 1"], writer, tokenizer, "completions", 2000)
    assert said in str(error.value)


def test_calls_are_not_judged_by_generated_text(tmp_path):
    (example,), _ = read(tmp_path, [{"messages": MESSAGES[:5], "tools": TOOLS}])
    with pytest.raises(
        DataError, match=r"which no score of generated text judges: 1\n    row 1: its last turn is 'both"
    ):
        TASK.prompts(TextSplit(examples=[example]), ChatKeys(), words(chats.QWEN_TOOLS), 2000)


# ---------------------------------------------------------------- read


def test_arguments_and_tools_may_be_json_in_a_text_and_rows_may_be_parquet(tmp_path):
    (example,), notes = read(tmp_path, [ROW])
    assert notes == [
        "the rows are read as conversations, from the column 'messages', with the tools of the column 'tools'"
    ]
    as_text = copy.deepcopy(MESSAGES)
    for message in as_text:
        for each in message.get("tool_calls", ()):
            each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
        message["content"] = message["content"] or None
    in_text = {"messages": as_text, "tools": json.dumps(TOOLS)}
    assert read(tmp_path, [in_text])[0] == [example]
    other = {"messages": [*MESSAGES[:1], {**MESSAGES[4], "tool_calls": [call("", {"day": "3"})]}], "tools": TOOLS}
    found, _ = read(tmp_path, [ROW, other], "a.parquet")  # all calls have both arguments there, with nulls
    assert found == [example, read(tmp_path, [other])[0][0]]


def test_what_a_tool_returns_may_be_json_and_keeps_its_name():
    row = {
        "prompt": [*MESSAGES[:2], {"role": "tool", "name": "weather", "tool_call_id": "7", "content": {"rain": True}}]
    }
    (found,) = unanswered([row | {"tools": TOOLS}], "prompt")
    assert found.turns[2].message == row["prompt"][2] | {"content": '{"rain": true}'}
    assert json.loads(found.tools) == TOOLS


def test_prompts_of_rows_for_predictions_keep_their_tools():
    asked = with_prompts([{"messages": MESSAGES[:7], "tools": TOOLS}], ChatKeys())
    (found,) = unanswered(asked, "prompt")
    assert [turn.message for turn in found.turns] == MESSAGES[:6]
    assert json.loads(found.tools) == TOOLS
    prompt = TASK.prompts(TASK.unlabelled(asked, ChatKeys()), ChatKeys(), words(chats.QWEN_TOOLS), 2000)[0]
    text = words(chats.QWEN_TOOLS).decode(prompt, clean_up_tokenization_spaces=False)
    assert text == QWEN.replace("[[", "").replace("]]", "").partition("fine")[0]


def test_conversations_without_tools_have_the_digest_that_they_had():
    example = chats.conversation("hi", "fine")
    turns = [["user", "hi"], ["assistant", "fine"]]
    assert list(TextSplit(examples=[example]).hashed("train")) == [json.dumps(["train", turns, 0, None]).encode()]
    with_tools = Conversation(example.turns, tools=json.dumps(TOOLS))
    assert list(TextSplit(examples=[with_tools]).hashed("train")) != list(TextSplit(examples=[example]).hashed("train"))
    assert with_tools.says != example.says


def test_what_is_wrong_with_calls_is_counted(tmp_path):
    user, calls, tool = MESSAGES[0], MESSAGES[1], MESSAGES[2]
    nameless = {**calls, "tool_calls": [{"function": {"arguments": {}}}]}
    broken = {**calls, "tool_calls": [call("", "{city")]}
    said = refused(tmp_path, {"messages": [user, nameless]}, {"messages": [user, broken]})
    assert "calls of tools that are not a name and arguments: 2" in said
    assert "row 1 of" in said
    assert "turn 2 is the tool's, where the assistant's is expected" in refused(tmp_path, {"messages": [user, tool]})
    answered = {"messages": [user, calls, MESSAGES[6]]}
    assert "turn 3 is the assistant's, where the tool's is expected" in refused(tmp_path, answered)
    assert "end with what a tool returns: 1" in refused(tmp_path, {"messages": [user, calls, tool]})
    assert "values that are no list of tools: 1" in refused(tmp_path, {"messages": MESSAGES, "tools": "weather"})
    assert Turn("assistant", "", calls and json.dumps({"tool_calls": calls["tool_calls"]})).text.count("\n") == 1
