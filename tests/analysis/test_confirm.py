"""What a confirmation says: in made-up scores, and end to end with a tiny transformer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import tiny
from optuna.trial import TrialState, create_trial
from ruamel.yaml import YAML

from hpo.analysis import confirm_text
from hpo.analysis.confirm import Comparison
from hpo.execution.confirmation import DEFAULT, Configuration
from hpo.storage.snapshot import CONFIGURATION, Results

Call = Callable[..., tuple[int, str]]


def comparison(
    validation: dict[str, list[float | None]],
    test: dict[str, list[float]] | None,
    direction: str = "maximize",
    spread: float = 0.001,
) -> dict[str, Any]:
    """Return the facts of made-up runs; None in `validation` is a run that diverged."""
    chosen = [
        Configuration(name, None if name == DEFAULT else number, {"x": number}, 0.95)
        for number, name in enumerate(validation)
    ]
    runs, count = [], 0
    for values in validation.values():
        runs.append([])
        for value in values:
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            run = create_trial(state=state, value=value, user_attrs={"reason": "diverged"} if value is None else {})
            run.number = count
            runs[-1].append(run)
            count += 1
    scores = resamples = None
    if test is not None:
        scores = np.array(list(test.values()))
        rng = np.random.default_rng(0)
        resamples = scores + spread * rng.normal(size=(200, len(scores), 1))
    found = Comparison(direction, chosen, runs, scores, resamples, None).facts()
    return {"metric": "accuracy", "examples": None if test is None else 500, "before": [], **found}


def named(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["configurations"] if each["name"] == name)


VALIDATION: dict[str, list[float | None]] = {"trial 3": [0.9, 0.91, 0.92], "trial 5": [0.9, 0.9, 0.9]}
VALIDATION |= {DEFAULT: [0.8, 0.81, 0.8]}
TEST = {"trial 3": [0.88, 0.89, 0.90], "trial 5": [0.881, 0.888, 0.902], DEFAULT: [0.79, 0.805, 0.8]}


def test_a_winner_is_the_best_by_validation_whose_interval_leaves_out_zero() -> None:
    found = comparison(VALIDATION, TEST)
    assert (found["best"], found["winner"]) == ("trial 3", "trial 3")
    best = named(found, "trial 3")
    assert best["to_default"]["difference"] == pytest.approx(np.mean([0.09, 0.085, 0.1]))
    assert best["to_default"]["low"] > 0
    assert best["optimism"]["difference"] == pytest.approx(0.95 - 0.89)
    text = ". ".join(confirm_text.sentences(found))
    assert "trial 3 is better" in text
    assert "No difference between trial 3 and trial 5 is shown: they tie" in text
    assert "optimism is +0.06" in text


def test_a_minimised_metric_wins_by_being_lower_and_its_optimism_has_the_same_sign() -> None:
    turned: dict[str, list[float | None]] = {
        n: [1 - v for v in each if v is not None] for n, each in VALIDATION.items()
    }
    lower = comparison(turned, {n: [1 - v for v in each] for n, each in TEST.items()}, "minimize")
    assert lower["winner"] == "trial 3"
    assert named(lower, "trial 3")["to_default"]["high"] < 0
    assert named(lower, "trial 3")["optimism"]["difference"] == pytest.approx(0.11 - 0.95)


@pytest.mark.parametrize(("spread", "wins"), [(0.001, True), (0.2, False)])
def test_the_rows_can_take_a_win_away(spread: float, wins: bool) -> None:
    found = comparison(VALIDATION, TEST, spread=spread)
    assert (found["winner"] is not None) is wins
    assert ("and the published default tie" in ". ".join(confirm_text.sentences(found))) is not wins


def test_a_configuration_that_is_shown_to_be_worse_is_said_to_be_so() -> None:
    found = comparison({"trial 3": [0.9] * 3, DEFAULT: [0.8] * 3}, {"trial 3": [0.7, 0.71, 0.7], DEFAULT: [0.8] * 3})
    assert found["winner"] is None
    assert "trial 3 is worse" in confirm_text.sentences(found)[1]


def test_where_the_default_is_best_nothing_wins() -> None:
    found = comparison({"trial 3": [0.8] * 3, DEFAULT: [0.9] * 3}, {"trial 3": [0.7, 0.71, 0.7], DEFAULT: [0.8] * 3})
    assert (found["best"], found["winner"]) == (DEFAULT, None)
    assert "the search has found nothing better" in confirm_text.sentences(found)[1]


def test_a_configuration_of_which_a_run_diverged_cannot_win() -> None:
    """Its other runs are no random selection."""
    found = comparison(VALIDATION | {"trial 3": [0.99, None, 0.99]}, TEST | {"trial 3": [0.99, np.nan, 0.99]})
    each = named(found, "trial 3")
    assert found["best"] == "trial 5"
    assert each["untold"] == each["to_default"]["untold"] == "1 of 3 runs did not complete"
    assert each["ended"] == {"diverged": 1}
    assert not each["to_default"]["shown"]
    assert "trial 3: 1 diverged" in ". ".join(confirm_text.sentences(found))
    nothing = comparison({name: [None] * 3 for name in VALIDATION}, {name: [np.nan] * 3 for name in TEST})
    assert (nothing["best"], nothing["winner"]) == (None, None)
    assert confirm_text.sentences(nothing)[0].startswith("Nothing is confirmed")
    confirm_text.table(nothing)


def test_without_a_test_split_the_values_are_compared_at_a_stricter_level() -> None:
    """The best of several was chosen by the same values."""
    found = comparison(VALIDATION, None)
    assert found["split"] == "validation"
    assert found["confidence"] == pytest.approx(1 - 0.05 / 2)
    assert named(found, "trial 3")["scores"] == VALIDATION["trial 3"]
    assert "97.5% confidence; it covers other runs" in confirm_text.sentences(found)[1]


def test_without_a_default_a_winner_beats_all_others() -> None:
    clear = comparison({"trial 3": [0.9, 0.91, 0.9], "trial 5": [0.5, 0.51, 0.49]}, None)
    close = comparison({"trial 3": [0.9, 0.8, 0.9], "trial 5": [0.85, 0.85, 0.84]}, None)
    assert (clear["winner"], close["winner"]) == ("trial 3", None)


def test_the_median_run_of_an_even_number_is_the_lower_one() -> None:
    found = comparison({"trial 3": [0.4, 0.1, 0.3, 0.2]}, None)
    assert named(found, "trial 3")["median_run"] == 3


def test_an_attribute_of_another_shape_is_no_confirmation() -> None:
    found = comparison(VALIDATION, TEST) | {"study": "s.confirm"}
    assert Results("s", "maximize", (), {"confirmation": found}).confirmation == found
    assert found["configurations"][0].keys() >= CONFIGURATION
    for configurations in (["text"], [{"name": "trial 3"}]):
        broken = {"confirmation": found | {"configurations": configurations}}
        assert Results("s", "maximize", (), broken).confirmation is None


# ---------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study of a tiny transformer that has run."""
    folder = tmp_path_factory.mktemp("searched")
    tiny.write_csv(folder / "data.csv", 400)
    data = {"train": str(folder / "data.csv"), "validation": 100, "test": 150}
    space = {"parameters": {"learning_rate": {"low": 3e-3, "high": 4e-3}, "batch_size": 8, "epochs": 6}}
    space["baseline"] = {"learning_rate": 1e-6}
    YAML().dump(tiny.study(folder, data=data, space=space, slots=2), folder / "tiny.yaml")
    run(folder, "run", "tiny.yaml", "-q")
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hpo.cli", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def folder(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder, which is the working folder."""
    subprocess.run(["cp", "-r", f"{searched}/.", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_end_to_end(folder: Path, call: Call) -> None:
    code, printed = call("export", "tiny", "--confirmed", "-o", "out")
    assert (code, "has not been confirmed: hpo confirm tiny" in printed) == (2, True)
    code, printed = call("confirm", "tiny", "--top", 2, "--seeds", 3, "--json")
    assert code == 0, printed
    found = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert found["best"] is not None
    assert found["winner"] in (None, found["best"])
    assert [len(each["scores"]) for each in found["configurations"]] == [3, 3, 3]
    stored = optuna.load_study(study_name="tiny", storage="sqlite:///hpo.db").user_attrs["confirmation"]
    assert stored == found
    weights = {int(path.name) for path in Path("runs/tiny.confirm/trials").iterdir()}
    assert weights == {each["median_run"] for each in found["configurations"]}

    code, shown = call("show", "tiny")
    sentence = confirm_text.sentences(found)[1]
    assert sentence.startswith("The difference to the published default is +")
    assert sentence in shown
    assert sentence.replace(">", "&gt;") in Path("runs/tiny/report.html").read_text()
    code, printed = call("export", "tiny", "--confirmed", "-o", "out")
    assert code == 0, printed
    card = Path("out/README.md").read_text()
    assert sentence in card
    assert f"a fresh run of {found['best']} of an hpo study, of 3 the one of median validation score" in card
    assert call("export", "tiny", "--confirmed", "--trial", "1", "-o", "other")[0] == 2
    assert "is the confirmation of 'tiny'" in call("run", "tiny.confirm")[1]
    shown = call("show", "tiny.confirm")[1]
    assert "the runs of the confirmation of tiny" in shown
    assert "best" not in shown

    Path("runs/tiny.confirm/trials").rename("moved")  # nothing is trained or scored again but what export needs
    code, printed = call("confirm", "tiny", "--top", 2, "--seeds", 3)
    assert code == 0
    assert printed.count("it is trained again") == 3
    assert "is scored on the test split" not in printed
    assert sentence in printed


@pytest.mark.slow
def test_a_confirmation_that_is_killed_goes_on_and_says_the_same(searched: Path, folder: Path, tmp_path: Path) -> None:
    words = ["confirm", "tiny", "--top", "1", "--seeds", "3"]
    for trials in (1, 4):
        process = subprocess.Popen(
            [sys.executable, "-m", "hpo.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and ended() < trials:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = json.loads(run(folder, *words, "--json"))
    whole = tmp_path / "whole"
    subprocess.run(["cp", "-r", f"{searched}/.", str(whole)], check=True)
    assert killed == json.loads(run(whole, *words, "--json"))
    assert len(os.listdir("runs/tiny.confirm/outputs")) == 6


def ended() -> int:
    """Return how many runs of the confirmation have ended."""
    names = optuna.get_all_study_names("sqlite:///hpo.db")
    if "tiny.confirm" not in names:
        return 0
    study = optuna.load_study(study_name="tiny.confirm", storage="sqlite:///hpo.db")
    return sum(trial.state.is_finished() for trial in study.get_trials())


NOISY = "import random\ndef objective(params):\n    return params['x'] + random.gauss(0, 0.01)\n"
FIXED = "def objective(params):\n    return params['x']\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [(NOISY, "is better than every other configuration"), (FIXED, "No difference between trial")],
)
def test_a_custom_objective_is_confirmed_by_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, source: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(source)
    Path("own.yaml").write_text("objective: own:objective\nspace: {x: [0.1, 0.5, 0.9]}\ntrials: 3\nsampler: grid\n")
    call("run", "own.yaml", "-q")
    code, printed = call("confirm", "own", "--top", 3)
    assert code == 0, printed
    assert said in printed
    assert "on the values of the objective" in printed
    code, printed = call("export", "own", "--confirmed", "-o", "out")
    assert (code, "does not save the weights of a custom objective" in printed.replace("\n", " ")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--top", "9"], "--top 9: study 'tiny' has 3 completed configurations besides"),
        (["tiny", "--seeds", "2"], "an interval over seeds needs 3 or more"),
        (["nothing"], "no study 'nothing'"),
    ],
)
def test_what_cannot_be_confirmed_is_an_error_and_nothing_is_written(
    folder: Path, call: Call, arguments: list[str], said: str
) -> None:
    code, printed = call("confirm", *arguments)
    assert (code, said in printed) == (2, True), printed
    assert optuna.get_all_study_names("sqlite:///hpo.db") == ["tiny"]
    assert not Path("runs/tiny.confirm").exists()


def test_changed_data_is_an_error_and_nothing_is_written(folder: Path, call: Call) -> None:
    study = YAML(typ="safe").load(Path("tiny.yaml"))
    tiny.write_csv(Path(study["data"]["train"]), 400, seed=3)
    try:
        code, printed = call("confirm", "tiny", "--top", 1)
    finally:
        tiny.write_csv(Path(study["data"]["train"]), 400)
    assert (code, "a hash of all rows" in printed) == (2, True), printed
    assert optuna.get_all_study_names("sqlite:///hpo.db") == ["tiny"]
