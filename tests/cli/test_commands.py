"""The commands, end to end: a real tiny transformer on real files, in a folder of its own."""

import contextlib
import csv
import importlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import tiny
from ruamel.yaml import YAML

import hpo
from hpo.analysis.export import card
from hpo.config import study_spec


@pytest.fixture
def call(hpo_command, monkeypatch, tmp_path):
    """Return a function that runs `hpo ...` here, in `tmp_path`: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    return hpo_command


def write(path, content):
    YAML().dump(content, path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a study that has run, with its output."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder / "tiny.yaml", tiny.study(folder, trials=4, pruner={"name": "median", "n_startup_trials": 1}))
    done = subprocess.run(
        [sys.executable, "-m", "hpo.cli", "run", "tiny.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def there(finished, call, monkeypatch):
    monkeypatch.chdir(finished[0])
    return call


# ---------------------------------------------------------------- running and looking


def test_run_says_best_verdict_report_and_what_to_type_next(finished):
    folder, out = finished
    assert "best: trial" in out
    assert "test examples" in out
    assert "confidence" in out or "no difference shown" in out
    assert "report: runs/tiny/report.html" in out
    assert [line.strip() for line in out.splitlines()[-3:]] == [
        "hpo show tiny",
        "hpo dashboard tiny",
        "hpo export tiny -o tiny-model",
    ]
    assert (folder / "runs" / "tiny" / "report.html").stat().st_size > 1_000_000
    assert out.count("trial 0 state=complete") == 1
    assert "\x1b" not in out


def test_json_of_a_study(there):
    code, out, _ = there("show", "tiny", "--json")
    shown = json.loads(out)
    assert code == 0
    keys = ["name", "direction", "counts", "best", "verdict", "confirmation", "audit", "findings", "disk", "memory"]
    assert list(shown) == [*keys, "worth", "stopped", "limits", "front"]
    assert shown["memory"]["estimated"]["weights"] > 0
    assert shown["verdict"]["best"]["number"] == shown["best"]["number"]
    assert any("importances need 10 or more" in finding for finding in shown["findings"])
    sizes = {path: path.stat().st_size for path in Path("runs/tiny").rglob("*") if path.is_file()}
    assert shown["disk"] == {"folder": "runs/tiny", "bytes": sum(sizes.values()), "checkpoints": 0}
    assert (shown["name"], shown["direction"]) == ("tiny", "maximize")
    assert list(shown["counts"]) == ["complete", "pruned", "fail", "running", "waiting"]
    assert sum(shown["counts"].values()) == shown["counts"]["complete"] + shown["counts"]["pruned"] == 4


def test_a_study_compared_with_itself_differs_in_nothing(there):
    code, out, err = there("compare", "tiny", "tiny.yaml")
    assert code == 0, err
    assert "On the same 30 test examples the difference is +0" in out
    assert "Tuning curves cannot be compared" in out
    found = json.loads(there("compare", "tiny", "tiny", "--json")[1])
    shown = json.loads(there("show", "tiny", "--json")[1])
    assert found["studies"][0]["test"] == pytest.approx(shown["verdict"]["best"]["score"])
    assert there("compare", "tiny", "nope")[0] == 2


def test_json_of_trials_and_of_the_best(there):
    rows = json.loads(there("trials", "tiny", "--json")[1])
    best = json.loads(there("best", "tiny.yaml", "--json")[1])
    assert list(best) == ["number", "state", "value", "params", "user_attrs", "not_searched", "front"]
    assert best.pop("front") is None  # there is no second metric
    assert best["not_searched"]["epochs"] == 2  # the space fixes it
    assert best["not_searched"]["warmup_ratio"] == 0.1  # the default
    assert [{*row, "not_searched"} for row in rows] == [{*best, "intermediate_values"}] * 4
    assert rows[0]["user_attrs"]["baseline"] is True
    assert rows[0]["params"]["learning_rate"] == 5e-5
    assert best["value"] == max(row["value"] for row in rows if row["state"] == "COMPLETE")
    assert set(best["params"]) == {"learning_rate", "batch_size"}


def test_csv_of_trials_is_what_json_says(there):
    rows = json.loads(there("trials", "tiny", "--json")[1])
    code, out, _ = there("trials", "tiny", "--csv")
    assert code == 0
    table = list(csv.DictReader(io.StringIO(out)))
    assert [int(line["number"]) for line in table] == [row["number"] for row in rows]
    for line, row in zip(table, rows, strict=True):
        assert float(line["value"]) == row["value"]
        assert {name: float(line[f"params_{name}"]) for name in row["params"]} == row["params"]
        assert float(line["metrics_loss"]) == row["user_attrs"]["metrics"]["loss"]
        assert line["user_attrs_baseline"] == ("True" if row["number"] == 0 else "")
    code, _, err = there("trials", "tiny", "--csv", "--json")
    assert code == 2
    assert "--csv: cannot be with --json" in err


def test_the_version_is_that_of_the_package(call):
    assert call("--version") == (0, f"hpo {hpo.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says", "problems"),
    [
        (["show", "ghost"], "no study 'ghost'", []),
        (["trials", "ghost"], "no study 'ghost'", []),
        (["best", "ghost"], "no study 'ghost'", []),
        (["list"], "there is no storage", []),
        (["check", "broken.yaml"], "3 problems", [("trails", 2), ("data.train", 3), ("space.epochs", 5)]),
        (["run", "broken.yaml"], "3 problems", [("trails", 2), ("data.train", 3), ("space.epochs", 5)]),
        (["show", "a", "1", "b"], "unexpected extra argument", []),
    ],
)
def test_with_json_an_error_is_json_too(call, tmp_path, arguments, says, problems):
    text = "model: m\ntrails: 3\ndata: {train: t.csv}\nspace:\n  epochs: 0\n  learning_rate: [1e-4, 1e-3]\n"
    (tmp_path / "broken.yaml").write_text(text)
    code, out, err = call(*arguments, "--json")
    said = json.loads(out)
    assert code == 2
    assert says in said["error"]
    assert says in err
    assert [(".".join(p["path"]), p["line"]) for p in said["problems"]] == problems
    assert all(p["message"] in said["error"] for p in said["problems"])


def test_an_error_as_json_shows_no_password(call, tmp_path):
    url = "postgresql://u:canary@127.0.0.1:1/db"
    (tmp_path / "s.yaml").write_text(f"storage: 3\nmodel: {url}\ntrials: {url}\ndata: {{train: t.csv}}\n")
    code, out, _ = call("check", "s.yaml", "--json")
    assert code == 2
    assert len(json.loads(out)["problems"]) >= 2
    assert "canary" not in out
    assert call("check", "s.yaml")[1] == ""


def test_what_is_said_on_a_terminal_breaks_between_words(there, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    whole = there("show", "tiny")[1]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    shown = there("show", "tiny")[1]
    assert shown.split() == whole.split()
    assert max(map(len, whole.splitlines())) > 40
    assert all(len(line) <= 40 or " " not in line for line in shown.splitlines())


def test_list_show_trials_best_in_text(there):
    assert "tiny" in there("list")[1]
    assert json.loads(there("list", "--json")[1])[0]["name"] == "tiny"
    assert "maximize accuracy" in there("show", "tiny")[1]
    assert "learning_rate" in there("trials", "tiny")[1]
    assert there("best", "tiny")[1].startswith("best: trial ")


def test_running_it_again_trains_nothing_and_more_trials_go_on(there):
    before = json.loads(there("trials", "tiny", "--json")[1])
    code, out, _ = there("run", "tiny.yaml", "--json")
    assert code == 0
    assert json.loads(out)["counts"]["complete"] + json.loads(out)["counts"]["pruned"] == 4
    assert json.loads(there("trials", "tiny", "--json")[1]) == before
    there("run", "tiny.yaml", "--trials", 5, "--quiet")
    after = json.loads(there("trials", "tiny", "--json")[1])
    assert after[:4] == before
    assert len(after) == 5
    assert after[4]["params"] not in [row["params"] for row in before]


def test_weights_that_are_not_here_are_trained_again_to_the_bit(there):
    kept = {path: path.read_bytes() for path in Path("runs/tiny/trials").glob("*/model.safetensors")}
    assert kept
    for path in kept:
        shutil.rmtree(path.parent)
    code, out, err = there("run", "tiny.yaml")
    assert code == 0, err
    assert out.count("it is trained again") == len(kept)
    assert " where it had " not in out
    assert {path: path.read_bytes() for path in Path("runs/tiny/trials").glob("*/model.safetensors")} == kept


def test_a_study_goes_on_by_name_alone(there):
    code, out, _ = there("run", "tiny", "--quiet", "--trials", 5)
    assert code == 0
    assert "best: trial" in out


def test_report_goes_where_it_is_told(there, tmp_path):
    code, out, err = there("report", "tiny", "-o", tmp_path / "r.html")
    assert code == 0
    assert err == ""
    assert out.strip() == str(tmp_path / "r.html")
    assert "<html" in (tmp_path / "r.html").read_text()


def test_export_loads_as_a_pipeline_with_label_names_and_a_card(there, tmp_path):
    code, _, _ = there("export", "tiny", "-o", tmp_path / "model")
    assert code == 0
    assert (tmp_path / "model" / "model.safetensors").exists()

    from transformers import pipeline

    classify = pipeline("text-classification", str(tmp_path / "model"))
    assert {answer["label"] for answer in classify(["w1 fine warm", "w2 dull grim"])} <= {"good", "bad"}
    written = (tmp_path / "model" / "README.md").read_text()
    for words in ("learning_rate", "seed: 0", "hpo run study.yaml", "validation accuracy", "test examples", '"torch"'):
        assert words in written
    assert "base_model:" not in written  # it is a folder of this machine
    assert str(tiny.VOCABULARY[0]) in json.dumps(classify.tokenizer.special_tokens_map)


def test_a_card_names_a_model_of_the_hub_as_its_base(sample_results, tmp_path):
    results = sample_results(3)
    results.attrs["config"].update(model="org/model-base", folder=str(tmp_path))
    assert 'base_model: "org/model-base"' in card(results, results.best)
    (tmp_path / "org" / "model-base").mkdir(parents=True)
    assert "base_model:" not in card(results, results.best)


def test_an_exported_study_file_is_the_study_with_its_overrides_and_runs_anywhere(call, tmp_path, monkeypatch):
    raw = tiny.study(tmp_path, trials=1, storage="sqlite:///hpo.db", sampler={"name": "tpe", "n_startup_trials": 3})
    raw |= {"model": "model", "data": {**raw["data"], "train": "data.csv"}}
    write(tmp_path / "tiny.yaml", raw)
    overrides = {"max_length": 32, "data.rows": 100, "space.epochs": 1}
    call("run", "tiny.yaml", "-q", *(f"--set={key}={value}" for key, value in overrides.items()))
    assert call("export", "tiny", "-o", "exported")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = study_spec.load(Path("../exported/study.yaml"))
    found = {"model": str(tmp_path / "model"), "data.train": str(tmp_path / "data.csv"), "metric": "accuracy"}
    study = study_spec.load(tmp_path / "tiny.yaml", {**overrides, **found, "storage": None})
    assert again.config.model_dump(exclude={"space"}) == study.config.model_dump(exclude={"space"})
    assert again.space == study.space
    assert {**again.to_dict(), "folder": ""} == {**study.to_dict(), "folder": ""}
    assert "storage" not in (tmp_path / "exported" / "study.yaml").read_text()
    code, out, err = call("check", "../exported/study.yaml")
    assert code == 0, err
    assert re.search("^trials +1, trial 0 is the published default$", out, re.MULTILINE)


def test_export_refuses_a_folder_that_is_in_use(there, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    code, _, err = there("export", "tiny", "-o", tmp_path / "used")
    assert code == 2
    assert "not empty" in err


def test_a_changed_space_or_data_is_refused_with_what_changed(there):
    code, _, err = there("run", "tiny.yaml", "--set", "space.epochs=1")
    assert code == 2
    assert "space.parameters.epochs: was 2, is 1" in err
    assert "--set name=tiny-2" in err
    code, _, err = there("run", "tiny.yaml", "--set", "data.rows=90")
    assert code == 2
    assert "data.rows: was None, is 90" in err


def test_a_changed_file_of_data_is_refused(call, tmp_path):
    path = write(
        tmp_path / "s.yaml", tiny.study(tmp_path, trials=1, space={"learning_rate": [1e-3, 1e-2], "epochs": 1})
    )
    assert call("run", path, "-q")[0] == 0
    tiny.write_csv(tmp_path / "data.csv", seed=9)
    code, _, err = call("run", path, "-q")
    assert code == 2
    assert "data: was" in err


# ---------------------------------------------------------------- check


def test_check_says_what_would_run_and_writes_nothing(call, tmp_path):
    path = write(tmp_path / "s.yaml", tiny.study(tmp_path, trials=7))
    before = sorted(tmp_path.iterdir())
    code, out, _ = call("check", path)
    assert code == 0
    for words in (
        "7, trial 0 is the published default",
        "60 train, 30 validation, 30 test",
        "single_label",
        "at most",
    ):
        assert words in out
    assert sorted(tmp_path.iterdir()) == before
    assert json.loads(call("check", path, "--json")[1])["seconds"] > 0


def test_check_names_a_default_that_the_space_moves(call, tmp_path):
    raw = tiny.study(tmp_path, space={"learning_rate": [1e-3, 1e-2], "batch_size": [4, 8], "epochs": 1})
    _, out, _ = call("check", write(tmp_path / "s.yaml", raw))
    assert "published batch_size 32 is not a choice of the space; trial 0 takes 8" in out
    assert "epochs is fixed at 1, for the published default too, where it would be 3" in out
    assert "(the space has only 4 points" not in out


def test_the_class_that_a_binary_metric_is_of_is_named(call, tmp_path):
    _, out, _ = call("check", write(tmp_path / "s.yaml", tiny.study(tmp_path, metric="f1_binary")))
    assert "f1_binary is that of 'good', the last label in order" in out


def test_a_place_that_cannot_be_written_is_found_before_training(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    code, out, err = call("run", write(tmp_path / "s.yaml", tiny.study(tmp_path)))
    assert code == 2
    assert "cannot be written to" in err
    assert "run it in a folder of yours" in err.replace("\n", " ")
    assert "trial 0" not in out


def test_a_name_that_is_nothing_is_answered_with_what_there_is(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reviews.yaml", tiny.study(tmp_path))
    assert "did you mean reviews.yaml?" in call("run", "review")[2].replace("\n", " ")


# ---------------------------------------------------------------- bad input

BROKEN = [
    ({"modle": "x"}, "modle: is not a key; did you mean model?"),
    ({"trials": "many"}, "trials: "),
    ({"space": {"learning_rate": {"low": 1e-2, "high": 1e-4}}}, "space.learning_rate: is empty"),
    (
        {"space": {"learning_rat": [1, 2]}},
        "space.learning_rat: is not read by the objective; did you mean learning_rate?",
    ),
    ({"space": "nope"}, "there is no search space 'nope'; shipped: bart_summarisation, bert"),
    ({"data": {"train": "nowhere.csv"}}, "there is no file nowhere.csv"),
    ({"data": {"train": "data.csv", "text": "label"}}, "data.label: is column 'label', which is a text already"),
    ({"data": {"train": "data.csv", "text_pair": "text"}}, "data.text_pair: is column 'text'"),
    ({"data": {"train": "data.csv", "label": "stars"}}, "no column 'stars'; it has text, label"),
    ({"metric": "pearson", "task": "single_label"}, "'pearson' is not defined for single_label"),
    ({"metric": "spearman"}, "'spearman' is not defined for single_label"),
    ({"model": "./nowhere"}, "there is no model folder ./nowhere"),
    ({"checksums": {"data.csv": "0" * 64}}, "has SHA-256"),
    ({"device": "cuda"}, "device: cuda"),
    ({"objective": "nowhere:objective"}, "No module named 'nowhere'"),
    ({"batch-size": 3}, "batch-size: is not a key"),
    ({"data": {"train": "data.csv", "label": []}}, "data.label: names no column"),
    ({"sampler": "grid"}, "is a range; a grid needs a list of values"),
]


@pytest.mark.parametrize(
    ("change", "says"), BROKEN, ids=[next(iter(change)) + str(i) for i, (change, _) in enumerate(BROKEN)]
)
def test_bad_input_is_one_error_exit_2_and_nothing_written(call, tmp_path, change, says):
    content = tiny.study(tmp_path) | change
    if "objective" in change:  # of one's own: what only fine-tuning reads would be the first problem
        content = {"name": "own", **change, "space": {"x": [1, 2]}}
    path = write(tmp_path / "s.yaml", content)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call("run", path)
    assert code == 2
    assert says in err
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    assert len(err.splitlines()) < 15
    assert sorted(tmp_path.rglob("*")) == before


def test_every_problem_of_a_file_is_listed_with_its_line(call, tmp_path):
    (tmp_path / "s.yaml").write_text("model: m\ntrails: 3\ndata: {train: 1}\nspace:\n  epochs: 0\n  lr: [1, 2]\n")
    code, _, err = call("check", "s.yaml")
    assert code == 2
    assert [line.split(":")[0].strip() for line in err.splitlines()[1:]] == ["line 2", "line 3", "line 5", "line 6"]


@pytest.mark.parametrize("command", ["show", "trials", "best", "report", "run"])
def test_a_study_that_is_nowhere_is_named(call, tmp_path, command):
    code, _, err = call(command, "ghost")
    assert code == 2
    assert "no study 'ghost'" in err
    assert list(tmp_path.iterdir()) == []


def of_a_script(params):
    return params["x"]


class Scorer:
    def __call__(self, params):
        return params["x"]


@pytest.mark.parametrize("objective", [of_a_script, lambda params: params["x"], Scorer(), lambda trial: 1.0])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_study_of_a_script_is_left_to_the_script(call, monkeypatch, objective, command):
    monkeypatch.setattr(of_a_script, "__module__", "__main__")
    space = None if "trial" in getattr(objective, "__code__", of_a_script.__code__).co_varnames else {"x": [1, 2]}
    hpo.optimize(objective, space, trials=1, name="mine", storage="sqlite:///hpo.db")
    code, _, err = call(command, "mine")
    assert code == 2
    assert "'mine' in sqlite:///hpo.db was made by a script, not from a study file: run the script again" in err


def test_a_study_whose_objective_can_be_imported_goes_on_by_name(call, tmp_path, monkeypatch):
    (tmp_path / "hpo_test_scored.py").write_text("def objective(params): return params['x']\n")
    monkeypatch.syspath_prepend(tmp_path)
    objective = importlib.import_module("hpo_test_scored").objective
    hpo.optimize(objective, {"x": [1, 2, 3]}, trials=1, name="mine", storage="sqlite:///hpo.db")
    assert call("run", "mine", "--trials", 2, "-q")[0] == 0
    assert json.loads(call("show", "mine", "--json")[1])["counts"]["complete"] == 2
    code, _, err = call("run", "mine", "--slots", "auto", "-q")
    assert code == 2
    assert "slots: must be a number with an objective of your own, not 'auto'" in err


def test_slots_are_a_number_or_auto(call, tmp_path):
    path = write(tmp_path / "s.yaml", tiny.study(tmp_path, threads=2))
    code, _, err = call("run", path, "--slots", "many", "-q")
    assert code == 2
    assert "slots: Input should be a valid integer, not 'many', or Input should be 'auto', not 'many'" in err
    assert not (tmp_path / "hpo.db").exists()
    assert call("run", path, "--slots", "auto", "--trials", 2, "-q")[0] == 0
    assert call("run", path, "--slots", 3, "--trials", 4, "-q")[0] == 0


def test_a_storage_that_cannot_be_opened_is_named(call, tmp_path):
    path = write(tmp_path / "s.yaml", tiny.study(tmp_path))
    for url in ("sqlite:////no/such/folder/x.db", "redis://localhost", "postgresql://u:canary@127.0.0.1:1/db"):
        code, _, err = call("run", path, "--storage", url, "-q")
        assert code == 2
        assert "storage" in err
        assert "canary" not in err
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- interruptions


@pytest.fixture
def slow(tmp_path):
    """Return a study whose objective sleeps, and a function that starts it."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def objective(params):\n"
        "    for step in range(3):\n"
        "        time.sleep(0.25)\n"
        "        yield params['x'] * (step + 1)\n"
    )
    content = {
        "name": "slow",
        "objective": "slow:objective",
        "space": {"x": [1, 2, 3, 4]},
        "sampler": "grid",
        "pruner": "none",
    }
    write(tmp_path / "slow.yaml", content)

    def start():
        command = [sys.executable, "-m", "hpo.cli", "run", "slow.yaml"]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return tmp_path, start


