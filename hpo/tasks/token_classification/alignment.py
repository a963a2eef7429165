"""From tagged words to the pieces of a tokenizer: labels of pieces, and windows of sentences that are too long.

By default the first piece of a word has the word's label and the others none, as in BERT (Devlin et al., 2019, section
5.3) and in transformers' `run_ner.py`. A sentence with more pieces than a model's input may have is cut between words
into windows that overlap. Each word is labelled and predicted in one window: the one whose nearest end is farthest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from hpo.core.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a piece without one, as in torch's cross entropy


@dataclass(frozen=True)
class Window:
    """A row for the model: a sentence, or a part of a long one.

    Attributes:
        sentence: Number of the sentence.
        inputs: Name of an input of the model -> its value for each piece; `input_ids` among them.
        labels: The label of each piece; -100 where it has none.
        positions: Positions of the pieces whose predictions count: the first piece of each word of `words`.
        words: Numbers of the words that are predicted in this window, in order.
    """

    sentence: int
    inputs: Mapping[str, list[int]]
    labels: list[int]
    positions: list[int]
    words: list[int]


@dataclass(frozen=True)
class Alignment:
    """The windows of some sentences.

    Attributes:
        windows: In the order of the sentences.
        invisible: (sentence, word) of the words of which the tokenizer makes no piece, such as a control character.
            They are neither labelled nor predicted.
        cut: (sentence, word) of the words that are longer than a window, and lose their last pieces.
    """

    windows: list[Window] = field(default_factory=list)
    invisible: list[tuple[int, int]] = field(default_factory=list)
    cut: list[tuple[int, int]] = field(default_factory=list)


def align(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]],
    max_length: int,
    stride: int,
    inner: Sequence[int] | None = None,
) -> Alignment:
    """Return the windows of n sentences.

    Args:
        tokenizer: A fast tokenizer; see `joins_words`.
        sentences: The words of each sentence.
        labels: The label of each word.
        max_length: Most pieces of a window, with special tokens.
        stride: Most pieces in which two windows overlap.
        inner: Label of a word -> label of its second and further pieces; see `inner_labels`. If None, they have none.

    Raises:
        ModelError: The tokenizer is not a fast one.
        DataError: `max_length` leaves no room beside the special tokens.
    """
    result = Alignment()
    if not sentences:
        return result
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot tell which piece is of which word. Use a model with a fast tokenizer "
            "(a file tokenizer.json)"
        )
    encoded = tokenizer(
        [list(words) for words in sentences],
        is_split_into_words=True,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        verbose=False,  # no warning of a length that the windows do not have
    )
    for number, own in enumerate(labels):
        word_ids = encoded.word_ids(number)
        pieces = _pieces(word_ids)
        result.invisible.extend((number, word) for word in range(len(own)) if word not in pieces)
        if not pieces:
            continue
        before = range(word_ids.index(next(iter(pieces))))
        after = range(max(own_pieces.stop for own_pieces in pieces.values()), len(word_ids))
        room = _room(max_length, len(before) + len(after))
        result.cut.extend((number, word) for word, own_pieces in pieces.items() if len(own_pieces) > room)
        pieces = {word: own_pieces[:room] for word, own_pieces in pieces.items()}
        inputs = {name: values[number] for name, values in encoded.items()}
        given = {word: _labels(own[word], len(own_pieces), inner) for word, own_pieces in pieces.items()}
        for words, owned in _divided(pieces, room, stride):
            result.windows.append(_window(number, inputs, (before, after), pieces, given, words, owned))
    return result


def _pieces(word_ids: Sequence[int | None]) -> dict[int, range]:
    """Return word -> positions of its pieces, which are neighbours, for each word that has any."""
    found = dict[int, range]()
    for word, positions in groupby(range(len(word_ids)), word_ids.__getitem__):
        if word is not None:
            first, *more = positions
            found[word] = range(first, first + 1 + len(more))
    return found


def _room(max_length: int, special: int) -> int:
    if max_length <= special:
        raise DataError(
            f"max_length {max_length} leaves no room for a word beside the {special} special tokens of a row; raise it"
        )
    return max_length - special


def _labels(label: int, pieces: int, inner: Sequence[int] | None) -> list[int]:
    return [label] + [IGNORED if inner is None else inner[label]] * (pieces - 1)


def _divided(pieces: Mapping[int, range], room: int, stride: int) -> Iterator[tuple[list[int], set[int]]]:
    """Yield the words of each window, and those among them that it labels."""
    words, sizes = list(pieces), [len(each) for each in pieces.values()]
    windows = divide(sizes, room, stride)
    owner = owners(sizes, windows)
    for i, (start, end) in enumerate(windows):
        yield words[start:end], {words[j] for j in range(start, end) if owner[j] == i}


def _window(
    sentence: int,
    inputs: Mapping[str, list[int]],
    special: tuple[range, range],
    pieces: Mapping[int, range],
    labels: Mapping[int, list[int]],
    words: Sequence[int],
    owned: set[int],
) -> Window:
    """Return the window of some words: `inputs` are those of the whole sentence, with `special` at its ends."""
    kept, given, positions = [*special[0]], [IGNORED] * len(special[0]), list[int]()
    for word in words:
        if word in owned:
            positions.append(len(kept))
        given += labels[word] if word in owned else [IGNORED] * len(labels[word])
        kept += pieces[word]
    kept += special[1]
    given += [IGNORED] * len(special[1])
    own = {name: [values[position] for position in kept] for name, values in inputs.items()}
    return Window(sentence, own, given, positions, [word for word in words if word in owned])


# ---------------------------------------------------------------- windows


def divide(sizes: Sequence[int], room: int, stride: int) -> list[tuple[int, int]]:
    """Return the windows of n words: the first word of each, and the one after its last.

    Each window is as long as fits, and begins before the end of the last one by as many words as `stride` allows. It
    has at least one word more than the last one.

    Args:
        sizes: Pieces of each word, at least 1 and at most `room`.
        room: Most pieces of a window.
        stride: Most pieces that two neighbouring windows have in common.
    """
    before = [0, *accumulate(sizes)]  # pieces before each word
    found, start, end = list[tuple[int, int]](), 0, 0
    while end < len(sizes):
        shared = min(stride, room - sizes[end])
        start = bisect_left(before, before[end] - shared)
        end = bisect_right(before, before[start] + room) - 1
        found.append((start, end))
    return found


def owners(sizes: Sequence[int], windows: Sequence[tuple[int, int]]) -> list[int]:
    """Return the window of each word in which its nearest end is farthest, in pieces; of equal ones the first.

    It is the `max context` of BERT's script for SQuAD (Devlin et al., 2019).
    """
    before = [0, *accumulate(sizes)]
    best, found = [-1] * len(sizes), [0] * len(sizes)
    for i, (start, end) in enumerate(windows):
        for word in range(start, end):
            context = min(before[word] - before[start], before[end] - before[word + 1])
            if context > best[word]:
                best[word], found[word] = context, i
    return found


# ---------------------------------------------------------------- labels and predictions


def inner_labels(names: Sequence[str]) -> list[int]:
    """Return the label of the further pieces of a word by the label of the word: that of I-PER for B-PER, else its own.

    It is the map of transformers' `run_ner.py` with `label_all_tokens`.

    Args:
        names: Names of the labels.
    """
    index = {name: i for i, name in enumerate(names)}
    return [index.get(f"I-{name[2:]}", i) if name.startswith("B-") else i for i, name in enumerate(names)]


def joins_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer reads a list of words as if no blanks were between them.

    Byte-level tokenizers, such as RoBERTa's, do so unless they are loaded with `add_prefix_space=True`. The model has
    learned other pieces for words after a blank.
    """
    one, text = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "a a"))
    words = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)
    second = [piece for piece, word in zip(words["input_ids"], words.word_ids(), strict=True) if word == 1]
    return bool(second != text[len(one) :])
