from itertools import pairwise

import pytest
import tiny
import word_pieces
from hypothesis import given
from hypothesis import strategies as st

from hpo.core.errors import DataError, ModelError
from hpo.tasks.token_classification.alignment import (
    IGNORED,
    align,
    divide,
    inner_labels,
    joins_words,
    owners,
)

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "S-PER", "B-B-X", "I-B-X"]
INNER = [0, 2, 2, 3, 4, 6, 6]
TOKENIZERS = {"bert": word_pieces.bert, "roberta": word_pieces.roberta, "whole words": tiny.tokenizer}

WORDS = st.sampled_from(
    ["players", "unaffable", "don't", "Rome", "game", "warm", "xyzzy", "?", "\u200b", "", "\u4e2d\u56fd"]
)
SENTENCES = st.lists(st.lists(st.tuples(WORDS, st.integers(0, len(NAMES) - 1)), max_size=14), min_size=1, max_size=3)


def by_sentence(windows, lengths):
    """Return the label that windows have of each word of sentences; -100 for a word without a piece."""
    found = [[IGNORED] * length for length in lengths]
    for window in windows:
        for position, word in zip(window.positions, window.words, strict=True):
            found[window.sentence][word] = window.labels[position]
    return found


def split(sentences):
    return [[word for word, _ in each] for each in sentences], [[label for _, label in each] for each in sentences]


def run_ner(tokenizer, tokens, tags, max_length, label_all_tokens):
    """What transformers' examples/pytorch/token-classification/run_ner.py makes of a row."""
    encoded = tokenizer(tokens, truncation=True, max_length=max_length, is_split_into_words=True)
    labels, previous = [], None
    for word in encoded.word_ids():
        if word is None:
            labels.append(-100)
        elif word != previous:
            labels.append(tags[word])
        else:
            labels.append(INNER[tags[word]] if label_all_tokens else -100)
        previous = word
    return encoded["input_ids"], labels


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bert", "[CLS] play:1 ##er ##s don:0 ' t game:3 [SEP]"),
        ("roberta", "<s> \u0120play:1 er s \u0120:0 d o n ' t \u0120game:3 </s>"),
        ("whole words", "[CLS] [UNK]:1 [UNK]:0 [UNK] [UNK] [UNK]:3 [SEP]"),
    ],
)
def test_the_first_piece_of_each_word_has_its_label(kind, expected):
    tokenizer = TOKENIZERS[kind]()
    (window,) = align(tokenizer, [["players", "don't", "game"]], [[1, 0, 3]], 32, 8).windows
    pieces = tokenizer.convert_ids_to_tokens(window.inputs["input_ids"])
    wanted = [(piece, label) for piece, _, label in (each.partition(":") for each in expected.split())]
    shown = [(piece, "" if label == -100 else str(label)) for piece, label in zip(pieces, window.labels, strict=True)]
    assert shown == wanted
    assert (window.sentence, window.words) == (0, [0, 1, 2])
    assert [window.labels[at] for at in window.positions] == [1, 0, 3]


def test_the_label_of_further_pieces():
    assert inner_labels(NAMES) == INNER
    assert inner_labels(["B-LOC", "O"]) == [0, 1]  # there is no I-LOC
    (window,) = align(word_pieces.bert(), [["unaffable", "Rome"]], [[1, 3]], 32, 8, INNER).windows
    further = window.positions[1] - window.positions[0] - 1
    assert further > 0
    assert window.labels[: window.positions[1] + 1] == [-100, 1, *[2] * further, 3]
    assert window.words == [0, 1]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("label_all", [False, True])
@given(sentences=SENTENCES)
def test_a_sentence_that_fits_is_as_in_run_ner(kind, label_all, sentences):
    tokenizer, (words, labels) = TOKENIZERS[kind](), split(sentences)
    found = align(tokenizer, words, labels, 512, 64, INNER if label_all else None).windows
    theirs = [run_ner(tokenizer, *row, 512, label_all) for row in zip(words, labels, strict=True)]
    with_words = [each for each in theirs if any(label != -100 for label in each[1])]
    assert [(window.inputs["input_ids"], window.labels) for window in found] == with_words


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(sentences=SENTENCES, max_length=st.integers(3, 24), stride=st.integers(0, 30), label_all=st.booleans())
def test_every_word_is_labelled_once_and_no_window_is_too_long(kind, sentences, max_length, stride, label_all):
    tokenizer, (words, labels) = TOKENIZERS[kind](), split(sentences)
    result = align(tokenizer, words, labels, max_length, stride, INNER if label_all else None)
    assert all(len(values) <= max_length for window in result.windows for values in window.inputs.values())
    assert all(len(window.labels) == len(values) for window in result.windows for values in window.inputs.values())
    scored = [(window.sentence, word) for window in result.windows for word in window.words]
    everything = {(i, j) for i, each in enumerate(words) for j in range(len(each))}
    assert sorted(scored) == sorted(everything - set(result.invisible))
    for window in result.windows:
        first = [window.labels[at] for at in window.positions]
        assert first == [labels[window.sentence][word] for word in window.words]
        assert sorted(window.positions) == window.positions
        assert sorted(window.words) == window.words
        if not label_all:
            assert sum(label != IGNORED for label in window.labels) == len(first)
    assert [window.sentence for window in result.windows] == sorted(window.sentence for window in result.windows)
    gold = [[IGNORED if (i, j) in result.invisible else y for j, y in enumerate(each)] for i, each in enumerate(labels)]
    assert by_sentence(result.windows, [*map(len, words)]) == gold


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_windows_have_the_pieces_of_the_sentence_in_order(kind):
    tokenizer = TOKENIZERS[kind]()
    words = ["unaffable", "players", "played", "games", "of", "Rome"] * 4
    whole = tokenizer(words, is_split_into_words=True)["input_ids"]
    windows = align(tokenizer, [words], [[1] * len(words)], 16, 0).windows
    assert len(windows) > 2
    assert [piece for window in windows for piece in window.inputs["input_ids"][1:-1]] == whole[1:-1]
    assert {(window.inputs["input_ids"][0], window.inputs["input_ids"][-1]) for window in windows} == {
        (whole[0], whole[-1])
    }


