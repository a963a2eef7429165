"""What the README and docs show is run, or checked against the program."""

import re
import warnings
from pathlib import Path

import pytest
from typer.main import get_command

from hpo.cli.app import app
from hpo.config import study_spec
from hpo.config.schema import StudyConfig
from hpo.search.pruners import PRUNERS
from hpo.search.samplers import SAMPLERS
from hpo.tasks.metrics import METRICS
from hpo.tasks.registry import TASKS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """Return (page, code) of every fenced block of a language."""
    found = []
    for page in PAGES:
        found += [(page.name, code) for code in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]
    return found


def test_pages_are_there():
    names = {"README.md", "architecture.md", "clusters.md", "objectives.md", "study-file.md"}
    assert {page.name for page in PAGES} == names


def test_modules_that_the_pages_name_are_there():
    for page in (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"`((?:hpo/|tests/)?[a-z_]+/[a-z_/]+\.py)`", page.read_text())
        assert len(named) >= 3
        for name in named:
            path = ROOT / name if name.startswith(("hpo/", "tests/")) else ROOT / "hpo" / name
            assert path.is_file(), f"{page.name}: {name}"


def test_the_packages_of_the_architecture_are_those_of_the_house():
    drawn = re.findall(r"^([a-z]+) {2,}", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    house = {path.parent.name for path in (ROOT / "hpo").glob("*/__init__.py")}
    assert set(drawn) == house


@pytest.mark.parametrize(
    ("page", "code"), blocks("python"), ids=[f"{p}-{i}" for i, (p, _) in enumerate(blocks("python"))]
)
def test_python_runs(page, code):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        names = {"__name__": "shown"}
        exec(compile(code, page, "exec"), names)
    assert all(trial.state.is_finished() for trial in names["study"].trials)


@pytest.mark.parametrize(("page", "code"), blocks("yaml"), ids=[f"{p}-{i}" for i, (p, _) in enumerate(blocks("yaml"))])
def test_yaml_is_a_study_or_a_part_of_one(tmp_path, page, code):
    complete = "model:" in code or "objective:" in code
    (tmp_path / "shown.yaml").write_text(code if complete else f"model: m\ndata: {{}}\n{code}")
    assert study_spec.load(tmp_path / "shown.yaml").space.parameters


def commands():
    return sorted(
        {line for _, code in blocks("console") for line in re.findall(r"^\$ (hpo .*?)(?:  +#.*)?$", code, re.MULTILINE)}
    )


@pytest.mark.parametrize("line", commands())
def test_commands_and_options_exist(line):
    _, name, *arguments = line.split()
    command = get_command(app).commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("-")} <= options


def test_every_command_is_shown():
    assert {line.split()[1] for line in commands()} == set(get_command(app).commands)


def test_every_key_of_a_study_file_is_in_its_page():
    page = (ROOT / "docs" / "study-file.md").read_text()
    keys = set(re.findall(r"`([a-z_]+)`", "\n".join(line for line in page.splitlines() if line.startswith("| `"))))
    read = {key for task in TASKS.values() for key in task.keys.model_fields}
    assert set(StudyConfig.model_fields) | read <= keys


def test_the_readme_names_every_sampler_pruner_and_make_target():
    readme = (ROOT / "README.md").read_text()
    assert [name for name in (*SAMPLERS, *PRUNERS) if f"`{name}`" not in readme] == []
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^\$ make (\w+)", readme, re.MULTILINE)) <= set(targets)


def test_metrics_of_the_page_are_the_metrics():
    page = (ROOT / "docs" / "study-file.md").read_text()
    written = {name: (name, f"{name.rpartition('_')[0]}_") for name in METRICS}  # `f1_` stands for f1_macro and others
    assert [name for name, ways in written.items() if not any(f"`{way}`" in page for way in ways)] == []


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
