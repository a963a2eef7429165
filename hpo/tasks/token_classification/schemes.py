"""Tag schemes: how the tags of words spell entities.

A tag is `O` (no entity), or a prefix and a type, such as `B-PER`. `B` alone has the type `_`. The schemes:

    words      Ann   Lee   Rome  Oslo  is
    IO         I-PER I-PER I-LOC I-LOC O      Rome and Oslo are one entity: IO cannot tell them apart
    IOB1       I-PER I-PER I-LOC B-LOC O      Ramshaw and Marcus (1995); B- only after an entity of the same type
    IOB2       B-PER I-PER B-LOC B-LOC O      Tjong Kim Sang and Veenstra (1999)
    BIOES      B-PER E-PER S-LOC S-LOC O
    BILOU      B-PER L-PER U-LOC U-LOC O      Ratinov and Roth (2009); BIOES with other letters

The rules of a scheme are patterns of junctions. A junction is the prefixes of two neighbouring tags and whether their
types are the same: `BI=` is `B-PER I-PER`, `BI!` is `B-PER I-LOC`. L is written E in a junction, and U is written S.
Before and after a sentence is an `O`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

UNTYPED = "_"  # the type of a tag without one, as in seqeval

_TAG = re.compile(r"O|([BIESLU])(?:-(.+))?", re.DOTALL)
_BOUNDARY = "[OES]..|.[OBS].|..!"


class Entity(NamedTuple):
    """A stretch of words of one type: the words `start` to `end` - 1."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Scheme:
    """A tag scheme; the patterns are of junctions.

    Attributes:
        name: Its name in `SCHEMES`.
        prefixes: Its prefixes, with O.
        rule: What its tags must be, for an error.
        allowed: The junctions that it allows.
        starts: The junctions after which an entity starts, in seqeval's strict mode.
        inside: The junctions within an entity, in seqeval's strict mode.
        ends: The junctions at which an entity may end, in seqeval's strict mode; elsewhere it is dropped.
        written: The prefixes of the first and the last of several words, and of a single word.
    """

    name: str
    prefixes: str
    rule: str
    allowed: str
    starts: str
    inside: str
    ends: str
    written: tuple[str, str, str]


_BIOES = {"allowed": "[OES][OBS].|[BI][IE]=", "starts": ".[BS].", "inside": "[BI][IE]=", "ends": "[ES].."}

# The strict patterns are seqeval 1.2.2's (`seqeval/scheme.py`), also for tags that IOB1 does not allow: B- that follows
# no entity of its type starts none. seqeval has no IO.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "IO",
            "IO",
            "every word of an entity has I- and its type",
            allowed="[OI][OI].",
            starts="OI.|II!",
            inside="II=",
            ends="...",
            written=("I", "I", "I"),
        ),
        Scheme(
            "IOB2",
            "BIO",
            "an entity starts with B-, and goes on with I- of the same type",
            allowed=".[OB].|[BI]I=",
            starts=".B.",
            inside="[BI]I=",
            ends="...",
            written=("B", "I", "B"),
        ),
        Scheme(
            "IOB1",
            "BIO",
            "every word of an entity has I-; B- stands only where an entity directly follows one of the same type",
            allowed=".[OI].|[BI]B=",
            starts="OI.|II!|BI.|[BI]B=",
            inside="[BI]I=",
            ends="(?!BB!)...",
            written=("I", "I", "I"),
        ),
        Scheme(
            "BIOES",
            "BIOES",
            "an entity is S- alone, or starts with B-, goes on with I-, and ends with E-, all of one type",
            **_BIOES,
            written=("B", "E", "S"),
        ),
        Scheme(
            "BILOU",
            "BILOU",
            "an entity is U- alone, or starts with B-, goes on with I-, and ends with L-, all of one type",
            **_BIOES,
            written=("B", "L", "U"),
        ),
    )
}


# ---------------------------------------------------------------- tags and junctions


def is_tag(tag: str) -> bool:
    """Return whether a text is a tag of some scheme: `O`, or a prefix and a type."""
    return _TAG.fullmatch(tag) is not None


def type_of(tag: str) -> str:
    """Return the type of a tag: `PER` of `B-PER`, `_` of `B`, and nothing of `O`."""
    return _parts(tag)[1]


