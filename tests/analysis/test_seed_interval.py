"""The interval over seeds and rows: its coverage in a simulation whose truth is known, and its parts.

`python tests/analysis/test_seed_interval.py` prints the table in `hpo/analysis/seed_interval.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from hpo.analysis import bootstrap
from hpo.analysis.seed_interval import FEWEST_SEEDS, interval
from hpo.tasks.classification.predictions import LabelPredictions

Array = np.ndarray[Any, Any]
POSITIVE = 0.4  # share of the rows that are positive


@dataclass(frozen=True)
class World:
    """What varies in a simulation: standard deviations on the scale of a probit.

    A run is right on a row if `level + row + own + seed + cell > 0`, with a draw of each per row, per configuration
    and row, per run, and per run and row.
    """

    row: float
    own: float
    seed: float
    cell: float
    metric: str = "accuracy"
    levels: tuple[float, float] = (1.2, 1.0)

    def models(self, rng: np.random.Generator, seeds: int, rows: int) -> list[LabelPredictions]:
        """Return the outputs of the runs of the first configuration, then those of the second."""
        targets, common = (rng.random(rows) < POSITIVE).astype(int), rng.normal(0, self.row, rows)
        found = []
        for level in self.levels:
            own = rng.normal(0, self.own, rows)
            for seed in rng.normal(0, self.seed, seeds):
                right = level + common + own + seed + rng.normal(0, self.cell, rows) > 0
                logits = np.eye(2)[np.where(right, targets, 1 - targets)]
                found.append(LabelPredictions("single_label", targets, logits))
        return found

    def truth(self) -> float:
        """Return the difference of the expected scores, over all seeds and all rows."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        spread = math.sqrt(self.row**2 + self.own**2 + self.cell**2)
        scores = []
        for level in self.levels:
            right = scipy.stats.norm.cdf((level + self.seed * nodes) / spread)
            if self.metric == "f1_binary":
                right = 2 * POSITIVE * right / (2 * POSITIVE * right + 1 - right)
            scores.append(float(weights @ right / weights.sum()))
        return scores[0] - scores[1]


WORLDS = {
    "seeds differ most": World(1.0, 0.1, 0.2, 0.5),
    "rows differ most": World(1.0, 0.5, 0.01, 0.4),
    "both": World(1.0, 0.3, 0.05, 0.4),
    "neither": World(0.5, 0.0, 0.0, 1.0),
    "both, f1_binary": World(1.0, 0.3, 0.1, 0.4, "f1_binary"),
}


def difference(world: World, models: list[LabelPredictions], seeds: int) -> tuple[Array, Array]:
    """Return the differences of the runs [S], and those on resamples [R, S]."""
    scores = np.array([bootstrap.score(world.metric, model) for model in models])
    drawn = bootstrap.resampled(world.metric, models)
    return scores[:seeds] - scores[seeds:], drawn[:, :seeds] - drawn[:, seeds:]


def coverage(world: World, seeds: int, rows: int, times: int, *, with_rows: bool = True) -> float:
    """Return the share of simulated confirmations whose interval holds the truth."""
    rng, truth, held = np.random.default_rng(1), world.truth(), 0
    for _ in range(times):
        scores, drawn = difference(world, world.models(rng, seeds, rows), seeds)
        found = interval(scores, drawn if with_rows else None)
        held += not isinstance(found, str) and found[0] <= truth <= found[1]
    return held / times


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 150)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("name", WORLDS)
def test_it_holds_the_truth_as_often_as_it_says(name: str) -> None:
    """Of 200 simulations; the standard error is 1.5 %. The table of 1,000 is in the module's docstring."""
    assert 0.90 <= coverage(WORLDS[name], 5, 150, 200) <= 0.99


@pytest.mark.usefixtures("few_resamples")
def test_an_interval_over_seeds_alone_does_not() -> None:
    assert coverage(WORLDS["rows differ most"], 5, 150, 200, with_rows=False) < 0.87


def test_the_truth_of_the_simulation_is_what_it_tends_to() -> None:
    for world in WORLDS.values():
        models = world.models(np.random.default_rng(0), 60, 20_000)
        scores = np.array([bootstrap.score(world.metric, model) for model in models])
        assert scores[:60].mean() - scores[60:].mean() == pytest.approx(world.truth(), abs=0.02)


def test_it_is_the_t_interval_where_the_rows_add_nothing() -> None:
    scores = np.array([0.1, 0.2, 0.4, 0.15])
    drawn = np.random.default_rng(0).normal(size=(500, 1)) * np.array([[1.0, -1.0, 1.0, -1.0]])  # covariance below 0
    expected = scipy.stats.t.interval(0.95, 3, scores.mean(), scores.std(ddof=1) / 2)
    assert interval(scores, drawn) == pytest.approx(expected)
    assert interval(scores) == pytest.approx(expected)


def test_it_is_the_normal_interval_of_the_rows_where_all_runs_agree() -> None:
    drawn = np.random.default_rng(0).normal(0.1, 0.02, size=(4000, 1)).repeat(3, axis=1)
    low, high = interval(np.full(3, 0.1), drawn)  # type: ignore[misc]
    assert (low, high) == pytest.approx((0.1 - 1.96 * 0.02, 0.1 + 1.96 * 0.02), abs=2e-3)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.floats(0, 1), st.floats(0.5, 3))
def test_rows_and_confidence_only_widen_it_and_it_moves_with_the_scores(
    values: list[float], row: float, shift: float
) -> None:
    scores = np.array(values)
    drawn = row * np.random.default_rng(0).normal(size=(100, 1)).repeat(len(scores), axis=1)
    found, wide = interval(scores, drawn, 0.9), interval(scores, drawn, 0.99)
    if isinstance(found, str) or isinstance(wide, str):
        assert np.ptp(scores) < 1e-6
        return
    assert wide[0] < found[0] < scores.mean() < found[1] < wide[1]
    moved = interval(scores + shift, drawn + shift, 0.9)
    assert moved == pytest.approx((found[0] + shift, found[1] + shift), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "drawn", "reason"),
    [
        ([0.1] * (FEWEST_SEEDS - 1), None, "there are 2 runs of each configuration, and it needs 3"),
        ([0.1] * 4, None, "every run gives the same"),
        ([0.1, 0.2, 0.3], [[math.nan] * 3] * 8 + [[0.1, 0.2, 0.3]] * 92, "8 of 100 resamples"),
    ],
)
def test_where_nothing_can_be_told_the_reason_is_returned(scores: list[float], drawn: Any, reason: str) -> None:
    found = interval(np.array(scores), None if drawn is None else np.array(drawn))
    assert isinstance(found, str)
    assert reason in found


if __name__ == "__main__":
    bootstrap.RESAMPLES = 300
    for rows in (200, 1000):
        for name, world in WORLDS.items():
            cells = [f"{coverage(world, seeds, rows, 1000):.1%}" for seeds in (3, 5, 10)]
            print(f"    | {rows} | {name} | {' | '.join(cells)} |", flush=True)
