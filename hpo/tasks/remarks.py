"""What is wrong or notable in rows that are read: counted by kind, and said at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpo.core.errors import DataError

MOST_SHOWN = 3  # places of one kind


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        what: What is counted, in the plural.
        remedy: What to do.
    """

    what: str
    remedy: str


@dataclass
class Remarks:
    """The faults and the notes of all files of a study.

    Attributes:
        faults: Kind -> where and what, one text a fault.
        counts: Kind of a note -> how often.
    """

    faults: dict[Kind, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of faults."""
        return sum(map(len, self.faults.values()))

    def fault(self, kind: Kind, place: str, what: str) -> None:
        """Record something that must be corrected."""
        self.faults.setdefault(kind, []).append(f"{place}: {what}")

    def note(self, what: str, place: str) -> None:
        """Record something that is allowed and should be known; `what` is in the plural."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self._first.setdefault(what, place)

    def notes(self) -> list[str]:
        """Return a sentence for each kind of note."""
        return [f"{what}: {count}, first {self._first[what]}" for what, count in self.counts.items()]

    def refuse_faults(self) -> None:
        """Raise an error with all faults, if there are any.

        Raises:
            DataError: There are faults.
        """
        if self.faults:
            head = f"the data have {self.count} faults" if self.count > 1 else "the data have a fault"
            raise DataError("\n".join([head, *(_said(kind, found) for kind, found in self.faults.items())]))


def _said(kind: Kind, found: list[str]) -> str:
    shown = [f"    {text}" for text in found[:MOST_SHOWN]]
    more = [f"    and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
    return "\n".join([f"  {kind.what}: {len(found)}", *shown, *more, f"    {kind.remedy}"])
