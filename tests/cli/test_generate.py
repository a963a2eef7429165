"""Generated text end to end, through the command line: run, look, export, predict, the card's code; and bad input."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import paired
import prompted
import pytest

from hpo.tasks.metrics import of_generated_text

Call = Callable[..., tuple[int, str]]
SPACE = {"learning_rate": [2e-4, 1e-2], "batch_size": 8, "epochs": 2}
STUDIES: dict[str, Callable[..., dict[str, Any]]] = {"causal_lm": prompted.study, "seq2seq": paired.study}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)


@pytest.fixture(scope="module", params=STUDIES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the task and the folder of a study that has run and was exported; of seq2seq one of adapters."""
    folder, task = tmp_path_factory.mktemp("finished"), request.param
    space = SPACE | ({"lora_rank": 4} if task == "seq2seq" else {})
    generate = {"rows": 11, "max_new_tokens": 7, "num_beams": 2 if task == "seq2seq" else 1}
    study = STUDIES[task](folder, name="writes", trials=2, space=space, generate=generate, slots=2, fold=True)
    (folder / "writes.yaml").write_text(json.dumps(study))
    for command in (["run", "writes.yaml"], ["export", "writes", "-o", "exported"]):
        command = [sys.executable, "-m", "hpo.cli", *command]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return task, folder


@pytest.fixture
def there(finished: tuple[str, Path], call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(finished[1])
    return call


def test_every_trial_has_the_scores_and_the_seconds_of_what_it_wrote(finished: tuple[str, Path], there: Call) -> None:
    task, folder = finished
    trials = optuna.load_study(study_name="writes", storage=f"sqlite:///{folder}/hpo.db").trials
    for trial in trials:
        assert set(trial.user_attrs["metrics"]) == {"loss", *of_generated_text(task)}
        assert 0 < trial.user_attrs["generation_seconds"] < trial.user_attrs["seconds"]
    rows = list(csv.DictReader(there("trials", "writes", "--csv")[1].splitlines()))
    assert [float(row["metrics_chrf"]) for row in rows] == [trial.user_attrs["metrics"]["chrf"] for trial in trials]


def test_the_verdict_has_an_interval_of_each_score_and_ten_rows_side_by_side(
    finished: tuple[str, Path], there: Call
) -> None:
    task, folder = finished
    look = json.loads(there("show", "writes", "--json")[1])["verdict"]
    found = look["generated"]
    assert list(found["metrics"]) == of_generated_text(task)
    for each in found["metrics"].values():
        assert each["difference"] == each["scores"][0] - each["scores"][1]
        assert "untold" in each or each["low"] < each["high"]
    assert any(each["scores"][0] > 0 for each in found["metrics"].values())
    printed = there("show", "writes")[1]
    assert re.search(r"Generated text, on 30 test examples; each interval by itself", printed)
    assert re.search(r"chrf +[\d.e-]+ +[\d.e-]+ +[+-]", printed)
    assert len({sample["row"] for sample in found["samples"]}) == 10
    page = (folder / "runs" / "writes" / "report.html").read_text()
    assert "Generated text: 10 test rows" in page
    assert "of generated text" in page
    assert "<dt>Generating</dt>" in page
    for sample in found["samples"]:
        (row,) = (r for r in written(folder, look["best"]["number"], "test") if int(r["row"]) == sample["row"])
        assert sample["generated"][0] == row["predicted"]
        assert f'<td class="long text">{sample["expected"]}</td>' in page
    assert {row["predicted"] for row in written(folder, look["best"]["number"], "validation")} == {""}


def written(folder: Path, trial: int, split: str) -> list[dict[str, str]]:
    path = folder / "runs" / "writes" / "predictions" / f"trial_{trial}_{split}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_an_exported_model_writes_as_it_did_for_the_verdict(finished: tuple[str, Path], there: Call) -> None:
    task, folder = finished
    best = json.loads(there("show", "writes", "--json")[1])["verdict"]["best"]["number"]
    rows = written(folder, best, "test")
    column = "source" if task == "seq2seq" else "prompt"
    sources = [row[column] for row in rows]
    printed = there("predict", "exported", *sources)[1]
    found = [json.loads(line) for line in printed.splitlines()]
    assert [row["predicted"] for row in found] == [row["predicted"] for row in rows]
    assert there("predict", "writes", *sources)[1] == printed
    settings = json.loads((folder / "exported" / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 7


def test_the_code_of_the_card_writes_as_hpo_does(finished: tuple[str, Path], there: Call) -> None:
    task, folder = finished
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "exported" / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 10
    sources = ["word1 word2 word3", "word7"] if task == "seq2seq" else ["w1 w2 ?", "w7 ?"]
    found = []
    for source in sources:
        out = contextlib.redirect_stdout(printed := __import__("io").StringIO())
        with out:
            written_code = re.sub(r'"FOLDER", "[A-Z]+"', repr((str(folder / "exported"), source))[1:-1], code)
            exec(compile(written_code, "card", "exec"), {})
        found.append(printed.getvalue().removesuffix("\n"))
    predicted = [json.loads(line)["predicted"] for line in there("predict", "exported", *sources)[1].splitlines()]
    assert found == predicted


# ---------------------------------------------------------------- bad input

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a score of generated text": ("seq2seq", {"metric": "rougeL"}, "'rougeL' is a score of generated text"),
    "a limit": ("seq2seq", {"limits": {"bleu": 9}}, "'bleu' is a score of generated text"),
    "another task": ("auto", {"generate": {}}, "is for tasks whose models generate text (causal_lm, seq2seq)"),
    "an unknown key": ("seq2seq", {"generate": {"beams": 4}}, "generate.beams: is not a key"),
    "no rows": ("seq2seq", {"generate": {"rows": 0}}, "generate.rows"),
    "an unread key": ("seq2seq", {"generate": {"length_penalty": 2.0}}, "is read with two beams or more"),
    "shards": ("seq2seq", {"generate": {}, "shards": 2}, "a model that is divided (shards) does not generate"),
    "too long": ("causal_lm", {"generate": {"max_new_tokens": 60}}, "is more than the 64 positions of the model"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_generated_is_said_and_nothing_is_written(case: str, call: Call, tmp_path: Path) -> None:
    task, changes, says = BAD[case]
    study = STUDIES.get(task, paired.study)(tmp_path, **changes)
    (tmp_path / "bad.yaml").write_text(json.dumps(study | {"task": task}))
    code, printed = call("run", "bad.yaml")
    assert code == 2
    assert says in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "hpo.db").exists()
