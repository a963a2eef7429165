"""The verdict in words and tables: what a look at the test split showed, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.analysis import by_task, decoding, generated
from hpo.analysis.bootstrap import CONFIDENCE
from hpo.core.formatting import number, plain
from hpo.tasks.metrics import METRICS

NAMED = 10  # labels that a sentence names at most
TRIVIAL = "majority"  # the baseline that gives every example the same answer

Look = Mapping[str, Any]


def sentence(look: Look) -> str:
    """Return how the best trial compares with the published default; "no difference shown" if the interval has zero.

    Args:
        look: What `hpo.analysis.verdict.take_verdict` returns, or what a former version returned.
    """
    best, baseline, metric = look["best"], look["baseline"], look["metric"]
    trial = f"trial {best['number']}{_model(best)}"
    text = f"On {look['examples']} test examples, {trial} scores {best['score']:.4g} ({metric})"
    if baseline is None and (valueless := look.get("baseline_without_value")) is not None:
        return f"{text}. The published default (trial {valueless}) ended without a value: there is no gain to tell"
    if baseline is None:
        return f"{text}. There is no published default to compare it with"
    if best["number"] == baseline["number"]:
        return f"{text}. The published default is the best trial: no difference shown"
    default = f"the published default (trial {baseline['number']}){_model(baseline)}"
    compared = f"{default} scores {baseline['score']:.4g}"
    return f"{text}; {compared}. The difference is {difference(look, metric, 'the best trial')}"


def _model(scored: Mapping[str, Any]) -> str:
    """Return the model of a trial, in words, where the study has several."""
    return f" of model {plain(scored['model'])}" if scored.get("model") else ""


def difference(compared: Mapping[str, Any], metric: str, subject: str) -> str:
    """Return a difference with its interval and what it shows, or the reason why there is no interval.

    Args:
        compared: `difference`, and either `low`, `high` and `shown`, or the reason `untold`.
        metric: Name in `METRICS`.
        subject: The model that is compared, e.g. `the best trial`.
    """
    by = f"{compared['difference']:+.4g}"
    if compared.get("low") is None or compared["low"] == compared["high"]:  # former versions stored such an interval
        reason = compared.get("untold", "every resample of the test rows gives the same difference")
        return f"{by}; it is unknown whether {subject} is better: {reason}"
    better = (compared["difference"] > 0) == (METRICS[metric].direction == "maximize")
    shown = f"{subject} is {'better' if better else 'worse'}" if compared["shown"] else "no difference shown"
    ends = f"{compared['low']:+.4g} to {compared['high']:+.4g}"
    return f"{by} ({ends}, {CONFIDENCE:.0%} confidence; it covers other test rows, not other training seeds): {shown}"


def sentences(look: Look, looks: Sequence[Look] = ()) -> list[str]:
    """Return all that a look at the test split showed, in texts of a sentence or two, without a full stop at the end.

    Args:
        look: The look at the present best trial.
        looks: All looks of the study, this one among them.
    """
    untuned = (look.get("references") or {}).get("untuned") is not None
    texts = [sentence(look), *_as_trained(look), *_references(look), *_classes(look), *by_task.sentences(look)]
    texts += decoding.sentences(look.get("decoding") or (), untuned)
    if worst := look.get("worst_group"):
        texts.append(
            f"It scores worst on the group {plain(worst['name'])!r}: {worst['score']:.4g}, {worst['rows']} test rows; "
            f"{worst['compared']} groups can be compared"
        )
    if len(looks) > 1:
        listed = "; ".join(
            f"trial {each['best']['number']}, {each['best']['score']:.4g}"
            + (f", after {each['trials']} trials" if each.get("trials") else "")
            for each in looks
        )
        texts.append(
            f"The test split has been looked at {len(looks)} times ({listed}): choosing by what a look showed makes "
            "later ones flatter"
        )
    return texts


def _as_trained(look: Look) -> list[str]:
    """Return how the best trial as it is exported compares with it as it was trained, on a base in few bits."""
    trained = look.get("as_trained")
    if trained is None:
        return []
    return [
        f"The scores are those of what is exported, with its base in full. On the base in {trained['base']}, as it was "
        f"trained, the best trial scores {trained['score']:.4g} on the same rows. The difference is "
        f"{difference(trained, look['metric'], 'what is exported')}"
    ]


def _references(look: Look) -> list[str]:
    """Return how the best trial compares with the cheap baselines."""
    references, best, metric = look.get("references") or {}, look["best"]["score"], look["metric"]
    sign = 1 if METRICS[metric].direction == "maximize" else -1
    texts = []
    for name, reference in references.items():
        if name == TRIVIAL or reference is None:
            continue
        bounded = f" ({reference['bounded']})" if reference.get("bounded") else ""
        text = f"{reference['says']}{bounded} scores {reference['score']:.4g} on the same rows. The difference is "
        text += difference(reference, metric, "the best trial")
        if sign * reference["difference"] <= 0:
            text += ". Fine-tuning does not beat this baseline: prefer it, or train longer or on more rows"
        elif not reference.get("shown"):
            text += ". That fine-tuning beats this baseline is not shown"
        texts.append(text)
    if references.get("tfidf", references) is None:
        texts.append("The texts have no words for a TF-IDF baseline")
    if trivial := references.get(TRIVIAL):
        text = f"{trivial['says']} scores {trivial['score']:.4g}"
        if sign * (best - trivial["score"]) <= 0:
            text += ": the best trial is no better than that"
        texts.append(text)
    return texts


def _classes(look: Look) -> list[str]:
    """Return the classes about which the test split shows a problem, or shows nothing."""
    classes = look.get("classes") or {}
    texts = []
    if classes.get("collapsed"):
        texts.append(f"The best trial {classes.get('collapse', 'gives every test row the same answer')}")
    elif never := classes.get("never_predicted"):
        texts.append(f"The best trial never predicts {len(never)} of {classes['count']} labels: {named(never)}")
    if absent := classes.get("absent"):
        has = f"None of the test {classes['counted']} is of" if "counted" in classes else "No test row has"
        texts.append(f"{has} {named(absent)}: the verdict does not cover {'it' if len(absent) == 1 else 'them'}")
    return texts


def named(labels: Sequence[str]) -> str:
    """Return labels in quotes; of many, the first `NAMED` and how many more there are."""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(repr(plain(label)) for label in labels[:NAMED]) + more


# ---------------------------------------------------------------- tables

Table = tuple[str, list[str], list[list[str]]]


def tables(look: Look) -> list[Table]:
    """Return (title, heads, rows): scores by task, generated text and its decoding, classes, tables of a task."""
    classes = look.get("classes") or {}
    counted = f"test {classes.get('counted', 'rows')}"
    made = [*generated.tables(look), *decoding.tables(look.get("decoding") or ())]
    found: list[Table] = [*by_task.tables(look), *made]
    if listed := classes.get("classes"):
        of = f", the {len(listed)} most frequent of {classes['count']} labels" if len(listed) < classes["count"] else ""
        rows = [
            [plain(each["label"]), *(number(each[name], 3) for name in ("precision", "recall", "f1")),
             str(each["support"]), str(each["predicted"])]
            for each in listed
        ]  # fmt: skip
        heads = ["label", "precision", "recall", "F1", counted, "predicted"]
        found.append((f"By label, on the test split{of}", heads, rows))
    if matrix := classes.get("confusion"):
        names = [plain(each["label"]) for each in classes["classes"]]
        rows = [[name, *map(str, counts)] for name, counts in zip(names, matrix, strict=True)]
        found.append(("Confusion matrix: rows are true labels, columns predicted ones", ["", *names], rows))
    if mistakes := classes.get("mistakes"):
        rows = [[plain(true), plain(predicted), str(count)] for true, predicted, count in mistakes]
        found.append(("Most frequent mistakes", ["label", "predicted as", counted], rows))
    for table in classes.get("tables", ()):
        rows = [
            [number(cell, 3) if isinstance(cell, float) else plain(str(cell)) for cell in row] for row in table["rows"]
        ]
        found.append((table["title"], table["heads"], rows))
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
