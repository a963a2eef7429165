"""Interrupted studies of real models go on from their checkpoints: nothing is trained or scored twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from interrupted import Interrupter, told

from hpo.config import study_spec
from hpo.execution import run_study

LORA = {"lora_rank": [1, 2], "batch_size": [8, 16], "epochs": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 1},
        {"slots": 2},
        {"slots": 2, "fold": True},
        {"slots": 2, "fold": True, "space": LORA},
        {"slots": 2, "round_size": 4, "pruner": {"name": "asha", "reduction_factor": 2}},
    ],
    ids=["one by one", "side by side", "folded", "adapters", "in rounds"],
)
def test_an_interrupted_study_of_a_real_model_evaluates_nothing_twice(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_spec.build(tiny.study(tmp_path, evaluations_per_epoch=2, trials=3, **changes), "test", tmp_path)
    undisturbed, watch = run_study.run(study, "sqlite:///whole.db", found := Interrupter()).study, Interrupter(3)
    with pytest.raises(KeyboardInterrupt):
        run_study.run(study, "sqlite:///parts.db", watch)
    rest = Interrupter()
    gone_on = run_study.run(study, "sqlite:///parts.db", rest).study
    assert told(gone_on) == told(undisturbed)
    assert sorted(watch.evaluations + rest.evaluations) == sorted(found.evaluations)
    assert not [note for note in rest.notes if "begins anew" in note]