def rows(folder):
    study = optuna.load_study(study_name="slow", storage=f"sqlite:///{folder}/hpo.db")
    return [(t.state.name, t.params.get("x"), t.value) for t in study.get_trials()]


def wait_for_a_running_trial(folder):
    for _ in range(1500):
        time.sleep(0.02)
        if (folder / "hpo.db").exists():
            try:
                with contextlib.closing(sqlite3.connect(folder / "hpo.db")) as database:
                    states = {row[0] for row in database.execute("select state from trials")}
            except sqlite3.OperationalError:  # its tables are being made
                continue
            if {"COMPLETE", "RUNNING"} <= states:
                return
    raise AssertionError("no trial ran")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_study_ends_as_an_undisturbed_one(slow, sent, code):
    folder, start = slow
    process = start()
    wait_for_a_running_trial(folder)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    left = [row[0] for row in rows(folder)]
    assert ("RUNNING" in left) == (sent == signal.SIGKILL)
    out, err = start().communicate(timeout=120)
    assert "finished=4/4" in out, err
    assert sorted(rows(folder), key=str) == [("COMPLETE", x, 3.0 * x) for x in (1, 2, 3, 4)]


def test_a_stopped_process_keeps_its_trial_and_goes_on_when_it_is_woken(slow):
    folder, start = slow
    first = start()
    wait_for_a_running_trial(folder)
    time.sleep(0.1)  # in its objective, not in the middle of a write that all others wait for
    first.send_signal(signal.SIGSTOP)
    kept = [n for n, row in enumerate(rows(folder)) if row[0] == "RUNNING"]
    second = start()
    try:
        while sum(row[0] == "COMPLETE" for row in rows(folder)) < 4 - len(kept):
            assert second.poll() is None, second.communicate()
            time.sleep(0.1)
        time.sleep(15.0)  # twenty seconds in all
        assert [n for n, row in enumerate(rows(folder)) if row[0] == "RUNNING"] == kept
    finally:
        first.send_signal(signal.SIGCONT)
    for process in (first, second):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert sorted(rows(folder), key=str) == [("COMPLETE", x, 3.0 * x) for x in (1, 2, 3, 4)]


def test_failures_stop_the_study_with_exit_1(call, tmp_path):
    (tmp_path / "broken.py").write_text("def objective(params):\n    raise KeyError('text')\n")
    content = {
        "objective": "broken:objective",
        "space": {"x": [1, 2, 3, 4]},
        "trials": 4,
        "max_consecutive_failures": 2,
    }
    code, out, err = call("run", write(tmp_path / "broken.yaml", content))
    assert code == 1
    assert "2 trials failed in a row" in out + err
    counts = json.loads(call("show", "broken", "--json")[1])["counts"]
    assert (counts["fail"], counts["waiting"]) == (2, 2)
    assert "KeyError" in call("trials", "broken")[1]


def test_the_console_script_is_the_same_program():
    script = Path(sys.executable).with_name("hpo")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, env=os.environ)
    for name in ("run", "check", "list", "show", "trials", "best", "report", "dashboard", "export"):
        assert f" {name} " in done.stdout
