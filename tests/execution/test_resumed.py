"""Interrupted studies of real models go on from their checkpoints: nothing is trained or scored twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paired
import pytest
import tiny
from interrupted import Interrupter, told

from hpo.config import study_spec
from hpo.execution import run_study
from hpo.finetune import generation

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


@pytest.mark.parametrize(("timeout", "evaluations"), [(False, 1), (True, 2)])
def test_what_was_stopped_while_it_generated_is_generated_at_resume(
    timeout: bool, evaluations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is not trained again, and a timeout is not taken for a signal."""
    monkeypatch.chdir(tmp_path)
    space = {"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": 16, "epochs": 1}
    generate = {"rows": 5, "max_new_tokens": 6}
    keys: dict[str, Any] = {"trials": 2, "slots": 2, "evaluations_per_epoch": evaluations}
    raw = paired.study(tmp_path, space=space, generate=generate, **keys)
    study = study_spec.build(raw, "test", tmp_path)
    undisturbed = run_study.run(study, "sqlite:///whole.db", found := Interrupter()).study
    stopping, tokens = generation._Stopping.__call__, []

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        tokens.append(len(tokens))
        if len(tokens) == 2 and timeout:
            self._request.deadline = 0.0
        elif len(tokens) == 2:
            self._request.set()
        return stopping(self, *args, **kwargs)

    monkeypatch.setattr(generation._Stopping, "__call__", stop)
    stoppable = study_spec.build(raw | ({"timeout": 1e6} if timeout else {}), "test", tmp_path)
    watch, rest = Interrupter(), Interrupter()
    if timeout:
        stopped = run_study.run(stoppable, "sqlite:///parts.db", watch).stopped
        assert stopped is not None
        assert "the time is up" in stopped
    else:
        with pytest.raises(KeyboardInterrupt):
            run_study.run(stoppable, "sqlite:///parts.db", watch)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    gone_on = run_study.run(study, "sqlite:///parts.db", rest).study
    assert told(gone_on) == told(undisturbed)
    for one, other in zip(gone_on.trials, undisturbed.trials, strict=True):
        assert one.user_attrs["metrics"] == other.user_attrs["metrics"]
    assert sorted(watch.evaluations + rest.evaluations) == sorted(found.evaluations)
    assert not [note for note in rest.notes if "begins anew" in note]
