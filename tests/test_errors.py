from __future__ import annotations

import inspect

import pytest

from hpo import errors
from hpo.errors import ConfigError, HpoError, MissingExtraError, Problem, TrialEndedError


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem(("space", "lr", "low"), "is empty", 3), "line 3: space.lr.low: is empty"),
        (Problem(("data", "label", 1), "is missing"), "data.label.1: is missing"),
        (Problem((), "is not YAML", 7), "line 7: is not YAML"),
        (Problem((), "is not YAML"), "is not YAML"),
    ],
)
def test_a_problem_says_where_and_what(problem: Problem, text: str) -> None:
    assert str(problem) == text


@pytest.mark.parametrize(("count", "said"), [(1, "1 problem"), (2, "2 problems")])
def test_a_config_error_lists_every_problem(count: int, said: str) -> None:
    problems = [Problem((name,), "is wrong") for name in "ab"[:count]]
    error = ConfigError("study.yaml", problems)
    assert str(error).splitlines() == [f"study.yaml: {said}", *(f"  {problem}" for problem in problems)]
    assert error.problems == tuple(problems)


def test_a_missing_extra_says_what_to_install() -> None:
    assert "pip install 'hpo[postgresql]'" in str(MissingExtraError("A PostgreSQL storage", "postgresql"))


def test_the_tree_at_the_top_names_every_error_under_its_parent() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split()[0 if line[0] not in "├└" else 1] for line in errors.__doc__.splitlines() if "Error " in line}
    defined = {
        name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert drawn == set(defined)
    for line in errors.__doc__.splitlines():
        if "Error " in line and line[0] not in "├└":
            root = defined[line.split()[0]]
        elif "Error " in line:
            assert issubclass(defined[line.split()[1]], root)


def test_what_ends_a_trial_is_no_error_of_the_user_and_has_its_own_reason() -> None:
    kinds = [TrialEndedError, *TrialEndedError.__subclasses__()]
    assert len({kind.reason for kind in kinds}) == len(kinds)
    assert not any(issubclass(kind, HpoError) for kind in kinds)
