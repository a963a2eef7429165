import json

import chats
import numpy as np
import pandas as pd
import pytest

from hpo.core.errors import DataError
from hpo.tasks.causal_lm.examples import Conversation, Document, Turn
from hpo.tasks.causal_lm.keys import ChatKeys
from hpo.tasks.causal_lm.reading import form_of, unanswered, with_prompts
from hpo.tasks.causal_lm.split import EXAMPLE, parse, read_table

HI = [Turn("user", "hi"), Turn("assistant", "fine")]


def read(folder, rows=None, file="train.jsonl", **keys):
    """Return the examples of a file, and the notes."""
    if rows is not None:
        chats.write(folder / file, rows)
    wanted = ChatKeys.model_validate({"train": file, **keys})
    frames = {"train": read_table(wanted, "train", wanted.train, folder)}
    notes = parse(frames, wanted)
    return list(frames["train"][EXAMPLE]), notes


def refused(folder, rows, **keys):
    with pytest.raises(DataError) as error:
        read(folder, rows, **keys)
    return str(error.value)


ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:"
)
ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nhi\n\n### Response:"
)
FORMS = {
    "messages": ({"messages": chats.messages("hi", "fine"), "id": 3}, Conversation(tuple(HI))),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "fine"}]},
        Conversation(tuple(HI)),
    ),
    "texts": ({"dialog": ["hi", "fine"]}, Conversation(tuple(HI))),
    "texts, the last one the user's": ({"dialog": ["hi", "fine", "bye"]}, Conversation(tuple(HI))),
    "prompt": ({"prompt": "hi", "completion": "fine"}, Conversation(tuple(HI), plain="hi")),
    "messages of a prompt": (
        {"prompt": chats.messages("hi"), "completion": [HI[1].message]},
        Conversation(tuple(HI), given=1),
    ),
    "alpaca": (
        {"instruction": "Add", "input": "1 2", "output": "3", "text": "all of it"},
        Conversation((Turn("user", "Add\n\n1 2"), Turn("assistant", "3")), plain=ALPACA),
    ),
    "alpaca without an input": (
        {"instruction": "hi", "input": "", "output": "fine"},
        Conversation(tuple(HI), plain=ALONE),
    ),
    "text": ({"text": "a b", "date": "x"}, Document("a b")),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_told_by_the_columns_and_said(tmp_path, name):
    row, expected = FORMS[name]
    found, notes = read(tmp_path, [row, row])
    assert found == [expected, expected]
    assert notes[0].startswith("the rows are read as ")
    assert ("left out: 2, first row 1 of" in notes[-1]) == ("last one" in name)


@pytest.mark.parametrize("ending", [".json", ".parquet", ".csv"])
def test_other_files(tmp_path, ending):
    rows = [FORMS["messages"][0], {"messages": chats.messages("a", "b", "c", "d"), "id": 4}]
    path = tmp_path / f"train{ending}"
    if ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        pd.DataFrame([{**row, "messages": json.dumps(row["messages"])} for row in rows]).to_csv(path, index=False)
    found, _ = read(tmp_path, file=path.name)
    assert found == [Conversation(tuple(HI)), chats.conversation("a", "b", "c", "d")]


def test_a_file_of_text_is_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("a b\n\nc")
    (tmp_path / "b.txt").write_text("d")
    found, notes = read(tmp_path, file=f"{tmp_path}/*.txt")
    assert found == [Document("a b\n\nc"), Document("d")]
    assert notes == ["the rows are read as plain text, a document a file"]


def test_columns_may_have_other_names(tmp_path):
    found, _ = read(tmp_path, [{"q": "hi", "a": "fine"}], prompt="q", completion="a")
    assert found == [Conversation(tuple(HI), plain="hi")]
    found, _ = read(tmp_path, [{"chat": chats.messages("hi", "fine")}], messages="chat")
    assert found == [Conversation(tuple(HI))]
    found, notes = read(tmp_path, [{"text": "a", "body": "b c"}], text="body")
    assert found == [Document("b c")]
    assert notes == ["the rows are read as plain text, from the column 'body', a document a row"]


