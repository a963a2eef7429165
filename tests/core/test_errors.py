from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from hpo.core import errors
from hpo.core.errors import ConfigError, HpoError, MissingExtraError, Problem, TrialEndedError, nearest


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


def test_the_tree_in_the_docstring_has_every_error_under_its_parent() -> None:
    assert errors.__doc__ is not None
    defined = {
        name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    drawn = [found for line in errors.__doc__.splitlines() if (found := re.match(r"([├└│─ ]*)(\w+Error) ", line))]
    assert {name[2] for name in drawn} == set(defined)
    above: dict[int, type[Exception]] = {}
    for name in drawn:
        depth, kind = len(name[1]), defined[name[2]]
        parent = above[depth - 4] if depth else Exception
        assert kind.__bases__ == (parent,)
        above[depth] = kind


def test_errors_that_end_a_trial_are_not_user_errors_and_have_their_own_reasons() -> None:
    kinds = [TrialEndedError, *TrialEndedError.__subclasses__()]
    assert len({kind.reason for kind in kinds}) == len(kinds)
    assert not any(issubclass(kind, HpoError) for kind in kinds)


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("learnig_rate", ["learning_rate"], "; did you mean learning_rate?"),
        (7, ["b", "a"], "; one of a, b"),
        ("Learning-Rate", ["learning_rate"], "; did you mean learning_rate?"),
    ],
)
def test_the_nearest_name_is_offered(name: Any, names: list[str], said: str) -> None:
    assert nearest(name, names) == said
