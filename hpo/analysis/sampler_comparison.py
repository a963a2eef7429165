"""What a comparison of samplers shows: the best value so far over the cost, and the differences at equal cost.

The cost of a study is what its trials have trained: the examples of their last evaluations, of which a trial is charged
when it ends. Searches are compared at the smallest total of all: none is given more than another. Their differences are
paired by repetition, and the interval is a t interval over repetitions, at a level for all differences together
(Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hpo.analysis.bootstrap import CONFIDENCE
from hpo.analysis.seed_interval import FEWEST_SEEDS, interval
from hpo.core.formatting import number, plain
from hpo.core.numbers import finite_or_none
from hpo.search import auto
from hpo.search.plugins import name_and_arguments
from hpo.search.samplers import RANDOM
from hpo.storage.snapshot import Results

Array = np.ndarray[Any, Any]
Found = Mapping[str, Any]

PARTS = 8
"""Rows of the table, at equal parts of the cost."""
POINTS = 200
"""Points of a drawn curve."""


@dataclass(frozen=True)
class Search:
    """What a search has found over its cost.

    Attributes:
        costs: [n] what all trials that have ended have cost, when a better value was found.
        values: [n] the best value from then on.
        total: What all trials that have ended have cost.
    """

    costs: tuple[int, ...]
    values: tuple[float, ...]
    total: int

    def at(self, cost: float) -> float:
        """Return the best value that was found for a cost; NaN if no trial had completed."""
        place = int(np.searchsorted(self.costs, cost, side="right"))
        return self.values[place - 1] if place else math.nan


def searched(results: Results) -> Search:
    """Return what a study has found over its cost.

    Trials count in the order in which they ended. A duplicate, which is not trained, costs nothing. Only a completed
    trial within the limits has a value.
    """
    within = {trial.number for trial in results.within_limits}
    sign = 1 if results.direction == "maximize" else -1
    ended = [trial for trial in results.trials if trial.state.is_finished()]
    total, costs, values = 0, list[int](), list[float]()
    for trial in sorted(ended, key=_when):
        total += 0 if "duplicate_of" in trial.user_attrs else trial.last_step or 0
        if trial.number in within and (not values or sign * (trial.value or 0.0) > sign * values[-1]):
            costs.append(total)
            values.append(trial.value or 0.0)
    return Search(tuple(costs), tuple(values), total)


def _when(trial: FrozenTrial) -> tuple[float, int]:
    return (trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0, trial.number)


# ---------------------------------------------------------------- what it shows


def compare_samplers(studies: Mapping[str, Sequence[Results]]) -> dict[str, Any]:
    """Compare samplers at equal cost.

    Args:
        studies: Sampler -> its studies, one a repetition; repetition i of all samplers has the same seed.

    Returns:
        JSON values: `metric`, `direction`, `unit` (of the cost), `seeds` (repetitions), `cost` (the smallest total),
        `smallest` (the study that has it), `reference` (what the others are compared with: `random`, else the first),
        `confidence`; `samplers`: of each `name`, `pruner`, `studies` (each with `name`, `counts`, `total`, `best`,
        `stopped`), `mean`, `lowest`, `highest` (of the best values at equal cost), and `compared`: the mean
        `difference` to the reference with `low`, `high` and `shown`, or the reason `untold`; None for the reference
        itself; `curves`: `costs`, and for each sampler `mean`, `lowest`, `highest`, None where a search had found
        nothing.
    """
    first = next(iter(studies.values()))[0]
    searches = {name: [searched(results) for results in each] for name, each in studies.items()}
    total, smallest = min(
        (search.total, results.name)
        for name, each in studies.items()
        for search, results in zip(searches[name], each, strict=True)
    )
    best = {name: np.array([search.at(total) for search in each]) for name, each in searches.items()}
    reference = RANDOM if RANDOM in studies else next(iter(studies))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(studies) - 1)
    costs = np.unique(np.linspace(0, total, POINTS + 1).round().astype(int))[1:]
    return {
        "metric": first.metric,
        "direction": first.direction,
        "unit": "steps" if first.attrs.get("config", {}).get("objective") else "examples",
        "seeds": len(best[reference]),
        "cost": total,
        "smallest": smallest,
        "reference": reference,
        "confidence": confidence,
        "samplers": [
            {
                "name": name,
                "pruner": _pruner(studies[name][0]),
                "studies": [
                    _described(results, search, value)
                    for results, search, value in zip(studies[name], searches[name], best[name].tolist(), strict=True)
                ],
                **_summary(best[name]),
                "compared": None if name == reference else _compared(best[name], best[reference], confidence),
            }
            for name in studies
        ],
        "curves": {"costs": costs.tolist(), **{name: _curve(each, costs) for name, each in searches.items()}},
    }


def _pruner(results: Results) -> str:
    """Return the pruner that a study was run with: what was chosen, where its file leaves the choice."""
    chosen = results.attrs.get(auto.CHOICE, {}).get("chosen") or results.attrs.get("config", {})
    return name_and_arguments(chosen.get("pruner", "none"))[0]


def _described(results: Results, search: Search, value: float) -> dict[str, Any]:
    return {
        "name": results.name,
        "counts": results.counts,
        "total": search.total,
        "best": finite_or_none(value),
        "stopped": results.stopped,
    }


def _summary(values: Array) -> dict[str, float | None]:
    """Return mean and ends of values of repetitions; None where one has none."""
    known = bool(np.isfinite(values).all())
    ends = (values.mean(), values.min(), values.max()) if known else (math.nan,) * 3
    return {name: finite_or_none(float(end)) for name, end in zip(("mean", "lowest", "highest"), ends, strict=True)}


def _compared(values: Array, others: Array, confidence: float) -> dict[str, Any]:
    """Return the mean difference of paired values with its interval, or why there is none."""
    differences = values - others
    known = differences[np.isfinite(differences)]
    found: dict[str, Any] = {"difference": float(known.mean()) if len(known) else None, "shown": False}
    if lacking := len(differences) - len(known):
        return found | {"untold": f"in {lacking} of {len(differences)} pairs no trial had completed at that cost"}
    if len(known) < FEWEST_SEEDS:
        return found | {"untold": f"it needs {FEWEST_SEEDS} seeds"}
    ends = interval(differences, confidence=confidence)
    if isinstance(ends, str):
        return found | {"untold": "all seeds give the same difference"}
    return found | {"low": ends[0], "high": ends[1], "shown": ends[0] > 0 or ends[1] < 0}


def _curve(searches: Sequence[Search], costs: Array) -> dict[str, list[float | None]]:
    rows = [_summary(np.array([search.at(cost) for search in searches])) for cost in costs.tolist()]
    return {name: [row[name] for row in rows] for name in ("mean", "lowest", "highest")}


# ---------------------------------------------------------------- in words


def sentences(found: Found) -> list[str]:
    """Return what a comparison shows, in texts of a sentence or two, without a full stop at the end."""
    seeds, unit, metric = found["seeds"], found["unit"], plain(found["metric"])
    texts = [
        f"Samplers at equal cost, {_seeds(seeds)} each: all are compared at {found['cost']:,} {unit}, the smallest "
        f"total of a search ({plain(found['smallest'])})"
    ]
    if seeds < FEWEST_SEEDS:
        one = "One seed cannot" if seeds == 1 else f"{seeds} seeds cannot"
        texts.append(f"{one} tell samplers apart, as another seed may rank them otherwise: write --seeds 5")
    for each in found["samplers"]:
        if (compared := each["compared"]) is not None and compared["shown"]:
            better = (compared["difference"] > 0) == (found["direction"] == "maximize")
            texts.append(
                f"{each['name']} is {'better' if better else 'worse'} than {found['reference']} here: {metric} "
                f"{_difference(compared)}, {_level(found)}; it covers other seeds, not other data or spaces"
            )
    for each in found["samplers"]:
        for study in each["studies"]:
            left = study["counts"]["running"] + study["counts"]["waiting"]
            if left:
                why = f" ({plain(study['stopped'])})" if study["stopped"] else ""
                texts.append(f"{left} trials of {plain(study['name'])} have not ended{why}")
    return texts


def tables(found: Found) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, heads, rows) of two tables: the best values over the cost, and the samplers at equal cost."""
    names, curves, unit = [each["name"] for each in found["samplers"]], found["curves"], found["unit"]
    metric, count = plain(found["metric"]), len(curves["costs"])
    places = sorted({round(count * part / PARTS) - 1 for part in range(1, PARTS + 1)} - {-1})
    spread = "" if found["seeds"] == 1 else f": mean of {found['seeds']} seeds (lowest to highest)"
    rows = [
        [f"{curves['costs'][place]:,}", *(_cell(curves[name], place, found["seeds"]) for name in names)]
        for place in places
    ]
    reference = f"to {found['reference']} ({_level(found)})"
    heads = ["sampler", "pruner", "ended", f"{unit} in all", f"best {metric}", reference]
    last = [
        [
            each["name"],
            plain(each["pruner"]),
            _range([sum(study["counts"][state] for state in ENDED) for study in each["studies"]]),
            _range([study["total"] for study in each["studies"]]),
            number(each["mean"]),
            _against(each["compared"]),
        ]
        for each in found["samplers"]
    ]
    return [
        (f"Best {metric} so far, over the {unit} that all trials have trained{spread}", [unit, *names], rows),
        (f"At {found['cost']:,} {unit}", heads, last),
    ]


ENDED = ("complete", "pruned", "fail")


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _level(found: Found) -> str:
    return f"{100 * found['confidence']:.3g}% confidence"


def _cell(curve: Mapping[str, Sequence[float | None]], place: int, seeds: int) -> str:
    mean, lowest, highest = (curve[name][place] for name in ("mean", "lowest", "highest"))
    return number(mean) if seeds == 1 or mean is None else f"{number(mean)} ({number(lowest)} to {number(highest)})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _against(compared: Found | None) -> str:
    if compared is None:
        return "-"
    return _difference(compared) if "low" in compared else f"{number(compared['difference'])} ({compared['untold']})"


def _difference(compared: Found) -> str:
    return f"{compared['difference']:+.4g} ({compared['low']:+.4g} to {compared['high']:+.4g})"
