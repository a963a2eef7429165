"""The study file of the next study: ranges moved to where the trials of the last one show the optimum to be.

A part of a range, or a choice, is left out only if none of its trials is among the better third, and if chance does not
explain that: if the place did not matter, n trials there of N would all miss the m better ones with the probability
C(N - n, m) / C(N, m). This is exact for random draws; samplers that learn place later, better trials together.

A range is widened where the best trial lies at its end. Every change has a comment that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hpo.analysis.export import study_file, with_absolute_models
from hpo.analysis.findings import ENDINGS, ENOUGH, at_ends
from hpo.analysis.importances import CONFIDENCE, FOREST, TooSmallError, importances, intervals, searched
from hpo.config import study_spec, yaml
from hpo.config.schema import StudyConfig
from hpo.config.study_spec import StudySpec
from hpo.core.errors import HpoError, StudyError
from hpo.core.formatting import number
from hpo.recipe.hyperparameters import HYPERPARAMETERS, MODEL
from hpo.space.parameters import Categorical, Float, Int, Parameter
from hpo.space.search_space import SearchSpace
from hpo.storage.snapshot import Results

CHANCE = 0.05  # probability below which chance is not taken as the explanation; divided by all that is compared
MARGIN = 0.25  # width that stays on each side of where the better third lies, as a share of that width
SAVES = 0.8  # a range is not narrowed to more than this share of its width
WIDER = 1 / 3  # width that is added at an end where the best trial lies, as a share of the range's
IMPORTANT = 0.1  # share of the importance below which a parameter does not decide: where it lies is left open

Range = Float | Int


@dataclass(frozen=True)
class Change:
    """A parameter that the next study searches elsewhere.

    Attributes:
        name: The parameter.
        after: What the next study searches.
        why: The reason, as computed from the trials.
    """

    name: str
    after: Parameter
    why: str


@dataclass(frozen=True)
class _Trials:
    """The trials that show where to search: completed ones and, as the worst, those that diverged or did not fit.

    Attributes:
        ranked: Best first; collapsed trials are among the worst.
        better: How many of them are the better third.
    """

    ranked: Sequence[FrozenTrial]
    better: int

    def having(self, name: str) -> tuple[list[Any], list[Any]]:
        """Return the values of a parameter in the better third, and in all trials that have it, best first."""
        values = [trial.params[name] for trial in self.ranked if name in trial.params]
        first = [trial.params[name] for trial in self.ranked[: self.better] if name in trial.params]
        return first, values


def write(results: Results, path: Path) -> list[Change]:
    """Write the file of the next study, and return what it changes.

    Args:
        results: The study.
        path: The file, which must not exist.

    Raises:
        StudyError: No trial has completed, the trials show no reason for a change, or the file exists.
        HpoError: The file cannot be written.
    """
    if results.best is None:
        raise StudyError(f"there is nothing to learn from: {results.why_no_best}")
    study = study_spec.from_dict(results.attrs["config"])
    found = changes(results, study.space)
    if not found:
        raise StudyError(
            f"the {len(results.complete)} completed trials of {results.name!r} show no reason to change a range: "
            f"search on with hpo run {results.name} --trials N. {_needs(results)}"
        )
    if path.exists():
        raise StudyError(f"{path} exists; name a new file with -o")
    content = _content(results, study, found)
    study_spec.build(content, str(path), study.folder)  # raises where a change does not fit the rest
    comments: dict[yaml.SourcePath, str] = {(): _header(results)}
    comments |= {("space", "parameters", change.name): change.why for change in found}
    try:
        yaml.write(content, path, comments)
    except OSError as error:
        raise HpoError(f"{path} cannot be written: {error.strerror or error}; name another file with -o") from None
    return found


def _needs(results: Results) -> str:
    if len(results.complete) < ENOUGH:
        return f"Ranges are narrowed from {ENOUGH} completed trials on"
    return "The best trial lies at no end of a range, and chance explains where the better third lies"


def _header(results: Results) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in results.counts.items() if count)
    return f"The next study after {results.name} ({counts}). The seed is the same, so that the splits are."


def _content(results: Results, study: StudySpec, found: Sequence[Change]) -> dict[str, Any]:
    config = dict(results.attrs["config"])
    custom = study.config.objective is not None
    content = {k: v for k, v in config.items() if v is not None and k != "folder"} if custom else study_file(config)
    after = {change.name: change.after for change in found}
    changed = replace(study, space=replace(study.space, parameters={**study.space.parameters, **after}))
    space = changed.space_to_dict()
    if study.config.model is not None and not custom:
        space = dict(with_absolute_models(study.config.model, space, study.folder)[1])
    space["parameters"] = {name: _tidy(parameter) for name, parameter in space["parameters"].items()}
    # Settings that are as they would be without the file do not help its reader.
    usual = StudyConfig.model_fields
    kept = {k: v for k, v in content.items() if k not in usual or (v != usual[k].default and v != {})}
    return {**kept, "name": _next_name(results.name), "space": {key: value for key, value in space.items() if value}}


def _tidy(parameter: Any) -> Any:
    if not isinstance(parameter, Mapping):
        return parameter
    kept = {key: value for key, value in parameter.items() if value not in (None, False, {}) or key in ("low", "high")}
    kept = {key: value for key, value in kept.items() if (key, value) != ("step", 1)}
    return kept["values"] if kept.keys() == {"values"} else kept


def _next_name(name: str) -> str:
    stem, dash, count = name.rpartition("-")
    return f"{stem}-{int(count) + 1}" if dash and count.isdecimal() else f"{name}-2"


# ---------------------------------------------------------------- what the trials show


def changes(results: Results, space: SearchSpace) -> list[Change]:
    """Return what to change; see the module."""
    trials = _trials(results)
    shares = _shares(results) if len(results.complete) >= ENOUGH else {}
    level = CHANCE / max(1, len(space.parameters))
    ends = at_ends(results)
    # A model is left out by whoever writes the next file: the published default may be one that is worse.
    conditions = {MODEL, *(name for parameter in space.parameters.values() for name in parameter.when)}
    found: list[Change | None] = []
    for name, parameter in space.parameters.items():
        decides = shares.get(name, 0.0) >= IMPORTANT
        rests = partial(_rests_on, results, name, shares)  # called for what changes only: intervals take a while
        if isinstance(parameter, Categorical):
            dropped = _without_worse(name, parameter, trials, level) if decides and name not in conditions else None
            found.append(dropped and replace(dropped, why=f"{dropped.why}; {rests()}"))
        else:
            narrow = _narrowed(name, parameter, trials, level) if decides else None
            moved = None if narrow is None else Change(name, narrow[0], f"{narrow[1]}; {rests()}")
            if name in ends and (decides or name not in shares):  # else chance may have put the best trial there
                moved = _widened(name, parameter, narrow, ends[name], results, rests())
            found.append(moved)
    return [change for change in found if change is not None]


def _trials(results: Results) -> _Trials:
    sign = -1 if results.direction == "maximize" else 1
    trained = [trial for trial in results.complete if "duplicate_of" not in trial.user_attrs]
    learned = [trial for trial in trained if trial.user_attrs.get("collapsed") is not True]
    learned.sort(key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    failed = [trial for trial in results.trials if trial.user_attrs.get("reason") in ENDINGS and trial.params]
    ranked = [*learned, *(trial for trial in trained if trial.user_attrs.get("collapsed") is True), *failed]
    return _Trials(ranked, min(len(learned), len(ranked) // 3))


def _shares(results: Results) -> Mapping[str, float]:
    """Return the importances; a parameter that is searched alone has all of it."""
    names = searched(results)
    if len(names) == 1:
        return dict.fromkeys(names, 1.0)
    try:
        return importances(results)
    except TooSmallError:  # e.g. there are not two parameters whose values differ
        return {}


def _rests_on(results: Results, name: str, shares: Mapping[str, float]) -> str:
    """Return how important a parameter is, with what that rests on."""
    count = len(results.complete)
    rests = f"from {f'{FOREST} of {count}' if count > FOREST else count} completed trials"
    if name not in shares or len(shares) == 1:
        return f"importance {f'{shares[name]:.2f}' if name in shares else 'unknown'} {rests}"
    found = intervals(results)[name]
    untold = "" if found.told else ", which cannot be told from 0"
    return f"importance {found.share:.2f} ({CONFIDENCE:.0%}: {found.low:.2f} to {found.high:.2f}{untold}) {rests}"


def _narrowed(name: str, parameter: Range, trials: _Trials, level: float) -> tuple[Range, str] | None:
    """Return the range without the parts in which no trial is among the better third, and why.

    Returns:
        None if chance explains that there is none, or the range would hardly be shorter.
    """
    to, back = _scale(parameter)
    better, every = trials.having(name)
    if len(better) < 2 or len(every) < ENOUGH:
        return None
    low, high = min(better), max(better)
    margin = MARGIN * (to(high) - to(low))
    ends, reasons = [float(parameter.low), float(parameter.high)], []
    for side, where, beyond, end in (
        (0, f"below {number(low, 2)}", sum(value < low for value in every), back(to(low) - margin)),
        (1, f"above {number(high, 2)}", sum(value > high for value in every), back(to(high) + margin)),
    ):
        chance = _chance(beyond, len(better), len(every))
        if beyond and chance <= level / 2 and parameter.low < end < parameter.high:
            ends[side] = end
            reasons.append(f"{where}, where {beyond} trials are (probability by chance {chance:.1g})")
    if not reasons or to(ends[1]) - to(ends[0]) > SAVES * (to(parameter.high) - to(parameter.low)):
        return None
    why = f"none of the better {len(better)} of {len(every)} trials is {', nor '.join(reasons)}"
    return _with_ends(parameter, *ends), why


def _chance(count: int, better: int, every: int) -> float:
    """Return the probability that none of `count` trials is among the better ones, if their place does not matter."""
    return math.comb(every - count, better) / math.comb(every, better)


def _widened(
    name: str, parameter: Range, narrow: tuple[Range, str] | None, side: str, results: Results, rests: str
) -> Change | None:
    """Return a range moved beyond the end at which the best trial lies; None if no value lies beyond it."""
    assert results.best is not None
    to, back = _scale(parameter)
    best = results.best.params[name]
    step = WIDER * (to(parameter.high) - to(parameter.low))
    after, why = narrow or (parameter, "")
    if side == "upper":
        beyond = back(max(to(parameter.high) + step, to(best)))
        after = _with_ends(after, after.low, _limited(name, parameter, beyond, results))
    else:
        beyond = back(min(to(parameter.low) - step, to(best)))
        after = _with_ends(after, _limited(name, parameter, beyond, results), after.high)
    if (after.low, after.high) == (parameter.low, parameter.high):
        return None
    end = parameter.high if side == "upper" else parameter.low
    found = f"the best trial ({results.best.number}) has {number(best)}, at the {side} end, {number(end)}"
    return Change(name, after, "; ".join(filter(None, (found, why, rests))))


def _limited(name: str, parameter: Range, end: float, results: Results) -> float:
    """Return a new end of a range, within the values that the hyperparameter can have."""
    known = None if results.attrs["config"].get("objective") else HYPERPARAMETERS.get(name)
    if known is None:  # of an objective of one's own: it is not taken across zero
        return max(end, 0.0) if parameter.low >= 0 else end
    if end <= known.low:
        return parameter.low if known.low_open else known.low
    if end >= known.high:
        return parameter.high if known.high_open else known.high
    return end


def _without_worse(name: str, parameter: Categorical, trials: _Trials, level: float) -> Change | None:
    """Return the choices without those of which no trial is among the better third, if chance does not explain that."""
    better, every = trials.having(name)
    worse = {}
    for value in parameter.values:
        count = sum(other == value for other in every)
        chance = _chance(count, len(better), len(every))
        if count and value not in better and chance <= level / len(parameter.values):
            worse[value] = f"{value} ({count} trials; probability by chance {chance:.1g})"
    if not worse:
        return None
    kept = [value for value in parameter.values if value not in worse]
    return Change(
        name,
        replace(parameter, values=kept),
        f"without {', '.join(worse.values())}, of which none is among the better {len(better)} of {len(every)} trials",
    )


# ---------------------------------------------------------------- ranges


def _scale(parameter: Range) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return the functions to and from the scale on which a range is searched."""
    return (math.log, math.exp) if parameter.log else (float, float)


