"""What is trained of conversations, against tables made by hand for the templates of well-known models."""

import chats
import numpy as np
import pytest
import word_pieces
from hypothesis import given
from hypothesis import strategies as st

from hpo.core.errors import DataError
from hpo.tasks.causal_lm.encoding import encode
from hpo.tasks.causal_lm.examples import Conversation, Turn
from hpo.tasks.causal_lm.keys import PLAIN
from hpo.tasks.causal_lm.writing import writer_of

TURNS = ("hi there", "well met", "and you?", "fine")
TABLE = {
    "chatml": (
        chats.CHATML,
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"
        "[[well met<|im_end|>]]\n<|im_start|>user\nand you?<|im_end|>\n<|im_start|>assistant\n[[fine<|im_end|>]]\n",
    ),
    "llama 3": (
        chats.LLAMA_3,
        "<s><|start_header_id|>user<|end_header_id|>\n\nhi there<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n[[well met<|eot_id|>]]<|start_header_id|>user<|end_header_id|>\n\nand you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[fine<|eot_id|>]]",
    ),
    "llama 2": (
        chats.LLAMA_2,
        "<s>[INST] hi there [/INST][[ well met </s>]]<s>[INST] and you? [/INST][[ fine </s>]]",
    ),
    "mistral": (
        chats.MISTRAL,
        "<s>[INST] hi there [/INST][[well met</s>]] [INST] and you? [/INST][[fine</s>]] ",
    ),
    "gemma": (
        chats.GEMMA,
        "<s><start_of_turn>user\nhi there<end_of_turn>\n<start_of_turn>model\n[[well met<end_of_turn>]]\n"
        "<start_of_turn>user\nand you?<end_of_turn>\n<start_of_turn>model\n[[fine<end_of_turn>]]\n",
    ),
    "zephyr": (
        chats.ZEPHYR,
        "<|user|>\nhi there</s>\n<|assistant|>\n[[well met</s>]]\n<|user|>\nand you?</s>\n<|assistant|>\n"
        "[[fine</s>]]\n",
    ),
    "phi 3": (
        chats.PHI_3,
        "<|user|>\nhi there<|end|>\n<|assistant|>\n[[well met<|end|>]]\n<|user|>\nand you?<|end|>\n<|assistant|>\n"
        "[[fine<|end|>]]\n</s>",
    ),
    "with marks": (
        chats.MARKED,
        "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n[[well met<|im_end|>]]\n<|im_start|>user\n"
        "and you?<|im_end|>\n<|im_start|>assistant\n[[fine<|im_end|>]]\n",
    ),
}
UNMARKED = [template for name, (template, _) in TABLE.items() if name != "with marks"]


def rows_of(examples, template=chats.CHATML, trained="completions", max_length=200, words=None):
    words = words or chats.tokenizer(None if template == PLAIN else template)
    writer = writer_of(examples, template if template == PLAIN else None, words)
    places = [f"row {number}" for number in range(1, len(examples) + 1)]
    return encode(examples, places, writer, words, trained, max_length)


def shown(example, template=chats.CHATML, trained="completions", **options):
    return chats.shown(rows_of([example], template, trained, **options), 0, chats.tokenizer())


@pytest.mark.parametrize("name", TABLE)
def test_all_turns_of_the_assistant_with_what_ends_them_are_trained(name):
    template, expected = TABLE[name]
    assert shown(chats.conversation(*TURNS), template) == expected


@pytest.mark.parametrize("name", TABLE)
def test_the_last_turn_alone_and_all_tokens(name):
    template, expected = TABLE[name]
    first, second = expected.split("[[")[1].split("]]")[0], expected.split("[[")[2].split("]]")[0]
    assert shown(chats.conversation(*TURNS), template, "last") == expected.replace(f"[[{first}]]", first, 1)
    whole = expected.replace("[[", "").replace("]]", "")
    begin = chats.tokenizer().tokenize(whole)[0]
    assert shown(chats.conversation(*TURNS), template, "all") == f"{begin}[[{whole.removeprefix(begin)}]]"
    assert second in whole


