"""What `sampler: auto` and `pruner: auto` stand for: named ones, by the budget, the space and the other settings.

The choice is stored when a study begins, so that it stays the same when the study goes on with another budget.
`benchmarks/search_quality.py` compares what is chosen here with what is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.pruners import BasePruner

from hpo.search.halving import TwoRungHalving
from hpo.search.plugins import name_and_arguments

AUTO = "auto"
CHOICE = "auto"
"""User attribute of a study: what was chosen for it, as `Choice.to_dict` returns it."""

FEWEST = 17
"""Trials from which two of a round are trained to their end. Of fewer it is one, and the median pruner finds more."""

MOST = 64
"""Trials of a round: a trial that waits at a rung keeps a checkpoint, and is compared with all others each time."""

Setting = str | Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """What is used in place of `auto`.

    Attributes:
        sampler: A key of `SAMPLERS`, or the study's own setting.
        pruner: A key of `PRUNERS`, or the study's own setting.
        round_size: Trials of a round; None runs without rounds.
    """

    sampler: Setting
    pruner: Setting
    round_size: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return asdict(self)


def is_auto(setting: Setting) -> bool:
    """Return whether a setting of the sampler or the pruner is `auto`."""
    return name_and_arguments(setting)[0] == AUTO


def choose(sampler: Setting, pruner: Setting, round_size: int | None, trials: int, points: float) -> Choice:
    """Return what is used in place of `auto`.

    - A space with no more points than there are trials is tried point by point.
    - Where both are `auto`, a round has up to `MOST` trials. It is drawn in two waves, the second one near the better
      third of the first, and halved at two rungs.
    - Fewer than `FEWEST` trials are drawn by TPE, and the worse half is pruned (`median`).
    - Where only one is `auto`: TPE, which learns from trials that any pruner has ended; halving without rounds, which
      is for trials that any sampler has drawn.

    Args:
        sampler: The study's setting.
        pruner: The study's setting.
        round_size: The study's setting.
        trials: Trials of the study.
        points: Points of its space; infinite if a parameter is continuous.
    """
    finite = points <= trials
    if is_auto(sampler) and is_auto(pruner) and trials >= FEWEST:
        return Choice("grid" if finite else "cross_entropy", "two_rungs", round_size or min(trials, MOST))
    drawn = ("grid" if finite else "tpe") if is_auto(sampler) else sampler
    halved = ("two_rungs" if trials >= FEWEST else "median") if is_auto(pruner) else pruner
    return Choice(drawn, halved, round_size)


def wave_of(sampler: Setting, round_size: int | None) -> int | None:
    """Return how many trials of a round are drawn together; None if all are.

    The cross-entropy method draws the second half of a round near the better third of the first half.
    """
    if round_size is None or name_and_arguments(sampler)[0] != "cross_entropy":
        return None
    return -(-round_size // 2)


def note(sampler: Setting, pruner: Setting, round_size: int | None, trials: int, built: BasePruner) -> str:
    """Return a sentence that says what was chosen.

    Args:
        sampler: What was chosen.
        pruner: What was chosen.
        round_size: What was chosen.
        trials: Trials of the study.
        built: The pruner that was built.
    """
    said = f"auto: sampler {name_and_arguments(sampler)[0]}, pruner {name_and_arguments(pruner)[0]}"
    if round_size is not None:
        said += f", rounds of {round_size}"
    if wave := wave_of(sampler, round_size):
        said += f" in waves of {wave}"
    if not isinstance(built, TwoRungHalving):
        return said
    rungs = built.rungs()
    reached = min(trials, round_size or trials)
    promoted = rungs.places(reached)
    unit = "reports" if built.horizon is None else "examples"
    said += f"; of {reached} trials {promoted} go on after {rungs.first:,} {unit}"
    said += f" and {rungs.places(promoted)} after {rungs.first * rungs.factor:,}"
    if built.horizon is not None and rungs.first * built.FIRST > 2 * built.horizon:
        share, could = rungs.first / built.horizon, 1 / built.FIRST
        said += (
            f". The first is at {share:.0%} of the longest training; evaluations are too far apart for {could:.1%}, "
            "where it costs less: see evaluations_per_epoch"
        )
    return said
