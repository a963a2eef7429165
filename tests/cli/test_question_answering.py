"""Question answering end to end, through the command line: run, look, export, predict; and bad input."""

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

import optuna
import pytest
import squad_rows

CONTEXT = "w1 w2 w3 fine w4 w5 grim w6"
Call = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a study that has run, with its output."""
    folder = tmp_path_factory.mktemp("finished")
    space = {"learning_rate": [3e-3, 1e-3], "batch_size": 8, "epochs": 2}
    (folder / "asked.yaml").write_text(json.dumps(squad_rows.study(folder, trials=2, space=space)))
    command = [sys.executable, "-m", "hpo.cli", "run", "asked.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def there(finished: tuple[Path, str], call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(finished[0])
    return call


@pytest.fixture(scope="module")
def exported(finished: tuple[Path, str]) -> Path:
    folder = finished[0]
    with contextlib.chdir(folder):
        command = [sys.executable, "-m", "hpo.cli", "export", "asked", "-o", "exported"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "exported"


# ---------------------------------------------------------------- running and looking


def test_run_says_a_verdict_and_the_kinds_of_questions(finished: tuple[Path, str]) -> None:
    folder, out = finished
    assert re.search(r"On \d+ test examples, trial \d scores [\d.]+ \(answer_f1\)", out)
    report = (folder / "runs" / "asked" / "report.html").read_text()
    assert "By kind of question, on the test split; no answer is given where it scores better" in report
    assert "without an answer" in report


def test_show_has_the_scores_of_questions_with_and_without_an_answer(there: Call) -> None:
    code, out = there("show", "asked")
    assert code == 0
    assert re.search(r"questions +count +answered +exact match +F1", out)
    assert re.search(r"without an answer +\d+ +\d+ +", out)


def test_the_predictions_are_written_beside_ids_and_gold_answers(finished: tuple[Path, str]) -> None:
    files = sorted((finished[0] / "runs" / "asked" / "predictions").glob("*.csv"))
    assert files
    for path in files:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert len(rows) >= 20
        assert list(rows[0]) == [
            "row", "id", "question", "answers", "predicted", "probability", "predicted_start", "null_difference",
            "group", "counts of answer_f1"
        ]  # fmt: skip


def test_check_shows_the_answers_in_their_windows(there: Call) -> None:
    code, out = there("check", "asked.yaml")
    assert code == 0
    assert "questions with an answer" in out
    assert re.search(r"\[\[\w+\]\].* -> '\w+', tokens \d+ to \d+", out)


# ---------------------------------------------------------------- predicting


def answers(printed: str) -> list[str]:
    return [json.loads(line)["predicted"] for line in printed.splitlines()]


def test_an_exported_model_answers(there: Call, exported: Path) -> None:
    code, printed = there("predict", exported, "warm w9", CONTEXT, "dull w9", CONTEXT)
    assert code == 0, printed
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["context"] for row in rows] == [CONTEXT, CONTEXT]
    for row in rows:
        assert row["predicted"] in row["context"]
        assert (row["predicted"] == "") == (row["predicted_start"] is None)
    assert there("predict", "asked", "warm w9", CONTEXT, "dull w9", CONTEXT)[1] == printed
    code, printed = there("predict", exported, "warm w9")
    assert code == 2
    assert "the model reads question and context, so give two texts for each answer" in printed


def test_files_are_answered_in_squads_form_and_as_rows(there: Call, exported: Path, tmp_path: Path) -> None:
    rows = squad_rows.topics(12, seed=5)
    squad_rows.write(tmp_path / "squad.json", squad_rows.document(rows))
    squad_rows.write(tmp_path / "rows.jsonl", rows)
    squad_rows.write(tmp_path / "rows.parquet", rows)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "context"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    found = [answers(there("predict", exported, "--file", tmp_path / name)[1]) for name in (
        "squad.json", "rows.jsonl", "rows.parquet", "rows.csv")]  # fmt: skip
    assert len(found[0]) == 12
    assert found == [found[0]] * 4


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"question": "w1", "text": "w2"}], "has no column 'context'; it has question, text. Rename the columns"),
        ([{"question": "w1", "context": "w2"}, {"question": " ", "context": ""}], "the questions: 2 problems"),
        ([{"question": "w1", "context": "w2", "predicted": "w3"}], "has a column 'predicted', where predictions go"),
    ],
)
def test_rows_that_cannot_be_answered_are_named(
    there: Call, exported: Path, tmp_path: Path, rows: Any, says: str
) -> None:
    code, printed = there("predict", exported, "--file", squad_rows.write(tmp_path / "rows.jsonl", rows))
    assert code == 2
    assert says in printed
    assert "Traceback" not in printed


def test_the_code_of_the_card_answers_as_hpo_does(there: Call, exported: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) < 25
    # Where all tokens are among the best starts and ends, the best pair of any tokens is the best answer.
    asked = [
        (f"{word} w9", context) for word in ("warm", "dull") for context in (CONTEXT, "w8 bright w9 w2", "w1 w2 w3")
    ]
    asked += [("warm w9", " ".join(["w3 w4 w5 w6"] * 9 + ["fine w7"]))]  # several windows
    found = []
    for question, context in asked:
        names: dict[str, Any] = {}
        written = code.replace('"FOLDER", "QUESTION", "CONTEXT"', repr((str(exported), question, context))[1:-1])
        exec(compile(written, "card", "exec"), names)
        found.append(names["answer"])
    assert found == answers(there("predict", exported, *[text for pair in asked for text in pair])[1])
    assert len(set(found)) > 1


# ---------------------------------------------------------------- bad input


def broken(**changes: Any) -> dict[str, Any]:
    return squad_rows.topics(2, unanswerable=0)[0] | changes


def misplaced() -> dict[str, Any]:
    row = broken()
    return {**row, "answers": {"text": row["answers"]["text"], "answer_start": [row["answers"]["answer_start"][0] + 1]}}


BAD: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "an answer elsewhere": (
        [misplaced(), {**misplaced(), "id": "2"}],
        {},
        ["2 problems", "answers that are elsewhere in the context: 2, the first in line 1", "Correct answer_start"],
    ),
    "an id twice": ([broken(), broken()], {}, ["questions with the id of another: 1, the first in line 2"]),
    "an empty context": ([broken(context=" ")], {}, ["questions without a text as 'context': 1"]),
    "another column": ([broken()], {"context": "passage"}, ["'passage'", "Name the columns under data:"]),
    "a broken line": ("{", {}, ["lines that are not JSON: 1, the first in line 1"]),
    "no rows": ([], {}, ["has no questions"]),
    "an unknown key": ([broken()], {"strides": 3}, ["is not a key; did you mean stride?"]),
    "a stride of all": (squad_rows.topics(160), {"stride": 40}, ["stride 40 does not fit max_length 16"]),
}


@pytest.mark.parametrize(("rows", "data", "says"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_input_is_one_error_exit_2_and_nothing_written(
    call: Call, tmp_path: Path, command: str, rows: Any, data: dict[str, Any], says: list[str]
) -> None:
    if isinstance(rows, str):
        (tmp_path / "questions.jsonl").write_text(rows)
    else:
        squad_rows.write(tmp_path / "questions.jsonl", rows)
    study = squad_rows.study(tmp_path)
    (tmp_path / "asked.yaml").write_text(json.dumps({**study, "data": {**study["data"], **data}}))
    before = sorted(os.listdir(tmp_path))
    code, printed = call(command, "asked.yaml")
    assert code == 2
    assert [words for words in says if words not in printed] == []
    assert "Traceback" not in printed
    assert sorted(os.listdir(tmp_path)) == before


def test_questions_that_leave_no_room_are_counted(call: Call, tmp_path: Path) -> None:
    rows = squad_rows.topics(120)
    for row in rows[:3]:
        row["question"] = " ".join(["w1"] * 12)
        row["context"] += " w1 w2"
    squad_rows.write(tmp_path / "questions.jsonl", rows)
    (tmp_path / "asked.yaml").write_text(json.dumps(squad_rows.study(tmp_path)))
    code, printed = call("check", "asked.yaml")
    assert code == 2
    assert "questions leave no room for their context in a window of max_length 16 with stride 4" in printed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metric": "f1"}, "'f1' is not a metric; did you mean answer_f1?"),
        (
            {"metric": "accuracy"},
            "'accuracy' is not defined for question_answering; one of answer_f1, exact_match, loss",
        ),
        ({"space": {"class_weights": "balanced", "epochs": [1, 2]}}, "class_weights: balanced needs one label a row"),
        ({"task": "question_answring"}, "did you mean question_answering?"),
    ],
)
def test_what_the_task_does_not_have_is_named(call: Call, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (tmp_path / "asked.yaml").write_text(json.dumps(squad_rows.study(tmp_path, **changes)))
    code, printed = call("check", "asked.yaml")
    assert code == 2
    assert says in printed


def test_a_study_that_changes_its_stride_is_another_study(there: Call) -> None:
    code, printed = there("run", "asked.yaml", "--set", "data.stride=5")
    assert code == 2
    assert "stride" in printed
    assert optuna.load_study(study_name="asked", storage="sqlite:///hpo.db").trials
