"""The keys of `data:` for classification and regression: the columns of texts and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from hpo.core.errors import nearest
from hpo.core.settings import Mark
from hpo.data.keys import DataKeys, Files, Place
from hpo.tasks.classification.benchmarks import BENCHMARKS


class TextKeys(DataKeys):
    """Rows of one text or two, with a label, several labels or a number."""

    benchmark: Annotated[str | None, Mark.NEWER] = None
    """A task of GLUE or SuperGLUE, e.g. `glue/rte`: it stands for the other keys, of which each can be given too."""
    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of the second text, for pairs."""
    label: Files = "label"
    """Column of the label; a list of 0/1 columns for several labels a row."""
    unlabelled: Annotated[Literal["error", "drop"], Mark.NEWER] = "error"
    """Rows without a label: `error` refuses them, `drop` leaves them out."""
    normalize_labels: Annotated[bool, Mark.NEWER] = False
    """Whether labels that differ only in case or blanks are one label, in lower case."""

    def texts(self) -> tuple[str, ...]:
        """Return the columns of texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    def labels(self) -> tuple[str, ...]:
        """Return the columns of labels."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        yield ("text",), self.text
        if self.text_pair:
            yield ("text_pair",), self.text_pair
        if isinstance(self.label, str):
            yield ("label",), self.label
        else:
            yield from ((("label", str(i)), column) for i, column in enumerate(self.label))
        yield from super().columns()

    @model_validator(mode="before")
    @classmethod
    def _of_benchmark(cls, given: Any) -> Any:
        """Fill in the keys that a benchmark stands for."""
        name = given.get("benchmark") if isinstance(given, Mapping) else None
        if name not in BENCHMARKS:
            return given
        stands_for = dict(BENCHMARKS[name].keys())
        if isinstance(given.get("train"), list) or "." in str(given.get("train", "")):  # files, of a copy of it
            stands_for = {key: column for key, column in stands_for.items() if key in ("text", "text_pair")}
        return {**stands_for, **given}

    @field_validator("benchmark")
    @classmethod
    def _known_benchmark(cls, value: str | None) -> str | None:
        if value is not None and value not in BENCHMARKS:
            raise ValueError(f"{value!r} is not a benchmark{nearest(value, BENCHMARKS)}")
        return value

    @field_validator("label")
    @classmethod
    def _some_label(cls, value: Files) -> Files:
        if not value:
            raise ValueError("names no column")
        return value
