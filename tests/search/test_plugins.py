from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from hpo.search import pruners, samplers
from hpo.search.plugins import _hints, argument_problems, name_and_arguments


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("median", ("median", {})),
        ({"name": "median"}, ("median", {})),
        ({"name": "asha", "reduction_factor": 3}, ("asha", {"reduction_factor": 3})),
        ({"reduction_factor": 3}, ("", {"reduction_factor": 3})),
    ],
)
def test_a_setting_is_a_name_or_a_mapping_with_one(setting: Any, expected: tuple[str, dict[str, Any]]) -> None:
    given = setting if isinstance(setting, str) else dict(setting)
    assert name_and_arguments(setting) == expected
    assert setting == given


def of(count: int, share: float = 0.1, name: str | None = None, call: Callable[[int], int] | None = None) -> None:
    pass


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"count": 1, "share": 0.5, "name": "a", "call": abs}, {}),
        ({"count": 1, "share": 1, "name": None, "call": None}, {}),
        ({"count": "1"}, {"count": "must be a whole number, not '1'"}),
        ({"count": True}, {"count": "must be a whole number, not True"}),
        (
            {"count": 1.5, "share": "x"},
            {"count": "must be a whole number, not 1.5", "share": "must be a number, not 'x'"},
        ),
        ({"count": 1.5}, {"count": "must be a whole number, not 1.5"}),
        ({"call": "abs"}, {"call": "must be a Python function or null, not 'abs'"}),
        ({"other": 3}, {}),
    ],
)
def test_an_argument_must_be_of_its_annotated_type(arguments: dict[str, Any], problems: dict[str, str]) -> None:
    assert argument_problems(of, arguments) == problems


@pytest.mark.parametrize("module", [samplers, pruners])
def test_every_annotation_of_optuna_can_be_read(module: Any) -> None:
    """A new version of Optuna with other names in its annotations must not disable the check silently."""
    builds = {name: module.factory(name) for name in module.names()}
    unread = [name for name, build in builds.items() if build.__init__ is not object.__init__ and not _hints(build)]
    assert set(unread) <= {"none", "NopPruner"}


def test_an_argument_with_an_unreadable_annotation_is_not_checked() -> None:
    def build(x: Unknown) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    assert argument_problems(build, {"x": 3}) == {}


def test_an_object_of_the_annotated_class_is_accepted() -> None:
    inner = optuna.pruners.MedianPruner()
    assert argument_problems(optuna.pruners.PatientPruner, {"wrapped_pruner": inner, "patience": 1}) == {}
