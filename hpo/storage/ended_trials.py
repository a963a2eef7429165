"""Which trials of a study have ended, and what is kept of them, so that a trial's cost does not grow with their number.

An ended trial does not change. What is kept of ended trials can therefore not be out of date: it lacks only those that
have ended since, and they are added.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from optuna.trial import FrozenTrial


class KeptTrials(Protocol):
    """What a class keeps of ended trials."""

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""


Kept = TypeVar("Kept", bound=KeptTrials)


class EndedTrials:
    """The numbers of the trials that have ended, in the order in which this process learned it, and of the others.

    Attributes:
        changed: Numbers of trials whose rows have changed since they were looked at.
    """

    def __init__(self) -> None:
        self.changed: set[int] = set()
        self._ended: list[int] = []
        self._others: dict[int, None] = {}  # in order
        # the limit of the view, how many of the ended trials were looked at, and what is kept of them
        self._kept: dict[Hashable, tuple[int | None, int, Any]] = {}

    def read(self, count: int) -> None:
        """Expect any change of the trials that have not ended, and new trials up to a number of them in all."""
        self._others |= dict.fromkeys(range(len(self._ended) + len(self._others), count))
        self.changed |= self._others.keys()

    def _look(self, rows: Sequence[FrozenTrial], skipped: Container[int]) -> None:
        """Find out which of the changed trials have ended.

        Args:
            rows: The rows of all trials, by number.
            skipped: Numbers of trials whose changes may still be undone.
        """
        for number in sorted(number for number in self.changed if number not in skipped):
            self.changed.remove(number)
            if number in self._others and rows[number].state.is_finished():
                del self._others[number]
                self._ended.append(number)

    def others(self, rows: Sequence[FrozenTrial], skipped: Container[int]) -> list[FrozenTrial]:
        """Return the rows of the trials that have not ended, by number; the arguments are those of `_look`."""
        self._look(rows, skipped)
        return [row for number in self._others if not (row := rows[number]).state.is_finished()]

    def kept(
        self,
        rows: Sequence[FrozenTrial],
        skipped: Container[int],
        shown: Callable[[Iterable[FrozenTrial]], Iterable[FrozenTrial]],
        kind: Callable[..., Kept],
        arguments: tuple[Hashable, ...],
        view: tuple[int | None, Hashable] | None,
    ) -> Kept:
        """Return what a class keeps of the ended trials.

        Args:
            rows: As in `_look`.
            skipped: As in `_look`.
            shown: Returns rows as a view shows them.
            kind: The class.
            arguments: Its arguments.
            view: The view's limit, and how it shows rows; None keeps nothing for the next time.
        """
        self._look(rows, skipped)
        limit, as_seen = view or (None, None)
        key = kind, arguments, as_seen, limit is None  # of views of several rounds, only the last one is kept
        of, added, kept = self._kept.get(key, (limit, 0, None)) if view is not None else (limit, 0, None)
        if kept is None or of != limit:
            added, kept = 0, kind(*arguments)
        for row in shown(rows[number] for number in self._ended[added:]):
            kept.add(row)
        if view is not None:
            self._kept[key] = limit, len(self._ended), kept
        return kept
