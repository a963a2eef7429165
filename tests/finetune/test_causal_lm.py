"""Causal language models: a study scores as transformers does, and runs from its file to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chats
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from hpo.analysis import preflight
from hpo.config import study_spec
from hpo.config.schema import Decoding
from hpo.execution import run_study, trial_arrays
from hpo.finetune.folded import program_builder

TEXT = {"train": "text.jsonl", "form": "text"}


def built(folder: Path, **overrides: Any) -> study_spec.StudySpec:
    documents = [{"text": " ".join(f"w{(i * j) % 40}" for j in range(2 + i % 50))} for i in range(2, 80)]
    chats.write(folder / "text.jsonl", documents)
    return study_spec.build(chats.study(folder, **overrides), "test", folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("data", [{}, {"trained": "all"}, TEXT], ids=["completions", "all", "text"])
@pytest.mark.parametrize("fold", [False, True])
def test_scores_are_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: dict[str, Any], fold: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0)  # rows of nearly one length are packed too
    array: Any = trial_arrays.open_array(built(tmp_path, kind=kind, data=data, fold=fold))
    setup = array.setup
    found = setup.predict(setup.model, "validation")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    rows = setup.task.encode(setup.data.splits["validation"], setup.data.keys, setup.tokenizer, setup.max_length)
    losses = np.zeros(len(found))
    right = np.zeros(len(found))
    for number, ids, labels in zip(rows.example, rows.inputs["input_ids"], rows.token_targets["labels"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor(np.array(ids))[None].long()).logits[0]
        targets = torch.tensor(np.array(labels)).long()
        losses[number] += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
        right[number] += int((logits.argmax(-1) == targets).sum())
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert found.right.tolist() == right.tolist()
    assert found.units.sum() == rows.units.sum() > 0


def test_a_study_runs_and_its_default_is_beaten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = built(tmp_path, metric="bits_per_byte")
    plan = preflight.check(study, "sqlite:///hpo.db")
    assert plan.facts["trained tokens"].startswith("16% of ")  # 4 of 24, 26 or 28 tokens of a row
    assert plan.examples[0].endswith("fine<|im_end|>]]\\n")
    assert plan.notes[0] == "the rows are read as conversations, from the column 'messages'"
    finished = run_study.run(study, "sqlite:///hpo.db").study
    values = [trial.value for trial in finished.trials]
    assert None not in values
    assert values[1] < values[0]
    assert (tmp_path / "runs" / "chats" / "trials" / "1" / "chat_template.jinja").read_text() == chats.CHATML


def test_a_tiny_model_overfits_eight_conversations_and_writes_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All splits are the same eight conversations: what was learned by heart is written."""
    monkeypatch.chdir(tmp_path)
    answers = ["w0 fine", "naïve", "w2 w3 w4", "w5", "fine w6", "w7 w7", "a w8", "w9 é"]
    path = chats.write(tmp_path / "eight.jsonl", [
        {"messages": chats.messages(f"a w{i}", answer)} for i, answer in enumerate(answers)
    ])  # fmt: skip
    space = {"learning_rate": [5e-3, 1e-2], "batch_size": 8, "epochs": 80, "warmup_ratio": 0.1}
    study = built(
        tmp_path,
        data={split: str(path) for split in ("train", "validation", "test")},
        space=space,
        generate={"max_new_tokens": 9},
        baseline=False,
        trials=1,
        evaluations_per_epoch=1,
    )
    finished = run_study.run(study, "sqlite:///hpo.db")
    array: Any = finished.array
    found = array.predictions_of(finished.folder / "trials" / "0", "test", decoding=Decoding(1, 1.0))
    assert list(found.generated) == list(found.expected) == answers
    assert found.losses.sum() / found.units.sum() < 0.6
