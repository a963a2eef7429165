from __future__ import annotations

import itertools
import shutil

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.core.errors import StorageError
from hpo.execution.best_weights import Weights
from hpo.storage.criteria import Criteria, Limit, Second


def row(number, state="COMPLETE", value=None, **attrs):
    made = optuna.trial.create_trial(
        state=TrialState[state], value=value if state == "COMPLETE" else None, user_attrs=attrs
    )
    made.number = number
    return made


def written(folder):
    folder.mkdir(parents=True)
    (folder / "model").write_text(folder.name)
    return True


def finish(weights, rows, number, value, **attrs):
    """Save, tell and delete what is not needed, as a runner does."""
    weights.save(row(number, "COMPLETE", value, **attrs), rows, written)
    rows[number] = row(number, "COMPLETE", value, **attrs)
    weights.delete_unneeded(rows)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def running(count):
    return [row(number, "RUNNING") for number in range(count)]


@pytest.mark.parametrize(
    ("sign", "most", "values", "kept"),
    [
        (-1, 1, [0.1, 0.3, 0.2], ["1"]),
        (1, 1, [0.2, 0.1, 0.3], ["1"]),
        (-1, 2, [0.1, 0.3, 0.2, 0.05], ["1", "2"]),
        (1, 2, [0.1, 0.3, 0.2, 0.05], ["0", "3"]),
        (-1, 2, [0.5, 0.5, 0.5], ["0", "1"]),  # of equals the lowest number
        (-1, 5, [0.5, 0.1], ["0", "1"]),
        (-1, 0, [0.5, 0.1], []),
    ],
)
def test_the_best_are_saved_whatever_the_order_in_which_they_end(tmp_path, sign, most, values, kept):
    for turn, order in enumerate(itertools.permutations(range(len(values)))):
        folder = tmp_path / str(turn)
        weights, rows = Weights(folder, most, sign), running(len(values))
        for number in order:
            finish(weights, rows, number, values[number])
        assert names(folder) == kept, order


@given(values=st.lists(st.integers(0, 3), max_size=8), most=st.integers(0, 3), sign=st.sampled_from([1, -1]))
def test_only_what_may_be_among_the_best_is_written(values, most, sign, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    weights, rows, ranked = Weights(folder, most, sign), running(len(values)), []
    for number, value in enumerate(values):
        wrote = []
        weights.save(row(number, "COMPLETE", value), rows, lambda path, wrote=wrote: wrote.append(path))
        ranked = sorted([*ranked, (sign * value, number)])
        assert bool(wrote) is ((sign * value, number) in ranked[:most])
        finish(weights, rows, number, value)
    assert names(folder) == sorted(str(number) for _, number in ranked[:most])
    shutil.rmtree(folder)


def test_the_published_default_is_saved_however_bad(tmp_path):
    weights, rows = Weights(tmp_path, 1, -1), running(3)
    finish(weights, rows, 1, 0.9)
    finish(weights, rows, 0, 0.1, baseline=True)
    finish(weights, rows, 2, 0.95)
    assert names(tmp_path) == ["0", "2"]


@pytest.mark.parametrize("number", [0, 2])
def test_a_duplicate_takes_no_place_of_what_has_weights(tmp_path, number):
    weights, rows = Weights(tmp_path, 1, -1), running(3)
    finish(weights, rows, 1, 0.9)
    rows[number] = row(number, "COMPLETE", 0.9, duplicate_of=1)
    weights.delete_unneeded(rows)
    assert names(tmp_path) == ["1"]


@pytest.mark.parametrize("state", ["PRUNED", "FAIL"])
def test_what_did_not_complete_has_no_weights(tmp_path, state):
    weights, rows = Weights(tmp_path, 2, -1), running(2)
    written(tmp_path / "1")  # by a process that was killed before it told the trial
    rows[1] = row(1, state)
    weights.delete_unneeded(rows)
    assert names(tmp_path) == []


def test_what_another_process_writes_stays_and_what_a_killed_one_left_goes(tmp_path):
    weights, rows = Weights(tmp_path, 1, -1), running(5)
    for name in (".1", "2", ".3", ".x", "notes", "x1"):
        written(tmp_path / name)
    finish(weights, rows, 0, 0.9)
    assert names(tmp_path) == [".1", ".3", ".x", "0", "2", "notes", "x1"]
    rows[2], rows[3] = (
        row(2, "COMPLETE", 0.1),
        row(3, "COMPLETE", 0.95),
    )  # 3: saved by another process, told, not renamed
    written(tmp_path / "3")
    weights.delete_unneeded(rows)
    assert names(tmp_path) == [".1", ".x", "3", "notes", "x1"]


def test_who_adopts_a_trial_writes_its_weights_anew(tmp_path):
    weights, rows = Weights(tmp_path, 1, -1), running(1)
    for name in ("0", ".0"):
        written(tmp_path / name)
        (tmp_path / name / "model").write_text("torn")
        (tmp_path / name / "old").touch()
    finish(weights, rows, 0, 0.9)
    assert names(tmp_path) == ["0"]
    assert names(tmp_path / "0") == ["model"]
    assert (tmp_path / "0" / "model").read_text() == ".0"


def test_an_array_without_weights_leaves_nothing(tmp_path):
    weights, rows = Weights(tmp_path / "none", 1, -1), running(1)
    weights.save(row(0, "COMPLETE", 0.9), rows, lambda folder: False)
    weights.delete_unneeded([row(0, "COMPLETE", 0.9)])
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_an_error_that_says_what_to_do_and_leaves_nothing(tmp_path):
    def write(folder):
        folder.mkdir(parents=True)
        (folder / "half").write_text("h")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"weights of trial 0 cannot be written .*No space left.*Make room"):
        Weights(tmp_path, 1, -1).save(row(0, "COMPLETE", 0.5), running(1), write)
    assert list(tmp_path.iterdir()) == []


@given(
    trials=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6),
    sign=st.sampled_from([1, -1]),
    most=st.integers(0, 2),
    data=st.data(),
)
def test_the_best_within_the_limits_and_the_front_are_kept_whatever_the_order(
    trials, sign, most, data, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("weights")
    criteria = Criteria((Limit("cost", most=2.0),), Second("cost", "minimize"))
    weights, rows = Weights(folder, most, sign, criteria), running(len(trials))
    for number in data.draw(st.permutations(range(len(trials)))):
        value, cost = trials[number]
        finish(weights, rows, number, float(value), metrics={"cost": cost})
    within = sorted((sign * value, cost, number) for number, (value, cost) in enumerate(trials) if cost <= 2)
    front = {
        number
        for value, cost, number in within
        if not any(v <= value and c <= cost and (v, c) != (value, cost) for v, c, _ in within)
    }
    assert names(folder) == sorted(map(str, front | {number for *_, number in within[:most]}))
    shutil.rmtree(folder)
