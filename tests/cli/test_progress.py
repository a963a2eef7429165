from __future__ import annotations

import time

import pytest
from optuna.trial import TrialState
from views import trial

from hpo.cli.progress import Progress
from hpo.core.trainer import Evaluation


def test_time_left_counts_trials_that_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress.of("s", "accuracy", "maximize", 9, [])
    assert progress.left is None
    for number in range(4):
        progress.start(number, {})
    clock[0] = 10.0
    assert progress.end(trial(0)) == 10.0  # as measured here, not the 12 of its own dates
    assert progress.left == 5 * 10 / 4  # the three others have run for as long
    for number in range(1, 9):
        progress.end(trial(number))
    assert progress.left == 0.0


def test_time_left_is_known_from_the_first_step_and_moves_with_every_further_one(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 6, [])
    for number in range(2):
        progress.start(number, {})
    progress.measure({0: (0, 1000), 1: (0, 1000)})
    clock[0] = 5.0
    progress.measure({0: (0, 1000), 1: (0, 1000)})
    assert progress.left is None
    assert progress.speed is None
    clock[0] = 10.0
    progress.measure({0: (100, 1000), 1: (100, 1000)})
    assert progress.speed == pytest.approx(20)
    assert progress.left == pytest.approx((2 * 900 + 4 * 1000) / 20)
    clock[0] = 20.0
    progress.measure({0: (200, 1000), 1: (200, 1000)})
    assert progress.left == pytest.approx((2 * 800 + 4 * 1000) / 20)


def test_time_left_learns_from_trials_that_were_pruned(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 11, [])
    progress.start(0, {})
    progress.measure({0: (0, 1000)})
    clock[0] = 10.0
    progress.measure({0: (100, 1000)})
    whole = progress.left
    assert whole == pytest.approx((900 + 10 * 1000) / 10)
    progress.end(trial(0, 0.5, TrialState.PRUNED))
    assert progress.left == pytest.approx(10 * 100 / 10)


def test_the_last_trial_takes_the_time_of_one_slot(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 4, [])
    for number in range(4):
        progress.start(number, {})
    progress.measure(dict.fromkeys(range(4), (0, 1000)))
    clock[0] = 10.0
    progress.measure({0: (500, 1000)} | dict.fromkeys(range(1, 4), (1000, 1000)))
    for number in range(1, 4):
        progress.end(trial(number))
    assert progress.left == pytest.approx(500 / (3500 / 40))


def test_what_a_trial_had_seen_before_it_came_here_counts_for_no_speed(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 1, [])
    progress.start(0, {})
    progress.measure({0: (900, 1000)})
    clock[0] = 10.0
    progress.measure({0: (910, 1000)})
    assert progress.speed == pytest.approx(1)
    assert progress.left == pytest.approx(90)


def test_a_trial_that_pauses_is_not_measured_meanwhile(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 1, [])
    progress.start(0, {})
    progress.measure({0: (0, 1000)})
    clock[0] = 10.0
    progress.measure({0: (100, 1000)})
    progress.measure({})
    assert progress.speed is None
    clock[0] = 500.0
    progress.measure({0: (100, 1000)})
    clock[0] = 510.0
    progress.measure({0: (200, 1000)})
    assert progress.speed == pytest.approx(10)
    assert progress.left == pytest.approx(80)


def test_a_trial_that_begins_anew_is_measured_anew(clock: list[float]) -> None:
    progress = Progress.of("s", "accuracy", "maximize", 1, [])
    progress.start(0, {})
    for now, seen in ((0.0, 500), (10.0, 600), (20.0, 0), (30.0, 100)):
        clock[0] = now
        progress.measure({0: (seen, 1000)})
        if seen == 600:
            progress.start(0, {})  # put back, and loaded again from its seeds
    assert progress.speed == pytest.approx(10)


def test_without_examples_the_time_that_a_trial_has_run_is_taken_off_what_is_left(clock: list[float]) -> None:
    progress = Progress.of("s", "value", "maximize", 3, [])
    progress.start(0, {})
    progress.evaluate(0, Evaluation(0.5))
    clock[0] = 10.0
    progress.end(trial(0))
    progress.start(1, {})
    assert progress.left == pytest.approx(20)
    clock[0] = 14.0
    assert progress.left == pytest.approx(16)
    progress.start(2, {})
    clock[0] = 40.0
    assert progress.left is None  # both run for longer than any has
