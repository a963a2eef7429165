"""The error tree: every message names the value, the place and the next step.

HpoError                 what a user can correct; the command line prints it and exits with code 2
├── ConfigError          a study or search-space file, with every problem and its line
├── DataError            files, columns, labels, splits
├── ModelError           a model or tokenizer that cannot be loaded
├── NotFoldableError     a model with modules that cannot hold several trials at once
├── StorageError         a storage that cannot be opened
│   ├── StorageAwayError   a storage that has stopped answering
│   ├── StorageGoneError   a storage whose file was deleted or replaced
│   └── StorageHeldError   a storage that another process has locked for long
├── StudyError           a study that is missing, differs from its file, or is in use
└── MissingExtraError    an optional dependency, with the command that installs it

TrialEndedError          raised inside a trial; the trial is told PRUNED with `reason`
├── DivergedError        the loss or the score is not a finite number
└── OutOfMemoryError     the trial does not fit even with one example at a time

ArrayShrankError         a slot was removed; its trial is not told, and waits to run again
LostTrialError           another process owns the trial now; this process drops it and writes nothing
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

_secrets: set[str] = set()


def hide(secret: str) -> None:
    """Remove a secret from every message from now on, in its plain and its URL-quoted forms."""
    if secret:
        _secrets.update({secret, quote(secret, safe=""), quote(secret), quote_plus(secret)})


def hidden(text: str) -> str:
    """Return text without passwords: those given to `hide`, and any in a URL or after `password=`.

    Other text with a colon or an at sign, such as a driver's message, is not changed. A password of fewer than six
    characters may be an ordinary word; it is hidden only in an assignment, a URL or quotation marks.
    """
    for secret in sorted(_secrets, key=len, reverse=True):
        before, after = (r"(?<!\w)", r"(?!\w)") if len(secret) >= 6 else ("(?<=[:='\"])", "(?=[@&'\"])")
        text = re.sub(before + re.escape(secret) + after, "***", text)
    # Up to the last @ of the word. A password may have blanks: else up to the next @, unless a port comes first.
    to_the_at = r"(?:\S*|(?!\d+\b)(?:(?!://).)*?)@"
    without = re.sub(rf"(\w://[^\s:/@]*):(?!\s){to_the_at}", r"\1:***@", text)
    return re.sub(r"(?i)(password\s*=\s*)('.*'|[^&\s]*)", r"\1***", without)


class HpoError(Exception):
    """An error that the user can correct; it is printed without a traceback and without passwords."""

    def __init__(self, message: str) -> None:
        super().__init__(hidden(message))


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file.

    Attributes:
        path: Keys and list positions that lead to the value, e.g. `("space", "learning_rate", "low")`.
        message: What is wrong and what to write instead.
        line: 1-based line in the file, if known.
    """

    path: tuple[str | int, ...]
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """Return `line 3: space.learning_rate: must be above 0`."""
        where = f"line {self.line}: " if self.line else ""
        name = ".".join(str(part) for part in self.path)
        return f"{where}{name}: {self.message}" if name else f"{where}{self.message}"


class ConfigError(HpoError):
    """All the problems of one study or search-space file."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]))


class DataError(HpoError):
    """The data cannot be read, or does not fit the task."""


class ModelError(HpoError):
    """The model or its tokenizer cannot be loaded."""


class NotFoldableError(HpoError):
    """The model cannot hold several trials at once; the message names the cause."""


class StorageError(HpoError):
    """The storage cannot be opened."""


class StorageAwayError(StorageError):
    """The storage was open and has not answered for a long time."""


class StorageGoneError(StorageError):
    """The storage's file was deleted or replaced while it was open; further writes would be lost."""


class StorageHeldError(StorageError):
    """Another process has held a lock of the storage for a long time; the message names the process."""


class StudyError(HpoError):
    """The study does not exist, differs from its file, or is run by another process."""


class MissingExtraError(HpoError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency. Install it with: pip install 'hpo[{extra}]'")


class TrialEndedError(Exception):
    """Ends one trial. It is told PRUNED, so that the sampler learns from it, and the study continues."""

    reason = "ended"


class DivergedError(TrialEndedError):
    """The loss or the score is NaN or infinite."""

    reason = "diverged"


class OutOfMemoryError(TrialEndedError):
    """Not even a micro-batch of one example fits."""

    reason = "out_of_memory"


class ArrayShrankError(Exception):
    """The array removed a trial's slot. The trial is not told; it waits and runs again."""


class LostTrialError(Exception):
    """Another process owns the trial now and trains it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"trial {number} belongs to another process")
        self.number = number


def nearest(name: Any, names: Iterable[str]) -> str:
    """Return `; did you mean X?` for an error message, or all the names if none is close."""
    offered = list(names)
    spellings = {_normalised(other): other for other in offered}
    close = difflib.get_close_matches(_normalised(str(name)), spellings, 1, 0.5)
    return f"; did you mean {spellings[close[0]]}?" if close else f"; one of {', '.join(sorted(offered))}"


def _normalised(name: str) -> str:
    """Return a name in lower case with underscores for dashes, for comparison."""
    return name.casefold().replace("-", "_")
