"""Findings: what to know before trusting a study, a sentence each, with a next step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.analysis.separation import Separation, separating
from hpo.core.formatting import number, plain
from hpo.recipe.hyperparameters import HYPERPARAMETERS
from hpo.search.stopping import STOPPED_BY_USER
from hpo.storage.snapshot import Results
from hpo.tasks.task import COLLAPSE

ENOUGH = 10  # completed trials below which importances are mostly noise
NEAR = 0.02  # share of a range that counts as its boundary
MANY = 0.2  # share of collapsed trials from which on the space is probably at fault
SKEWED = 3.0  # ratio of the most frequent label's rows to the rarest one's, from which on labels are skewed
ENDINGS = {"diverged": "diverged", "out_of_memory": "ran out of memory"}  # reason -> in words


def findings(results: Results) -> list[str]:
    """Return what to know about a study before trusting it.

    Args:
        results: A snapshot of the study, finished or not.

    Returns:
        One sentence a finding, the most serious first.
    """
    analysed = _Analysed(results.name, results.direction, results.trials, results.attrs)
    return [sentence for check in CHECKS for sentence in check(analysed)]


class _Analysed(Results):
    """A study, and the directions in which its trials suggest to search."""

    @cached_property
    def separations(self) -> dict[str, Separation]:
        """What separates useless trials from the others: `collapsed` or a reason -> the hyperparameter."""
        trained = _trained(self)
        learned = [trial for trial in trained if trial.user_attrs.get("collapsed") is not True]
        groups = {"collapsed": (_many_collapsed(self), learned)}
        groups |= {reason: (_ended_by(self, reason), trained) for reason in ENDINGS}
        found = {outcome: separating(bad, good) for outcome, (bad, good) in groups.items()}
        return {outcome: parts for outcome, parts in found.items() if parts is not None and _agrees(self, parts)}

    @cached_property
    def directions(self) -> dict[str, set[str]]:
        """Hyperparameter -> the directions in which findings point: `lower`, `higher`, or both."""
        found: dict[str, set[str]] = {}
        for separation in self.separations.values():
            found.setdefault(separation.name, set()).add(separation.better)
        for name, side in at_ends(self).items():
            found.setdefault(name, set()).add("lower" if side == "lower" else "higher")
        return found


def _collapsed(results: _Analysed) -> Iterator[str]:
    best = results.best
    if best and best.user_attrs.get("collapsed") is True:
        yield (
            f"The best trial ({best.number}) has collapsed: it {_collapse(best)}. Do not use it, whatever its "
            f"{results.metric} of {number(best.value)} says; train longer, or search another space."
        )
    elif results.baseline and results.baseline.user_attrs.get("collapsed") is True:
        yield (
            f"The published default (trial {results.baseline.number}) has collapsed: it {_collapse(results.baseline)}, "
            "so a gain over it shows little; give it the epochs and the batch size that it was published with."
        )
    trained, collapsed = _trained(results), _many_collapsed(results)
    if collapsed:
        yield (
            f"{_share(len(collapsed), len(trained))} completed trials collapsed{_to(collapsed)}: "
            f"{_cause(results, 'collapsed')}."
        )


def _collapse(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("collapse") or COLLAPSE)


def _to(collapsed: list[FrozenTrial]) -> str:
    """Return to what trials collapsed."""
    ways = {_collapse(trial) for trial in collapsed}
    if ways == {COLLAPSE}:
        return " to one answer for every example"
    return f" (each {next(iter(ways))})" if len(ways) == 1 else ""


def _trained(results: Results) -> list[FrozenTrial]:
    """Return the completed trials without duplicates, as duplicates are not trained."""
    return [trial for trial in results.complete if "duplicate_of" not in trial.user_attrs]


def _many_collapsed(results: Results) -> list[FrozenTrial]:
    """Return the completed trials that collapsed, if they are `MANY`; else none."""
    trained = _trained(results)
    collapsed = [trial for trial in trained if trial.user_attrs.get("collapsed") is True]
    return collapsed if len(collapsed) > 1 and len(collapsed) >= MANY * len(trained) else []


def _skewed(results: Results) -> Iterator[str]:
    """Find skewed labels, a reason for trials to collapse."""
    stored = results.attrs.get("label_shares", {})
    shares = {label: share for label, share in stored.items() if isinstance(share, float)}
    if not any(trial.user_attrs.get("collapsed") is True for trial in results.complete) or len(shares) < 2:
        return
    most, rarest = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    if shares[most] >= SKEWED * shares[rarest]:
        yield (
            f"The labels are skewed: {shares[most]:.1%} of the training rows are {plain(most)!r}, "
            f"{shares[rarest]:.1%} {plain(rarest)!r}; a model that collapses gives the most frequent one to every "
            "example: weight the classes, or optimise f1_macro."
        )


def _ended_early(results: _Analysed) -> Iterator[str]:
    finished = _finished(results)
    failed = results.counts["fail"]
    if failed:
        yield f"{_share(failed, len(finished))} trials failed: read the reasons in the table of trials."
    for reason, words in ENDINGS.items():
        if count := len(_ended_by(results, reason)):
            yield f"{_share(count, len(finished))} trials {words}: {_cause(results, reason)}."


def _ended_by(results: Results, reason: str) -> list[FrozenTrial]:
    return [trial for trial in _finished(results) if trial.user_attrs.get("reason") == reason]


def _no_baseline(results: Results) -> Iterator[str]:
    baseline = results.baseline
    if baseline is None or not baseline.state.is_finished() or baseline.state == TrialState.COMPLETE:
        return
    reason = baseline.user_attrs.get("reason")
    if reason == STOPPED_BY_USER:
        step = f"hpo confirm {results.name} trains it again"
    elif reason != "pruner":
        step = f"fix what ended it ({plain(str(reason or 'no reason is stored').replace('_', ' '))})"
    elif results.attrs.get("config", {}).get("objective") is not None:
        step = "begin a new study, in which it is not pruned"
    elif results.verdict is not None and results.verdict["baseline"] is not None:
        return  # it was trained to its end later
    else:
        step = "run the study again, which trains it to its end"
    yield f"The published default (trial {baseline.number}) has no value, so the gain over it is unknown: {step}."


# ---------------------------------------------------------------- which way to search


def _agrees(results: Results, separation: Separation) -> bool:
    """Return whether the best trial lies on the side where the separation advises to search."""
    best = results.best
    if best is None or not _has_learned(best) or separation.name not in best.params:
        return True
    value = best.params[separation.name]
    return bool(value < separation.theirs) if separation.better == "lower" else bool(value > separation.theirs)


def _step(results: _Analysed, name: str, direction: str) -> str:
    """Return the next step for a hyperparameter; no direction if another finding points the other way."""
    if len(results.directions[name]) > 1:
        return "the direction to search in is unknown, as another finding points the other way"
    return f"search {direction} values in a new study"


def _cause(results: _Analysed, outcome: str) -> str:
    """Return the hyperparameter that separates the trials with a bad outcome, and the next step."""
    found = results.separations.get(outcome)
    if found is None:
        return "no parameter separates them clearly from the others, so the direction to search in is unknown"
    return (
        f"their {plain(found.name)} is {number(found.theirs)} in the median, that of the others "
        f"{number(found.others)}; {_step(results, found.name, found.better)}"
    )


def _ties(results: Results) -> Iterator[str]:
    stored = [trial.user_attrs.get("ties") for trial in results.trials]
    ways = [how for ties in stored if isinstance(ties, Mapping) for how in ties.values()]
    if not ways:
        return
    by_loss = ways.count("loss")
    yield (
        f"{len(ways)} decisions of the pruner were ties in what it compares: {by_loss} of them were decided by the "
        f"loss, and in {len(ways) - by_loss} all equal trials went on; more validation rows, or `prune_on: loss`, make "
        "ties fewer."
    )


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


def _beyond_limits(results: Results) -> Iterator[str]:
    baseline = results.baseline
    if baseline is not None and baseline in results.trained and (beyond := results.criteria.beyond(baseline)):
        yield (
            f"The published default (trial {baseline.number}) is beyond the limits: {'; '.join(beyond)}. The gain over "
            "it is a gain over a model that could not be used."
        )


def _nothing_better(results: Results) -> Iterator[str]:
    best = results.best
    if best and _has_learned(best) and best.user_attrs.get("baseline") is True and len(results.complete) > 1:
        yield (
            f"The published default (trial {best.number}) is the best of {len(results.complete)} completed "
            "trials: the search found nothing better; use it, or search more trials or another space."
        )


def _boundaries(results: _Analysed) -> Iterator[str]:
    for name, side in at_ends(results).items():
        best = results.best
        assert best is not None
        value, ends = best.params[name], _ends(best.distributions[name])
        assert ends is not None
        where = "below" if value < ends[0] else "above" if value > ends[1] else f"at the {side} end of"
        yield (
            f"The best trial ({best.number}) has {name} = {number(value)}, {where} what was searched "
            f"({number(ends[0])} to {number(ends[1])}): "
            f"{_step(results, name, 'lower' if side == 'lower' else 'higher')}."
        )


def at_ends(results: Results) -> dict[str, str]:
    """Return the best trial's hyperparameters at an end of their range -> which end, `lower` or `upper`."""
    best = results.best
    if best is None or not _has_learned(best):
        return {}
    found = {}
    for name in best.params:
        ends, side = _ends(best.distributions[name]), _side(best, name)
        if ends and side and not _is_natural_end(name, ends[0] if side == "lower" else ends[1]):
            found[name] = side
    return found


