"""Malicious files, storages and names: nothing that is read is run, and no name leads out of its folder."""

from __future__ import annotations

import ast
import json
import os
import pickle
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from optuna.storages.journal._base import BaseJournalSnapshot

import hpo
from hpo.analysis import export
from hpo.core import paths
from hpo.core.errors import ConfigError, DataError, ModelError, StudyError
from hpo.execution.study_setup import folder_of
from hpo.search import samplers
from hpo.space.parser import parse
from hpo.storage import backends
from hpo.storage.snapshot import Results, read

MARK = "poisoned"


class Poison:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARK,)


BOMB = pickle.dumps(Poison())


@pytest.fixture(autouse=True)
def unharmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Work in a new folder, and check that nothing was run, and nothing written outside that folder."""
    here = tmp_path / "a" / "b" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in ("HPO_STORAGE", "HPO_STORAGE_FILE"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not list(tmp_path.rglob(MARK))
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert list((tmp_path / "a" / "b").iterdir()) == [here]


def test_the_bomb_explodes_when_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(BOMB)
    assert Path(MARK).is_dir()
    Path(MARK).rmdir()


# ---------------------------------------------------------------- models


def bomb_as_torch_saves(path: Path) -> None:
    import torch

    torch.save({"bert.embeddings.word_embeddings.weight": Poison()}, path)


def weights_as_torch_saves(path: Path) -> None:
    """Write harmless weights that would load: the format is refused, not only malicious files."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(path.with_name("model.safetensors")), path)


def load(folder: Path) -> None:
    from hpo.finetune.models.loading import load_model, load_tokenizer
    from hpo.tasks.registry import TASKS

    tokenizer = load_tokenizer(str(folder), folder)
    load_model(str(folder), folder, TASKS["single_label"], ["a", "b"], tokenizer.pad_token_id)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.pt", "model.ckpt", "model.pth"])
@pytest.mark.parametrize("write", [bomb_as_torch_saves, weights_as_torch_saves, lambda path: path.write_bytes(BOMB)])
def test_a_model_that_has_only_what_must_be_unpickled_is_refused(name: str, write: Any) -> None:
    folder = tiny.save_model(Path("model"))
    write(folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_shards_that_must_be_unpickled_are_refused() -> None:
    folder = tiny.save_model(Path("model"))
    (folder / "model.safetensors").unlink()
    bomb_as_torch_saves(folder / "shard.bin")
    weights = {"bert.embeddings.word_embeddings.weight": "shard.bin", "bert.pooler.dense.bias": "../../x.bin"}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
        with pytest.raises(ModelError):
            load(folder)


def test_pickles_beside_the_weights_are_not_read(call: Any) -> None:
    content = tiny.study(Path.cwd(), trials=1)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "x.pkl"):
        (Path("model") / name).write_bytes(BOMB)
    Path("s.yaml").write_text(json.dumps(content))
    code, printed = call("run", "s.yaml", "-q")
    assert code == 0, printed
    for trial in Path("runs/tiny/trials").iterdir():
        (trial / "training_args.bin").write_bytes(BOMB)
    code, printed = call("export", "tiny", "-o", "out")
    assert code == 0, printed


CODE = f"import os\nos.mkdir({MARK!r})\nclass Mine: pass\n"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "code.Mine", "AutoModelForSequenceClassification": "code.Mine"}}),
        ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}}),
        ("tokenizer_config.json", {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}),
    ],
)
def test_code_beside_a_model_is_not_run_even_if_the_user_agrees(
    monkeypatch: pytest.MonkeyPatch, file: str, change: dict[str, Any]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers may ask the user
    folder = tiny.save_model(Path("model"))
    settings = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(settings))
    (folder / "code.py").write_text(CODE)
    refused = ""
    try:
        load(folder)
    except ModelError as error:
        refused = str(error)
    assert not refused or "needs Python code that it brings along, which hpo never runs" in refused


