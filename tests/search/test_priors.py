from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from hpo.search.cross_entropy import FEWEST
from hpo.search.priors import draw, draws_from_prior
from hpo.search.samplers import TrialSeededSampler
from hpo.space.parser import parse

SPACE = parse(
    {
        "lr": {"low": 1e-6, "high": 1e-2, "log": True, "prior": {"mean": 1e-4, "spread": 2}},
        "epochs": {"low": 1, "high": 10, "prior": {"mean": 3, "spread": 1}},
        "decay": {"low": 0.0, "high": 1.0, "prior": {"mean": 0.0, "spread": 0.1}},
        "schedule": {"values": ["linear", "cosine", "constant"], "prior": {"weights": [3, 1, 0]}},
        "warmup": {"low": 0.0, "high": 0.2},
    }
)


def drawn(name: str, count: int = 2000) -> Any:
    return np.array([draw(SPACE, seed)[name] for seed in range(count)])


def test_draws_have_the_mean_and_the_spread_of_the_prior() -> None:
    assert np.log10(drawn("lr")).mean() == pytest.approx(-4, abs=0.03)
    assert np.log10(drawn("lr")).std() == pytest.approx(np.log10(2), rel=0.05)
    assert drawn("epochs").mean() == pytest.approx(3, abs=0.1)
    assert drawn("epochs").std() == pytest.approx(1, rel=0.1)
    shares = [float(np.mean(drawn("schedule") == value)) for value in ("linear", "cosine", "constant")]
    assert shares == pytest.approx([0.75, 0.25, 0], abs=0.04)


def test_a_prior_at_an_end_of_the_range_does_not_pile_up_there() -> None:
    values = drawn("decay")
    assert values.min() >= 0
    assert np.mean(values == 0) < 0.01
    assert np.sqrt(np.mean(values**2)) == pytest.approx(0.1, rel=0.1)


def test_a_parameter_without_a_prior_is_left_to_the_sampler() -> None:
    assert set(draw(SPACE, 0)) == {"lr", "epochs", "decay", "schedule"}


@pytest.mark.parametrize(
    ("space", "number", "scored", "expected"),
    [
        (SPACE, 0, 0, True),
        (SPACE, 1, 0, False),
        (SPACE, 6, FEWEST - 1, True),
        (SPACE, 6, FEWEST, False),
        (parse({"x": [1, 2]}), 0, 0, False),
    ],
)
def test_every_other_trial_is_drawn_from_it_until_trials_have_scores(
    space: Any, number: int, scored: int, expected: bool
) -> None:
    assert draws_from_prior(space, number, scored) == expected


@pytest.mark.parametrize("name", ["random", "tpe", "cross_entropy"])
def test_no_part_of_the_space_is_excluded_and_draws_repeat(name: str) -> None:
    def rates() -> list[float]:
        study = optuna.create_study(sampler=TrialSeededSampler(name, {}, SPACE, 1))
        return [SPACE.suggest(study.ask())["lr"] for _ in range(200)]

    found = np.log10(rates())
    near = np.abs(found + 4) < 0.6  # two standard deviations
    assert near[::2].mean() > 0.85  # from the prior
    assert near[1::2].mean() == pytest.approx(1.2 / 4, abs=0.15)  # from the whole range
    assert (10**found).tolist() == pytest.approx(rates())
