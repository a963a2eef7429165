"""The examples of a split, and how they are read from tables and files of text."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.core.paths import locate
from hpo.data.keys import no_column
from hpo.tasks.causal_lm.examples import Conversation, Example
from hpo.tasks.causal_lm.keys import PLAIN, ChatKeys
from hpo.tasks.causal_lm.reading import example, form_of, said
from hpo.tasks.dataset import Split
from hpo.tasks.remarks import Kind, Remarks

if TYPE_CHECKING:
    import pandas as pd

TEXT_FILE = ".txt"
EXAMPLE = "an example"  # column of a table whose rows are examples
ROW, FORM, TEMPLATE = "a row", "a form", "a template"  # columns before that
LACKING = Kind(
    "rows that are not of the form of their file",
    "Rows of one file are of one form: write them all in the same columns",
)


@dataclass(frozen=True, kw_only=True)
class TextSplit(Split):
    """Conversations, or documents.

    Attributes:
        examples: n conversations or n documents.
        template: The text of the chat template that the study names; `plain`; None for the tokenizer's own.
    """

    examples: Sequence[Example]
    template: str | None = None

    @property
    def contents(self) -> list[Hashable]:
        """The prompt of each conversation, or each document."""
        return [each.says for each in self.examples]

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield the template that the study names, and all turns of each conversation or the text of each document."""
        if self.template is not None:
            yield json.dumps([name, self.template]).encode()
        for each in self.examples:
            if isinstance(each, Conversation):
                turns = [[turn.role, turn.content, *([turn.more] if turn.more else [])] for turn in each.turns]
                tools = [each.tools] if each.tools else []
                yield json.dumps([name, turns, each.given, each.plain, *tools]).encode()
            else:
                yield json.dumps([name, each.expected]).encode()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return prompts with what is expected, or texts."""
        return [
            {"prompt": each.source, "expected": each.expected}
            if isinstance(each, Conversation)
            else {"text": each.expected}
            for each in self.examples
        ]


# ---------------------------------------------------------------- tables


def read_table(keys: ChatKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the rows of a split with their forms, indexed by (file, row from 1); a file of text is one row.

    Raises:
        DataError: A file or data set cannot be read, has no rows, or lacks columns.
    """
    import pandas as pd

    from hpo.core.paths import expand
    from hpo.data.readers import text_of
    from hpo.data.tables import frames_of

    paths = [] if keys.dataset is not None else expand(source, folder)
    texts = [path for path in paths if path.suffix.lower() == TEXT_FILE]
    tables = [str(path.absolute()) for path in paths if path not in texts]
    frames = frames_of(keys, tables if paths else source, folder) if tables or not paths else []
    more = list(dict.fromkeys([*([keys.group] if keys.group else []), *(keys.where if split == "train" else ())]))
    found = {name: _table(frame, keys, more, name) for name, frame in frames}
    for path in texts:
        found[str(path)] = pd.DataFrame(
            {ROW: [{"text": text_of(path, keys.encoding)}], FORM: [{"form": "text", "file": "text"}]}, index=[1]
        )
    table = pd.concat(found.values(), keys=list(found))
    table[TEMPLATE] = _template(keys, folder)
    return table


def _table(frame: pd.DataFrame, keys: ChatKeys, more: list[str], name: str) -> pd.DataFrame:
    import pandas as pd

    if frame.empty:
        raise DataError(f"{name} has no rows")
    columns = list(map(str, frame.columns))
    form = form_of(keys, columns, name)
    if missing := [column for column in more if column not in columns]:
        raise DataError(f"{no_column(name, missing, columns)}. Name the columns under data: group, where")
    used = {key: column for key, column in form.items() if key != "form"}
    values = zip(*(frame[column] for column in used.values()), strict=True)
    rows = np.empty(len(frame), dtype=object)
    rows[:] = [dict(zip(used, row, strict=True)) for row in values]
    table = pd.DataFrame({ROW: rows, FORM: [form] * len(frame)}, index=range(1, len(frame) + 1))
    for column in more:
        table[column] = frame[column].to_numpy()
    return table


def _template(keys: ChatKeys, folder: Path) -> str | None:
    """Return the text of the template that a study names."""
    from hpo.data.readers import text_of

    if keys.chat_template is None or keys.chat_template == PLAIN:
        return keys.chat_template
    path = locate(keys.chat_template, folder)
    if path is None or not path.is_file():
        raise DataError(
            f"data.chat_template: there is no file {keys.chat_template!r}; looked in {Path.cwd()} and in {folder}. "
            f"Name a file of a Jinja template, or {PLAIN}"
        )
    return text_of(path, None)


# ---------------------------------------------------------------- examples


def parse(frames: dict[str, pd.DataFrame], keys: ChatKeys) -> list[str]:
    """Put examples in place of the rows of all splits, and return notes.

    Raises:
        DataError: Rows have faults; it has those of all files.
    """
    from hpo.data.tables import place

    forms = {
        (where[0], tuple(form.items())): form
        for table in frames.values()
        for where, form in zip(table.index, table[FORM], strict=True)
    }
    _refuse_several({file: form["form"] for (file, _), form in forms.items()})
    remarks = Remarks()
    for name, table in frames.items():
        examples = np.empty(len(table), dtype=object)
        for number, (where, row, form) in enumerate(zip(table.index, table[ROW], table[FORM], strict=True)):
            if _complete(row, place(where), remarks):
                examples[number] = example(row, form["form"], place(where), remarks)
        frames[name] = table.drop(columns=[ROW, FORM]).assign(**{EXAMPLE: examples})
    remarks.refuse_faults()
    read = list(dict.fromkeys(map(_said, forms.values())))
    return [f"the rows are read as {'; and '.join(read)}", *remarks.notes()]


def _said(form: dict[str, str]) -> str:
    return "plain text, a document a file" if "file" in form else said(form)


def _refuse_several(forms: dict[str, str]) -> None:
    if len(set(forms.values())) > 1:
        listed = "; ".join(f"{file}: {form}" for file, form in forms.items())
        raise DataError(f"the files are not of one form ({listed}): write them all in the same columns")


def _complete(row: dict[str, Any], place: str, remarks: Remarks) -> bool:
    """Return whether a row has all columns of its file's form; inputs of instructions and tools may be missing."""
    from hpo.data.tables import is_missing

    missing = [key for key, value in row.items() if key not in ("input", "tools") and is_missing(value)]
    if missing:
        remarks.fault(LACKING, place, f"it has no {', '.join(missing)}")
    return not missing


def split_of(table: pd.DataFrame, groups: list[str] | None) -> TextSplit:
    """Return a table of examples as a split."""
    template = table[TEMPLATE].iloc[0]
    return TextSplit(examples=list(table[EXAMPLE]), template=template, members=groups, places=table.index)