def test_an_adapter_that_must_be_unpickled_is_refused() -> None:
    from hpo.finetune.lora.peft_files import merged

    folder = tiny.save_model(Path("model"))
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(folder), "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    bomb_as_torch_saves(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        merged(folder)


@pytest.mark.parametrize("name", ["train.pkl", "train.pt", "train.bin", "train.npy", "train.csv", "train.parquet"])
def test_data_is_never_unpickled(name: str) -> None:
    from hpo.data.readers import read_rows

    Path(name).write_bytes(BOMB)
    with pytest.raises(DataError):
        read_rows(Path(name))


@pytest.mark.parametrize(
    "name",
    ["package:optuna/../optuna/__init__.py", "package:optuna//etc/passwd", "package:..", "package:."],
)
def test_a_path_in_a_package_does_not_lead_out_of_it(name: str) -> None:
    root = Path(optuna.__file__).parent
    assert paths.locate("package:optuna/__init__.py", Path()) == root / "__init__.py"
    assert paths.locate(name, Path()) is None


def test_a_package_is_found_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (Path("mine") / "inner").mkdir(parents=True)
    Path("mine/__init__.py").write_text(CODE)
    Path("mine/inner/data.csv").touch()
    monkeypatch.syspath_prepend(Path.cwd())
    assert paths.locate("package:mine/inner/data.csv", Path()) == Path.cwd() / "mine" / "inner" / "data.csv"
    assert paths.locate("package:mine.inner/data.csv", Path()) is None  # this would import `mine`


# ---------------------------------------------------------------- storages

EVIL = "<script>alert(1)</script>"
SPACE = {"a": {"low": 0.0, "high": 1.0}, "b": {"low": 1, "high": 90}, "c": ["x", "y"]}


class OptunasOwn(optuna.samplers.CmaEsSampler):
    """Optuna's sampler, which here draws as many random numbers as one that restarts its optimizer each time."""

    def _restore_optimizer(self, completed_trials: Any) -> Any:
        restored = super()._restore_optimizer(completed_trials)
        if restored is not None:
            self._cma_rng.rng.randint(1, 2**31 - 2)
        return restored


@pytest.mark.parametrize("arguments", [{}, {"with_margin": True}, {"use_separable_cma": True}, {"popsize": 5}])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_replayed_cma_es_draws_what_the_unpickled_one_draws(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], direction: Any
) -> None:
    def drawn() -> list[dict[str, Any]]:
        sampler = samplers.TrialSeededSampler("cmaes", {**arguments, "warn_independent_sampling": False}, space, 3)
        study = optuna.create_study(sampler=sampler, direction=direction)
        for _ in range(32):
            trial = study.ask()
            params = space.suggest(trial)
            study.tell(trial, (params["a"] - 0.3) ** 2 - params["b"] / 90)
        pickled = [key for trial in study.trials for key in trial.system_attrs if ":optimizer" in key]
        assert bool(pickled) == (samplers.SAMPLERS["cmaes"] is OptunasOwn)
        assert max(value for trial in study.trials for key, value in trial.system_attrs.items() if "gen" in key) >= 3
        return [trial.params for trial in study.trials]

    space = parse(SPACE, None, source="test")
    ours = drawn()
    monkeypatch.setitem(samplers.SAMPLERS, "cmaes", OptunasOwn)
    for mine, theirs in zip(ours, drawn(), strict=True):
        assert mine["c"] == theirs["c"]
        assert [mine["a"], mine["b"]] == pytest.approx([theirs["a"], theirs["b"]], abs=1e-9)


