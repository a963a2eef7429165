"""The keys of `data:` for multiple choice: the columns of the context, the question, the choices and the right one."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import field_validator

from hpo.data.keys import DataKeys, Files, Place


class ChoiceKeys(DataKeys):
    """Rows of a text and several choices, of which one is right."""

    context: str = "context"
    """Column of the text that all choices of a row go on from."""
    question: str | None = None
    """Column of a text between the context and each choice: a question, or the beginning of all choices."""
    choices: Files = "choices"
    """Column of the choices, a list of texts in each row; or a list of columns, one for each choice."""
    label: str = "label"
    """Column of the right choice: its number, its letter or its text."""

    def texts(self) -> tuple[str, ...]:
        """Return the columns of the texts before a choice."""
        return (self.context,) if self.question is None else (self.context, self.question)

    def of_choices(self) -> tuple[str, ...]:
        """Return the columns of the choices."""
        return (self.choices,) if isinstance(self.choices, str) else tuple(self.choices)

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        yield ("context",), self.context
        if self.question is not None:
            yield ("question",), self.question
        if isinstance(self.choices, str):
            yield ("choices",), self.choices
        else:
            yield from ((("choices", str(i)), column) for i, column in enumerate(self.choices))
        yield ("label",), self.label
        yield from super().columns()

    def labels(self) -> tuple[str, ...]:
        """Return the column of the label, whose numbers a data set of the Hub may have names for."""
        return (self.label,)

    @field_validator("choices")
    @classmethod
    def _several(cls, value: Files) -> Files:
        if not isinstance(value, str) and len(value) < 2:
            raise ValueError("names fewer than two columns; name one for each choice, or one column of lists")
        return value
