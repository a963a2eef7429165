"""Examples as rows of tokens, with the target of each position: the token after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.tasks.causal_lm.examples import Document, Example
from hpo.tasks.causal_lm.tokens import TokenRow, tokenised
from hpo.tasks.causal_lm.writing import UnwrittenError, Writer, Written
from hpo.tasks.remarks import Kind, Remarks
from hpo.tasks.rows import IGNORED, EncodedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]
SHOWN = 3  # rows that are kept in writing, for `hpo check`

CUT_AWAY = Kind(
    "rows whose trained tokens are all cut away",
    "Raise max_length, shorten the prompts, or leave the rows out",
)
NO_TOKEN = Kind("rows without a token that is trained", "Leave the rows out")
DIVIDED = Kind(
    "conversations in which what ends a turn of the assistant is no token",
    "The tokenizer divides it, so that no one token ends a turn: name the template that belongs to the tokenizer, "
    "data: {chat_template: FILE}",
)


@dataclass(frozen=True)
class Aligned:
    """What is known of the rows of a split besides their tokens.

    Attributes:
        bytes: [examples] length in UTF-8 of the trained text of each example, without control tokens.
        lengths: [examples] tokens of each example, before it is cut.
        tokens: Tokens of all rows.
        trained: Those that are trained.
        cut: Number of examples that are cut.
        straddling: Number of examples in which a token is of the prompt in part, and of the completion in part.
        endless: Number of examples whose last trained token is no control token.
        ends: The control tokens that end the examples.
        windows: Whether long examples are divided into windows, not cut.
        shown: For each of the first rows: (whether it is trained, text) of each token.
    """

    bytes: Array
    lengths: Array
    tokens: int
    trained: int
    cut: int
    straddling: int
    endless: int
    ends: tuple[int, ...]
    windows: bool
    shown: tuple[tuple[tuple[bool, str], ...], ...]


def encode(
    examples: Sequence[Example],
    places: Sequence[str],
    writer: Writer,
    tokenizer: PreTrainedTokenizerBase,
    trained: str,
    max_length: int,
) -> EncodedRows:
    """Return examples as rows: a conversation is cut at its end, a document divided into windows.

    A window begins with the last token of the one before, so that every token but a document's first is a target once.

    Args:
        examples: The examples.
        places: Where each of them is from, for messages.
        writer: Writes them as texts.
        tokenizer: The model's tokenizer.
        trained: As in `ChatKeys`.
        max_length: Most tokens of a row.

    Raises:
        DataError: Examples cannot be written, or nothing of them is trained.
    """
    remarks = Remarks()
    written = [_written(each, place, writer, trained, remarks) for each, place in zip(examples, places, strict=True)]
    remarks.refuse_faults()
    rows = _Rows(max_length)
    for each, place, row in zip(examples, places, tokenised(written, tokenizer, writer), strict=True):
        if row.divided:
            remarks.fault(DIVIDED, place, f"it is {row.divided!r}")
        units = rows.add(row, windowed=isinstance(each, Document))
        if each.answered and not units:
            kind = CUT_AWAY if row.trained[1:].any() else NO_TOKEN
            remarks.fault(kind, place, f"of its {len(row.ids)} tokens, {max_length} are kept")
    remarks.refuse_faults()
    return rows.encoded()


def _written(example: Example, place: str, writer: Writer, trained: str, remarks: Remarks) -> Written:
    """Return an example as a text; an empty one if it cannot be written, which is recorded."""
    try:
        if not example.answered:
            return Written(writer.prompt(example), ())
        return writer.write(example, trained)
    except UnwrittenError as error:
        remarks.fault(error.kind, place, str(error))
        return Written("", ())


@dataclass
class _Rows:
    """Rows that are being collected; the attributes are as of `EncodedRows` and `Aligned`."""

    max_length: int
    ids: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    example: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    cut: int = 0
    straddling: int = 0
    endless: int = 0
    ends: set[int] = field(default_factory=set)
    windows: bool = False
    shown: list[tuple[tuple[bool, str], ...]] = field(default_factory=list)

    def add(self, row: TokenRow, *, windowed: bool) -> int:
        """Add an example, and return its units."""
        kept = len(row.ids) if windowed else min(len(row.ids), self.max_length)
        number = len(self.lengths)
        units = 0
        for start in range(0, max(1, kept - 1), self.max_length - 1):
            end = min(kept, start + self.max_length)
            trained = row.trained[start:end].copy()
            trained[:1] = False  # nothing is before it, or it is a target in the window before
            self.ids.append(row.ids[start:end].astype(np.int32))
            self.labels.append(np.append(np.where(trained, row.ids[start:end], IGNORED)[1:], IGNORED).astype(np.int32))
            self.example.append(number)
            units += int(trained.sum())
            if len(self.shown) < SHOWN:
                self.shown.append(tuple(zip(trained.tolist(), row.texts[start:end], strict=True)))
        self.windows |= windowed
        self.lengths.append(len(row.ids))
        self.bytes.append(int(row.bytes[1:kept][row.trained[1:kept]].sum()))
        self.cut += kept < len(row.ids)
        self.straddling += row.straddling
        self.endless += not row.closed
        if row.closed and row.trained.any():
            self.ends.add(int(row.ids[row.trained][-1]))
        return units

    def encoded(self) -> EncodedRows:
        """Return the rows."""
        units = np.array([(labels != IGNORED).sum() for labels in self.labels], dtype=float)
        aligned = Aligned(
            np.array(self.bytes),
            np.array(self.lengths),
            sum(map(len, self.ids)),
            int(units.sum()),
            self.cut,
            self.straddling,
            self.endless,
            tuple(sorted(self.ends)),
            self.windows,
            tuple(self.shown),
        )
        return EncodedRows(
            {"input_ids": self.ids},  # type: ignore[dict-item]
            {},
            {"labels": self.labels},  # type: ignore[dict-item]
            units,
            np.array(self.example, dtype=np.int64),
            aligned,
        )
