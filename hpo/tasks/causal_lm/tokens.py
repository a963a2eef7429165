"""Written examples as tokens, each known to be trained or not by the characters that it is of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.tasks.causal_lm.writing import Writer, Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]
CHUNK = 1000  # texts that are tokenised at once, to bound the memory
MARK = re.compile(r"\s*(<\|?\w+\|?>)")
"""How templates write tokens that end a turn."""


@dataclass(frozen=True)
class TokenRow:
    """An example as tokens.

    Attributes:
        ids: [tokens] ids.
        trained: [tokens] whether each token is to be given out.
        bytes: [tokens] length in UTF-8 of the text that each token adds; 0 for control tokens.
        text: The text.
        ends: End of each token of the text in it; tokens of `lead` and `tail` are of no text.
        lead: Tokens before those of the text, in writing.
        tail: Tokens after them.
        straddling: Whether a trained token begins before what is trained.
        closed: Whether the last trained token is a control token, which ends a turn or a text.
        divided: What ends a turn in the template, if the tokenizer divides it; else empty.
    """

    ids: Array
    trained: Array
    bytes: Array
    text: str
    ends: Array
    lead: tuple[str, ...]
    tail: tuple[str, ...]
    straddling: bool
    closed: bool
    divided: str

    @property
    def texts(self) -> list[str]:
        """The text that each token adds; of tokens that are of no text, their names."""
        ends = self.ends.tolist()
        return [*self.lead, *(self.text[start:end] for start, end in zip([0, *ends], ends, strict=False)), *self.tail]


def tokenised(written: Sequence[Written], tokenizer: PreTrainedTokenizerBase, writer: Writer) -> Iterator[TokenRow]:
    """Yield written examples as tokens.

    The tokens of a whole text are those of `apply_chat_template`: the template writes its own tokens of beginning and
    end, so the tokenizer adds none.
    """
    control = np.array(sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}), dtype=np.int64)
    for first in range(0, len(written), CHUNK):
        chunk = written[first : first + CHUNK]
        found = tokenizer([each.text for each in chunk], add_special_tokens=False, return_offsets_mapping=True)
        for each, ids, offsets in zip(chunk, found["input_ids"], found["offset_mapping"], strict=True):
            inner = _inner(each, np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64), control)
            yield _framed(inner, tokenizer, writer.lead, writer.tail if each.spans else [])


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase, writer: Writer) -> list[int]:
    """Return the tokens of a prompt."""
    return [*writer.lead, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def _inner(written: Written, ids: Array, offsets: Array, control: Array) -> TokenRow:
    """Return a text as tokens. A token is trained where its last character is in a span.

    Byte-level tokenizers leave blanks out of a token's offsets, so that a token may have none; its end is right still.
    """
    offsets = offsets.reshape(-1, 2)
    ends = np.maximum.accumulate(offsets[:, 1])
    controls = np.isin(ids, control)
    trained, straddling, divided = np.zeros(len(ids), dtype=bool), False, ""
    for start, end in written.spans:
        inside = (ends > start) & (ends <= end)
        straddling |= bool((inside & (offsets[:, 0] < start)).any())
        if not written.closed:
            ending = _ending(written.text, end, ends, controls)
            inside[ending] = True
            mark = MARK.match(written.text, end)
            divided = divided or (mark[1] if mark and ending.start == ending.stop else "")
        trained |= inside
    sizes = np.diff(_bytes_before(written.text, ends), prepend=0) * ~controls
    closed = bool(controls[np.flatnonzero(trained)[-1]]) if trained.any() else True
    return TokenRow(ids, trained, sizes, written.text, ends, (), (), straddling, closed, divided)


def _bytes_before(text: str, ends: Array) -> Array:
    """Return the bytes in UTF-8 of a text up to some of its characters."""
    if text.isascii():
        return ends
    return np.concatenate([[0], np.cumsum([len(character.encode()) for character in text])])[ends]


def _ending(text: str, end: int, ends: Array, controls: Array) -> slice:
    """Return the tokens that end a turn: the control token that follows, and the blanks before it."""
    first = int(np.searchsorted(ends, end, side="right"))
    for number in range(first, len(ends)):
        if controls[number]:
            return slice(first, number + 1)
        if text[end : int(ends[number])].strip():
            break
    return slice(first, first)


def _framed(row: TokenRow, tokenizer: PreTrainedTokenizerBase, lead: list[int], tail: list[int]) -> TokenRow:
    """Return a row with tokens before it, and with trained tokens after it."""
    if not lead and not tail:
        return row
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens([*lead, *tail])]
    before, after = len(lead), len(tail)
    return replace(
        row,
        ids=np.concatenate([np.array(part, dtype=np.int64) for part in (lead, row.ids, tail)]),
        trained=np.concatenate([np.zeros(before, dtype=bool), row.trained, np.ones(after, dtype=bool)]),
        bytes=np.pad(row.bytes, (before, after)),
        lead=tuple(tokens[:before]),
        tail=tuple(tokens[before:]),
        closed=bool(tail) or row.closed,
    )
