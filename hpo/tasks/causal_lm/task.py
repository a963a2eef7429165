"""Causal language models as a task: what the assistant says, or plain text, token by token."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.core.formatting import plain
from hpo.data.keys import Place
from hpo.tasks.causal_lm import encoding, notes, reading
from hpo.tasks.causal_lm.examples import CALLING, Conversation, Document
from hpo.tasks.causal_lm.keys import PLAIN, ChatKeys
from hpo.tasks.causal_lm.split import EXAMPLE, TEXT_FILE, TextSplit, parse, read_table, split_of
from hpo.tasks.causal_lm.tokens import ids_of
from hpo.tasks.causal_lm.usage import code
from hpo.tasks.causal_lm.writing import UnwrittenError, writer_of
from hpo.tasks.dataset import SPLITS, Dataset, small_splits
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.language.task import GeneratingTask
from hpo.tasks.remarks import Remarks
from hpo.tasks.rows import EncodedRows

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]


class CausalLM(GeneratingTask):
    """The next token of a text: of what an assistant answers, or of all of it."""

    name = "causal_lm"
    auto_model = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    peft_type = "CAUSAL_LM"
    keys = ChatKeys
    example = "text"
    row = "row"
    cuts = False  # its own notes say what is cut
    formats = (TEXT_FILE,)
    answer_keys = ("predicted", "loss", "tokens")

    def loads(self, architecture: str) -> bool:
        """Return whether a class of transformers is such a model; of GPT-2 and older ones it ends otherwise."""
        return "ForCausalLM" in architecture or "LMHeadModel" in architecture

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: ChatKeys) -> Iterator[tuple[Place, str]]:
        """Yield a problem for each key that is not read with others."""
        if keys.form == "text" and keys.chat_template is not None:
            yield ("chat_template",), "is for conversations, and plain text has none; leave it out"
        if keys.form == "text" and keys.trained == "last":
            yield ("trained",), "is for conversations; all of plain text is trained, so leave it out"
        if keys.form == "messages" and keys.chat_template == PLAIN:
            yield ("chat_template",), f"{PLAIN} is for prompts with completions; messages need a template"

    def table(self, keys: ChatKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
        """Return the rows of one split with their form."""
        return read_table(keys, split, source, folder)

    def prepared(self, frames: dict[str, pd.DataFrame], keys: ChatKeys) -> list[str]:
        """Put conversations or documents in place of the rows, and say as what they are read."""
        return parse(frames, keys)

    def contents(self, table: pd.DataFrame, keys: ChatKeys) -> list[Hashable]:
        """Return the prompt of each conversation, or each document: equal ones stay in one split."""
        return [each.says for each in table[EXAMPLE]]

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: ChatKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return no labels, and the splits."""
        return (), {name: split_of(frames[name], self.groups(frames[name], keys)) for name in SPLITS}

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on small splits."""
        return small_splits(data, metric, self.example, share=False)

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return how many turns conversations have, or how long documents are."""
        return notes.facts(data)

    def input_columns(self, keys: ChatKeys) -> tuple[str, ...]:
        """Return the column of the prompt."""
        return (keys.prompt,)

    def input_rows(self, path: Path, keys: ChatKeys) -> list[dict[str, Any]]:
        """Return the rows of a file, each with its prompt; of a conversation, the turns before the last answer."""
        if path.suffix.lower() == TEXT_FILE:
            from hpo.data.readers import text_of

            return [{keys.prompt: text_of(path, keys.encoding)}]
        rows = super().input_rows(path, keys)
        if rows and keys.prompt not in rows[0]:
            return reading.with_prompts(rows, keys)
        return rows

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: ChatKeys) -> TextSplit:
        """Return prompts whose answers are not known."""
        plainly = keys.chat_template == PLAIN or keys.form == "text"
        return TextSplit(
            examples=reading.unanswered(rows, keys.prompt, keys.tools), template=PLAIN if plainly else None
        )

    # ------------------------------------------------------------ training and scoring

    def encode(
        self, split: TextSplit, keys: ChatKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return a row for each conversation, or for each window of a document."""
        if split.template not in (None, PLAIN):
            tokenizer.chat_template = split.template  # saved with the weights
        writer = writer_of(split.examples, split.template, tokenizer)
        return encoding.encode(split.examples, _places(split), writer, tokenizer, keys.trained, max_length)

    def ends(self, rows: EncodedRows) -> tuple[int, ...]:
        """Return the tokens that end a turn of the assistant, or a document."""
        ends: tuple[int, ...] = rows.alignment.ends
        return ends

    def row_facts(self, rows: Mapping[str, EncodedRows], max_length: int) -> dict[str, str]:
        """Return the share of tokens that are trained, and how many rows are cut."""
        return notes.facts_of_rows({name: each.alignment for name, each in rows.items()}, max_length)

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: ChatKeys) -> list[str]:
        """Return notes on rows that are cut, or that do not end."""
        return notes.of_rows({name: each.alignment for name, each in rows.items()})

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the text of a row with what is trained between double brackets."""
        return plain(notes.marked(rows.alignment.shown[row]))

    def predictions(
        self, split: TextSplit, rows: EncodedRows, answers: Mapping[str, Array], keys: ChatKeys
    ) -> TextPredictions:
        """Return the losses of the texts, and the bytes of what of them is trained."""
        return replace(super().predictions(split, rows, answers, keys), bytes=rows.alignment.bytes)

    def expected(self, split: TextSplit) -> list[str]:
        """Return the last answer of each conversation, or each document."""
        return [each.expected for each in split.examples]

    def sources(self, split: TextSplit) -> list[str]:
        """Return the prompt of each conversation; of a document there is none."""
        return [each.source for each in split.examples]

    def prompts(
        self, split: TextSplit, keys: ChatKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> list[list[int]]:
        """Return the ids that the model continues: the conversation up to the expected answer.

        Raises:
            DataError: They are documents, a prompt cannot be written or leaves no token for an answer, or a call of a
                tool is expected.
        """
        if isinstance(split.examples[0], Document):
            raise DataError("plain text has no prompts, so nothing can be generated from it: leave `generate` out")
        writer = writer_of(split.examples, split.template, tokenizer)
        found, faults = list[list[int]](), Remarks()
        for each, where in zip(split.examples, _places(split), strict=True):
            if isinstance(each, Conversation) and each.answered and each.turns[-1].calls:
                faults.fault(CALLING, where, f"its last turn is {each.expected!r:.60}")
                continue
            try:
                found.append(ids_of(writer.prompt(each), tokenizer, writer))
            except UnwrittenError as error:
                faults.fault(error.kind, where, str(error))
                continue
            if len(found[-1]) >= max_length:
                faults.fault(encoding.CUT_AWAY, where, f"its prompt has {len(found[-1])} tokens of {max_length}")
        faults.refuse_faults()
        return found

    # ------------------------------------------------------------ results

    def usage(self, settings: Mapping[str, Any]) -> str:
        """Return code that answers a prompt with an exported model."""
        return code(settings)

    def predicted_rows(self, predictions: TextPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return what was generated, or None; and where it is known what is expected, the loss of a token of it."""
        generated: Sequence[str | None] = predictions.generated or [None] * len(predictions)
        return [
            {"predicted": text} | ({"loss": float(loss / units), "tokens": int(units)} if units else {})
            for text, loss, units in zip(generated, predictions.losses, predictions.units, strict=True)
        ]


def _places(split: TextSplit) -> list[str]:
    """Return where each example is from, for messages."""
    if split.places is None:
        return [f"row {number}" for number in range(1, len(split.examples) + 1)]
    from hpo.data.tables import place

    return [place(entry) for entry in split.places]
