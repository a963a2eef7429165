from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpo.config.study_spec import build
from hpo.core.errors import ConfigError, DivergedError
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialCheckpoint, TrialSpec
from hpo.execution.custom_objective import imported, refuse_unread_parameters
from hpo.execution.generator_array import GeneratorArray

Params = Mapping[str, Any]


def spec(number: int = 0, **params: Any) -> TrialSpec:
    return TrialSpec(number, params, seed=0)


def loaded(objective: Any, **params: Any) -> GeneratorArray:
    array = GeneratorArray(objective)
    array.load(0, spec(**params))
    return array


def test_a_generator_gives_an_evaluation_a_step_and_then_its_end() -> None:
    def objective(params: Params) -> Iterator[float]:
        for i in range(3):
            yield params["scale"] * i

    array = loaded(objective, scale=2.0)
    assert [array.advance()[0] for _ in range(3)] == [Evaluation(0.0), Evaluation(2.0), Evaluation(4.0)]
    end = array.advance()[0]
    assert isinstance(end, StopIteration)
    assert end.value is None


def test_what_a_generator_returns_is_the_value_of_its_end() -> None:
    def objective(params: Params) -> Iterator[float]:
        yield 0.25
        return 0.5

    array = loaded(objective)
    assert array.advance() == {0: Evaluation(0.25)}
    end = array.advance()[0]
    assert isinstance(end, StopIteration)
    assert end.value == 0.5


def test_a_plain_function_is_one_last_evaluation_with_all_that_it_says() -> None:
    given = Evaluation(0.5, 100, {"loss": 0.1}, of=200, notes={"collapsed": True})
    assert loaded(lambda params: params["x"], x=3).advance() == {0: Evaluation(3.0, last=True)}
    assert loaded(lambda params: given).advance() == {
        0: Evaluation(0.5, 100, {"loss": 0.1}, of=200, last=True, notes={"collapsed": True})
    }


def test_an_evaluation_passes_unchanged() -> None:
    given = Evaluation(0.5, 100, {"loss": 0.1}, 200, True, {"note": 1})

    def objective(params: Params) -> Iterator[Evaluation]:
        yield given

    assert loaded(objective).advance()[0] is given


@pytest.mark.parametrize("score", [1, 0.5, np.float32(0.5), np.int64(1), torch.tensor(0.5), float("nan")])
def test_any_number_is_a_score(score: Any) -> None:
    outcome = loaded(lambda params: score).advance()[0]
    assert isinstance(outcome, Evaluation)
    assert type(outcome.value) is float
    assert outcome.value == pytest.approx(float(score), nan_ok=True)


@pytest.mark.parametrize("score", [None, True, "0.5", b"1", [0.5], {"accuracy": 1}, torch.zeros(2)])
def test_what_is_no_number_ends_the_trial_with_its_name(score: Any) -> None:
    def objective(params: Params) -> Iterator[Any]:
        yield score

    for form in (objective, lambda params: score):
        outcome = loaded(form).advance()[0]
        assert isinstance(outcome, TypeError)
        assert type(score).__name__ in str(outcome)
        assert "yield or return a number or an Evaluation" in str(outcome)


@pytest.mark.parametrize("error", [ValueError("bad"), DivergedError("nan"), StopIteration(3)])
def test_an_exception_is_the_outcome_of_its_slot_alone(error: Exception) -> None:
    def objective(params: Params) -> Iterator[float]:
        if params["fails"]:
            raise error
        yield 1.0

    array = GeneratorArray(objective, slots=2)
    array.load(0, spec(0, fails=True))
    array.load(1, spec(1, fails=False))
    outcomes = array.advance()
    assert outcomes[1] == Evaluation(1.0)
    if isinstance(error, StopIteration):  # raised inside a generator it would look like a normal end
        assert isinstance(outcomes[0], RuntimeError)
    else:
        assert outcomes[0] is error


