"""An audit: what the pruner cost, told from a sample of pruned trials that were trained to their end.

The sample is drawn at random, without repetition, from all trials that the pruner has ended. How many of all of them
would have been better than the best trial is a property of this study that the sample bounds exactly: the bound is the
largest number with which so few or fewer in the sample would still have a probability of 5 % (the hypergeometric
distribution; the interval of Clopper and Pearson is that of an endless population).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.core.formatting import number, plain
from hpo.execution.audit import AUDITS, prunable
from hpo.storage.snapshot import AUDIT, Results

CONFIDENCE = 0.95

Found = Mapping[str, Any]


def take_audit(study: optuna.Study, results: Results, name: str, runs: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Store what an audit shows in the study that is audited.

    Args:
        study: The study that is audited.
        results: A snapshot of it, with a best trial.
        name: Name of the audit's own study.
        runs: The sample, each trained to its end, or ended by another cause.

    Returns:
        - `study`, `metric`, `trials` (of the search, that had ended), `best` (the best value of the search),
          `best_trial`, `pruned` (how many the sample is of), `completed` (trials that the search trained to their end);
        - `audited`: of each run its `trial` in the search, its `value` or None, and its `state`;
        - `beaten`: how many are better than the best; `untold`: how many ended without
          a value for another cause than that they diverged, and might have been;
        - `repeated`: how many had the values again that the search had when it pruned them;
        - `at_most`: how many of all pruned trials are better, at most, with the probability `confidence`;
        - `passed`: how many of the completed trials one of the sample is better than, in the mean;
        - `best_audited`: its trial in the search; `gain`: how much better it is than the best, below 0 if it is worse.
    """
    best = results.best
    assert best is not None
    assert best.value is not None
    sign = 1 if results.direction == "maximize" else -1
    completed = [sign * (t.value or 0.0) for t in results.complete if "duplicate_of" not in t.user_attrs]
    values = {run.user_attrs[AUDITS]: sign * run.value for run in runs if run.value is not None and _complete(run)}
    untold = sum(not _complete(run) and run.user_attrs.get("reason") != "diverged" for run in runs)
    beaten, pruned = sum(value > sign * best.value for value in values.values()), len(prunable(results))
    first = max(values, key=lambda trial: values[trial], default=None)
    found = {
        "study": name,
        "metric": results.metric,
        "trials": sum(trial.state.is_finished() for trial in results.trials),
        "best": best.value,
        "best_trial": best.number,
        "pruned": pruned,
        "completed": len(completed),
        "audited": [_described(run) for run in runs],
        "beaten": beaten,
        "untold": untold,
        "repeated": sum(_repeats(run, results) for run in runs),
        "at_most": at_most(pruned, len(runs), beaten + untold),
        "confidence": CONFIDENCE,
        "passed": float(np.mean([sum(v > c for c in completed) for v in values.values()])) if values else None,
        "best_audited": first,
        "gain": None if first is None else values[first] - sign * best.value,
    }
    study.set_user_attr(AUDIT, found)
    return found


def at_most(population: int, sample: int, seen: int) -> int:
    """Return the upper bound, with `CONFIDENCE`, of how many of a population have a property, as `seen` of a sample do.

    Args:
        population: Its size.
        sample: Size of the sample, which is drawn without repetition.
        seen: How many of the sample have the property.
    """
    from scipy.stats import hypergeom

    def too_unlikely(truth: int) -> bool:
        return bool(hypergeom.cdf(seen, population, truth, sample) <= 1 - CONFIDENCE)

    most = population - (sample - seen)  # the others of the sample lack the property
    return seen + bisect_left(range(seen, most + 1), True, key=too_unlikely) - 1


def _complete(run: FrozenTrial) -> bool:
    return run.state == TrialState.COMPLETE


def _repeats(run: FrozenTrial, results: Results) -> bool:
    before = results.trials[run.user_attrs[AUDITS]].intermediate_values
    return bool(before.items() <= run.intermediate_values.items())


def _described(run: FrozenTrial) -> dict[str, Any]:
    value = run.value if _complete(run) else None
    return {
        "trial": run.user_attrs[AUDITS],
        "value": value,
        "state": str(run.user_attrs.get("reason") or run.state.name),
    }


# ---------------------------------------------------------------- in words


def sentences(found: Found) -> list[str]:
    """Return what an audit showed, in texts of a sentence or two, without a full stop at the end."""
    count, pruned, metric = len(found["audited"]), found["pruned"], plain(str(found.get("metric") or "value"))
    whole = count == pruned
    of = f"all {pruned} trials" if whole else f"{count} of the {pruned} trials, drawn at random,"
    texts = [
        f"Audit of the pruner, when {found['trials']} trials had ended: {of} that it had ended were trained to their "
        f"end. {_count(found['beaten'])} better than the best (trial {found['best_trial']}, {metric} "
        f"{number(found['best'])}){'' if whole and not found['untold'] else _bound(found)}"
    ]
    if found["untold"]:
        texts.append(
            f"{found['untold']} of them did not complete. Whether they would be better cannot be told: the bound has "
            "them as better"
        )
    if other := count - found["repeated"]:
        texts.append(
            f"{other} of them scored otherwise than when the search pruned them: an objective draws without a seed, or "
            "versions or the device have changed. They are other runs of the same configurations"
        )
    if found["passed"] is not None:
        texts.append(_loss(found, metric))
    texts.append("What the sampler would have drawn, had it seen these values, cannot be told")
    return texts


def _count(beaten: int) -> str:
    return "None is" if not beaten else f"{beaten} {'is' if beaten == 1 else 'are'}"


def _bound(found: Found) -> str:
    share = found["at_most"] / found["pruned"]
    return (
        f"; of all {found['pruned']}, at most {found['at_most']} ({share:.0%}) would be, with "
        f"{found['confidence']:.0%} confidence"
    )


def _loss(found: Found, metric: str) -> str:
    """Return how far in rank and in score the pruned trials were from what they were pruned for."""
    completed = found["completed"]
    rank = (
        f"In the mean, one of them is better than {number(float(found['passed']), 2)} of the {completed} "
        f"trial{'s' * (completed != 1)} that the search trained to the end"
    )
    gain = found["gain"]
    way = "better than" if gain > 0 else "worse than" if gain < 0 else "as good as"
    by = f"{number(abs(gain), 2)} {way}" if gain else way
    text = f"{rank}. The best of them, trial {found['best_audited']}, is {by} the search's best"
    return text + ("; of two single runs that may be chance" if gain > 0 else "")