def test_columns_of_two_forms_need_a_word(tmp_path):
    row = {"messages": chats.messages("hi", "fine"), "prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match=r"has the columns of 'prompt' and of 'messages': .* data: {form: messages}"):
        read(tmp_path, [row])
    assert read(tmp_path, [row], form="prompt")[0][0].expected == "b"
    assert read(tmp_path, [row], form="messages")[0][0].expected == "fine"


def test_columns_of_no_form(tmp_path):
    said = refused(tmp_path, [{"question": "a", "answer": "b"}])
    assert "has not the columns 'instruction', 'output' (instruction); or 'messages' (messages); or 'prompt'" in said
    assert "it has 'question', 'answer'. Name the columns under data: " in said
    with pytest.raises(DataError, match=r"has not the columns 'prompt', 'completion' \(prompt\); it has"):
        form_of(ChatKeys(form="prompt"), ["text"], "x.csv")


BAD = {
    "turn of the user": (
        [{"messages": chats.messages("hi")}, {"messages": chats.messages("a", "b", "c")}],
        "conversations that end with a turn of the user: 2\n    row 1 of {file}: its last turn is 'hi'",
    ),
    "two users": (
        [{"messages": [HI[0].message, HI[0].message, HI[1].message]}],
        "do not alternate: 1\n    row 1 of {file}: turn 2 is the user's, where the assistant's is expected",
    ),
    "assistant first": (
        [{"messages": [{"role": "system", "content": "Be kind"}, HI[1].message]}],
        "do not alternate: 1\n    row 1 of {file}: turn 2 is the assistant's, where the user's is expected",
    ),
    "unknown role": (
        [{"messages": [HI[0].message, {"role": "critic", "content": "x"}]}],
        "not known: 1\n    row 1 of {file}, turn 2: its role is 'critic'",
    ),
    "no content": (
        [{"messages": [HI[0].message, {"role": "assistant", "content": None}]}],
        "no text: 1\n    row 1 of {file}, turn 2: its content is None",
    ),
    "empty completion": (
        [{"prompt": "hi", "completion": "fine"}, {"prompt": "hi", "completion": " \n"}],
        "turns without a text: 1\n    row 2 of {file}: turn 2, the assistant's, is ' \\n'",
    ),
    "number": ([{"prompt": "hi", "completion": 3}], "no text: 1\n    row 1 of {file}: its completion is 3"),
    "no list": ([{"messages": "hi"}], "no conversation: 1\n    row 1 of {file}: it is 'hi'"),
    "empty list": ([{"messages": []}], "no conversation: 1\n    row 1 of {file}: it is []"),
    "another form": (
        [{"prompt": "hi", "completion": "fine"}, {"messages": chats.messages("hi", "fine"), "prompt": "x"}],
        "not of the form of their file: 1\n    row 2 of {file}: it has no completion",
    ),
    "empty document": ([{"text": "a"}, {"text": "  "}], "no text: 1\n    row 2 of {file}: its text is '  '"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_counted_with_its_row(tmp_path, name):
    rows, said = BAD[name]
    columns = {"form": "prompt"} if name == "another form" else {}
    assert said.format(file=tmp_path / "train.jsonl") in refused(tmp_path, rows, **columns)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    rows = [row for name in ("turn of the user", "two users", "unknown role", "no content") for row in BAD[name][0]]
    said = refused(tmp_path, [*rows, *[{"messages": chats.messages("hi")}] * 4])
    assert said.startswith("the data have 9 faults\n")
    assert "end with a turn of the user: 6\n" in said
    assert "    and 3 more\n" in said


def test_files_of_two_forms_are_refused(tmp_path):
    chats.write(tmp_path / "a.jsonl", [{"text": "a"}])
    chats.write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match=r"not of one form \(.*a.jsonl: text; .*b.jsonl: prompt\)"):
        read(tmp_path, file="*.jsonl")


def test_a_template_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"data.chat_template: there is no file 'x.jinja'; .* or plain"):
        read(tmp_path, [FORMS["messages"][0]], chat_template="x.jinja")


# ---------------------------------------------------------------- without what is expected


def test_prompts_of_rows_for_predictions():
    keys = ChatKeys()
    rows = [{"messages": chats.messages("a", "b", "c", "d"), "id": 1}, {"messages": chats.messages("hi"), "id": 2}]
    asked = with_prompts(rows, keys)
    assert [row["prompt"] for row in asked] == [chats.messages("a", "b", "c"), chats.messages("hi")]
    assert [row["id"] for row in asked] == [1, 2]
    assert unanswered(asked, "prompt") == [
        Conversation(chats.conversation("a", "b", "c").turns, given=3),
        Conversation((HI[0],), given=1),
    ]
    alpaca = [{"instruction": "Add", "input": "1 2"}]
    assert with_prompts(alpaca, keys)[0]["prompt"] == "Add\n\n1 2"
    assert with_prompts(alpaca, ChatKeys(chat_template="plain"))[0]["prompt"] == ALPACA
    assert with_prompts([{"text": "once"}], keys)[0]["prompt"] == "once"
    assert with_prompts([{"other": "once"}], keys) == [{"other": "once"}]


def test_a_prompt_that_is_none_is_refused():
    with pytest.raises(DataError, match="row 2: its prompt is None"):
        unanswered([{"prompt": "hi"}, {}], "prompt")
    with pytest.raises(DataError, match="turn 1, the user's, is ''"):
        unanswered([{"prompt": ""}], "prompt")
    assert isinstance(np.array(unanswered([{"prompt": "hi"}], "prompt"), dtype=object)[0], Conversation)
