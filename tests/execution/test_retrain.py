"""A published default that an earlier version pruned is trained to its end before the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from hpo.analysis.verdict_text import sentence
from hpo.cli import run_commands
from hpo.config import study_spec
from hpo.core.errors import DivergedError
from hpo.core.events import Silent
from hpo.finetune.array import FineTuneArray
from hpo.search.decisions import Decision, Judged
from hpo.search.trial_order import TrialOrder

SPACE = {  # in which the published default collapses, and the other trial learns
    "parameters": {"learning_rate": {"low": 3e-3, "high": 3.1e-3}, "batch_size": 8, "epochs": 8},
    "baseline": {"learning_rate": 1e-6},
}
URL = "sqlite:///hpo.db"


class Notes(Silent):
    def __init__(self) -> None:
        self.taken: list[str] = []

    def note(self, message: str) -> None:
        self.taken.append(message)


def run(tmp_path: Path, name: str, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """Run a study of the published default and one more trial; return its verdict and what was noted."""
    study = study_spec.build(tiny.study(tmp_path, name=name, trials=2, space=SPACE, **changes), "test", tmp_path)
    notes = Notes()
    return run_commands.run(study, URL, notes).json["test"], notes.taken


def prune_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune as earlier versions did."""
    monkeypatch.setattr("hpo.search.trial_order.is_baseline", lambda row: False)
    decisions = {0: Judged(Decision.PRUNE), 1: Judged(Decision.GO_ON)}
    monkeypatch.setattr(TrialOrder, "_by_optuna", lambda self, row: decisions[row.number])


@pytest.mark.parametrize("patience", [None, 12])
def test_a_default_that_was_pruned_is_trained_to_its_end_and_the_verdict_is_that_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, _ = run(tmp_path, "whole", patience=patience)
    with monkeypatch.context() as earlier:
        prune_the_default(earlier)
        earlier.setattr("hpo.cli.run_commands.lacks_weights", lambda trial, folder: False)
        before, _ = run(tmp_path, "pruned", patience=patience)
    assert "The published default (trial 0) ended without a value: there is no gain to tell" in sentence(before)
    after, notes = run(tmp_path, "pruned", patience=patience)
    assert any("trial 0, the published default, was pruned: it is trained again, to its end" in n for n in notes)
    assert after == whole
    assert after["baseline"]["number"] == 0
    again, notes = run(tmp_path, "pruned", patience=patience)
    assert again == whole
    assert not [note for note in notes if "trained again" in note]  # its weights are there


def test_a_verdict_waits_for_the_published_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as others:  # the default belongs to another process, which was stopped
        unfinished = TrialOrder.unfinished
        others.setattr(TrialOrder, "unfinished", lambda self: [row for row in unfinished(self) if row.number != 0])
        verdict, notes = run(tmp_path, "parts")
    assert verdict is None
    assert any("the published default has not ended, so the test split is not looked at" in note for note in notes)
    verdict, _ = run(tmp_path, "parts")
    assert verdict["baseline"]["number"] == 0


def test_a_default_that_diverges_on_its_way_leaves_a_verdict_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as earlier:
        prune_the_default(earlier)
        earlier.setattr("hpo.cli.run_commands.lacks_weights", lambda trial, folder: False)
        run(tmp_path, "pruned")
    monkeypatch.setattr(FineTuneArray, "advance", lambda self: {0: DivergedError("the loss is nan")})
    after, notes = run(tmp_path, "pruned")
    assert any("trial 0 does not come to its end (the loss is nan)" in note for note in notes)
    assert after["baseline"] is None