def test_nothing_runs_before_the_first_advance_and_ctrl_c_is_not_an_outcome() -> None:
    ran: list[str] = []

    def objective(params: Params) -> float:
        ran.append("ran")
        raise KeyboardInterrupt

    array = loaded(objective)
    assert ran == []
    with pytest.raises(KeyboardInterrupt):
        array.advance()


def test_unloading_runs_the_finally_and_empties_the_slot() -> None:
    cleaned: list[int] = []

    def objective(params: Params) -> Iterator[float]:
        try:
            while True:
                yield 0.0
        finally:
            cleaned.append(params["which"])

    array = GeneratorArray(objective, slots=2)
    for slot in range(2):
        array.load(slot, spec(slot, which=slot))
    array.advance()
    array.unload(0)
    assert cleaned == [0]
    assert array.advance().keys() == {1}
    array.unload(0)  # nothing happens to an empty slot
    array.unload(1)
    assert cleaned == [0, 1]
    assert array.advance() == {}


def test_a_slot_is_used_again() -> None:
    array = loaded(lambda params: params["x"], x=1)
    array.advance()
    array.unload(0)
    array.load(0, spec(1, x=2))
    assert array.advance() == {0: Evaluation(2.0, last=True)}
    assert array.save_weights(0, Path("nowhere")) is False


def counting(params: Params) -> Iterator[float]:
    """Count from a trial's first number; what is cleaned up is in `params`."""
    try:
        for i in range(10):
            yield params["first"] + i
    finally:
        params["cleaned"].append(params["first"])


def test_a_paused_trial_goes_on_in_any_slot_where_it_was() -> None:
    cleaned: list[int] = []
    array = GeneratorArray(counting, slots=2)
    for slot, number in enumerate([7, 8]):
        array.load(slot, spec(number, first=10 * number, cleaned=cleaned))
    assert [e.value for e in array.advance().values()] == [70, 80]  # type: ignore[union-attr]
    assert array.save(0) is None
    assert array.pause(0)
    array.unload(0)  # which is empty
    assert array.advance() == {1: Evaluation(81)}
    array.load(0, spec(9, first=90, cleaned=cleaned))
    assert array.advance() == {0: Evaluation(90), 1: Evaluation(82)}
    array.unload(1)
    array.load(1, TrialSpec(7, {"never": "read"}, 0, TrialCheckpoint(7, {"never": "read"})))
    assert array.advance() == {0: Evaluation(91), 1: Evaluation(71)}
    assert cleaned == [80]
    array.unload(1)
    assert cleaned == [80, 70]
    array.load(1, spec(7, first=70, cleaned=cleaned))  # it was unloaded, not paused: it starts afresh
    assert array.advance()[1] == Evaluation(70)


def test_a_halted_array_runs_no_further_generator() -> None:
    array = GeneratorArray(lambda params: halting(params), slots=3)

    def halting(params: Params) -> Iterator[float]:
        for i in range(2):
            if (params["which"], i) == (1, 0):
                array.stop_request.set()
            yield 10 * params["which"] + i

    for slot in range(3):
        array.load(slot, spec(slot, which=slot))
    assert array.advance() == {0: Evaluation(0), 1: Evaluation(10)}
    assert array.advance() == {}
    array.stop_request = StopRequest()
    assert array.advance() == {0: Evaluation(1), 1: Evaluation(11), 2: Evaluation(20)}


