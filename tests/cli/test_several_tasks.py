"""Several tasks through the command line: check, run, show, report, export, predict."""

import json
from pathlib import Path

import pytest
import several

pytestmark = pytest.mark.usefixtures("own_folder")


def write(**overrides):
    """Write a study file; lists and mappings of JSON are YAML too."""
    Path("s.yaml").write_text(json.dumps(several.study(Path().absolute(), **overrides)))


def done(call, *arguments):
    code, printed = call(*arguments)
    assert code == 0, printed
    return printed


def test_a_study_of_several_tasks(call):
    write(trials=3, evaluations_per_epoch=1)
    checked = " ".join(done(call, "check", "s.yaml").split())
    assert "task entities" in checked
    assert "entity_f1, weight 2" in checked
    seen = checked.partition("as the model sees the first rows of train:")[2]
    assert [seen.count(f" {name}: [CLS]") for name in several.TASKS] == [3, 3, 3]
    done(call, "run", "s.yaml")
    shown = done(call, "show", "several")
    for name in ("sentiment.accuracy", "entities.entity_f1", "questions.answer_f1", "weighted_mean", "By task"):
        assert name in shown
    verdict = json.loads(done(call, "show", "several", "--json"))["verdict"]
    for each in verdict["tasks"].values():
        assert each["examples"] >= 10
        assert {"low", "high"} <= each.keys() or "untold" in each or len(each["scores"]) == 1
    assert "seeds each" in done(call, "confirm", "several", "--top", "1", "--seeds", "3")
    done(call, "report", "several", "-o", "report.html")
    assert "entities.entity_f1" in Path("report.html").read_text()
    done(call, "export", "several", "-o", "out")
    assert sorted(path.name for path in Path("out").iterdir()) == ["entities", "questions", "sentiment"]
    card = Path("out/entities/README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "Its encoder was trained for sentiment, questions at the same time" in card
    answer = json.loads(done(call, "predict", "out/sentiment", "w1 fine warm"))
    assert answer["predicted"] in ("good", "bad")
    code, printed = call("predict", "several", "w1 fine warm")
    assert code == 2
    assert "hpo predict FOLDER/TASK" in " ".join(printed.split())
    done(call, "run", "out/sentiment/study.yaml", "--set", "name=again", "--set", "trials=1")


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_error_in_the_data_of_a_task_names_it_and_nothing_is_written(call, command):
    write()
    Path("data.conll").write_text("Ann B-PER\nleft\n")
    before = sorted(Path().rglob("*"))
    code, printed = call(command, "s.yaml")
    assert code == 2
    assert "task entities: " in printed
    assert "Traceback" not in printed
    assert sorted(Path().rglob("*")) == before
