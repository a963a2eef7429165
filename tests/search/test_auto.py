from __future__ import annotations

import math
from typing import Any

import pytest

from hpo.search import auto
from hpo.search.auto import Choice, choose, wave_of
from hpo.search.pruners import make

TPE = {"name": "tpe", "n_startup_trials": 4}


@pytest.mark.parametrize(
    ("sampler", "pruner", "round_size", "trials", "points", "expected"),
    [
        ("auto", "auto", None, 24, math.inf, Choice("cross_entropy", "two_rungs", 24)),
        ("auto", "auto", None, 200, math.inf, Choice("cross_entropy", "two_rungs", 64)),
        ("auto", "auto", 16, 24, math.inf, Choice("cross_entropy", "two_rungs", 16)),
        ({"name": "auto"}, {"name": "auto"}, None, 17, 18, Choice("cross_entropy", "two_rungs", 17)),
        ("auto", "auto", None, 16, math.inf, Choice("tpe", "median", None)),
        ("auto", "auto", None, 24, 24, Choice("grid", "two_rungs", 24)),
        ("auto", "auto", None, 6, 6, Choice("grid", "median", None)),
        ("auto", "asha", None, 24, math.inf, Choice("tpe", "asha", None)),
        ("auto", "asha", 12, 24, 20, Choice("grid", "asha", 12)),
        (TPE, "auto", None, 24, math.inf, Choice(TPE, "two_rungs", None)),
        (TPE, "auto", 12, 24, math.inf, Choice(TPE, "two_rungs", 12)),
        (TPE, "auto", None, 16, math.inf, Choice(TPE, "median", None)),
    ],
)
def test_what_is_chosen(
    sampler: Any, pruner: Any, round_size: int | None, trials: int, points: float, expected: Choice
) -> None:
    assert choose(sampler, pruner, round_size, trials, points) == expected


@pytest.mark.parametrize(
    ("sampler", "round_size", "wave"),
    [("cross_entropy", 24, 12), ("cross_entropy", 9, 5), ("cross_entropy", None, None), ("tpe", 24, None)],
)
def test_the_cross_entropy_method_draws_a_round_in_two_waves(sampler: str, round_size: int, wave: int) -> None:
    assert wave_of(sampler, round_size) == wave


@pytest.mark.parametrize(
    ("choice", "trials", "segment", "horizon", "expected"),
    [
        (
            Choice("cross_entropy", "two_rungs", 24),
            24,
            100,
            40_000,
            "auto: sampler cross_entropy, pruner two_rungs, rounds of 24 in waves of 12; of 24 trials 6 go on after "
            "1,000 examples and 2 after 4,000",
        ),
        (
            Choice("cross_entropy", "two_rungs", 24),
            24,
            5000,
            40_000,
            "auto: sampler cross_entropy, pruner two_rungs, rounds of 24 in waves of 12; of 24 trials 6 go on after "
            "5,000 examples and 2 after 20,000. The first is at 12% of the longest training; evaluations are too far "
            "apart for 2.5%, where it costs less: see evaluations_per_epoch",
        ),
        (
            Choice("tpe", "two_rungs", None),
            17,
            1,
            None,
            "auto: sampler tpe, pruner two_rungs; of 17 trials 5 go on after 1 reports and 2 after 4",
        ),
        (Choice("tpe", "median", None), 6, 1, None, "auto: sampler tpe, pruner median"),
    ],
)
def test_the_note_says_what_was_chosen(
    choice: Choice, trials: int, segment: int, horizon: int | None, expected: str
) -> None:
    built = make(str(choice.pruner), {}, segment, horizon)
    assert auto.note(choice.sampler, choice.pruner, choice.round_size, trials, built) == expected
