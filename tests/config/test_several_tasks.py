"""The key `tasks`: what it takes, and what is said of what it does not take."""

from pathlib import Path

import pytest
import several
from study_problems import problems

from hpo.config import study_spec
from hpo.config.schema import StudyConfig
from hpo.core.errors import ConfigError
from hpo.tasks.classification.keys import TextKeys
from hpo.tasks.question_answering.keys import QuestionKeys
from hpo.tasks.token_classification.keys import TagKeys

FOLDER = Path("/nowhere")
TEXTS = {"data": {"train": "a.csv"}}
RAW = {"name": "s", "model": "m", "space": {"learning_rate": [1e-4, 1e-3]}}


def said(tasks, **settings):
    return problems({**RAW, "tasks": tasks, **settings}, FOLDER)


def test_each_task_has_the_keys_of_its_data(tmp_path):
    study = study_spec.build(several.study(tmp_path), "x", tmp_path, look=True)
    kinds = {name: type(part.data) for name, part in study.config.tasks.items()}
    assert kinds == {"sentiment": TextKeys, "entities": TagKeys, "questions": QuestionKeys}
    assert study.direction == "maximize"
    again = study_spec.from_dict(study.to_dict())
    assert again.config.tasks == study.config.tasks
    assert again.to_dict() == study.to_dict()


def test_a_study_of_one_task_is_stored_as_before():
    assert "tasks" not in study_spec.build({**RAW, "data": {"train": "a.csv"}}, "x", FOLDER).to_dict()


def test_settings_are_pickled(tmp_path):
    import pickle

    config = study_spec.build(several.study(tmp_path), "x", tmp_path).config
    assert isinstance(config, StudyConfig)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("part", "place", "message"),
    [
        ({**TEXTS, "task": "clasification"}, "task", "is not a task"),
        ({**TEXTS, "task": "seq2seq"}, "task", "'seq2seq' cannot be trained together with others"),
        ({**TEXTS, "task": "multiple_choice"}, "task", "cannot be trained together with others"),
        ({**TEXTS, "metric": "loss"}, "metric", "less is better in 'loss'"),
        ({**TEXTS, "metric": "acuracy"}, "metric", "is not a metric; did you mean"),
        ({**TEXTS, "task": "single_label", "metric": "entity_f1"}, "metric", "is not defined for single_label; one of"),
        ({**TEXTS, "weight": 0}, "weight", "greater than 0"),
        ({**TEXTS, "wieght": 2.0}, "wieght", "is not a key; did you mean weight?"),
        ({"data": {"train": "a.csv", "lable": "x"}}, "data.lable", "is not a key; did you mean label?"),
        ({"task": "token_classification", "data": {"text_pair": "x"}}, "data.text_pair", "is not a key"),
        ({"data": {"text": "a", "label": "a"}}, "data.label", "is column 'a', which is a text already"),
        ({}, "data", "Field required"),
    ],
)
def test_a_problem_names_the_task(part, place, message):
    found = said({"good": TEXTS, "bad": part})
    assert list(found) == [f"tasks.bad.{place}"]
    assert message in found[f"tasks.bad.{place}"]


@pytest.mark.parametrize(
    ("settings", "place", "message"),
    [
        ({"data": {"train": "a.csv"}}, "data", "name the data of each under tasks"),
        ({"task": "regression"}, "task", "name the task of each under tasks"),
        ({"metric": "accuracy"}, "metric", "weighted mean"),
        ({"shards": 2}, "shards", "not of several"),
        ({"generate": {}}, "generate", "leave it out"),
        ({"limits": {"f1_macro": 0.5}}, "limits.f1_macro", "is not defined for multitask"),
    ],
)
def test_a_key_of_one_task_is_not_one_of_several(settings, place, message):
    found = said({"good": TEXTS}, **settings)
    assert message in found[place]


def test_names_are_those_of_folders_and_there_is_one():
    assert "cannot be the name of a task" in said({"a.b": TEXTS})["tasks"]
    assert "names no task" in said({})["tasks"]


def test_the_temperature_is_for_several_tasks():
    space = {"sampling_temperature": [1.0, 2.0]}
    with pytest.raises(ConfigError, match="mixes several tasks"):
        study_spec.build({**RAW, "space": space, "data": {"train": "a.csv"}}, "x", FOLDER)
    assert study_spec.build({**RAW, "space": space, "tasks": {"one": TEXTS}}, "x", FOLDER)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("model: m\ntasks:\n  a: {data: {train: x.csv}}\n  a: {data: {train: y.csv}}\n")
    with pytest.raises(ConfigError, match=r"twice|duplicate|again"):
        study_spec.load(path)


def test_a_missing_file_and_column_name_the_task(tmp_path):
    raw = several.study(tmp_path)
    raw["tasks"]["sentiment"]["data"]["text"] = "sentence"
    raw["tasks"]["entities"]["data"]["train"] = "there_is_none.conll"
    assert list(problems(raw, tmp_path, look=True)) == ["tasks.sentiment.data.text", "tasks.entities.data.train"]
