"""A confirmation in words and as a table: what is shown to be better, and what only ties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.core.formatting import number, plain
from hpo.execution.confirmation import DEFAULT

Found = Mapping[str, Any]


def sentences(found: Found) -> list[str]:
    """Return what a confirmation showed, in texts of a sentence or two, without a full stop at the end.

    Args:
        found: What `hpo.analysis.confirm.take_confirmation` returned.
    """
    best = next((each for each in found["configurations"] if each["name"] == found["best"]), None)
    if best is None:
        return [f"Nothing is confirmed: of every configuration, a run did not complete ({_endings(found)})"]
    texts = [_scores(found, best), _verdict(found, best), *_optimism(found, best), *_decoding(found)]
    if any(each["ended"] for each in found["configurations"]):
        texts.append(f"Runs that did not complete: {_endings(found)}. Such a configuration cannot win")
    for each in found["configurations"]:
        if each["collapsed"]:
            texts.append(
                f"{each['collapsed']} of {found['seeds']} runs of {plain(each['name'])} collapsed: they give every "
                "example the same answer"
            )
    if found["before"]:
        former = ", ".join(f"{count} configurations with {seeds} seeds" for count, seeds in found["before"])
        texts.append(
            f"The study was confirmed before ({former}): whoever adds seeds until a difference is shown, finds one"
        )
    return texts


def _scores(found: Found, best: Found) -> str:
    where = "the values of the objective" if found["examples"] is None else f"{found['examples']} test examples"
    text = f"With {found['seeds']} fresh seeds each, on {where}, {plain(best['name'])} scores {_mean(best, found)}"
    default = _named(found, DEFAULT)
    if default is not None and default is not best and default["mean"] is not None:
        text += f"; the published default scores {_mean(default, found, metric=False)}"
    return f"{text}. It has the best mean validation score, by which it was chosen"


def _mean(each: Found, found: Found, *, metric: bool = True) -> str:
    spread = "" if each["sd"] is None else f"standard deviation of the runs {number(each['sd'], 2)}"
    parts = [plain(found["metric"])] if metric else []
    return f"{number(each['mean'])} ({', '.join([*parts, spread])})" if parts or spread else number(each["mean"])


def _verdict(found: Found, best: Found) -> str:
    """Return whether the best configuration is a winner, and which others tie with it."""
    name = plain(best["name"])
    to_default = best["to_default"]
    if best["name"] == DEFAULT:
        text = "The published default is the best: the search has found nothing better"
    elif to_default is not None:
        text = f"The difference to the published default is {difference(to_default, found)}: "
        worse = to_default["shown"] and found["winner"] != best["name"]
        nothing = f"no difference is shown, so {name} and the published default tie"
        text += f"{name} is better" if found["winner"] == best["name"] else f"{name} is worse" if worse else nothing
    else:
        text = "There is no published default to compare with"
        if found["winner"] == best["name"]:
            text += f"; {name} is better than every other configuration"
    others = [each for each in found["configurations"] if each is not best and each["name"] != DEFAULT]
    tied = [plain(each["name"]) for each in others if each["to_best"] is not None and not each["to_best"]["shown"]]
    if tied:
        text += f". No difference between {name} and {', '.join(tied)} is shown: they tie"
    return text


def difference(compared: Found, found: Found) -> str:
    """Return a difference with its interval and what that covers, or the reason why there is no interval."""
    by = f"{compared['difference']:+.4g}"
    if compared.get("low") is None:
        return f"{by}; it is unknown how far chance explains it: {plain(str(compared.get('untold')))}"
    return f"{by} ({interval(compared, found)})"


def interval(compared: Found, found: Found) -> str:
    """Return an interval with what it covers."""
    covers = "other seeds and other test rows" if found["examples"] is not None else "other runs"
    level = f"{100 * found['confidence']:.3g}%"
    return f"{compared['low']:+.4g} to {compared['high']:+.4g}, {level} confidence; it covers {covers}"


def _optimism(found: Found, best: Found) -> list[str]:
    """Return how much better the search said that the best configuration is."""
    gap = best["optimism"]
    if gap is None:
        return []
    validation = [value for value in best["validation"] if value is not None]
    fresh = f"with fresh seeds it scores {number(sum(validation) / len(validation))}"
    if found["examples"] is not None:
        fresh += f" there, and {number(best['mean'])} on the test split"
    ends = f" ({gap['low']:+.4g} to {gap['high']:+.4g})" if "low" in gap else ""
    return [
        f"The search gave {plain(best['name'])} {number(best['searched'])} on the validation split; {fresh}. The "
        f"search's own optimism is {gap['difference']:+.4g}{ends}"
    ]


def _decoding(found: Found) -> list[str]:
    """Return how the runs of each configuration decode what they generate."""
    ways = (found.get("generated") or {}).get("decoding") or {}
    listed = "; ".join(f"{plain(name)} with {plain(way)}" for name, way in ways.items())
    return [f"What the runs generate for the test split is scored too. They decode: {listed}"] if listed else []


def _endings(found: Found) -> str:
    return "; ".join(
        f"{plain(each['name'])}: " + ", ".join(f"{count} {plain(reason)}" for reason, count in each["ended"].items())
        for each in found["configurations"]
        if each["ended"]
    )


def _named(found: Found, name: str) -> Found | None:
    return next((each for each in found["configurations"] if each["name"] == name), None)


# ---------------------------------------------------------------- tables

Table = tuple[str, list[str], list[list[str]]]


def tables(found: Found) -> list[Table]:
    """Return `table`, and after it that of generated text, if there is any."""
    return [table(found), *_generated(found)]


def _generated(found: Found) -> list[Table]:
    """Return (title, heads, rows) of the scores of generated text: a configuration and a metric a row."""
    metrics = (found.get("generated") or {}).get("metrics") or {}
    rows = [
        [
            plain(each["name"]),
            plain(metric),
            number(each["mean"]),
            number(each["sd"], 2),
            _short(each["to_default"]),
            _short(each["to_best"]),
        ]
        for metric, configurations in metrics.items()
        for each in configurations
    ]
    title = f"Generated text of these runs, on {found['examples']} test examples; each interval by itself"
    heads = ["configuration", "metric", "mean", "sd", "to the default", "to the best"]
    return [(title, heads, rows)] if rows else []


def table(found: Found) -> Table:
    """Return (title, heads, rows): a configuration a row, in the order in which the search ranked them."""
    test = "test" if found["examples"] is not None else "value"
    heads = [
        "configuration",
        "in the search",
        "validation, fresh",
        f"{test}, fresh",
        "sd",
        "to the default",
        "to the best",
    ]
    rows = [
        [
            plain(each["name"]),
            number(each["searched"]),
            _average(each["validation"]),
            number(each["mean"]),
            number(each["sd"], 2),
            _short(each["to_default"]),
            _short(each["to_best"]),
        ]
        for each in found["configurations"]
    ]
    return f"Confirmation: means of {found['seeds']} fresh runs, differences with their intervals", heads, rows


def _average(values: list[float | None]) -> str:
    there = [value for value in values if value is not None]
    return number(sum(there) / len(there) if there else None)


def _short(compared: Found | None) -> str:
    if compared is None:
        return "-"
    by = f"{compared['difference']:+.3g}"
    return (
        f"{by} ({compared['low']:+.3g} to {compared['high']:+.3g})" if compared.get("low") is not None else f"{by} (?)"
    )
