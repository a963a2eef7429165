"""Multiple choice end to end, through the command line: run, look, export, predict; and bad input."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import choices
import pytest

Call = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("own_folder")


def hpo(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "hpo.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a study that has run, with its output."""
    folder = tmp_path_factory.mktemp("finished")
    space = {"learning_rate": [3e-3, 1e-3], "batch_size": 8, "epochs": 3}
    (folder / "chosen.yaml").write_text(json.dumps(choices.study(folder, trials=2, space=space)))
    return folder, hpo(folder, "run", "chosen.yaml")


@pytest.fixture(scope="module")
def exported(finished: tuple[Path, str]) -> Path:
    with contextlib.chdir(finished[0]):
        hpo(finished[0], "export", "chosen", "-o", "exported")
    return finished[0] / "exported"


@pytest.fixture
def there(finished: tuple[Path, str], call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(finished[0])
    return call


# ---------------------------------------------------------------- running and looking


def test_run_says_a_verdict_beside_the_rules(finished: tuple[Path, str]) -> None:
    folder, out = finished
    assert re.search(r"On \d+ test examples, trial \d scores [\d.]+ \(accuracy\)", out)
    assert "Choosing the longest choice scores" in out
    assert re.search(r"Choosing number \d always scores", out)
    assert "By number of the right choice, from 0" in (folder / "runs" / "chosen" / "report.html").read_text()


def test_show_has_the_accuracy_by_number(there: Call) -> None:
    code, out = there("show", "chosen")
    assert code == 0
    assert re.search(r"right choice +rows +chosen +accuracy", out)


def test_the_predictions_are_written_beside_the_texts(finished: tuple[Path, str]) -> None:
    (path,) = (finished[0] / "runs" / "chosen" / "predictions").glob("*_0_test.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0])[:6] == ["row", "context", "question", "choices", "label", "predicted"]
    assert all({row["label"], row["predicted"]} <= set(json.loads(row["choices"])) for row in rows)


def test_check_marks_the_right_choices(there: Call) -> None:
    code, out = there("check", "chosen.yaml")
    assert code == 0
    assert re.search(r"choices +4 a row", out)
    assert re.search(r"-> choice \d, '[^']+', is RIGHT", " ".join(out.split()))


# ---------------------------------------------------------------- predicting


def test_an_exported_model_chooses(there: Call, exported: Path, tmp_path: Path) -> None:
    rows = choices.rows(12, seed=5)
    texts = [row[key] for row in rows[:2] for key in ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3")]
    code, printed = there("predict", exported, *texts)
    assert code == 0, printed
    found = [json.loads(line) for line in printed.splitlines()]
    assert [row[f"ending{row['predicted_choice']}"] for row in found] == [row["predicted"] for row in found]
    choices.write(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    printed = [there("predict", exported, "--file", tmp_path / name)[1] for name in ("rows.jsonl", "rows.csv")]
    answers = [[json.loads(line)["predicted_choice"] for line in each.splitlines()] for each in printed]
    assert answers[0] == answers[1]
    assert answers[0][:2] == [row["predicted_choice"] for row in found]
    assert sum(row["label"] == answer for row, answer in zip(rows, answers[0], strict=True)) > 6


def test_the_code_of_the_card_chooses_as_hpo_does(there: Call, exported: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) < 16
    rows, found = choices.rows(6, seed=6), []
    for row in rows:
        endings = [row[f"ending{i}"] for i in range(4)]
        names: dict[str, Any] = {}
        given = repr((str(exported), row["sent1"], endings))[1:-1]
        written = code.replace('"FOLDER", "CONTEXT", ["CHOICE", "CHOICE"]', given).replace('"QUESTION"', '"w7"')
        exec(compile(written, "card", "exec"), names)
        found.append(names["answer"])
    choices.write(Path("card.jsonl"), rows)
    printed = there("predict", exported, "--file", "card.jsonl")[1]
    assert found == [json.loads(line)["predicted"] for line in printed.splitlines()]


def test_rows_that_cannot_be_predicted_are_named(there: Call, exported: Path, tmp_path: Path) -> None:
    rows = choices.rows(3)
    rows[1]["ending2"] = " "
    code, printed = there("predict", exported, "--file", choices.write(tmp_path / "rows.jsonl", rows))
    assert code == 2
    assert "row 2: number 2 of 0 to 3" in printed
    assert "Traceback" not in printed


# ---------------------------------------------------------------- adapters


def test_adapters_are_exported_whole(call: Call, tmp_path: Path) -> None:
    space = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 1, "lora_rank": [2, 4]}
    (tmp_path / "chosen.yaml").write_text(json.dumps(choices.study(tmp_path, trials=2, space=space)))
    assert call("run", "chosen.yaml", "--quiet")[0] == 0
    code, printed = call("export", "chosen", "-o", "exported")
    assert code == 0, printed
    texts = ["w1", "w7", "fine", "dull", "grim", "cold"]
    merged, adapter = call("predict", "exported", *texts)[1], call("predict", "chosen", *texts)[1]
    one, other = json.loads(merged), json.loads(adapter)
    assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)
    assert "AutoModelForMultipleChoice" in (tmp_path / "exported" / "README.md").read_text()


# ---------------------------------------------------------------- bad input


def test_bad_input_is_one_error_exit_2_and_nothing_written(call: Call, tmp_path: Path) -> None:
    rows = choices.rows(140)
    rows[3]["label"], rows[4]["ending1"], rows[5]["label"] = 9, "", None
    choices.write(tmp_path / "swag.jsonl", rows)
    (tmp_path / "chosen.yaml").write_text(json.dumps(choices.study(tmp_path)))
    before = sorted(os.listdir(tmp_path))
    for command in ("check", "run"):
        code, printed = call(command, "chosen.yaml")
        assert code == 2
        for words in ("the data have 3 faults", "row 4 of", "'9' of 4 choices", "row 5 of", "row 6 of", "Name the rig"):
            assert words in " ".join(printed.split())
        assert "Traceback" not in printed
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metric": "f1_macro"}, "'f1_macro' is not defined for multiple_choice; one of accuracy, loss"),
        ({"data": {"choices": ["ending0"]}}, "names fewer than two columns"),
        (
            {"data": {"choices": ["ending0", "sent1"]}},
            "is column 'sent1', as data.context is; name a column of its own",
        ),
        ({"data": {"choices": ["ending0", "ending9"]}}, "no column 'ending9'"),
        ({"data": {"endings": "x"}}, "is not a key"),
        ({"space": {"class_weights": "balanced", "epochs": [1, 2]}}, "class_weights: balanced needs one label a row"),
    ],
)
def test_what_the_task_does_not_have_is_named(call: Call, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (tmp_path / "chosen.yaml").write_text(json.dumps(choices.study(tmp_path, **changes)))
    code, printed = call("check", "chosen.yaml")
    assert code == 2
    assert says in " ".join(printed.split())