@pytest.mark.parametrize("name", ["cmaes", "CmaEsSampler"])
@pytest.mark.parametrize("url", ["sqlite:///hpo.db", "journal:///hpo.log"])
def test_a_sampler_unpickles_nothing_from_a_storage(name: str, url: str) -> None:
    def run(trials: int) -> None:
        hpo.optimize(lambda params: params["a"], {"a": SPACE["a"]}, trials=trials, sampler=name, storage=url)

    run(3)
    storage = backends.connect(url)
    (study,) = storage.get_all_studies()
    for prefix in ("cma:", "sepcma:", "cmawm:"):
        trial = storage.create_new_trial(study._study_id)
        storage.set_trial_param(trial, "a", 0.5, optuna.distributions.FloatDistribution(0.0, 1.0))
        storage.set_trial_system_attr(trial, f"{prefix}optimizer:0", BOMB.hex())
        storage.set_trial_state_values(trial, optuna.trial.TrialState.COMPLETE, [0.5])
    run(9)


def test_no_journal_is_unpickled() -> None:
    storage = backends.connect("journal:///hpo.log")
    assert isinstance(storage, optuna.storages.JournalStorage)
    assert not isinstance(storage._backend, BaseJournalSnapshot)
    Path("hpo.log").write_bytes(BOMB + b"\n")
    with pytest.raises(hpo.HpoError, match="is not an Optuna journal"):
        backends.connect("journal:///hpo.log")


@pytest.mark.parametrize("url", ["redis://host", "redis://host:6379/0", "rediss://host", "unix:///run/redis.sock"])
def test_redis_is_refused(call: Any, url: str) -> None:
    code, printed = call("list", "--storage", url)
    assert code == 2
    assert "not understood. Write sqlite:///hpo.db, journal:///hpo.log or postgresql://" in printed


JOURNAL = "journal:///hpo.log"  # the fastest storage to make


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", JOURNAL)