# ---------------------------------------------------------------- importing


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """The working folder and the study's, and a Python that forgets what a test imports."""
    here, study = tmp_path / "here", tmp_path / "study"
    for folder in (here, study):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield here, study
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_custom_objective_is_found_beside_the_study_before_the_working_folder(places: tuple[Path, Path]) -> None:
    here, study = places
    (here / "hpo_test_train.py").write_text("def objective(params): return 'here'\n")
    assert imported("hpo_test_train:objective", study)({}) == "here"
    del sys.modules["hpo_test_train"]
    (study / "hpo_test_train.py").write_text("def objective(params): return 'study'\n")
    sys.path_importer_cache.clear()
    assert imported("hpo_test_train:objective", study)({}) == "study"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train", "'train' must be module:function, e.g. train:objective"),
        (":objective", "must be module:function"),
        ("train:", "must be module:function"),
        ("hpo_test_none:objective", "No module named 'hpo_test_none'; looked in"),
        ("hpo_test_module:absent", "module 'hpo_test_module' has no 'absent'"),
        ("hpo_test_module:number", "'hpo_test_module:number' is a int, not a function"),
        ("hpo_test_needs:objective", "hpo_test_needs.py, line 1: ModuleNotFoundError: No module"),
        ("hpo_test_syntax:objective", "hpo_test_syntax.py, line 2)"),
    ],
)
def test_an_objective_that_cannot_be_imported_is_a_problem_of_the_file(
    places: tuple[Path, Path], name: str, said: str
) -> None:
    _, study = places
    (study / "hpo_test_module.py").write_text("number = 3\n")
    (study / "hpo_test_needs.py").write_text("import hpo_test_none\n")
    (study / "hpo_test_syntax.py").write_text("x = 1\nx = = 2\n")
    with pytest.raises(ConfigError) as caught:
        imported(name, study)
    (problem,) = caught.value.problems
    assert problem.path == ("objective",)
    assert said in problem.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("from math import absent", "ImportError: cannot import name 'absent' from 'math'"),
        ("import hpo_test_none", "ModuleNotFoundError: No module named 'hpo_test_none'"),
        ("import hpo_test_broken_too", "ModuleNotFoundError: No module named 'hpo_test_broken_too'"),
        ("import json; json.loads('{')", "JSONDecodeError: Expecting property name"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_what_a_module_raises_when_imported_is_named_with_its_file_and_line(
    places: tuple[Path, Path], line: str, said: str
) -> None:
    _, study = places
    helper = study / "hpo_test_helper.py"
    helper.write_text(f"\n\n{line}\n")
    (study / "hpo_test_broken.py").write_text("import hpo_test_helper\n\ndef objective(params): return 1.0\n")
    with pytest.raises(ConfigError) as caught:
        imported("hpo_test_broken:objective", study)
    (problem,) = caught.value.problems
    assert problem.path == ("objective",)
    assert f"'hpo_test_broken:objective' cannot be imported: {helper}, line 3: {said}" in problem.message
    helper.write_text("")
    sys.path_importer_cache.clear()
    assert imported("hpo_test_broken:objective", study)({}) == 1.0  # mended, it is imported anew


def test_the_line_is_that_of_the_users_own_file_where_a_library_raises(places: tuple[Path, Path]) -> None:
    (places[1] / "hpo_test_broken.py").write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(ConfigError, match=r"hpo_test_broken\.py, line 3: JSONDecodeError"):
        imported("hpo_test_broken:objective", places[1])


def test_a_missing_submodule_of_the_objectives_own_package_is_the_objective_itself(places: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"No module named 'hpo_test_none'; looked in"):
        imported("hpo_test_none.inner:objective", places[1])


def test_an_iterator_is_as_good_as_a_generator() -> None:
    array = loaded(lambda params: iter([0.5, 0.75]))
    assert [array.advance()[0].value for _ in range(2)] == [0.5, 0.75]  # type: ignore[union-attr]
    assert isinstance(array.advance()[0], StopIteration)


# ---------------------------------------------------------------- what it reads of a space


def test_the_parameters_that_a_custom_objective_declares_are_checked() -> None:
    def objective(params: Params) -> float:
        return 0.0

    study = build(
        {"name": "s", "objective": "train:objective", "space": {"learning_rte": [1, 2], "depth": 3}}, "x", Path()
    )
    refuse_unread_parameters(study.config, study.space, objective)  # it declares none
    objective.parameters = ["learning_rate", "depth"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        refuse_unread_parameters(study.config, study.space, objective)
    (problem,) = caught.value.problems
    assert str(problem) == "space.learning_rte: is not read by train:objective; did you mean learning_rate?"
    objective.parameters = []  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as caught:
        refuse_unread_parameters(study.config, study.space, objective)
    assert len(caught.value.problems) == 2