def types_of(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the types of some tags, sorted."""
    return tuple(sorted({type_of(tag) for tag in tags} - {""}))


def _parts(tag: str) -> tuple[str, str]:
    """Return the prefix, as BIOES writes it, and the type.

    Raises:
        ValueError: The text is no tag of a scheme.
    """
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"{tag!r} is no tag of a scheme")
    if match[1] is None:
        return "O", ""
    return {"L": "E", "U": "S"}.get(match[1], match[1]), match[2] or UNTYPED


@lru_cache(maxsize=2**16)
def _junction(before: str, after: str) -> str:
    (prefix, kind), (next_prefix, next_kind) = _parts(before), _parts(after)
    return prefix + next_prefix + ("=" if kind == next_kind else "!")


@lru_cache(maxsize=2**16)
def _matches(pattern: str, before: str, after: str) -> bool:
    return re.fullmatch(pattern, _junction(before, after)) is not None


# ---------------------------------------------------------------- from tags to entities and back


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence's tags by the rules of conlleval, which are seqeval's default.

    They are right for the allowed tags of every scheme. For others they are lenient: I- without a B- starts an entity.
    L- and U- count as E- and S-, which seqeval does in its strict mode only.
    """
    found, start = [], 0
    for position, (before, after) in enumerate(pairwise(("O", *tags, "O"))):
        if _matches(_BOUNDARY, before, after):
            if before != "O":
                found.append(Entity(type_of(before), start, position))
            start = position
    return found


def strict_entities(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
    """Return the entities of a sentence's tags that are written as the scheme says: seqeval's strict mode."""
    padded, found, start = ("O", *tags, "O"), [], 0
    while start < len(tags):
        if not _matches(scheme.starts, padded[start], padded[start + 1]):
            start += 1
            continue
        end = start + 1
        while _matches(scheme.inside, padded[end], padded[end + 1]):
            end += 1
        if _matches(scheme.ends, padded[end], padded[end + 1]):
            found.append(Entity(type_of(tags[start]), start, end))
        start = end
    return found


def written(found: Iterable[Entity], length: int, scheme: Scheme) -> list[str]:
    """Return the tags of a sentence with these entities.

    Args:
        found: Entities that do not overlap, in any order.
        length: Number of words.
        scheme: How the tags are written. IO makes one entity of two of the same type that touch.
    """
    tags, ended = ["O"] * length, ("", 0)
    first, last, single = scheme.written
    for entity in sorted(found, key=lambda entity: entity.start):
        words = entity.end - entity.start
        prefixes = [single] if words == 1 else [first, *"I" * (words - 2), last]
        if scheme.name == "IOB1" and ended == (entity.type, entity.start):
            prefixes[0] = "B"
        suffix = "" if entity.type == UNTYPED else f"-{entity.type}"
        tags[entity.start : entity.end] = [prefix + suffix for prefix in prefixes]
        ended = (entity.type, entity.end)
    return tags


def converted(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Return a sentence's tags, of any scheme, in another scheme."""
    return written(entities(tags), len(tags), scheme)


# ---------------------------------------------------------------- which scheme, and is it kept


def violations(tags: Sequence[str], scheme: Scheme) -> Iterator[int]:
    """Yield the positions of a sentence's tags that the scheme does not allow, given the tag before.

    The position after the last tag is yielded if the sentence may not end there. The neighbours of a text that is no
    tag of the scheme are not judged by it.
    """
    known = [is_tag(tag) and tag[0] in scheme.prefixes for tag in tags]
    padded, known = ("O", *tags, "O"), [True, *known, True]
    for position in range(len(tags) + 1):
        before, after = padded[position : position + 2]
        if not known[position + 1] or (known[position] and not _matches(scheme.allowed, before, after)):
            yield position


def violation_text(tags: Sequence[str], position: int, scheme: Scheme) -> str:
    """Return what is wrong at a position of `violations`."""
    if position < len(tags) and not (is_tag(tags[position]) and tags[position][0] in scheme.prefixes):
        return f"{tags[position]!r} is no tag of {scheme.name}, whose tags are O and {_offered(scheme)}"
    what = repr(tags[position]) if position < len(tags) else "the end of the sentence"
    return f"{what} after {tags[position - 1]!r}" if position else f"{what} at the start of the sentence"


def _offered(scheme: Scheme) -> str:
    return ", ".join(f"{prefix}-TYPE" for prefix in scheme.prefixes if prefix != "O")


def guessed(sentences: Sequence[Sequence[str]]) -> Scheme | None:
    """Return the scheme of all the tags of some files: of those with their prefixes, the one they violate least often.

    Of several schemes that fit as well, it is the first of `SCHEMES`; they read the entities of these tags alike.

    Returns:
        The scheme. None if no scheme has all the tags, as with parts of speech, or if every tag is `O`.
    """
    tags = set(chain.from_iterable(sentences))
    if tags <= {"O"} or not all(map(is_tag, tags)):
        return None
    prefixes = {tag[0] for tag in tags}
    fitting = [scheme for scheme in SCHEMES.values() if prefixes <= set(scheme.prefixes)]
    counts = {each.name: sum(1 for tags in sentences for _ in violations(tags, each)) for each in fitting}
    return min(fitting, key=lambda scheme: counts[scheme.name], default=None)