NAMES = ["../../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "x" * 101, "a\n", "é", ".hidden", "\u202etxt", EVIL, "-o"]


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_another_program_gave_becomes_no_path(call: Any, name: str) -> None:
    study = optuna.create_study(study_name=name, storage=backends.connect(JOURNAL))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(StudyError, match="name another place with -o"):
        folder_of(name)
    before = sorted(path.name for path in Path().rglob("*") if "hpo.log" not in path.name)
    code, printed = call("list")
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in printed)
    for command in (["show", "--", name], ["trials", "--", name], ["best", "--", name]):
        code, printed = call(*command)
        assert code == 0, printed
    for command in (["report", "--", name], ["export", "-o", "out", "--", name], ["run", "--", name]):
        code, printed = call(*command)
        assert code == 2, printed
        assert "Traceback" not in printed
    assert sorted(path.name for path in Path().rglob("*") if "hpo.log" not in path.name) == before
    code, printed = call("report", "-o", "r.html", "--", name)
    assert code == 0, printed
    assert Path("r.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_folder_is_refused_before_anything_is_written(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        hpo.optimize(lambda params: 1.0, {"x": [1, 2]}, trials=1, name=name, storage=JOURNAL)
    assert not list(Path().iterdir())


ODD: list[Any] = [
    None,
    3,
    "text",
    [],
    [1],
    {},
    {"space": 3},
    {"best": 1},
    {"name": ["../../x"], "space": {}, "metric": 3},
]


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("attribute", ["config", "fingerprint", "test"])
def test_attributes_that_another_program_wrote_are_no_defect(call: Any, attribute: str, value: Any) -> None:
    study = optuna.create_study(study_name="theirs", storage=backends.connect(JOURNAL))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.set_user_attr(attribute, value)
    for command in ("show", "trials", "best", "report", "run", "export"):
        code, printed = call(command, "theirs", *(["-o", "out"] if command == "export" else []))
        assert code == (2 if command in ("run", "export") else 0), printed
        assert "Traceback" not in printed


@pytest.mark.usefixtures("journal")
def test_a_stored_study_whose_name_leads_elsewhere_is_not_run(call: Any) -> None:
    hpo.optimize(lambda params: params["x"], {"x": [1, 2]}, trials=1, name="mine", storage=JOURNAL)
    study = optuna.load_study(study_name="mine", storage=backends.connect(JOURNAL))
    changed = {**study.user_attrs["config"], "objective": "os:mkdir"}
    for wrong in ({"name": "../../x"}, {"name": None}, {"space": "../../x"}, {"folder": 3, "trials": EVIL}):
        study.set_user_attr("config", {**changed, **wrong})
        code, printed = call("run", "mine")
        assert code == 2, printed
        assert "Traceback" not in printed


@pytest.mark.usefixtures("journal")
def test_a_storage_of_markup_and_control_characters_is_inert(call: Any) -> None:
    steer = "\x1b]0;owned\x07\x1b[2J[bold]"
    study = optuna.create_study(study_name=f"{EVIL}{steer}", storage=backends.connect(JOURNAL))
    name = f"{EVIL}{steer}x"
    for value in (0.5, 1.0):
        distribution = optuna.distributions.CategoricalDistribution([f"{EVIL}{steer}", "b"])
        attrs = {"reason": f"{EVIL}{steer}", "seconds": f"{EVIL}{steer}", EVIL: {EVIL: [EVIL]}}
        study.add_trial(
            optuna.create_trial(
                value=value,
                params={name: f"{EVIL}{steer}"},
                distributions={name: distribution},
                user_attrs=attrs,
            )
        )
    config = {"name": EVIL, "space": {"parameters": {EVIL: EVIL}}, "model": EVIL, "metric": f"{EVIL}{steer}"}
    study.set_user_attr("config", config)
    for command in (["list"], *([c, study.study_name] for c in ("show", "trials", "best"))):
        code, printed = call(*command)
        assert code == 0, printed
        assert "\x1b" not in printed
        assert "\x07" not in printed
    assert "[bold]" in printed  # printed literally, not read as markup
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, printed = call("report", study.study_name, "-o", "r.html")
    assert code == 0, printed
    assert EVIL not in Path("r.html").read_text()
    results: Results = read(study)
    assert results.best is not None
    card = export.card(results, results.best)
    assert EVIL not in card.partition("## How they were found")[0].partition("## Hyperparameters")[2]


def test_a_report_goes_through_no_link_that_a_name_makes(call: Any) -> None:
    storage = backends.connect("sqlite:///hpo.db")
    optuna.create_study(study_name="x", storage=storage)
    with closing(sqlite3.connect("hpo.db")) as database, database:
        database.execute("UPDATE studies SET study_name = '../../../x'")
    code, printed = call("report", "../../../x")
    assert code == 2, printed


# ---------------------------------------------------------------- the source itself

RUNS_WHAT_IT_READS = {"pickle", "_pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "yaml"}


def calls_and_imports(tree: ast.AST) -> set[str]:
    """Return every module that is imported, and every dotted name that is read, in a source."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {str(node.module).split(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


def unsafe(source: str) -> list[str]:
    """Return the calls and imports of a source that could run what it reads."""
    tree = ast.parse(source)
    found = calls_and_imports(tree) & {*RUNS_WHAT_IT_READS, "torch.load", "pd.read_pickle", "np.load", "numpy.load"}
    said = sorted(found)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            said.append(node.func.id)
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            said += [] if isinstance(node.value, ast.Constant) and node.value.value is False else [node.arg]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            keys = [(ast.unparse(k), ast.unparse(v)) for k, v in pairs if k is not None]
            said += [key for key, value in keys if key == "'trust_remote_code'" and value != "False"]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
            theirs = ast.unparse(node.func).startswith(("Auto", "transformers."))
            passed = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None]
            said += [ast.unparse(node.func)] if theirs and not {"NO_CODE", "options"} & {*passed} else []
    return said


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load\nimport joblib",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "f(**{'trust_remote_code': flag})",
        "AutoModel.from_pretrained('x')",
        "eval('1')",
    ],
)
def test_the_audit_finds_unsafe_source(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "path",
    sorted(Path(hpo.__file__).parent.rglob("*.py")),
    ids=lambda path: str(path.relative_to(Path(hpo.__file__).parent)),
)
def test_no_module_can_run_what_it_reads(path: Path) -> None:
    assert unsafe(path.read_text("utf-8")) == []
