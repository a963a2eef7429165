from __future__ import annotations

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpo

ROOT = Path(hpo.__file__).parent

# A package may import packages below it only.
PACKAGES = [
    "cli",
    "analysis",
    "execution",
    "finetune",
    "config",
    "tasks",
    "data",
    "search",
    "storage",
    "space",
    "recipe",
    "core",
]
HEAVY = ("torch", "transformers", "sklearn", "scipy", "plotly", "pandas", "datasets", "ray")


def modules() -> dict[str, Path]:
    return {str(path.relative_to(ROOT))[:-3].replace("/", "."): path for path in ROOT.rglob("*.py")}


def imports(node: ast.AST) -> Iterator[str]:
    """Every module imported below a node, inside functions too, but not for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative import"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield inner if inner.removeprefix("hpo.") in modules() else str(child.module)
        yield from imports(child)


def graph() -> dict[str, set[str]]:
    """Module -> what it imports: modules of hpo without the `hpo.`, and top names of other packages."""
    found = {}
    for module, path in modules().items():
        names = set(imports(ast.parse(path.read_text())))
        own = {name.removeprefix("hpo.") for name in names if name.startswith("hpo.")}
        found[module] = own | {name.partition(".")[0] for name in names if name.partition(".")[0] != "hpo"}
    return found


GRAPH = graph()


def reached(package: str) -> dict[str, str]:
    """Everything that the modules of a package import, directly or through others -> who imports it."""
    found: dict[str, str] = {}
    waiting = [module for module in GRAPH if module.partition(".")[0] == package]
    while waiting:
        module = waiting.pop()
        for name in GRAPH[module] - found.keys():
            found[name] = module
            waiting += [name] if name in GRAPH else []
    return found


def test_every_package_has_one_layer() -> None:
    assert {module.partition(".")[0] for module in GRAPH if module != "__init__"} == set(PACKAGES)


@pytest.mark.parametrize("module", [module for module in GRAPH if module != "__init__"])
def test_packages_import_downward_only(module: str) -> None:
    package = module.partition(".")[0]
    below = {*PACKAGES[PACKAGES.index(package) :]}
    for name in GRAPH[module]:
        if name in GRAPH or name.partition(".")[0] in PACKAGES:
            assert name.partition(".")[0] in below, f"{module} imports {name}"


def test_no_module_imports_itself_through_others() -> None:
    order = graphlib.TopologicalSorter({module: names & GRAPH.keys() for module, names in GRAPH.items()})
    assert len(list(order.static_order())) == len(GRAPH)


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("core", {"optuna", "torch", "transformers"}),
        ("recipe", {"optuna", "torch", "transformers"}),
        ("finetune", {"optuna", "plotly", "typer"}),  # training knows no search
        ("tasks", {"optuna", "transformers"}),
        ("search", {"torch", "transformers"}),  # search knows no training
        ("storage", {"torch", "transformers"}),
    ],
)
def test_training_reaches_no_optuna_and_search_no_torch(package: str, never: set[str]) -> None:
    found = reached(package)
    assert {name: found[name] for name in never & found.keys()} == {}


@pytest.mark.parametrize(
    "command",
    [
        "import hpo",
        "import hpo; hpo.Float, hpo.SearchSpace, hpo.Evaluation, hpo.HpoError",
        "import hpo.config.study_spec",
        "import hpo.cli.app; hpo.cli.app.app(['--help'], standalone_mode=False)",
        "import hpo.cli.app; hpo.cli.app.app(['run', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(command: str) -> None:
    code = f"{command}\nimport json, sys\nprint()\nprint(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ran.stdout.splitlines()[-1]) == []


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    assert hpo.__all__ == sorted(hpo.__all__)
    assert set(hpo.__all__) == set(hpo._PLACES)
    for name in hpo.__all__:
        assert getattr(hpo, name) is getattr(importlib.import_module(hpo._PLACES[name]), name)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    name = "optimise"
    with pytest.raises(AttributeError, match="module 'hpo' has no attribute 'optimise'"):
        getattr(hpo, name)


def test_dir_lists_what_is_public_and_loads_none_of_it() -> None:
    code = (
        "import sys, hpo, json; names = dir(hpo); print(json.dumps([names, 'hpo.execution.optimize' in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ran.stdout) == [sorted([*hpo.__all__, "__version__"]), False]
