"""Token classification as a task: a tag for each word of a sentence, such as named entities and parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.data.keys import Place
from hpo.recipe.class_weights import CLASS_WEIGHTS
from hpo.tasks.classification.predictions import KINDS
from hpo.tasks.dataset import SPLITS, Dataset
from hpo.tasks.rows import IGNORED, EncodedRows
from hpo.tasks.task import Reference, Smoothing, Task
from hpo.tasks.token_classification import checks, sentences
from hpo.tasks.token_classification.alignment import align, inner_labels, joins_words
from hpo.tasks.token_classification.conll import CONLL_ENDINGS
from hpo.tasks.token_classification.keys import TagKeys, is_conll
from hpo.tasks.token_classification.predictions import TASK, Places, TagPredictions, predictions_of
from hpo.tasks.token_classification.schemes import is_tag, type_of
from hpo.tasks.token_classification.sentences import SENTENCE, TagSplit

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedTokenizerBase

    from hpo.tasks.task import Outputs, Tensors

Array = np.ndarray[Any, Any]


class TokenClassification(Task):
    """A tag for each word of a sentence. A long sentence is divided into windows; see `alignment`."""

    name = TASK
    auto_model = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    peft_type = "TOKEN_CLS"
    metric = "entity_f1"
    keys = TagKeys
    example = "sentence"
    row = "window"
    cuts = False
    formats = CONLL_ENDINGS
    answer_keys = ("predicted", "entities")

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: TagKeys) -> Iterator[tuple[Place, str]]:
        """Yield a problem for each key that the files do not have, and for columns with two uses."""
        conll = keys.conll_names()
        for key in ("group", "where", "predicate", "text") if conll else ():
            if getattr(keys, key):
                documents = "; a document (-DOCSTART-) is a group of its own accord" if key == "group" else ""
                yield (key,), f"is for tables, and {conll[0]} is a CoNLL file{documents}; leave it out"
        if keys.separator and conll:
            yield ("separator",), f"is for CSV and TSV files, and {conll[0]} is a CoNLL file; leave it out"
        if keys.word_column == keys.tag_column:
            yield ("tag_column",), f"is column {keys.tag_column}, which is the words' already; name another column"
        if keys.predicate_column in (keys.word_column, keys.tag_column):
            yield (
                ("predicate_column",),
                f"is column {keys.predicate_column}, which has another use; name another column",
            )
        if keys.predicate_column is not None and (others := keys.table_names()):
            yield (
                ("predicate_column",),
                f"is for CoNLL files, and {others[0]} is none; write predicate: COLUMN for tables",
            )
        columns = [column for _, column in keys.columns()]
        if len(set(columns)) < len(columns):
            yield (), f"the columns {', '.join(map(repr, columns))} are not all different; name a column of its own"
        if keys.predicate and keys.text:
            yield ("predicate",), "is for rows of tokens, as it is the number of one; leave it or `text` out"
        if keys.text and keys.scheme not in ("auto", "IOB2"):
            yield ("scheme",), "is for tags, and spans have none; leave it out"

    def table(self, keys: TagKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
        """Return the rows of one split; a CoNLL file is one row until it is parsed."""
        return sentences.raw_table(keys, split, source, folder)

    def prepared(self, frames: dict[str, pd.DataFrame], keys: TagKeys) -> list[str]:
        """Put sentences in place of the rows."""
        return sentences.parse(frames, keys)

    def contents(self, table: pd.DataFrame, keys: TagKeys) -> list[tuple[str, ...]]:
        """Return the words of each sentence."""
        return [sentence.words for sentence in table[SENTENCE]]

    def groups(self, table: pd.DataFrame, keys: TagKeys) -> list[str] | None:
        """Return the document of each sentence, or what the column of groups says."""
        return sentences.groups_of(table, keys)

    def strata(self, table: pd.DataFrame, keys: TagKeys) -> Sequence[Hashable]:
        """Return the rarest type in each sentence, or its rarest tag, so that each is in train too."""
        kinds = [{(is_tag(tag) and type_of(tag)) or tag for tag in each.tags} for each in table[SENTENCE]]
        counts = Counter(chain.from_iterable(kinds))
        return [min(own, key=lambda kind: (counts[kind], kind)) for own in kinds]

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: TagKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the tags, and the splits."""
        labels, entities = sentences.labels_of(frames, keys)
        return labels, {name: sentences.split_of(frames[name], keys, labels, entities) for name in SPLITS}

    def refuse_unlearnable(self, data: Dataset) -> None:
        """Refuse data whose sentences, or whose tags, are all equal."""
        super().refuse_unlearnable(data)
        checks.refuse_unlearnable(data.splits["train"])

    def notes(self, data: Dataset) -> list[str]:
        """Return a note on types that train has not."""
        return checks.notes(data)

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on small splits and rare types."""
        return checks.doubts(data, metric)

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return how many entities of each type there are, or words of each tag."""
        return checks.facts(data)

    def input_columns(self, keys: TagKeys) -> tuple[str, ...]:
        """Return the column of words or of the text, and of the predicate."""
        column = keys.tokens if keys.text is None else keys.text
        return (column, keys.marks) if keys.marks else (column,)

    def input_rows(self, path: Path, keys: TagKeys) -> list[dict[str, Any]]:
        """Return the rows of a file; of a CoNLL file, with or without tags, words and predicate of each sentence."""
        return sentences.untagged_rows(path, keys) if is_conll(path) else super().input_rows(path, keys)

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: TagKeys) -> TagSplit:
        """Return rows of words or of texts as sentences without tags."""
        return sentences.untagged(rows, keys)

    # ------------------------------------------------------------ training and scoring

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase, keys: TagKeys) -> dict[str, Any]:
        """Return what lets a byte-level tokenizer read the words as if blanks were between them."""
        return {"add_prefix_space": True} if tokenizer.is_fast and joins_words(tokenizer) else {}

    def configure(self, config: Any, labels: Sequence[str]) -> None:
        """Write the tags."""
        super().configure(config, labels)
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}

    def labels_of(self, config: Any) -> tuple[str, ...]:
        """Return the tags."""
        return tuple(str(config.id2label[i]) for i in range(config.num_labels))

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the tokens, each that is trained on with its tag after a slash."""
        targets = [labels[i] if i != IGNORED else None for i in rows.token_targets["labels"][row]]
        given = [*targets, *[None] * len(tokens)]
        return " ".join(f"{token}/{tag}" if tag else token for token, tag in zip(tokens, given, strict=False))

    def encode(
        self, split: TagSplit, keys: TagKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return a row for each window."""
        words = [sentence.model_words for sentence in split.sentences]
        inner = inner_labels(split.labels) if keys.label_all_pieces and split.labels else None
        found = align(tokenizer, words, split.targets, max_length, keys.stride, inner)
        if not found.windows:
            raise DataError(f"the tokenizer makes no token of any word of the {len(words)} sentences: are they empty?")
        labels = [window.labels for window in found.windows]
        return EncodedRows(
            {name: [window.inputs[name] for window in found.windows] for name in found.windows[0].inputs},
            {},
            {"labels": labels},
            np.array([sum(label != IGNORED for label in own) for own in labels], dtype=float),
            np.array([window.sentence for window in found.windows]),
            Places.of(found.windows, len(words), len(found.cut), len(found.invisible)),
        )

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: TagKeys) -> list[str]:
        """Return notes on words that the model sees in part, or not at all."""
        cut, invisible = (sum(getattr(each.alignment, name) for each in rows.values()) for name in ("cut", "invisible"))
        found = []
        if cut:
            found.append(f"{cut} words have more tokens than a window: their last ones are cut; raise max_length")
        if invisible:
            found.append(f"{invisible} words have no token, as control characters: they are not trained on, nor scored")
        return found

    def class_weights(self, data: Dataset) -> Mapping[str, Array]:
        """Return setting of `class_weights` -> weights [labels], by the words of train."""
        every = np.concatenate([np.asarray(labels) for labels in data.splits["train"].targets])
        counts = np.bincount(every, minlength=len(data.labels))
        return {name: weights(counts) for name, weights in CLASS_WEIGHTS.items()}

    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of each window [rows]: the sum of the cross entropies of its labelled tokens.

        All tokens are computed and the others are left out, as shapes must not depend on values.
        """
        import torch

        logits, labels = outputs[0], targets["labels"]
        rows, length = labels.shape
        if not isinstance(smoothing, float):
            smoothing = smoothing.repeat_interleave(length)
        if weights is not None and weights.ndim == 2:
            weights = weights.repeat_interleave(length, dim=0)
        given = labels != IGNORED
        cross_entropy = KINDS["single_label"].loss
        losses = cross_entropy(logits.flatten(0, 1), labels.clamp(min=0).flatten(), smoothing, weights)
        return torch.where(given, losses.view(rows, length), 0.0).sum(dim=1)

    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return the most probable label of each token and its probability, [rows, tokens], and the losses [rows]."""
        confidence, predicted = outputs[0].softmax(dim=-1).max(dim=-1)
        return {"predicted": predicted, "confidence": confidence, "loss": self.loss(outputs, targets, 0.0, None)}

    def predictions(
        self, split: TagSplit, rows: EncodedRows, answers: Mapping[str, Array], keys: TagKeys
    ) -> TagPredictions:
        """Return the tag of each word, from the window that predicts it."""
        return predictions_of(split, rows, answers)

    # ------------------------------------------------------------ results

    def default_metric(self, data: Dataset) -> str:
        """Return F1 of entities, or token accuracy where the tags write no entities."""
        return self.metric if data.splits["train"].entities else "token_accuracy"

    def refuse_metric(self, metric: str, data: Dataset) -> None:
        """Refuse a metric of entities where there are none."""
        checks.refuse_metric(metric, data)

    def collapse(self, predictions: TagPredictions) -> str:
        """Return the one tag that a collapsed model gives."""
        return predictions.collapse

    def references(self, data: Dataset, metric: str, folder: Path) -> dict[str, Reference | None]:
        """Return the most frequent tag, and for each word its most frequent one."""
        from hpo.tasks.token_classification.baselines import references

        return dict(references(data))

    def breakdown(self, predictions: TagPredictions, labels: Sequence[str]) -> dict[str, Any]:
        """Return precision, recall and F1 of each type of entity, or of each tag."""
        from hpo.tasks.token_classification.breakdown import by_type

        return by_type(predictions)

    def predicted_rows(self, predictions: TagPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the tag of each word, and the entities with their ends and scores."""
        return predictions.rows(labels)
