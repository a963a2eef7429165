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

import numpy as np
import optuna
import paired
import prompted
import pytest
import sacrebleu

from hpo.analysis.decoding import in_words
from hpo.tasks.metrics import of_generated_text

Call = Callable[..., tuple[int, str]]
SPACE = {"learning_rate": [2e-4, 1e-2], "batch_size": 8, "epochs": 2}
STUDIES: dict[str, Callable[..., dict[str, Any]]] = {"causal_lm": prompted.study, "seq2seq": paired.study}

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module", params=STUDIES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the task and the folder of a study that has run and was exported; of seq2seq one of adapters."""
    folder, task = tmp_path_factory.mktemp("finished"), request.param
    space = SPACE | ({"lora_rank": 4} if task == "seq2seq" else {})
    generate: dict[str, Any] = {"rows": 11, "max_new_tokens": 7}
    generate |= {"num_beams": [2, 1], "length_penalty": [-4.0, 4.0]} if task == "seq2seq" else {}
    criteria = {"second_metric": "chrf", "limits": {"bleu": {"least": 0}}} if task == "seq2seq" else {}
    settings: dict[str, Any] = {"name": "writes", "trials": 2, "space": space, "slots": 2, "fold": True, **criteria}
    study = STUDIES[task](folder, generate=generate, **settings)
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


def test_a_score_of_generated_text_forms_a_front_with_the_metric(finished: tuple[str, Path], there: Call) -> None:
    task, folder = finished
    front = json.loads(there("show", "writes", "--json")[1]).get("front")
    if task == "causal_lm":  # asks for none
        assert front is None
        return
    trials = optuna.load_study(study_name="writes", storage=f"sqlite:///{folder}/hpo.db").trials
    points = {trial.number: (trial.value, -trial.user_attrs["metrics"]["chrf"]) for trial in trials}
    undominated = {
        number
        for number, point in points.items()
        if not any(other != point and all(np.array(other) <= point) for other in points.values())
    }
    assert {each["number"] for each in front} == undominated
    assert all((folder / "runs" / "writes" / "trials" / str(number)).is_dir() for number in undominated)
    assert "bleu at least 0" in (folder / "runs" / "writes" / "report.html").read_text()


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
    chosen = choices(there)[0]["chosen"] if task == "seq2seq" else {"num_beams": 1, "length_penalty": 1.0}
    assert (settings["num_beams"], settings["length_penalty"]) == (chosen["num_beams"], chosen["length_penalty"])


def choices(there: Call) -> list[dict[str, Any]]:
    return list(json.loads(there("show", "writes", "--json")[1])["verdict"]["decoding"])


def test_each_model_decodes_as_is_best_for_it_on_the_validation_split(finished: tuple[str, Path], there: Call) -> None:
    task, folder = finished
    found = choices(there)
    if task != "seq2seq":
        assert found == []  # there is one way
        return
    look = json.loads(there("show", "writes", "--json")[1])["verdict"]
    assert [each["trial"] for each in found] == list(dict.fromkeys([look["best"]["number"], 0]))
    ways = [(2, -4.0), (2, 4.0), (1, 1.0)]
    for each in found:
        assert [(way["num_beams"], way["length_penalty"]) for way in each["tried"]] == ways
        assert (each["metric"], each["rows"]) == ("chrf", 11)
        assert each["chosen"]["score"] == max(way["score"] for way in each["tried"])
        assert len({way["score"] for way in each["tried"]}) > 1
        assert each["seconds"] == pytest.approx(sum(way["seconds"] for way in each["tried"]), abs=1e-3)
    trial = optuna.load_study(study_name="writes", storage=f"sqlite:///{folder}/hpo.db").trials[found[0]["trial"]]
    assert trial.user_attrs["metrics"]["chrf"] == pytest.approx(found[0]["tried"][0]["score"])  # the first way
    printed = " ".join(there("show", "writes")[1].split())
    assert f"Trial {found[0]['trial']} decodes with num_beams" in printed
    assert "the model untuned decodes in that way too" not in printed or "The model untuned" in printed
    assert f"Decoding of trial {found[0]['trial']}, on 11 validation examples" in printed
    for page in (folder / "exported" / "README.md", folder / "runs" / "writes" / "report.html"):
        assert f"Decoding of trial {found[0]['trial']}, on 11 validation examples" in page.read_text()


def test_what_was_chosen_is_not_computed_again(
    finished: tuple[str, Path], there: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = choices(there)
    monkeypatch.setattr("hpo.finetune.generation.generated", lambda *_: pytest.fail("it generates again"))
    code, _ = there("run", "writes.yaml")
    assert code == 0
    assert choices(there) == before


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


def test_a_confirmation_scores_what_its_runs_write(finished: tuple[str, Path], there: Call) -> None:
    task, folder = finished
    if task != "seq2seq":
        return
    code, printed = there("confirm", "writes", "--top", 1, "--seeds", 3)
    assert code == 0, printed
    assert "Generated text of these runs, on 30 test examples" in printed
    confirmation = json.loads(there("show", "writes", "--json")[1])["confirmation"]
    found, expected = confirmation["generated"], [row["target"] for row in written(folder, 0, "test")]
    assert list(found["metrics"]) == of_generated_text(task)
    chosen = {each["trial"]: in_words(each["chosen"]) for each in choices(there)}
    scores, outputs = [], folder / "runs" / "writes.confirm" / "outputs"
    for each, of_text in zip(confirmation["configurations"], found["metrics"]["chrf"], strict=True):
        files = [next(outputs.glob(f"{run}-*.json")) for run in each["runs"]]
        texts = [json.loads(file.read_text())["texts"] for file in files]
        scores.append([sacrebleu.corpus_chrf(text, [expected]).score for text in texts])
        assert of_text["mean"] == pytest.approx(np.mean(scores[-1]))
        assert found["decoding"][each["name"]] == chosen.get(each["trial"], next(iter(chosen.values())))
    compared = found["metrics"]["chrf"][0]["to_default"]
    assert compared["difference"] == pytest.approx(np.mean(scores[0]) - np.mean(scores[1]))
    assert "untold" in compared or compared["low"] < compared["difference"] < compared["high"]


# ---------------------------------------------------------------- bad input

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a score of generated text": ("seq2seq", {"metric": "rougeL"}, "'rougeL' is a score of generated text"),
    "a limit": ("seq2seq", {"limits": {"bleu": 9}}, "'bleu' is a score of generated text, and the study"),
    "another task": ("auto", {"generate": {}}, "is for tasks whose models generate text (causal_lm, seq2seq)"),
    "an unknown key": ("seq2seq", {"generate": {"beams": 4}}, "generate.beams: is not a key"),
    "no rows": ("seq2seq", {"generate": {"rows": 0}}, "generate.rows"),
    "an unread key": ("seq2seq", {"generate": {"length_penalty": 2.0}}, "is read with two beams or more"),
    "a choice by no score": ("seq2seq", {"generate": {"num_beams": [1, 2], "metric": "rouge_l"}}, "mean rougeL"),
    "a choice of one": ("seq2seq", {"generate": {"metric": "bleu"}}, "chooses between several num_beams"),
    "no beams": ("seq2seq", {"generate": {"num_beams": []}}, "generate.num_beams"),
    "penalties without beams": ("seq2seq", {"generate": {"length_penalty": [1.0, 2.0]}}, "read with two beams or more"),
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
