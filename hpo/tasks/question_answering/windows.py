"""Questions with their contexts as token windows: a context that is too long is cut into windows that overlap.

As in transformers' `run_qa.py`: only the context is cut, consecutive windows have `stride` tokens of it in
common, and a window without the whole answer has the position of the CLS token for its start and its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError, ModelError
from hpo.tasks.question_answering.questions import Question

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]

CHUNK = 1000  # questions that are tokenised at once


@dataclass(frozen=True)
class Windows:
    """The windows of all questions, in the order of the questions, one after the other; none is padded.

    Attributes:
        inputs: Name of a model's input, such as `input_ids` -> [tokens] int32, the tokens of all windows.
        offsets: [tokens, 2] int32, first character and end of each token in its context; equal for a token that is
            not of the context.
        lengths: [n] number of tokens of each window.
        example: [n] number of the window's question, from 0, ascending.
        null: [n] position of the CLS token, which stands for no answer.
        starts: [n] position of the first token of the first gold answer, or `null`.
        ends: [n] position of its last token, or `null`.
        lost: Numbers of the questions whose answer is not wholly in any window, because it is longer than the
            overlap. They are trained as questions without an answer; a larger stride or window mends it.
    """

    inputs: Mapping[str, Array]
    offsets: Array
    lengths: Array
    example: Array
    null: Array
    starts: Array
    ends: Array
    lost: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.lengths)

    def padded_offsets(self, windows: slice, length: int) -> Array:
        """Return the offsets of some consecutive windows, [windows, length, 2], padded with 0."""
        counts = self.lengths[windows]
        first = int(self.lengths[: windows.start].sum())
        padded = np.zeros((len(counts), length, 2), dtype=self.offsets.dtype)
        padded[np.arange(length) < counts[:, None]] = self.offsets[first : first + int(counts.sum())]
        return padded


def windows_of(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Windows:
    """Return the windows of questions.

    The question comes first, except for a tokenizer whose CLS token is the last of a row, as XLNet's: models of this
    kind are trained with the question last.

    Args:
        questions: Questions, whose answers are at their positions.
        tokenizer: A fast tokenizer.
        max_length: Tokens of a window at most, with the question and the special tokens.
        stride: Tokens of the context that two consecutive windows have in common.

    Raises:
        ModelError: The tokenizer is not a fast one.
        DataError: A question leaves no room for its context, or a context has no token.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} is not a fast tokenizer and gives no positions of characters, which question "
            "answering needs; choose a model with a tokenizer.json"
        )
    _refuse_long_questions(questions, tokenizer, max_length, stride)
    question_first = not _cls_is_last(tokenizer)
    parts = [
        part
        for first in range(0, len(questions), CHUNK)
        for part in _encode(questions[first : first + CHUNK], first, tokenizer, max_length, stride, question_first)
    ]
    _refuse_empty_contexts(questions, parts)
    return _joined(questions, parts)


@dataclass(frozen=True)
class _Window:
    """One window; the attributes are those of `Windows`."""

    inputs: dict[str, Array]
    offsets: Array
    example: int
    null: int
    span: tuple[int, int] | None  # the answer's first and last token


def _encode(
    questions: Sequence[Question],
    first: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
    question_first: bool,
) -> Iterator[_Window]:
    asked = [each.question.lstrip() for each in questions]  # blanks would be taken for a long question
    contexts = [each.context for each in questions]
    encoded: BatchEncoding = tokenizer(
        *((asked, contexts) if question_first else (contexts, asked)),
        truncation="only_second" if question_first else "only_first",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        padding=False,
    )
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    context = 1 if question_first else 0
    for number, question in enumerate(encoded["overflow_to_sample_mapping"]):
        of_context = np.array([sequence == context for sequence in encoded.sequence_ids(number)])
        offsets = np.array(encoded["offset_mapping"][number], dtype=np.int32) * of_context[:, None]
        inputs = {name: np.array(encoded[name][number], dtype=np.int32) for name in names}
        null = _null_position(inputs["input_ids"], tokenizer)
        yield _Window(inputs, offsets, first + question, null, answer_span(offsets, questions[question]))


