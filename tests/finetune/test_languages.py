"""Translators that know languages: what their texts begin with, and what of it is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paired
import pytest
import spoken
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hpo.config import study_spec
from hpo.core.errors import ConfigError, MissingExtraError, ModelError
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.predictor import Predictor

TRIAL = {"learning_rate": 1e-2, "batch_size": 16, "epochs": 2, "dropout": 0.0}
SPACE = {"learning_rate": [1e-2, 1e-3], "batch_size": 16, "epochs": 2}
NONE = dict.fromkeys(spoken.LANGUAGES["mbart"])


def opened(folder: Path, raw: dict[str, Any]) -> Any:
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


@pytest.mark.parametrize("family", spoken.LANGUAGES)
def test_a_translator_writes_the_languages_of_its_study(tmp_path: Path, family: str) -> None:
    """Rows are those of transformers' tokenizer and loss; texts begin as the targets do, also after an export."""
    array = opened(tmp_path, spoken.study(tmp_path, family, space=SPACE, generate={"max_new_tokens": 8}))
    setup, (source, target) = array.setup, spoken.LANGUAGES[family].values()
    own = AutoTokenizer.from_pretrained(tmp_path / "model", src_lang=source, tgt_lang=target)
    split = setup.data.splits["validation"]
    expected = own(split.sources[0], text_target=split.targets[0])
    inputs, targets = setup.tokens["validation"].batch(np.array([0]))
    padded = {"input_ids": inputs["input_ids"], "labels": targets["labels"]}
    for name, ids in padded.items():
        assert ids[0, : len(expected[name])].tolist() == expected[name]
    assert own.convert_tokens_to_ids(spoken.token(family, source)) in expected["input_ids"]
    labels = torch.tensor([expected["labels"]])
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    loss = model(input_ids=torch.tensor([expected["input_ids"]]), labels=labels).loss.item()
    outputs = setup.task.loss(setup.outputs(setup.model.eval(), inputs, targets), targets, 0.0, None)
    assert outputs.item() / labels.numel() == pytest.approx(loss, rel=1e-5)
    language = own.convert_tokens_to_ids(spoken.token(family, target))
    at_first = (setup.generation.decoder_start_token_id, setup.generation.forced_bos_token_id)
    assert at_first == ((language, None) if family == "mbart" else (2, language))

    array.load(0, TrialSpec(0, TRIAL, 5))
    while not array.advance()[0].last:
        pass
    array.save_weights(0, tmp_path / "saved")
    kept = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (kept.src_lang, kept.tgt_lang) == (source, target)
    rows = [{"source": text} for text in split.sources[:4]]
    predictor = Predictor(tmp_path / "saved", 96, generate=setup.config.generate)
    predicted = [row["predicted"] for row in predictor(rows, setup.data.keys)]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    found = [loaded.generate(**kept(row["source"], return_tensors="pt"))[0] for row in rows]
    assert predicted == [kept.decode(ids, skip_special_tokens=True) for ids in found]
    assert all(language in ids[:2].tolist() for ids in found)


def test_marian_writes_each_side_with_its_own_pieces(tmp_path: Path) -> None:
    array = opened(tmp_path, spoken.study(tmp_path, "marian", space=SPACE, generate={"max_new_tokens": 8}))
    own = AutoTokenizer.from_pretrained(tmp_path / "model")
    split = array.setup.data.splits["validation"]
    inputs, targets = array.setup.tokens["validation"].batch(np.arange(4))
    for row in range(4):
        expected = own(split.sources[row], text_target=split.targets[row])
        assert own.unk_token_id not in expected["labels"]
        for name, ids in (("input_ids", inputs["input_ids"]), ("labels", targets["labels"])):
            assert ids[row, : len(expected[name])].tolist() == expected[name]
    array.load(0, TrialSpec(0, TRIAL, 5))
    while not array.advance()[0].last:
        pass
    array.save_weights(0, tmp_path / "saved")
    kept = AutoTokenizer.from_pretrained(tmp_path / "saved")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    predictor = Predictor(tmp_path / "saved", 96, generate=array.setup.config.generate)
    predicted = [row["predicted"] for row in predictor([{"source": split.sources[0]}], array.setup.data.keys)]
    (found,) = loaded.generate(**kept(split.sources[0], return_tensors="pt"))
    assert predicted == [kept.decode(found, skip_special_tokens=True)]
    assert "palabra" in predicted[0]


def test_a_tokenizer_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = "MarianTokenizer requires the SentencePiece library but it was not found in your environment. Check out"

    def fails(*arguments: Any, **options: Any) -> None:
        raise ImportError(lacking)

    raw = spoken.study(tmp_path, "marian")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(MissingExtraError, match=r"its tokenizer needs .* pip install 'hpo\[translation\]'"):
        opened(tmp_path, raw)
    lacking = "XTokenizer requires the X library but it was not found in your environment. Check out the\n instructions"
    with pytest.raises(ModelError, match=r"its tokenizer needs a package\. XTokenizer .* in your environment\.$"):
        opened(tmp_path, raw)


UNKNOWN = "data.target_language: 'es' is none of the 52 languages of the model's tokenizer; did you mean es_XX[?]"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "none": (NONE, "source_language: CODE, target_language: CODE}. It knows af_ZA, ar_AR, "),
    "an unknown one": ({"target_language": "es"}, UNKNOWN),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tokenizer_that_knows_languages_needs_codes_that_it_knows(tmp_path: Path, case: str) -> None:
    data, says = BAD[case]
    with pytest.raises(ModelError, match=says):
        opened(tmp_path, spoken.study(tmp_path, "mbart-50", data=data))


def test_one_language_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing: a model that knows languages needs both"):
        opened(tmp_path, spoken.study(tmp_path, "mbart-50", data={"source_language": None}))


def test_a_tokenizer_without_languages_refuses_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"data: \{source_language, target_language\}: the model's tokenizer knows no"):
        opened(tmp_path, paired.study(tmp_path, data=spoken.LANGUAGES["mbart"]))


def test_a_study_without_languages_is_stored_as_before(tmp_path: Path) -> None:
    raw = paired.study(tmp_path)
    stored = study_spec.build(raw, "test", tmp_path).to_dict()
    assert not {"source_language", "target_language"} & set(stored["data"])
    assert json.dumps(stored)
