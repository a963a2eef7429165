"""The verdict in words and tables: what a look at the test split showed, and what it cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.analysis.bootstrap import CONFIDENCE
from hpo.core.formatting import number, plain
from hpo.tasks.metrics import METRICS

NAMED = 10  # labels that a sentence names

Look = Mapping[str, Any]


def sentence(look: Look) -> str:
    """Return how the best trial compares with the published default; "no difference shown" if its interval has zero.

    Args:
        look: What `hpo.analysis.verdict.take_verdict` returns, or a former version of it did.
    """
    best, baseline, metric = look["best"], look["baseline"], look["metric"]
    said = f"On {look['examples']} test examples, trial {best['number']} scores {best['score']:.4g} ({metric})"
    if baseline is None:
        return f"{said}. There is no published default to compare it with"
    if best["number"] == baseline["number"]:
        return f"{said}. The published default is the best trial: no difference shown"
    compared = f"the published default (trial {baseline['number']}) scores {baseline['score']:.4g}"
    return f"{said}; {compared}. The difference is {difference(look, metric, 'the best trial')}"


def difference(compared: Mapping[str, Any], metric: str, who: str) -> str:
    """Return a difference with its interval and what it shows, or why it shows nothing.

    Args:
        compared: `difference`, and either `low`, `high` and `shown`, or the reason `untold`.
        metric: Name in `METRICS`.
        who: What the difference is of, e.g. `the best trial`.
    """
    by = f"{compared['difference']:+.4g}"
    if compared.get("low") is None or compared["low"] == compared["high"]:  # former versions kept such an interval
        reason = compared.get("untold", "every resample of the test rows gives the same difference")
        return f"{by}; whether {who} is better cannot be told from so few: {reason}"
    better = (compared["difference"] > 0) == (METRICS[metric].direction == "maximize")
    shown = f"{who} is {'better' if better else 'worse'}" if compared["shown"] else "no difference shown"
    ends = f"{compared['low']:+.4g} to {compared['high']:+.4g}"
    return f"{by} ({ends}, {CONFIDENCE:.0%} confidence; it covers other test rows, not other training seeds): {shown}"


def sentences(look: Look, looks: Sequence[Look] = ()) -> list[str]:
    """Return all that a look at the test split showed, a sentence or two each, without a full stop at the end.

    Args:
        look: The look at what is the best trial now.
        looks: All looks of the study, this one among them.
    """
    said = [sentence(look), *_references(look), *_classes(look)]
    if worst := look.get("worst_group"):
        said.append(
            f"It scores worst on the group {plain(worst['name'])!r}: {worst['score']:.4g}, {worst['rows']} test rows; "
            f"{worst['compared']} groups can be compared"
        )
    if len(looks) > 1:
        listed = "; ".join(
            f"trial {each['best']['number']}, {each['best']['score']:.4g}"
            + (f", after {each['trials']} trials" if each.get("trials") else "")
            for each in looks
        )
        said.append(
            f"The test split has been looked at {len(looks)} times ({listed}): choosing by what a look showed makes "
            "later ones flatter"
        )
    return said


def _references(look: Look) -> list[str]:
    """Return how the best trial compares with the models that cost next to nothing."""
    references, best, metric = look.get("references") or {}, look["best"]["score"], look["metric"]
    said = []
    if tfidf := references.get("tfidf"):
        sign = 1 if METRICS[metric].direction == "maximize" else -1
        bounded = f" ({tfidf['bounded']})" if tfidf.get("bounded") else ""
        text = f"{tfidf['says']}{bounded} scores {tfidf['score']:.4g} on the same rows. The difference is "
        text += difference(tfidf, metric, "the best trial")
        if sign * tfidf["difference"] <= 0:
            text += ". Fine-tuning does not beat this baseline: prefer it, or train longer or on more rows"
        elif not tfidf.get("shown"):
            text += ". That fine-tuning beats this baseline is not shown"
        said.append(text)
    elif "tfidf" in references:
        said.append("The texts have no words for a TF-IDF baseline")
    if majority := references.get("majority"):
        sign = 1 if METRICS[metric].direction == "maximize" else -1
        text = f"{majority['says']} scores {majority['score']:.4g}"
        if sign * (best - majority["score"]) <= 0:
            text += ": the best trial is no better than that"
        said.append(text)
    return said


def _classes(look: Look) -> list[str]:
    classes = look.get("classes") or {}
    said = []
    if classes.get("collapsed"):
        said.append("The best trial gives every test row the same answer")
    elif never := classes.get("never_predicted"):
        said.append(f"The best trial never predicts {len(never)} of {classes['count']} labels: {named(never)}")
    if absent := classes.get("absent"):
        said.append(f"No test row has {named(absent)}: nothing is said of {'it' if len(absent) == 1 else 'them'}")
    return said


def named(labels: Sequence[str]) -> str:
    """Return labels in quotes, the first few of many."""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(repr(plain(label)) for label in labels[:NAMED]) + more


# ---------------------------------------------------------------- tables

Table = tuple[str, list[str], list[list[str]]]


def tables(look: Look) -> list[Table]:
    """Return (title, heads, rows) of the scores by class and of what is taken for what; none for regression."""
    classes = look.get("classes") or {}
    found: list[Table] = []
    if listed := classes.get("classes"):
        of = f", the {len(listed)} most frequent of {classes['count']} labels" if len(listed) < classes["count"] else ""
        rows = [
            [plain(each["label"]), *(number(each[name], 3) for name in ("precision", "recall", "f1")),
             str(each["support"]), str(each["predicted"])]
            for each in listed
        ]  # fmt: skip
        heads = ["label", "precision", "recall", "F1", "test rows", "predicted"]
        found.append((f"By label, on the test split{of}", heads, rows))
    if matrix := classes.get("confusion"):
        names = [plain(each["label"]) for each in classes["classes"]]
        rows = [[name, *map(str, counts)] for name, counts in zip(names, matrix, strict=True)]
        found.append(("Confusion matrix: rows are true labels, columns predicted ones", ["", *names], rows))
    if mistakes := classes.get("mistakes"):
        rows = [[plain(true), plain(said), str(count)] for true, said, count in mistakes]
        found.append(("Most frequent mistakes", ["label", "predicted as", "test rows"], rows))
    return found


def as_text(table: Table) -> str:
    """Return a table in columns: the first to the left, numbers to the right."""
    title, heads, rows = table
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in (heads, *rows):
        first, *rest = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]))
    return "\n".join([f"{title}:", *(f"  {line}".rstrip() for line in lines)])
