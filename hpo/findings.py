"""Findings: what a tuner should know before trusting a study, a sentence each, with a next step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from hpo.formatting import number
from hpo.hyperparameters import HYPERPARAMETERS
from hpo.results import Results

ENOUGH = 10  # completed trials below which importances are mostly noise
NEAR = 0.02  # share of a range that counts as its boundary
MANY = 0.2  # share of collapsed trials that calls the space into question


def findings(results: Results) -> list[str]:
    """Return what to know about a study before trusting it.

    Args:
        results: A snapshot of the study, finished or not.

    Returns:
        One sentence a finding, the gravest first; none if there is nothing to say.
    """
    return [sentence for check in CHECKS for sentence in check(results)]


def _collapsed(results: Results) -> Iterator[str]:
    best = results.best
    if best and best.user_attrs.get("collapsed") is True:
        yield (
            f"The best trial ({best.number}) has collapsed: it gives every example the same answer, so "
            f"its {results.metric} of {number(best.value)} says nothing; "
            "search lower learning rates or train longer."
        )
    elif results.baseline and results.baseline.user_attrs.get("collapsed") is True:
        yield (
            f"The published default (trial {results.baseline.number}) has collapsed: it gives every example the same "
            "answer, so a gain over it shows little; give it the epochs and the batch size that it was published with."
        )
    count = sum(trial.user_attrs.get("collapsed") is True for trial in results.complete)
    if count > 1 and count >= MANY * len(results.complete):
        yield (
            f"{_share(count, len(results.complete))} completed trials collapsed to one answer for every "
            "example: search lower learning rates or more warm-up."
        )


def _ended_early(results: Results) -> Iterator[str]:
    finished = _finished(results)
    failed = results.counts["fail"]
    if failed:
        yield f"{_share(failed, len(finished))} trials failed: read the reasons in the table of trials."
    advice = {
        "diverged": ("diverged", "lower the highest learning rate or lengthen the warm-up"),
        "out_of_memory": ("ran out of memory", "search smaller models, lengths or batch sizes"),
    }
    for reason, (what, step) in advice.items():
        count = sum(trial.user_attrs.get("reason") == reason for trial in finished)
        if count:
            yield f"{_share(count, len(finished))} trials {what}: {step} in the next study."


def _duplicates(results: Results) -> Iterator[str]:
    count = sum(trial.user_attrs.get("duplicate_of") is not None for trial in results.trials)
    if count:
        yield (
            f"{_share(count, len(results.trials))} trials repeat the parameters of another: the space is "
            "nearly exhausted; widen it, or stop here."
        )


def _too_few(results: Results) -> Iterator[str]:
    count = len(results.complete)
    if not count:
        yield "No trial has completed, so none is the best: let the study run on, or read why trials ended."
    elif count < ENOUGH:
        were = "trial has" if count == 1 else "trials have"
        yield (
            f"Only {count} {were} completed: importances need {ENOUGH} or more to be trusted; "
            "run the study on with more trials."
        )


def _nothing_better(results: Results) -> Iterator[str]:
    best = results.best
    if best and _tells(best) and best.user_attrs.get("baseline") is True and len(results.complete) > 1:
        yield (
            f"The published default (trial {best.number}) is the best of {len(results.complete)} completed "
            "trials: the search found nothing better; keep it, or search more trials or another space."
        )


def _boundaries(results: Results) -> Iterator[str]:
    best = results.best
    if best is None or not _tells(best):
        return
    for name, value in best.params.items():
        ends = _ends(best.distributions[name])
        side = _side(best, name)
        if ends is None or side is None or _natural(name, ends[0] if side == "lower" else ends[1]):
            continue
        yield (
            f"The best trial ({best.number}) has {name} = {number(value)}, at the {side} end of what was "
            f"searched ({number(ends[0])} to {number(ends[1])}): "
            f"search {'lower' if side == 'lower' else 'higher'} values in a new study."
        )


def _tells(best: FrozenTrial) -> bool:
    return best.user_attrs.get("collapsed") is not True


def _side(trial: FrozenTrial, name: str) -> str | None:
    """Return which end of its range a parameter lies at."""
    distribution, value = trial.distributions[name], trial.params[name]
    ends = _ends(distribution)
    if ends is None:
        return None
    scale = math.log if getattr(distribution, "log", False) and value > 0 else float
    low, high = scale(ends[0]), scale(ends[1])
    # Choices have no distance between them: only the outermost ones are at an end.
    near = 0.0 if isinstance(distribution, CategoricalDistribution) else NEAR
    position = (scale(value) - low) / (high - low)
    return "lower" if position <= near else "upper" if position >= 1 - near else None


def _ends(distribution: BaseDistribution) -> tuple[float, float] | None:
    """Return the ends of an ordered range of three values or more; an end of two is no news."""
    if isinstance(distribution, CategoricalDistribution):
        values = [v for v in distribution.choices if isinstance(v, int | float) and not isinstance(v, bool)]
        ordered = len(values) == len(distribution.choices) >= 3
        return (min(values), max(values)) if ordered else None
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    return (low, high) if high - low >= 2 * (distribution.step or 0) and high > low else None


def _natural(name: str, end: float) -> bool:
    """Return whether nothing lies beyond: a weight decay below 0, a share above 1."""
    known = HYPERPARAMETERS.get(name)
    return known is not None and end in (known.low, known.high)


def _finished(results: Results) -> list[FrozenTrial]:
    return [trial for trial in results.trials if trial.state.is_finished()]


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.0%})"


def _moved_baseline(results: Results) -> Iterator[str]:
    baseline = results.baseline
    for name, (published, used) in (baseline.user_attrs.get("moved", {}) if baseline else {}).items():
        yield (
            f"The published {name}, {published}, is not a choice of the space: trial 0, called the published default, "
            f"ran with {used}; add {published} to the choices to compare with what was published."
        )


CHECKS: tuple[Callable[[Results], Iterator[str]], ...] = (
    _too_few,
    _collapsed,
    _nothing_better,
    _moved_baseline,
    _ended_early,
    _boundaries,
    _duplicates,
)