def _with_ends(parameter: Range, low: float, high: float) -> Range:
    """Return a range with other ends: rounded outward to two digits, on its steps and whole where it is."""
    if isinstance(parameter, Int):
        low, high = (
            parameter.low + _steps(parameter, low, math.floor),
            parameter.low + _steps(parameter, high, math.ceil),
        )
        return replace(parameter, low=max(int(low), 1) if parameter.log else int(low), high=int(high))
    if parameter.step is not None:
        low = parameter.low + _steps(parameter, low, math.floor)
        return replace(parameter, low=low, high=parameter.low + _steps(parameter, high, math.ceil))
    low = low if low == parameter.low else _rounded(low, math.floor)
    return replace(parameter, low=low, high=high if high == parameter.high else _rounded(high, math.ceil))


def _steps(parameter: Range, end: float, rounding: Callable[[float], int]) -> float:
    """Return how far an end is from the range's low end, in whole steps."""
    step = parameter.step or 1
    return step * rounding(round((end - parameter.low) / step, 6))


def _rounded(value: float, rounding: Callable[[float], int]) -> float:
    if value == 0:
        return 0.0
    digits = 1 - math.floor(math.log10(abs(value)))
    return float(f"{rounding(round(value * 10**digits, 6)) / 10**digits:.6g}")
