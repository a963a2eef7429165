import chats
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.config import study_spec
from hpo.core.errors import ConfigError, DataError
from hpo.tasks import loading
from hpo.tasks.causal_lm.examples import Document
from hpo.tasks.causal_lm.keys import ChatKeys
from hpo.tasks.causal_lm.split import TextSplit
from hpo.tasks.metrics import score
from hpo.tasks.registry import TASKS, task_for

TASK = TASKS["causal_lm"]


def load(folder, rows=None, seed=0, **keys):
    if rows is not None:
        chats.write(folder / "train.jsonl", rows)
    wanted = ChatKeys.model_validate({"train": "train.jsonl", "validation": 10, "test": 10, **keys})
    return loading.load(wanted, "causal_lm", seed, folder)


def asked(count, **more):
    return [{"prompt": f"a w{i % 40} {'b ' * (i // 40)}", "completion": f"fine w{i % 7}", **more} for i in range(count)]


def encoded(data, split="train", max_length=60, words=None):
    return TASK.encode(data.splits[split], data.keys, words or chats.tokenizer(), max_length)


def documents(*texts, max_length):
    split = TextSplit(examples=[Document(text) for text in texts])
    return TASK.encode(split, ChatKeys(), chats.tokenizer(), max_length)


# ---------------------------------------------------------------- data


def test_equal_prompts_and_groups_stay_in_one_split(tmp_path):
    rows = [{**row, "completion": f"{row['completion']} {part}"} for row in asked(40) for part in "ab"]
    data = load(tmp_path, rows)
    prompts = [set(split.contents) for split in data.splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 40
    grouped = load(tmp_path, [{**row, "of": f"g{i % 12}"} for i, row in enumerate(asked(60))], group="of")
    groups = [set(split.members) for split in grouped.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 12


def test_the_digest_depends_on_all_that_is_trained(tmp_path):
    rows = asked(40)
    digest = load(tmp_path, rows).digest
    assert load(tmp_path, rows).digest == digest
    assert load(tmp_path, [*rows[:-1], {**rows[-1], "completion": "fine a"}]).digest != digest
    (tmp_path / "chat.jinja").write_text(chats.LLAMA_3)
    templated = load(tmp_path, rows, chat_template="chat.jinja").digest
    (tmp_path / "chat.jinja").write_text(chats.GEMMA)
    assert len({digest, templated, load(tmp_path, rows, chat_template="chat.jinja").digest}) == 3


def test_the_template_of_a_file_is_used_and_saved_with_the_weights(tmp_path):
    (tmp_path / "chat.jinja").write_text(chats.LLAMA_3)
    words = chats.tokenizer(None)
    rows = encoded(load(tmp_path, asked(40), chat_template="chat.jinja"), words=words)
    assert "<|eot_id|>]]" in chats.shown(rows, 0, words)
    words.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == chats.LLAMA_3


def test_rows_beside_predictions(tmp_path):
    data = load(tmp_path, [{"messages": chats.messages(f"a w{i}", "b", "c", "d")} for i in range(40)])
    assert sorted(data.splits["test"].as_rows(()), key=str)[0]["prompt"].startswith("user: a w")
    assert data.splits["test"].as_rows(())[0]["expected"] == "d"
    assert load(tmp_path, asked(40)).splits["test"].as_rows(())[0]["prompt"].startswith("a w")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"form": "text", "chat_template": "plain"}, "chat_template: is for conversations"),
        ({"form": "text", "trained": "last"}, "trained: is for conversations"),
        ({"form": "messages", "chat_template": "plain"}, "plain is for prompts with completions"),
        ({"form": "prompt", "completion": "reply"}, "data.completion: .*train.jsonl has no column 'reply'"),
        ({"form": "chat"}, "data.form: Input should be 'auto', 'messages', 'prompt', 'instruction' or 'text'"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, keys, said):
    chats.write(tmp_path / "train.jsonl", asked(2))
    raw = {"name": "s", "model": "m", "task": "causal_lm", "data": {"train": "train.jsonl", **keys}}
    with pytest.raises(ConfigError, match=said):
        study_spec.build(raw, "test", tmp_path, look=True)


def test_the_task_of_a_model_is_told_by_its_class():
    for name in ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM"):
        assert task_for(name, None, 2) is TASK
    assert task_for("BertForTokenClassification", None, 2).name == "token_classification"
    assert task_for("BertForSequenceClassification", None, 1).name == "regression"


# ---------------------------------------------------------------- documents


def test_windows_begin_with_the_last_token_of_the_one_before():
    rows = documents("a b c d", "e", max_length=4)  # 7 tokens with the blanks, one of beginning and one of end
    assert [chats.shown(rows, row, chats.tokenizer()) for row in range(4)] == [
        "<s>[[a b]]", "b[[ c ]]", " [[d</s>]]", "<s>[[e</s>]]",
    ]  # fmt: skip
    assert rows.example.tolist() == [0, 0, 0, 1]
    assert rows.units.tolist() == [3, 3, 2, 2]
    assert rows.alignment.bytes.tolist() == [7, 1]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(4, 20))
