"""What the user should know of the data and the rows of a study, in sentences, and how rows are shown."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from hpo.tasks.causal_lm.encoding import Aligned
from hpo.tasks.causal_lm.examples import Conversation
from hpo.tasks.dataset import Dataset

WIDTH = 160  # characters of a piece of a row that are shown at each of its ends


def facts(data: Dataset) -> dict[str, str]:
    """Return how many turns of the assistant conversations have, or how long documents are."""
    train = data.splits["train"].examples
    if not isinstance(train[0], Conversation):
        lengths = [len(each.expected) for each in train]
        return {"documents": f"{sum(lengths) / len(lengths):,.0f} characters on average, {max(lengths):,} at most"}
    counts = [sum(turn.role == "assistant" for turn in each.turns) for each in train]
    return {"turns of the assistant": f"{sum(counts) / len(counts):.1f} on average, {max(counts)} at most"}


def facts_of_rows(rows: Mapping[str, Aligned], max_length: int) -> dict[str, str]:
    """Return the share of tokens that are trained, how many examples are cut or divided, and the longest."""
    shares = ", ".join(f"{each.trained / each.tokens:.0%} of {each.tokens:,} in {name}" for name, each in rows.items())
    longest = max(int(each.lengths.max()) for each in rows.values())
    long = [f"{(each.lengths > max_length).sum()} of {len(each.lengths)} in {name}" for name, each in rows.items()]
    windows = all(each.windows for each in rows.values())
    done = "divided into windows" if windows else "cut"
    end = f"windows have {max_length}" if windows else f"{max_length} are kept"
    return {"trained tokens": shares, done: f"{', '.join(long)}; the longest has {longest:,} tokens, and {end} at most"}


def of_rows(rows: Mapping[str, Aligned]) -> list[str]:
    """Return notes on rows that are cut, that have a token on a border, or that do not end."""
    found = []
    for name, each in rows.items():
        of = f"of {len(each.lengths)} rows of {name}"
        if each.cut:
            found.append(
                f"{each.cut} {of} are cut at their end: the model does not learn how they end; raise max_length"
            )
        if each.straddling:
            found.append(
                f"{each.straddling} {of} have a token that is partly of the prompt and partly of the completion: it is "
                "trained, but a prompt alone has other tokens there. Let completions begin with a blank or a line "
                "break, and no prompt end with one"
            )
        if each.endless:
            found.append(
                f"{each.endless} {of} end with no control token: the model does not learn to end there. Use a chat "
                "template that writes one after each turn"
            )
    return found


def marked(pieces: tuple[tuple[bool, str], ...]) -> str:
    """Return the text of a row with what is trained between double brackets.

    Args:
        pieces: (Whether it is trained, text) of each token.
    """
    found = []
    for trained, run in groupby(pieces, key=lambda piece: piece[0]):
        text = "".join(piece for _, piece in run).replace("\n", "\\n")
        if len(text) > 2 * WIDTH + 30:
            text = f"{text[:WIDTH]} ... ({len(text) - 2 * WIDTH} characters) ... {text[-WIDTH:]}"
        found.append(f"[[{text}]]" if trained else text)
    return "".join(found)
