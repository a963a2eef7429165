"""A model's tags for the words of sentences, with the expected ones, and what they count for the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hpo.tasks.rows import EncodedRows
from hpo.tasks.token_classification.alignment import Window
from hpo.tasks.token_classification.reading import Sentence
from hpo.tasks.token_classification.schemes import SCHEMES, Entity, entities, types_of
from hpo.tasks.token_classification.scores import entity_counts
from hpo.tasks.token_classification.sentences import TagSplit

Array = np.ndarray[Any, Any]

TASK = "token_classification"


@dataclass(frozen=True)
class Places:
    """Where the model answers about the words: the first piece of each, in the window that predicts it.

    Attributes:
        row: [m] the window.
        position: [m] the position in it.
        word: [m] number of the word in its sentence; words are in the order of sentences.
        counts: [n] words of each sentence, without those of which the tokenizer makes no piece.
        cut: How many words lose their last pieces, as they are longer than a window.
        invisible: How many words have no piece.
    """

    row: Array
    position: Array
    word: Array
    counts: Array
    cut: int
    invisible: int

    @classmethod
    def of(cls, windows: Sequence[Window], sentences: int, cut: int, invisible: int) -> Places:
        """Return the places of the words of n sentences."""
        sizes = [len(window.words) for window in windows]
        sentence = np.repeat([window.sentence for window in windows], sizes).astype(np.int64)
        found = np.array(
            [
                (row, position, word)
                for row, window in enumerate(windows)
                for position, word in zip(window.positions, window.words, strict=True)
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        row, position, word = found[np.lexsort([found[:, 2], sentence])].T
        return cls(row, position, word, np.bincount(sentence, minlength=sentences), cut, invisible)


@dataclass(frozen=True)
class TagPredictions:
    """A model's tags for the words of n sentences; see `hpo.tasks.task.Predictions`.

    Attributes:
        sentences: The n sentences.
        labels: All tags, by index.
        entities: Whether the tags write entities, in IOB2.
        gold: [m] the expected label of each word.
        predicted: [m] the predicted one.
        confidence: [m] its probability.
        word: [m] number of the word in its sentence.
        counts: [n] words of each sentence that the model sees.
        losses: [n] the loss of each sentence, summed over its units.
        units: [n] the labelled tokens of each sentence.
    """

    sentences: Sequence[Sentence]
    labels: tuple[str, ...]
    entities: bool
    gold: Array
    predicted: Array
    confidence: Array
    word: Array
    counts: Array
    losses: Array
    units: Array

    task = TASK

    def __len__(self) -> int:
        """Return n."""
        return len(self.sentences)

    def take(self, examples: Array) -> TagPredictions:
        """Return the predictions for some sentences, e.g. those of a bootstrap sample."""
        parts = [np.arange(self._ends[i] - self.counts[i], self._ends[i]) for i in examples]
        words = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        of_words = {name: getattr(self, name)[words] for name in ("gold", "predicted", "confidence", "word")}
        of_sentences = {name: getattr(self, name)[examples] for name in ("counts", "losses", "units")}
        return replace(self, sentences=[self.sentences[i] for i in examples], **of_words, **of_sentences)

    @cached_property
    def _ends(self) -> Array:
        return np.cumsum(self.counts)

    @property
    def finite(self) -> bool:
        """Whether all outputs of the model were finite."""
        return bool(np.isfinite(self.losses).all())

    @property
    def collapsed(self) -> bool:
        """Whether all words get the same tag although the expected tags differ."""
        return self.collapsed_to is not None

    @property
    def collapsed_to(self) -> str | None:
        """The tag that all words get although the expected tags differ; else None."""
        if not self.varied or (self.predicted != self.predicted[:1]).any():
            return None
        return self.labels[int(self.predicted[0])]

    @property
    def collapse(self) -> str:
        """What a collapsed model does."""
        return f"gives every word the tag {self.collapsed_to!r}"

    @property
    def varied(self) -> bool:
        """Whether the expected tags differ."""
        return bool((self.gold != self.gold[:1]).any())

    # ------------------------------------------------------------ counts

    def tags(self, labels: Array) -> list[list[str]]:
        """Return labels of the words [m] as tags, by sentence."""
        names = [self.labels[label] for label in labels.tolist()]
        return [names[end - count : end] for count, end in zip(self.counts, self._ends, strict=True)]

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types of the entities."""
        return types_of(self.labels)

    @cached_property
    def entity_counts(self) -> Array:
        """[n, types, 3]: entities that are right, predicted and actual, by seqeval's default rules."""
        return entity_counts(self.tags(self.gold), self.tags(self.predicted), self.types)

    @cached_property
    def strict_counts(self) -> Array:
        """[n, types, 3]: the same by its strict rules, in IOB2."""
        return entity_counts(self.tags(self.gold), self.tags(self.predicted), self.types, SCHEMES["IOB2"])

    @cached_property
    def token_counts(self) -> Array:
        """[n, 2]: the words whose tag is right, and all words."""
        sentence = np.repeat(np.arange(len(self)), self.counts)
        right = np.bincount(sentence, self.gold == self.predicted, minlength=len(self))
        return np.stack([right, self.counts], axis=1)

    # ------------------------------------------------------------ rows

    def rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the tag of each word, None for one that the model does not see, and the entities."""
        found = []
        for sentence, end, count in zip(self.sentences, self._ends, self.counts, strict=True):
            own = slice(end - count, end)
            tags = dict(zip(self.word[own].tolist(), [labels[i] for i in self.predicted[own]], strict=True))
            row: dict[str, Any] = {"predicted": [tags.get(word) for word in range(len(sentence.words))]}
            if self.entities:
                sure = dict(zip(self.word[own].tolist(), self.confidence[own].tolist(), strict=True))
                known = [tag or "O" for tag in row["predicted"]]
                row["entities"] = [_entity(sentence, each, sure) for each in entities(known)]
            found.append(row)
        return found


def _entity(sentence: Sentence, found: Entity, confidence: Mapping[int, float]) -> dict[str, Any]:
    """Return an entity as JSON values; its ends are in characters if the sentence was read from a text, else in words.

    Its score is the mean of its words' probabilities, as in transformers' pipeline with the strategy `simple`.
    """
    words, offsets = sentence.words[found.start : found.end], sentence.offsets[found.start : found.end]
    ends = (offsets[0][0], offsets[-1][1]) if offsets else (found.start, found.end)
    score = float(np.mean([confidence[word] for word in range(found.start, found.end)]))
    return {"label": found.type, "words": list(words), "start": ends[0], "end": ends[1], "score": score}


def predictions_of(split: TagSplit, rows: EncodedRows, answers: Mapping[str, Array]) -> TagPredictions:
    """Return a model's answers about windows as tags of words; see `Task.predictions`."""
    places: Places = rows.alignment
    at = (places.row, places.position)
    ends = np.cumsum(places.counts)
    sentence = np.repeat(np.arange(len(split)), places.counts)
    starts = np.cumsum([0, *map(len, split.targets)])[:-1]
    every = np.concatenate([np.empty(0, dtype=np.int64), *map(np.asarray, split.targets)]).astype(np.int64)
    assert len(at[0]) == (ends[-1] if len(ends) else 0)
    return TagPredictions(
        split.sentences,
        split.labels,
        split.entities,
        every[starts[sentence] + places.word],
        answers["predicted"][at],
        answers["confidence"][at],
        places.word,
        places.counts,
        np.bincount(rows.example, answers["loss"], minlength=len(split)),
        np.bincount(rows.example, rows.units, minlength=len(split)),
    )