@pytest.mark.parametrize("template", UNMARKED)
def test_the_tokens_are_those_of_the_template_and_the_prompt_is_what_it_asks_with(template):
    words, example = chats.tokenizer(template), chats.conversation(*TURNS)
    rows = rows_of([example], template)
    own = words.apply_chat_template([turn.message for turn in example.turns], return_dict=False)
    assert list(rows.inputs["input_ids"][0]) == own
    asked = words.apply_chat_template(
        [turn.message for turn in example.prompt], add_generation_prompt=True, return_dict=False
    )
    trained = np.flatnonzero(np.array(rows.token_targets["labels"][0]) != -100) + 1
    last = [i for i in trained if i >= len(asked)]
    assert own[: len(asked)] == asked
    assert last[0] == len(asked)  # the first trained token of the last answer follows the prompt at once


def test_a_system_turn_is_never_trained():
    text = shown(chats.conversation("hi", "fine", system="Be kind"), chats.LLAMA_2)
    assert text == "<s>[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nhi [/INST][[ fine </s>]]"


def test_thoughts_that_the_template_leaves_out_of_earlier_turns():
    """What a template writes of a turn depends on whether it is the last one."""
    example = chats.conversation("hi", "<think>a</think>well", "and you?", "<think>b</think>fine")
    words = chats.tokenizer(chats.THINKING, [*chats.SPECIAL, "<think>", "</think>"])
    found = chats.shown(rows_of([example], words=words), 0, words)
    assert found == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[[well<|im_end|>]]\n<|im_start|>user\n"
        "and you?<|im_end|>\n<|im_start|>assistant\n[[<think>b</think>fine<|im_end|>]]\n"
    )


def test_an_answer_that_the_template_does_not_write_as_it_asks_for_it_is_refused():
    template = chats.CHATML.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\nThink:\n' }}")
    examples = [chats.conversation("hi", "fine"), chats.conversation("a", "b")]
    with pytest.raises(DataError, match=r"cannot be told .*: 2\n    row 1: turn 2: it asks for an answer with 'Think:"):
        rows_of(examples, template)
    assert shown(examples[0], template, "all").startswith("<|im_start|>[[system")


def test_messages_of_a_prompt_are_not_trained():
    turns = chats.conversation(*TURNS).turns
    assert shown(Conversation(turns, given=3)).count("[[") == 1
    assert shown(Conversation(turns, given=3), chats.MARKED).endswith("\n[[fine<|im_end|>]]\n")


def test_a_prompt_and_its_completion_without_a_template():
    example = Conversation((Turn("user", "a b"), Turn("assistant", " c")), plain="a b")
    assert shown(example, PLAIN) == "<s>a b[[ c</s>]]"
    assert shown(example, PLAIN, "all") == "<s>[[a b c</s>]]"
    rows = rows_of([Conversation((Turn("user", "a b"),), plain="a b")], PLAIN)
    assert chats.shown(rows, 0, chats.tokenizer()) == "<s>a b"  # an answer that is not known
    assert rows.units.tolist() == [0]


def test_marks_of_a_template_with_blanks_around_them():
    """Blocks of a template lose the line breaks after them, and with a dash all blanks beside them."""
    marked = chats.MARKED.replace("{% generation %}", "\n  {%- generation %}\n").replace(
        "{% endgeneration %}", "{%- endgeneration -%}\n  "
    )
    assert shown(chats.conversation(*TURNS), marked) == TABLE["with marks"][1]
    lead = chats.MARKED.replace(
        "{{ message['content'] + '<|im_end|>' }}{% endg", "{{ ' ' + message['content'] }}{% endg"
    )
    found = rows_of([chats.conversation("hi", "fine")], lead, words=byte_level(lead))
    labels = np.array(found.token_targets["labels"][0])
    assert byte_level().decode(labels[labels != -100]) == " fine"
    none = chats.MARKED.replace("== 'assistant'", "== 'model'")
    with pytest.raises(DataError, match="it marks nothing by"):
        rows_of([chats.conversation("hi", "fine")], none)


def test_an_end_that_the_tokenizer_divides_is_refused():
    words = chats.tokenizer(special=[])
    with pytest.raises(DataError, match=r"what ends a turn .* is no token: 1\n    row 1: it is '<\|im_end\|>'"):
        rows_of([chats.conversation("hi", "fine")], words=words)


def test_answers_that_end_with_no_token_are_counted():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    rows = rows_of([chats.conversation("hi", "fine"), chats.conversation("a", "b")], template)
    assert rows.alignment.endless == 2
    assert chats.shown(rows, 0, chats.tokenizer()) == "user: hi\nassistant: [[fine]]\n"