def test_every_token_of_a_document_but_its_first_is_a_target_once(lengths, max_length):
    texts = [" ".join(f"w{i % 40}" for i in range(length)) for length in lengths]
    rows, whole = documents(*texts, max_length=max_length), documents(*texts, max_length=1000)
    assert len(whole.inputs["input_ids"]) == len(texts)
    for number in range(len(texts)):
        of = np.flatnonzero(rows.example == number)
        targets = np.concatenate([rows.token_targets["labels"][row] for row in of])
        assert targets[targets != -100].tolist() == list(whole.inputs["input_ids"][number])[1:]
    assert max(len(row) for row in rows.inputs["input_ids"]) <= max_length
    assert rows.alignment.bytes.tolist() == [len(text) for text in texts]


def test_documents_have_no_prompts():
    split = TextSplit(examples=[Document("a")])
    with pytest.raises(DataError, match="leave `generate` out"):
        TASK.prompts(split, ChatKeys(), chats.tokenizer(), 20)
    assert (TASK.expected(split), TASK.sources(split)) == (["a"], [""])


# ---------------------------------------------------------------- rows, prompts, predictions


def test_what_check_shows(tmp_path):
    data = load(tmp_path, asked(40))
    rows = {name: encoded(data, name) for name in data.splits}
    facts = TASK.facts(data) | TASK.row_facts(rows, 60)
    trained = sum(row.units.sum() for row in (rows["train"],)) / sum(map(len, rows["train"].inputs["input_ids"]))
    assert facts["trained tokens"].startswith(f"{trained:.0%} of ")
    assert facts["turns of the assistant"] == "1.0 on average, 1 at most"
    assert facts["cut"].startswith("0 of 20 in train")
    shown = TASK.marked(rows["train"], 0, [], ())
    assert shown.startswith("<|im_start|>system\\nBe kind<|im_end|>\\n<|im_start|>user\\na w")
    assert shown.count("[[") == 1
    assert shown.endswith("<|im_end|>]]\\n")
    assert TASK.row_notes(rows, data.keys) == []
    cut = {name: encoded(data, name, 24) for name in data.splits}
    assert "rows of train are cut at their end" in TASK.row_notes(cut, data.keys)[0]


def test_a_long_row_is_shown_in_part():
    rows = documents(" ".join(["a"] * 3000), max_length=5000)
    shown = TASK.marked(rows, 0, [], ())
    assert len(shown) < 500
    assert "characters) ... " in shown


def test_prompts_are_what_the_rows_begin_with(tmp_path):
    data, words = load(tmp_path, asked(40)), chats.tokenizer()
    rows, prompts = encoded(data), TASK.prompts(data.splits["train"], data.keys, words, 60)
    for ids, labels, prompt in zip(rows.inputs["input_ids"], rows.token_targets["labels"], prompts, strict=True):
        assert list(ids[: len(prompt)]) == prompt
        assert np.flatnonzero(np.array(labels) != -100)[0] == len(prompt) - 1
    plain = load(tmp_path, chat_template="plain")
    assert words.decode(TASK.prompts(plain.splits["train"], plain.keys, words, 60)[0]).startswith("<s>a w")
    with pytest.raises(DataError, match=r"its prompt has 2[0-9] tokens of 20"):
        TASK.prompts(data.splits["train"], data.keys, words, 20)


def test_predictions_and_their_metrics(tmp_path):
    data = load(tmp_path, asked(40))
    rows = encoded(data, "test")
    answers = {"loss": rows.units * np.log(2), "right": rows.units / 2}
    found = TASK.predictions(data.splits["test"], rows, answers, data.keys)
    assert found.expected == [each.expected for each in data.splits["test"].examples]
    assert score("perplexity", found) == pytest.approx(2)
    assert score("token_accuracy", found) == pytest.approx(0.5)
    letters = sum(len(each.expected) for each in data.splits["test"].examples)
    assert score("bits_per_byte", found) == pytest.approx(rows.units.sum() / letters)
    row = TASK.predicted_rows(found, ())[0]
    assert (row["predicted"], row["loss"], row["tokens"]) == (None, pytest.approx(np.log(2)), rows.units[0])


def test_prompts_without_answers(tmp_path):
    (tmp_path / "in.csv").write_text("prompt,id\nhi there,3\n")
    keys, words = ChatKeys(), chats.tokenizer()
    rows = TASK.input_rows(tmp_path / "in.csv", keys)
    assert set(TASK.input_columns(keys)) <= set(rows[0])
    split = TASK.unlabelled(rows, keys)
    found = TASK.encode(split, keys, words, 60)
    assert found.units.tolist() == [0]
    assert list(found.inputs["input_ids"][0]) == TASK.prompts(split, keys, words, 60)[0]
    none = {"loss": np.zeros(1), "right": np.zeros(1)}
    assert TASK.predicted_rows(TASK.predictions(split, found, none, keys), ()) == [{"predicted": None}]
    (tmp_path / "in.txt").write_text("once")
    assert TASK.input_rows(tmp_path / "in.txt", keys) == [{"prompt": "once"}]
    continued = TASK.unlabelled([{"prompt": "a b"}], ChatKeys(form="text"))
    assert words.decode(TASK.prompts(continued, keys, words, 60)[0]) == "<s>a b"


def test_text_that_is_only_one_document_is_refused(tmp_path):
    (tmp_path / "all.txt").write_text("a b c")
    with pytest.raises(DataError, match="asks for 10 rows of the 1 that are left of train"):
        load(tmp_path, train="all.txt")
