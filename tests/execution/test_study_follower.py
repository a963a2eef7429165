from __future__ import annotations

from pathlib import Path

import optuna

from hpo.config import study_spec
from hpo.core.events import Silent
from hpo.execution.study_follower import StudyFollower, WorkerActivity
from hpo.finetune.data.batches import boundaries


def test_what_a_worker_does_is_read_from_its_log_and_from_this_run_alone(tmp_path: Path) -> None:
    written = tmp_path / "0.log"
    written.write_text('doing "an earlier run"\n')
    activity = WorkerActivity(written)
    assert activity.latest() is None
    with written.open("a") as log:
        log.write('doing "loading torch"\nnote "doing"\ndoing "reading \\"a\\"" seconds=15\n')
        log.write('trial 3 state=complete\ndoing "cut')
    assert activity.latest() == 'reading "a"'
    assert activity.latest() is None
    with written.open("a") as log:
        log.write(' no more"\n')
    assert activity.latest() == "cut no more"
    assert WorkerActivity(tmp_path / "none.log").latest() is None


def test_the_examples_of_a_trial_follow_from_where_it_was_scored(tmp_path: Path) -> None:
    space = {"learning_rate": [1e-4, 1e-3], "epochs": [2, 3]}
    raw = {"name": "s", "model": "m", "data": {"train": "t.csv"}, "space": space}
    follower = StudyFollower(study_spec.build(raw, "test", tmp_path), "sqlite:///none.db", Silent())
    for rows in (60, 61, 1000):
        for epochs in (2, 3):
            steps = boundaries(rows, 2, epochs)
            for count in range(1, len(steps) + 1):
                row = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING,
                    params={"epochs": epochs},
                    distributions={"epochs": optuna.distributions.CategoricalDistribution((2, 3))},
                    intermediate_values=dict.fromkeys(steps[:count], 0.5),
                )
                whole = follower._whole(row)
                assert whole is not None
                assert abs(whole - rows * epochs) <= epochs
    assert follower._whole(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)) is None
