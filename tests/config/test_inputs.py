from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hpo.config import inputs
from hpo.data import readers

ROWS = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "other": ["p", "q"]})
WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "tsv": lambda rows, path: rows.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "json": lambda rows, path: rows.to_json(path, orient="records"),
    "parquet": lambda rows, path: rows.to_parquet(path),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for kind, write in WRITERS.items():
        write(ROWS, tmp_path / f"rows.{kind}")
    return tmp_path


def said(folder: Path, model: Any = "./model", **data: Any) -> dict[str, str]:
    found = inputs.problems({"model": model, "data": {"train": "rows.csv", **data}}, folder)
    return {".".join(map(str, problem.path)): problem.message for problem in found}


def test_every_kind_of_file_is_tested() -> None:
    assert {f".{kind}" for kind in WRITERS} == set(readers.READERS)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_columns_are_those_of_the_rows_in_every_format(folder: Path, kind: str) -> None:
    path = folder / f"rows.{kind}"
    assert readers.columns_of(path, readers.Dialect(), {"nowhere"}) == list(readers.read_rows(path).columns)
    assert said(folder, train=f"rows.{kind}", where={"other": "p"}) == {}
    wrong = said(folder, train=f"rows.{kind}", text="txt", text_pair="txt2", label=["label", "z"], group="g")
    assert set(wrong) == {"data.text", "data.text_pair", "data.label.1", "data.group"}
    assert wrong["data.text"] == f"{path} has no column 'txt'; it has text, label, other"


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_column_that_only_later_objects_have_is_found(folder: Path, kind: str) -> None:
    rows = [{"text": "a"}, {"text": "b,{"}, {"text": "c", "label": {"deep": [1]}}]
    lines = "\n".join(map(json.dumps, rows))
    (folder / f"late.{kind}").write_text(json.dumps(rows, indent=1) if kind == "json" else lines)
    assert said(folder, train=f"late.{kind}") == {}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_objects_after_those_with_all_columns_are_not_read(folder: Path, kind: str) -> None:
    row = json.dumps({"text": "a", "label": "b"})
    (folder / f"half.{kind}").write_text(f"[{row}, broken" if kind == "json" else f"{row}\nbroken")
    assert said(folder, train=f"half.{kind}") == {}
    assert "not" in said(folder, train=f"half.{kind}", label="z")["data.train"]


def test_all_that_is_missing_is_said_at_once_each_at_its_key(folder: Path) -> None:
    found = said(folder, "./modle", train=["rows.csv", "non.csv"], validation="rows.txt", test="none*.csv", label="lab")
    (folder / "rows.txt").write_text("x")
    assert found["model"].startswith("there is no model folder ./modle")
    assert found["data.train"].startswith("there is no file non.csv")
    assert found["data.test"].startswith("there is no file none*.csv")
    assert set(found) == {"model", "data.train", "data.validation", "data.test"}
    found = said(folder, train=["rows.csv", "rows.tsv"], validation="rows.txt", label="lab")
    assert set(found) == {"data.validation", "data.label"}
    assert "cannot read .txt" in found["data.validation"]
    assert found["data.label"].endswith("1 more of the files lack it")


def test_options_that_no_file_reads_are_refused(folder: Path) -> None:
    assert set(said(folder, train="rows.parquet", encoding="cp1252", separator=";")) == {
        "data.encoding",
        "data.separator",
    }
    assert set(said(folder, train="rows.jsonl", encoding="utf-8", separator=";")) == {"data.separator"}
    assert said(folder, validation="rows.parquet", encoding="utf-8", separator=",") == {}


def test_names_on_the_hub_and_settings_that_are_not_well_formed_are_left_to_others(folder: Path) -> None:
    assert said(folder, "google-bert/bert-base-uncased", dataset="a/b", train="train") == {}
    assert inputs.problems({"model": 5, "data": {"train": 7}, "checksums": 3}, folder) == []
    assert inputs.problems({}, folder) == []


def test_files_with_checksums_are_looked_for(folder: Path) -> None:
    (problem,) = inputs.problems({"checksums": {"gone.csv": "0" * 64, "rows.csv": "0" * 64}}, folder)
    assert problem.path == ("checksums", "gone.csv")


def test_mistakes_are_found_before_torch_is_loaded_together_with_the_others(folder: Path) -> None:
    (folder / "s.yaml").write_text(
        "model: ./model\ntrials: ten\ndata:\n  train: rows.csv\n  label: lable\n  test: gone.csv\n"
    )
    code = (
        "import sys, json; from hpo.cli import app; sys.argv = ['hpo', 'run', 's.yaml']\n"
        "try: app.main()\n"
        "finally: print(json.dumps([n for n in ('torch', 'transformers', 'sklearn') if n in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    assert json.loads(ran.stdout.splitlines()[-1]) == []
    assert "s.yaml: 3 problems\n  line 2: trials:" in ran.stderr
    assert "line 5: data.label: rows.csv has no column 'lable'" in ran.stderr
    assert "line 6: data.test: there is no file gone.csv" in ran.stderr


@pytest.mark.parametrize(
    ("rows", "setting", "said"),
    [
        ("text,label\na,x\nb,\n", "", "no label"),
        (
            "text,label\na,0.5\nb,1.5\n",
            "metric: accuracy\n",
            "'accuracy' is not defined for regression, which the labels",
        ),
        ("text,label\na,x\nb,y\nc,z\n", "metric: f1_binary\n", "'f1_binary' is not defined on the validation split"),
    ],
)
def test_wrong_rows_are_found_before_torch_is_loaded(folder: Path, rows: str, setting: str, said: str) -> None:
    splits = "data: {train: rows.csv, validation: rows.csv, test: rows.csv}\n"
    (folder / "s.yaml").write_text(f"model: ./model\n{setting}{splits}")
    (folder / "rows.csv").write_text(rows)
    code = (
        "import sys, json; from hpo.cli import app; sys.argv = ['hpo', 'run', 's.yaml']\n"
        "try: app.main()\n"
        "finally: print(json.dumps('torch' in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (2, "false")
    assert said in ran.stderr