def _has_learned(best: FrozenTrial) -> bool:
    return best.user_attrs.get("collapsed") is not True


def _side(trial: FrozenTrial, name: str) -> str | None:
    """Return at which end of its range a hyperparameter lies, if any."""
    distribution, value = trial.distributions[name], trial.params[name]
    ends = _ends(distribution)
    if ends is None:
        return None
    scale = math.log if getattr(distribution, "log", False) and value > 0 else float
    low, high = scale(ends[0]), scale(ends[1])
    # Choices have no distances between them, so only the first and the last are at an end.
    near = 0.0 if isinstance(distribution, CategoricalDistribution) else NEAR
    position = (scale(value) - low) / (high - low)
    return "lower" if position <= near else "upper" if position >= 1 - near else None


def _ends(distribution: BaseDistribution) -> tuple[float, float] | None:
    """Return the ends of an ordered range; None if it has fewer than three values, as most lie at an end then."""
    if isinstance(distribution, CategoricalDistribution):
        values = [v for v in distribution.choices if isinstance(v, int | float) and not isinstance(v, bool)]
        ordered = len(values) == len(distribution.choices) >= 3
        return (min(values), max(values)) if ordered else None
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    return (low, high) if high - low >= 2 * (distribution.step or 0) and high > low else None


def _is_natural_end(name: str, end: float) -> bool:
    """Return whether no value can lie beyond the end, such as a weight decay below 0 or a share above 1."""
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


CHECKS: tuple[Callable[[_Analysed], Iterator[str]], ...] = (
    _too_few,
    _beyond_limits,
    _no_baseline,
    _collapsed,
    _skewed,
    _nothing_better,
    _moved_baseline,
    _ended_early,
    _boundaries,
    _ties,
    _duplicates,
)
