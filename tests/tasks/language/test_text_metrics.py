"""Metrics of generated text equal what the command lines of their libraries print, and add up over texts."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.analysis.bootstrap import resampled
from hpo.core.errors import DataError, MissingExtraError
from hpo.tasks.language import text_metrics
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.metrics import METRICS, chosen, of_generated_text, score, searchable

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PAIRS = [
    ("The cat sat on the mat. It was running late .", "A cat was sitting on the mat.\nIt ran late."),
    ("Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.", "Zwölf Boxer jagen Viktor über den Deich."),
    ("nothing in common", "12,345.67 $ & <tag>"),
    ("the same text, word by word", "the same text, word by word"),
    ("an expected text", ""),
    ("First sentence.\nSecond sentence, which is longer.\nThird.", "Second sentences which are longer .\nFirst one."),
]


def predictions(pairs: list[tuple[str, str]]) -> TextPredictions:
    zeros, (expected, generated) = np.zeros(len(pairs)), zip(*pairs, strict=True)
    return TextPredictions("seq2seq", zeros, zeros, zeros, zeros, expected, [""] * len(pairs), generated)


def flat(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return texts without line breaks, which the command line of sacrebleu reads as several texts."""
    return [(one.replace("\n", " "), other.replace("\n", " ")) for one, other in pairs]


def test_bleu_and_chrf_are_those_of_the_command_line_of_sacrebleu(tmp_path: Path) -> None:
    pairs = flat(PAIRS)
    for name, texts in zip(("expected", "generated"), zip(*pairs, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "expected", "-i", "generated", "-m", "bleu", "chrf", "-b", "-w", "9"]
    printed = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    found = [score(name, predictions(pairs)) for name in ("bleu", "chrf")]
    assert found == [pytest.approx(float(value), abs=1e-8) for value in printed]
    assert 10 < found[0] < 90


def test_rouge_is_that_of_the_command_line_of_rouge_score(tmp_path: Path) -> None:
    for name, texts in zip(("expected", "generated"), zip(*PAIRS, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{text}####" for text in texts), encoding="utf-8")
    command = [sys.executable, "-m", "rouge_score.rouge", "--target_filepattern=expected"]
    command += ["--prediction_filepattern=generated", "--output_filename=scores.csv", "--use_stemmer", "--noaggregate"]
    command += [f"--rouge_types={','.join(ROUGE)}", "--delimiter=####"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    for name in ROUGE:
        each = METRICS[name].counts(predictions(PAIRS))  # type: ignore[misc]
        assert each[:, 0].tolist() == pytest.approx([float(row[f"{name}-F"]) for row in rows], abs=1e-6)
        assert score(name, predictions(PAIRS)) == pytest.approx(np.mean(each[:, 0]))
    assert score("rougeLsum", predictions(PAIRS)) != score("rougeL", predictions(PAIRS))


def test_exact_match_leaves_spaces_around_a_text_aside() -> None:
    found = predictions([("yes", " yes\n"), ("yes", "Yes"), ("a b", "a  b"), ("", " ")])
    assert score("exact_match", found) == 0.5


words = st.lists(st.sampled_from(["cat", "cats", "sat", "on", "the", "mat.", "ünder", "42"]), max_size=8).map(" ".join)


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(words.filter(bool), words), min_size=2, max_size=6), data=st.data())
def test_the_sums_over_some_texts_give_the_score_of_these_texts(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=8)))
    every = predictions(pairs)
    for name in of_generated_text("seq2seq"):
        entry = METRICS[name]
        assert entry.counts is not None
        found = entry.value(entry.counts(every)[rows].sum(axis=0))
        assert found == pytest.approx(score(name, every.take(rows)), nan_ok=True)
        assert 0 <= found <= (100 if name in ("bleu", "chrf") else 1) + 1e-9


def test_a_bootstrap_scores_the_texts_that_are_drawn() -> None:
    model, other = predictions(PAIRS * 3), predictions([(one, one) for one, _ in PAIRS * 3])
    drawn = np.random.default_rng(0).integers(0, len(model), len(model))
    for name in ("bleu", "rougeL"):
        found = resampled(name, [model, other], seed=0)
        assert found[0].tolist() == [pytest.approx(score(name, each.take(drawn))) for each in (model, other)]


def test_no_study_is_searched_by_a_score_of_generated_text() -> None:
    assert of_generated_text("seq2seq") == [*ROUGE, "bleu", "chrf", "exact_match"]
    assert of_generated_text("question_answering") == []
    assert not {*searchable("seq2seq")} & {*of_generated_text("seq2seq")}
    assert "exact_match" in searchable("question_answering")
    says = r"'bleu' is a score of generated text.*Search by one of perplexity.*second_metric: bleu"
    with pytest.raises(DataError, match=says):
        chosen("bleu", "seq2seq", "loss")


def test_a_missing_library_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None if name == "sacrebleu" else object())
    with pytest.raises(MissingExtraError, match=r"hpo\[text\]"):
        text_metrics.refuse_missing_libraries()


def test_a_model_that_says_the_same_everywhere_has_collapsed() -> None:
    assert predictions([("a", "x"), ("b", "x")]).collapsed
    assert not predictions([("a", "x"), ("a", "x")]).collapsed
    assert not math.isnan(score("bleu", predictions([("a", ""), ("b", "")])))