def test_a_word_longer_than_a_window_loses_its_last_pieces():
    result = align(word_pieces.roberta(), [["Rome", "x" * 40, "Rome"]], [[0, 1, 2]], 12, 4, INNER)
    assert result.cut == [(0, 1)]
    long = next(window for window in result.windows if 1 in window.words)
    assert (len(long.labels), long.labels[1:-1]) == (12, [1] + [2] * 9)
    assert sorted(word for window in result.windows for word in window.words) == [0, 1, 2]


def test_words_without_a_piece_are_named():
    result = align(word_pieces.bert(), [["Rome", "\u200b", "game"], ["\u200b"], []], [[1, 2, 0], [1], []], 16, 4)
    assert result.invisible == [(0, 1), (1, 0)]
    assert [(window.sentence, window.words) for window in result.windows] == [(0, [0, 2])]
    assert by_sentence(result.windows, [3, 1, 0]) == [
        [1, -100, 0],
        [-100],
        [],
    ]


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("sizes", "room", "stride", "windows", "owned"),
    [
        ([1] * 5, 5, 2, [(0, 5)], [0] * 5),
        ([1] * 6, 4, 2, [(0, 4), (2, 6)], [0, 0, 0, 1, 1, 1]),
        ([1] * 8, 4, 2, [(0, 4), (2, 6), (4, 8)], [0, 0, 0, 1, 1, 2, 2, 2]),
        ([1] * 6, 4, 0, [(0, 4), (4, 6)], [0, 0, 0, 0, 1, 1]),
        ([1] * 6, 4, 9, [(0, 4), (1, 5), (2, 6)], [0, 0, 0, 1, 2, 2]),
        ([2, 2, 2, 2], 5, 1, [(0, 2), (2, 4)], [0, 0, 1, 1]),  # no word fits into the overlap
        ([1, 3, 4, 1], 4, 2, [(0, 2), (2, 3), (3, 4)], [0, 0, 1, 2]),  # a word that fills a window
        ([4], 4, 2, [(0, 1)], [0]),
        ([], 4, 2, [], []),
    ],
)
def test_windows_of_words(sizes, room, stride, windows, owned):
    assert divide(sizes, room, stride) == windows
    assert owners(sizes, windows) == owned


@given(st.integers(1, 12), st.integers(0, 15), st.data())
def test_windows_cover_all_words_and_overlap_by_no_more_than_the_stride(room, stride, data):
    sizes = data.draw(st.lists(st.integers(1, room), max_size=25))
    windows = divide(sizes, room, stride)
    assert [windows[0][0], windows[-1][1]] == [0, len(sizes)] if sizes else windows == []
    assert all(sum(sizes[start:end]) <= room for start, end in windows)
    for (start, end), (next_start, next_end) in pairwise(windows):
        assert start < next_start <= end < next_end
        assert sum(sizes[next_start:end]) <= stride
        assert sum(sizes[start : end + 1]) > room  # no shorter than it must be
    owned = owners(sizes, windows)
    assert owned == sorted(owned)
    assert all(windows[i][0] <= word < windows[i][1] for word, i in enumerate(owned))


# ---------------------------------------------------------------- tokenizers


def test_a_byte_level_tokenizer_needs_a_blank_before_each_word():
    assert joins_words(word_pieces.roberta(add_prefix_space=False))
    assert not any(joins_words(tokenizer()) for tokenizer in TOKENIZERS.values())


def test_a_length_without_room_is_refused():
    with pytest.raises(DataError, match="max_length 2 leaves no room for a word beside the 2 special tokens"):
        align(word_pieces.bert(), [["Rome"]], [[0]], 2, 0)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow cannot tell which piece is of which word"):
        align(Slow(), [["Rome"]], [[0]], 8, 0)


def test_no_sentences_have_no_windows():
    assert align(word_pieces.bert(), [], [], 8, 0).windows == []
