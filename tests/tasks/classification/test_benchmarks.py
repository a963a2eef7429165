from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from pydantic import ValidationError

from hpo.config import study_spec
from hpo.execution import trial_arrays
from hpo.tasks.classification.benchmarks import BENCHMARKS
from hpo.tasks.classification.keys import TextKeys
from hpo.tasks.loading import load
from hpo.tasks.metrics import METRICS

CARD = """---
configs:
- config_name: {name}
  data_files:
  - {{split: train, path: {name}/train-*}}
  - {{split: validation, path: {name}/validation-*}}
dataset_info:
- config_name: {name}
  features:
  - {{name: sentence1, dtype: string}}
  - {{name: sentence2, dtype: string}}
  - name: label
    dtype: {label}
---
"""
NAMES = "{class_label: {names: {'0': entailment, '1': not_entailment}}}"


def copy(folder: Path, name: str, labels: list[Any], feature: str) -> None:
    """Write a copy of a data set of the Hub: a folder with a card and files."""
    (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(CARD.format(name=name, label=feature))
    for split, seed, rows in (("train", 0, 80), ("validation", 1, 40)):
        texts = [text for text, _ in tiny.rows(rows, seed)]
        table = pd.DataFrame({"sentence1": texts, "sentence2": texts[::-1], "label": (labels * rows)[:rows]})
        table.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_study_file_that_can_be_stored_and_read_again(name: str) -> None:
    keys = TextKeys.model_validate({"benchmark": name})
    assert (keys.dataset, keys.text) == (BENCHMARKS[name].dataset, BENCHMARKS[name].texts[0])
    assert TextKeys.model_validate(keys.model_dump(mode="json")) == keys
    assert BENCHMARKS[name].metric in METRICS


def test_a_copy_in_a_folder_is_read_with_the_names_of_its_labels(tmp_path: Path) -> None:
    copy(tmp_path / "glue", "rte", [0, 1], NAMES)
    keys = TextKeys.model_validate({"benchmark": "glue/rte", "dataset": "glue"})
    found = load(keys, "auto", 0, tmp_path)
    assert (found.task, found.labels) == ("single_label", ("entailment", "not_entailment"))
    assert [len(found.splits[name]) for name in ("train", "validation", "test")] == [72, 8, 40]
    assert found.splits["test"].contents[0] == tuple(text for text, _ in (tiny.rows(40, 1)[0], tiny.rows(40, 1)[-1]))


def test_the_metric_is_that_of_the_benchmark_and_its_task_is_found(tmp_path: Path) -> None:
    copy(tmp_path / "glue", "stsb", [0.2, 1.5, 3.75, 5.0], "float32")
    raw = tiny.study(tmp_path, data={"benchmark": "glue/stsb", "dataset": str(tmp_path / "glue")}, metric=None)
    array = trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))
    assert (array.setup.data.task, array.setup.metric) == ("regression", "spearman")


def test_files_with_its_columns_stand_in_for_it(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 1)):
        rows = [{"premise": text, "hypothesis": "so it is", "label": label} for text, label in tiny.rows(40, seed)]
        pd.DataFrame(rows).to_json(tmp_path / f"{split}.jsonl", orient="records", lines=True)
    given = {"benchmark": "superglue/cb", "train": "train.jsonl", "test": "val.jsonl"}
    found = load(TextKeys.model_validate(given), "auto", 0, tmp_path)
    assert [len(found.splits[name]) for name in ("train", "test")] == [36, 40]


def test_a_name_that_is_no_benchmark_is_told_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="'glue/rtee' is not a benchmark; did you mean glue/rte"):
        TextKeys.model_validate({"benchmark": "glue/rtee"})
