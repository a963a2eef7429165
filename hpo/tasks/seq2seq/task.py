"""Sequence to sequence as a task: translation, summarisation, and whatever else makes a text of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.data.keys import Place
from hpo.tasks.dataset import SPLITS, Dataset, small_splits
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.language.task import GeneratingTask
from hpo.tasks.rows import EncodedRows
from hpo.tasks.seq2seq import encoding, languages, notes, pairs
from hpo.tasks.seq2seq.keys import LANGUAGES, PairKeys
from hpo.tasks.seq2seq.pairs import PairSplit
from hpo.tasks.seq2seq.usage import code

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Seq2Seq(GeneratingTask):
    """A target for each source, by a model with an encoder and a decoder."""

    name = "seq2seq"
    auto_model = "AutoModelForSeq2SeqLM"
    pipeline_tag = "text2text-generation"
    peft_type = "SEQ_2_SEQ_LM"
    keys = PairKeys
    example = "pair"
    row = "source"
    cuts = False  # `row_notes` counts what is cut of sources and of targets
    answer_keys = ("predicted", "loss", "tokens")

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: PairKeys) -> Iterator[tuple[Place, str]]:
        """Yield a problem for each column with two uses."""
        if keys.target == keys.source:
            yield ("target",), f"is {keys.target!r}, which is the source already; name another column"
        if keys.group in (keys.source, keys.target):
            yield ("group",), f"is column {keys.group!r}, which is a text; name another column"
        lacking = [key for key in LANGUAGES if getattr(keys, key) is None]
        if len(lacking) == 1:
            yield (lacking[0],), "is missing: a model that knows languages needs both; write it too"

    def table(self, keys: PairKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
        """Return the rows of one split, with a column of sources and one of targets."""
        table = super().table(keys, split, source, folder)
        return table if keys.pair is None else pairs.unfold(table, keys)

    def prepared(self, frames: dict[str, pd.DataFrame], keys: PairKeys) -> list[str]:
        """Refuse empty texts."""
        pairs.prepare(frames, keys)
        return []

    def contents(self, table: pd.DataFrame, keys: PairKeys) -> list[str]:
        """Return the source of each row: pairs with one source stay in one split."""
        return list(table[keys.source])

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: PairKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return no labels, and the splits."""
        return (), {
            name: PairSplit(
                list(frames[name][keys.source]),
                list(frames[name][keys.target]),
                members=self.groups(frames[name], keys),
                places=frames[name].index,
            )
            for name in SPLITS
        }

    def refuse_unlearnable(self, data: Dataset) -> None:
        """Refuse pairs of which all sources, or all targets, are equal."""
        notes.refuse_unlearnable(data.splits["train"])

    def notes(self, data: Dataset) -> list[str]:
        """Return notes on sources with several targets, and on targets that are their sources."""
        return notes.of_data(data)

    def row_facts(self, rows: Mapping[str, EncodedRows], max_length: int) -> dict[str, str]:
        """Return how many tokens a target has."""
        tokens = rows["train"].units
        return {"tokens a target": f"{tokens.mean():.0f} on average, {tokens.max():.0f} at most"}

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: PairKeys) -> list[str]:
        """Return notes on texts that are cut."""
        return notes.of_rows(rows, keys.max_target_length)

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on small splits."""
        return small_splits(data, metric, self.example, share=False)

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return how long the texts are."""
        assert isinstance(data.keys, PairKeys)
        return notes.facts(data, data.keys)

    def input_columns(self, keys: PairKeys) -> tuple[str, ...]:
        """Return the column of the source."""
        return (keys.source,)

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: PairKeys) -> PairSplit:
        """Return pairs whose targets are not known."""
        return pairs.untranslated(rows, keys)

    # ------------------------------------------------------------ training and scoring

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase, keys: PairKeys) -> dict[str, Any]:
        """Return the languages, of a tokenizer that knows any."""
        return languages.options(tokenizer, keys)

    def loads(self, architecture: str) -> bool:
        """Return whether a class has an encoder and a decoder with a language-model head."""
        return architecture.endswith(("ForConditionalGeneration", "MTModel")) or architecture == "EncoderDecoderModel"

    def encode(
        self, split: PairSplit, keys: PairKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return a row for each pair; the decoder's inputs are added by `for_model`."""
        return encoding.encode(split, keys, tokenizer, max_length)

    def for_model(self, encoded: EncodedRows, model: PreTrainedModel) -> EncodedRows:
        """Return rows with the inputs of the model's decoder."""
        return encoding.with_decoder_inputs(encoded, model)

    def begin(self, model: PreTrainedModel, keys: PairKeys, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let a model that knows languages begin in that of the targets."""
        languages.begin(model, tokenizer, keys, encoding.shift_of(model))

    def prompts(
        self, split: PairSplit, keys: PairKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> list[list[int]]:
        """Return the token ids of each source, which the model encodes."""
        return encoding.source_ids(split, keys, tokenizer, max_length)

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the tokens of the source, and those of the target, which are trained on, between double brackets."""
        return f"{' '.join(tokens)} -> [[{' '.join(rows.alignment.written[row])}]]"

    def expected(self, split: PairSplit) -> list[str]:
        """Return the targets."""
        return split.targets

    def sources(self, split: PairSplit) -> list[str]:
        """Return the sources, without the prefix."""
        return split.sources

    def texts_without_model(self, split: PairSplit) -> dict[str, list[str]]:
        """Return the sources copied, and their first sentences unless all sources are one sentence."""
        first = [SENTENCE_END.split(source, maxsplit=1)[0] for source in split.sources]
        copied = {"The source copied": split.sources}
        return copied if first == split.sources else {**copied, "The first sentence of the source": first}

    # ------------------------------------------------------------ results

    def usage(self, settings: Mapping[str, Any]) -> str:
        """Return code that makes a target of a source with an exported model."""
        return code(settings)

    def predicted_rows(self, predictions: TextPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return what was generated, or None; and where the target is known, the loss of a token of it."""
        generated: Sequence[str | None] = predictions.generated or [None] * len(predictions)
        return [
            {"predicted": text} | ({"loss": float(loss / units), "tokens": int(units)} if target else {})
            for text, target, loss, units in zip(
                generated, predictions.expected, predictions.losses, predictions.units, strict=True
            )
        ]