def answer_span(offsets: Array, question: Question) -> tuple[int, int] | None:
    """Return the first and the last token of the first gold answer; None if it is not wholly in the window.

    An answer that begins or ends within a token gets the whole token.

    Args:
        offsets: [tokens, 2] offsets of a window, as in `Windows`.
        question: The question.
    """
    tokens = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    if not question.answers or not len(tokens):
        return None
    text, begin = question.answers[0]
    begin, end = begin + len(text) - len(text.lstrip()), begin + len(text.rstrip())
    starts, ends = offsets[tokens].T
    first, last = int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(starts, end, "left")) - 1
    inside = starts[0] <= begin and end <= ends[-1] and first <= last
    return (int(tokens[first]), int(tokens[last])) if inside else None


def _null_position(ids: Array, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the position of the CLS token; without one that of the BOS token, or 0, as `run_qa.py` does."""
    for special in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if special is not None and (found := np.flatnonzero(ids == special)).size:
            return int(found[0])
    return 0


def _cls_is_last(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", "b")["input_ids"]
    cls = tokenizer.cls_token_id
    return cls is not None and ids[-1] == cls and ids[0] != cls


def _joined(questions: Sequence[Question], parts: Sequence[_Window]) -> Windows:
    spans = np.array([part.span or (part.null, part.null) for part in parts], dtype=np.int64)
    found = {part.example for part in parts if part.span}
    return Windows(
        inputs={name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs},
        offsets=np.concatenate([part.offsets for part in parts]),
        lengths=np.array([len(part.offsets) for part in parts]),
        example=np.array([part.example for part in parts]),
        null=np.array([part.null for part in parts]),
        starts=spans[:, 0],
        ends=spans[:, 1],
        lost=tuple(number for number, each in enumerate(questions) if each.answers and number not in found),
    )


# ---------------------------------------------------------------- what cannot be cut into windows


def _refuse_long_questions(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> None:
    """Refuse questions that leave no room for new tokens of a context which does not fit into one window.

    The tokenizers library ends the process with a panic, or an error without the question, in this case.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if stride < 0 or stride >= max_length - special:
        raise DataError(
            f"stride {stride} does not fit max_length {max_length}: a window has {max_length - special} tokens beside "
            "the special ones, and two windows cannot have them all in common; choose a stride from 0 to half of it"
        )
    lengths = _lengths([each.question.lstrip() for each in questions], tokenizer)
    suspects = np.flatnonzero(max_length - special - lengths <= stride)
    needed = lengths[suspects] + _lengths([questions[int(i)].context for i in suspects], tokenizer) + special
    long = suspects[needed > max_length]
    if len(long):
        longest = int(long[lengths[long].argmax()])
        raise DataError(
            f"{len(long)} of {len(questions)} questions leave no room for their context in a window of max_length "
            f"{max_length} with stride {stride}: the longest, in {questions[longest].place}, has "
            f"{lengths[longest]} tokens, {_cut(questions[longest].question)}. Set max_length to "
            f"{lengths[longest] + special + stride + 1} or more and data.stride to {stride}, or shorten them"
        )


def _lengths(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Array:
    if not texts:
        return np.zeros(0, dtype=int)
    # verbose: these texts may be longer than the model reads; they are cut later.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return np.array([len(ids) for ids in encoded["input_ids"]])


def _refuse_empty_contexts(questions: Sequence[Question], parts: Sequence[_Window]) -> None:
    covered = {part.example for part in parts if (part.offsets[:, 1] > part.offsets[:, 0]).any()}
    empty = [each for number, each in enumerate(questions) if number not in covered]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(questions)} contexts have no token of this model's tokenizer, the first in "
            f"{empty[0].place}: {_cut(empty[0].context)}. Write a context with text, or choose another model"
        )


def _cut(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else f"{text[: width - 3]}...")
