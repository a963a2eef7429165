"""Whether a study is worth going on with, in words and as JSON values; `hpo/analysis/tuning_curve.py` computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from hpo.analysis.tuning_curve import (
    CONFIDENCE,
    Draws,
    Mean,
    Outlook,
    UntoldError,
    mean_of,
    other_samplers,
    outlook,
    random_draws,
    tuning_curve,
)
from hpo.core.formatting import duration, number, plain
from hpo.storage.snapshot import Results


def worth_text(results: Results) -> list[str]:
    """Return what more random trials may bring, or why that cannot be told, in sentences without a full stop."""
    if results.best is None:
        return []
    try:
        draws, ahead = _told(results)
    except UntoldError as reason:
        return [f"Whether more trials are worth it cannot be told: {plain(str(reason))}"]
    return [_gain_text(results, draws, ahead), *_cost_text(draws, ahead), *_possible_text(results, draws, ahead)]


def worth_facts(results: Results) -> dict[str, Any]:
    """Return the same as JSON values.

    Returns:
        `draws`, `outlook` (null with the reason `untold`), `curve`, and `cost`: `seconds` and `examples` of one random
        trial, in the mean with its interval, null where they are not known.
    """
    facts: dict[str, Any] = {"draws": None, "outlook": None, "untold": None, "curve": None, "cost": None}
    try:
        draws = random_draws(results)
        counts = {"ended": len(draws.scores), "with_value": draws.valued, "pruned": draws.pruned}
        facts |= {"draws": counts, "curve": asdict(tuning_curve(draws))}
        costs = {"seconds": mean_of(draws.seconds), "examples": mean_of(draws.examples)}
        facts["cost"] = {name: mean and asdict(mean) for name, mean in costs.items()}
        facts["outlook"] = asdict(_told(results)[1])
    except UntoldError as reason:
        facts["untold"] = str(reason)
    return facts


def _told(results: Results) -> tuple[Draws, Outlook]:
    """Return the random draws and what more of them may bring.

    Raises:
        UntoldError: They do not tell it.
    """
    if names := other_samplers(results):
        raise UntoldError(f"trials were drawn by {' and '.join(names)}; only independent random draws tell it")
    draws = random_draws(results)
    if results.best is None or results.best.value is None:
        raise UntoldError("no trial is within the limits" if results.trained else "no trial has completed")
    stop = results.attrs.get("config", {}).get("stop")
    target = stop.get("target") if isinstance(stop, Mapping) else None
    if isinstance(target, int | float) and draws.sign * (results.best.value - target) >= 0:
        raise UntoldError("the study has reached its target, so how many trials it has depends on their scores")
    return draws, outlook(draws, results.best.value)


def _gain_text(results: Results, draws: Draws, ahead: Outlook) -> str:
    best = results.best
    assert best is not None
    if ahead.chance == 0:
        return f"The best {plain(results.metric)}, {number(best.value)}, is the best that there is"
    as_these = ", pruned as these were," if draws.pruned else ""
    equal = len({score for score in draws.scores if math.isfinite(score)}) < draws.valued
    exact = not (draws.pruned or equal) and draws.sign * (best.value or 0.0) == max(draws.scores)
    return (
        f"{ahead.more} more random trials{as_these} would improve the best {plain(results.metric)}, "
        f"{number(best.value)}, with a probability of {'' if exact else 'at most '}{ahead.chance:.0%}: by at most "
        f"{number(ahead.gain, 2)}, on average by at most {number(ahead.mean_gain, 2)} ({CONFIDENCE:.0%} confidence)"
    )


def _cost_text(draws: Draws, ahead: Outlook) -> list[str]:
    kinds: list[tuple[Mean | None, Callable[[float], str], str]] = [
        (mean_of(draws.seconds), duration, " of device time"),
        (mean_of(draws.examples), lambda count: f"{count:,.0f}", " examples"),
    ]
    known = [(mean, write, unit) for mean, write, unit in kinds if mean is not None and mean.mean > 0]
    if ahead.chance == 0 or not known:
        return []
    so_many = " and ".join(f"{write(ahead.more * mean.mean)}{unit}" for mean, write, unit in known)
    each = " and ".join(
        f"{write(mean.mean)}{unit}"
        + ("" if mean.low is None or mean.high is None else f" ({write(mean.low)} to {write(mean.high)})")
        for mean, write, unit in known
    )
    return [f"They would take about {so_many}: a random trial has taken {each} on average"]


def _possible_text(results: Results, draws: Draws, ahead: Outlook) -> list[str]:
    if not math.isfinite(ahead.possible) or draws.sign * ahead.possible >= draws.limit:
        return []
    searched = "the number that is" if draws.numeric == 1 else f"the {draws.numeric} numbers that are"
    return [
        f"If near the best the {plain(results.metric)} is quadratic in {searched} searched, none of the space is "
        f"better than {number(ahead.possible)}, lucky seeds aside ({CONFIDENCE:.0%} confidence)"
    ]