def test_a_template_that_fails_names_the_rows_and_what_it_says():
    examples = [chats.conversation("hi", "fine"), chats.conversation("hi", "fine", system="Be kind")]
    with pytest.raises(DataError) as error:
        rows_of([*examples, examples[1]], chats.GEMMA)
    assert "refuses: 2\n    row 2: System role not supported\n    row 3: System" in str(error.value)


def test_a_tokenizer_without_a_template_is_refused_with_what_to_do():
    with pytest.raises(DataError, match=r"no chat template, .*\{chat_template: FILE\}$"):
        rows_of([chats.conversation("hi", "fine")], words=chats.tokenizer(None))
    plain = Conversation((Turn("user", "a"), Turn("assistant", "b")), plain="a")
    with pytest.raises(DataError, match=r"or data: \{chat_template: plain\} to continue the prompts as they are"):
        rows_of([plain], words=chats.tokenizer(None))


def test_a_template_that_writes_the_date_of_today_is_refused_unless_it_takes_one():
    dated = "{{ strftime_now('%d %b %Y') }}" + chats.CHATML
    with pytest.raises(DataError, match="the date of today"):
        rows_of([chats.conversation("hi", "fine")], dated)
    llama = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    writer = writer_of([chats.conversation("hi", "fine")], None, chats.tokenizer(llama + chats.CHATML))
    assert writer.prompt(chats.conversation("hi", "fine")).startswith("26 Jul 2024<|im_start|>")


# ---------------------------------------------------------------- bytes and cuts


def test_bytes_are_those_of_the_answers_whatever_tokenizer_and_template():
    examples = [chats.conversation("hi", "naïve é?", "a", "b c"), chats.conversation("a", "é")]
    expected = [len("naïve é?b c".encode()), 2]
    for template in (chats.CHATML, chats.LLAMA_3, chats.GEMMA, chats.PHI_3, chats.MARKED):
        assert rows_of(examples, template).alignment.bytes.tolist() == expected
    words = byte_level()
    assert rows_of(examples, words=words).alignment.bytes.tolist() == expected
    assert rows_of(examples, words=words).units.sum() > rows_of(examples).units.sum()


def byte_level(template=chats.CHATML):
    import copy

    words = copy.deepcopy(word_pieces.roberta(add_prefix_space=False))
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    words.chat_template = template
    return words


TEXTS = st.text("a bg\né?", min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_what_is_trained_decodes_to_the_answers(pairs):
    """For a byte-level tokenizer, whose offsets leave blanks out, and any blanks, line breaks and empty ends."""
    words = byte_level()
    example = chats.conversation(*(text for pair in pairs for text in pair))
    rows = rows_of([example], words=words)
    ids, labels = np.array(rows.inputs["input_ids"][0]), np.array(rows.token_targets["labels"][0])
    expected = [f"{answer}<|im_end|>" for _, answer in pairs]
    trained = words.decode(labels[labels != -100], clean_up_tokenization_spaces=False)
    assert trained == "".join(expected)
    assert rows.alignment.bytes.tolist() == [sum(len(answer.encode()) for _, answer in pairs)]
    assert (labels[:-1][labels[:-1] != -100] == ids[1:][labels[:-1] != -100]).all()


def test_a_conversation_that_is_cut_and_one_whose_answer_is_cut_away():
    long = chats.conversation("a", " ".join(["b"] * 30))
    rows = rows_of([long, chats.conversation("a", "b")], max_length=30)
    assert [len(row) for row in rows.inputs["input_ids"]] == [30, len(rows.inputs["input_ids"][1])]
    assert rows.alignment.cut == 1
    assert rows.alignment.bytes[0] == rows.units[0]  # each kept token of the answer is one byte
    away = chats.conversation(" ".join(["a"] * 30), "b")
    with pytest.raises(DataError, match=r"all cut away: 1\n    row 2: of its \d+ tokens, 30 are kept\n    Raise max_"):
        rows_of([long, away], max_length=30)


def test_a_token_that_is_of_both_prompt_and_completion_is_trained_and_counted():
    words = byte_level()
    words.chat_template = None
    example = Conversation((Turn("user", "a g"), Turn("assistant", "am b")), plain="a g")  # the tokenizer joins ` gam`
    rows = rows_of([example], PLAIN, words=words)
    labels = np.array(rows.token_targets["labels"][0])
    assert words.convert_ids_to_tokens(labels[labels != -100].tolist())[0] == "Ġgam"
    assert rows.alignment.straddling == 1
    assert rows_of([chats.conversation("a", "b")], words=byte_level()).alignment.straddling == 0
