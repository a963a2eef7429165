from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpo

ROOT = Path(hpo.__file__).parent

# A module may import modules of lower layers only.
LAYERS = [
    [
        "changes",
        "checkpoint",
        "dashboard_guard",
        "errors",
        "formatting",
        "halt",
        "named",
        "page",
        "separation",
        "source",
        "finetune.__init__",
        "finetune.batches",
        "finetune.dropout",
        "finetune.packing",
    ],
    [
        "comparison",
        "flock",
        "urls",
        "weights",
        "finetune.folded_layers",
        "finetune.probe",
        "finetune.schedules",
        "finetune.tasks",
        "finetune.vocabulary",
    ],
    [
        "finetune.device",
        "files",
        "hyperparameters",
        "rungs",
        "session",
        "stopping",
        "yaml",
        "finetune.first_token",
        "finetune.metrics",
        "finetune.optimizer",
        "finetune.readers",
    ],
    [
        "baselines",
        "bootstrap",
        "breakdown",
        "locks",
        "outcomes",
        "patience",
        "predictions",
        "settings",
        "space",
        "finetune.adapters",
        "finetune.folded_optimizer",
        "finetune.model",
        "finetune.replay",
    ],
    ["inputs", "ledger", "processes", "space_reader", "verdict", "finetune.adapter_files", "finetune.folded_families"],
    ["turns", "finetune.folded"],
    ["finetune.fold_check", "objective", "pruners", "samplers", "storage"],
    ["config", "from_optuna", "intake", "running", "watcher", "finetune.labels", "finetune.slot", "finetune.splits"],
    ["again", "keeper", "study", "finetune.data"],
    ["runner", "workers", "finetune.quality", "finetune.tokens"],
    ["ray_workers", "finetune.array", "finetune.folded_program", "finetune.predictor"],
    ["finetune.folded_array", "finetune.shard"],
    ["finetune.lora_array", "finetune.sharded_array"],
    ["tune"],
    ["check", "results"],
    ["findings", "holdout", "plots", "progress"],
    ["card", "dashboard", "live", "report"],
    ["export"],
    ["commands"],
    ["predict"],
    ["cli"],
    ["__init__"],
]
LAYER = {module: level for level, modules in enumerate(LAYERS) for module in modules}
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


def test_every_module_has_one_layer() -> None:
    assert len(LAYER) == sum(map(len, LAYERS))
    assert set(modules()) == set(LAYER)


@pytest.mark.parametrize("module", modules())
def test_imports_run_strictly_downward(module: str) -> None:
    below = {name for name, level in LAYER.items() if level < LAYER[module]}
    for name in imports(ast.parse(modules()[module].read_text())):
        if name.split(".")[0] == "hpo":
            assert name.removeprefix("hpo.") in below, f"{module} imports {name}"


def test_torch_is_imported_in_finetune_only() -> None:
    for module, path in modules().items():
        if not module.startswith("finetune."):
            heavy = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))} & {"torch", "transformers"}
            assert not heavy, f"{module} imports {heavy}"


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
        "import sys, hpo, json; names = dir(hpo); print(json.dumps([names, 'hpo.execution.run_study' in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ran.stdout) == [sorted([*hpo.__all__, "__version__"]), False]
