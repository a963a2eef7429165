"""Of many trials, TPE sees the better ones of all and the most recent others; of few, it sees all."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search import bounded_tpe
from hpo.search.bounded_tpe import BETTER, BoundedTpe, recent
from hpo.storage.criteria import CONSTRAINTS

SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}


def trial(number: int, draw: random.Random, complete: float = 0.7) -> FrozenTrial:
    """Return a trial that has completed or was pruned, some of them beyond a limit, some with equal values."""
    params = {"x": draw.random(), "y": draw.random()}
    value = round(params["x"] - (params["y"] - 0.4) ** 2, 2)
    pruned = draw.random() > complete
    curve = {step: draw.choice([value, math.nan]) for step in range(draw.randrange(4))} if pruned else {}
    made = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=value,
        params=params,
        distributions=SPACE,
        intermediate_values=curve,
        system_attrs={f"{CONSTRAINTS}limit": draw.choice([-1.0, 0.5])} if draw.random() < 0.1 else {},
    )
    made.number = number
    return made


def study(count: int, direction: str = "maximize", seed: int = 0, complete: float = 0.7) -> optuna.Study:
    made, draw = optuna.create_study(direction=direction), random.Random(seed)
    for number in range(count):
        made.add_trial(trial(number, draw, complete))
    return made


def drawn(study: optuna.Study, sampler: TPESampler) -> dict[str, Any]:
    study.sampler = sampler
    asked = study.ask()
    params = {name: asked.suggest_float(name, 0.0, 1.0) for name in SPACE}
    study.tell(asked, state=TrialState.FAIL)
    return params


@pytest.mark.parametrize("count", [5, 11, 60])
def test_up_to_the_bound_draws_are_those_of_optuna_to_the_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_tpe, "HISTORY", 60)
    for seed in range(3):
        theirs = drawn(study(count), TPESampler(seed=seed))
        assert drawn(study(count), BoundedTpe(seed=seed)) == theirs


def test_beyond_the_bound_draws_differ_from_optunas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_tpe, "HISTORY", 60)
    assert drawn(study(200), BoundedTpe(seed=1)) != drawn(study(200), TPESampler(seed=1))


@pytest.mark.parametrize("complete", [0.0, 0.05, 0.7])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_better_trials_are_those_that_tpe_takes_of_all(
    direction: str, complete: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_tpe, "HISTORY", 260)
    made = study(400, direction, complete=complete)
    trials = made.get_trials(deepcopy=False)
    kept = recent(made)
    assert kept is not None
    better, _ = _split_trials(made, trials, default_gamma(400))
    again, others = _split_trials(made, list(kept), default_gamma(260))
    assert len(better) == BETTER
    assert [each.number for each in again] == [each.number for each in better]
    best = {each.number for each in better}
    expected = [number for number in range(400) if number not in best][-(260 - BETTER) :]
    assert [each.number for each in others] == expected


def test_trials_that_have_not_ended_are_always_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_tpe, "HISTORY", 30)
    made = study(50)
    made.ask()
    kept = recent(made)
    assert kept is not None
    assert len(kept) == 31
    assert kept[-1].state == TrialState.RUNNING


def test_the_density_of_a_draw_has_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_tpe, "HISTORY", 60)
    seen: list[int] = []
    build = TPESampler._build_parzen_estimator

    def counted(self: Any, study: Any, space: Any, trials: Any, handle_below: bool) -> Any:
        seen.append(len(trials))
        return build(self, study, space, trials, handle_below)

    monkeypatch.setattr(TPESampler, "_build_parzen_estimator", counted)
    drawn(study(200), BoundedTpe(seed=1))
    assert [sum(pair) for pair in zip(seen[::2], seen[1::2], strict=True)] == [60] * (len(seen) // 2)
    assert seen
