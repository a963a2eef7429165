from __future__ import annotations

import functools
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pytest
import tiny
from optuna.trial import TrialState

STATES = {False: TrialState.COMPLETE, True: TrialState.PRUNED}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = "--hidden 16 --heads 2 --layers 1 --vocabulary 300 --rows 32 --validation 16 --batch 8 --pairs 1 --threads 1"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("trials_per_hour")


def test_both_sides_run_the_same_trials(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = benchmark.main([*TINY.split(), "--trials", "2", "--slots", "1", "2", "--fold"])
    assert results["settings"]["learning_rates"] == [2e-5, 2e-4]
    (ran,) = results["rounds"]
    peers = set(ran) - {"hpo 1", "hpo 2"}
    assert "fp32" in peers
    assert [ran[f"hpo {slots}"]["slots"] for slots in (1, 2)] == [1, 2]
    assert ran["hpo 1"]["best"] == ran["hpo 2"]["best"]  # folded: to the bit
    for side, measured in ran.items():
        assert measured["learning_rates"] == [2e-5, 2e-4], side
        assert measured["evaluations"] == 2 * 1 * 2, side  # trials x epochs x evaluations an epoch
        assert 0 <= measured["best"] <= 1
        assert measured["precision"] == (side if side in peers else measured["precision"])
    check_ratios(results, peers)
    check_files(benchmark, results, tmp_path, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_both_sides_run_the_same_trials_of_other_tasks(benchmark: ModuleType, task: str) -> None:
    results = benchmark.main([*TINY.split(), "--trials", "2", "--slots", "1", "--task", task])
    (ran,) = results["rounds"]
    for side, measured in ran.items():
        assert measured["learning_rates"] == [2e-5, 2e-4], side
        assert measured["evaluations"] == 2 * 1 * 2, side
        assert 0 <= measured["best"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_language_models_see_the_same_rows_on_both_sides(benchmark: ModuleType, task: str) -> None:
    pytest.importorskip("trl", reason="the peer is not installed")
    results = benchmark.main([*TINY.split(), "--trials", "2", "--slots", "2", "--precision", "fp32", "--task", task])
    (ran,) = results["rounds"]
    for side, measured in ran.items():
        assert measured["learning_rates"] == [1e-4, 1e-3], side
        assert measured["evaluations"] == 2 * 1 * 2, side
    # The peer weighs the batches of an evaluation alike, hpo the tokens; the untrained loss is log(300) = 5.7.
    assert ran["hpo 2"]["best"] == pytest.approx(ran["fp32"]["best"], rel=0.02)


def check_ratios(results: dict[str, Any], peers: set[str]) -> None:
    for ratios in results["ratios"].values():
        assert set(ratios) == peers
        for ratio in (ratios[peer][kind] for peer in peers for kind in ("wall", "cpu")):
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] < math.inf
    assert all(0 < rate < math.inf for rate in results["trials_per_hour"].values())


def check_files(benchmark: ModuleType, results: dict[str, Any], folder: Path, printed: str) -> None:
    benchmark.pages.write(results, folder, "trials_per_hour", "Trials an hour", benchmark.table(results))
    assert json.loads((folder / "trials_per_hour_cpu.json").read_text()) == results
    page = (folder / "trials_per_hour_cpu.md").read_text()
    table = benchmark.table(results)
    assert table in page
    assert table in printed
    assert len({line.count("|") for line in table.splitlines()}) == 1
    for fact in ("date", "cpu"):
        assert results["circumstances"][fact] in page


def test_ratios_are_taken_within_a_round(benchmark: ModuleType) -> None:
    seconds = [(4.0, 2.0), (30.0, 10.0), (5.0, 5.0)]  # the second round met a busy machine
    rounds = [{"fp32": {"wall": theirs}, "hpo 2": {"wall": ours}} for theirs, ours in seconds]
    assert benchmark._ratio(rounds, "fp32", "hpo 2", "wall") == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_what_is_counted_is_65_million_operations_a_token_of_minilm(benchmark: ModuleType) -> None:
    settings = vars(benchmark._parser().parse_args([]))
    operations = benchmark._arithmetic(settings) / (settings["rows"] * settings["epochs"] * 26)
    assert operations == pytest.approx(65e6, rel=0.03)
    assert 1e6 < benchmark._matmul("cpu", 64) < 1e15


def test_a_side_without_graphs_says_so(benchmark: ModuleType) -> None:
    assert benchmark._name("hpo 1 without graphs", "classification") == "hpo, 1 slot without graphs"
    assert benchmark._slots("hpo 1 without graphs") == 1
    assert benchmark._name("hpo 16", "classification") == "hpo, 16 slots"
    assert benchmark._name("bf16", "classification") == "Trainer bf16"
    assert benchmark._name("bf16", "causal_lm") == "SFTTrainer bf16"


def test_the_sentences_are_as_long_as_said_and_can_be_told_apart(benchmark: ModuleType) -> None:
    words = [f"w{i}" for i in range(3000)]
    sentences = benchmark.synthetic._sentences(np.random.default_rng(0), words, 1000)
    lengths = [len(text.split()) for text, _ in sentences]
    assert min(lengths) >= 5
    assert max(lengths) <= 60
    assert np.mean(lengths) == pytest.approx(24, abs=1)
    cues = {"negative": set(words[:10]), "positive": set(words[10:20])}
    told = [bool(cues[label] & set(text.split())) for text, label in sentences]
    assert np.mean(told) > 0.9
    other = {"negative": "positive", "positive": "negative"}
    assert not any(cues[other[label]] & set(text.split()) for text, label in sentences)
    counts = np.unique([word for text, _ in sentences for word in text.split()], return_counts=True)[1]
    assert np.sort(counts)[::-1][:100].sum() > counts.sum() / 2  # Zipf: a few words make most of a text


def test_a_word_is_a_token(benchmark: ModuleType) -> None:
    tokenizer = benchmark.synthetic._tokenizer([f"w{i}" for i in range(50)], "classification")
    assert tokenizer("w3 w49 w7").tokens() == ["[CLS]", "w3", "w49", "w7", "[SEP]"]


def test_rows_must_divide_into_evaluations(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--rows", "100"])
    assert "--rows must be a multiple" in capsys.readouterr().err


@pytest.mark.slow
def test_frozen_trials_are_compared_with_whole_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("frozen_layers")
    monkeypatch.setattr(benchmark.pages, "RESULTS", tmp_path)
    results = benchmark.main([*TINY.split(), "--trials", "2", "--epochs", "1", "--frozen", "1", "--write"])
    (ran,) = results["rounds"]
    assert ran["0"]["learning_rates"] == ran["1"]["learning_rates"] == [2e-5, 2e-4]
    assert results["ratios"]["wall"]["median"] == ran["0"]["wall"] / ran["1"]["wall"]
    assert benchmark.table(results) in (tmp_path / "frozen_layers_cpu.md").read_text()
    assert benchmark.table(results) in capsys.readouterr().out


SEARCH = "--rows 32 --validation 16 --test 20 --batch 8 --epochs 2 --evaluations 2 --trials 4 --slots 2"


@pytest.mark.slow
def test_a_search_is_compared_with_one_run_from_process_start_to_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("search_in_one_run")
    monkeypatch.setattr(benchmark.pages, "RESULTS", tmp_path)
    model = tiny.save_model(tmp_path / "model")
    results = benchmark.main([*SEARCH.split(), "--model", str(model), "--write"])
    assert benchmark.sentence(results) in (tmp_path / "search_in_one_run_cpu.md").read_text()
    (ran,) = results["rounds"]
    assert set(ran) == {"one run", "search"}
    assert sum(ran["search"]["counts"].values()) == 4
    assert all(0 <= side["test"] <= 1 for side in ran.values())
    assert results["ratio"]["median"] == ran["search"]["seconds"] / ran["one run"]["seconds"]
    assert benchmark.sentence(results) in capsys.readouterr().out
    assert "without a pruner scores +0.30 points" in benchmark.sentence({**results, "lost": 0.003})
    assert f"one run {ran['one run']['test']:.4f}" in benchmark.sentence(results)
    settings = results["settings"]
    studies = (benchmark.study(settings, Path(), pruned) for pruned in (True, False))
    assert [(study["sampler"], study["pruner"]) for study in studies] == [("auto", "auto"), ("random", "none")]


@pytest.fixture
def pruners(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pruners")


@pytest.mark.slow
def test_pruners_are_replayed_on_trials_that_were_trained_whole(
    pruners: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(pruners.pages, "RESULTS", tmp_path)
    model = tiny.save_model(tmp_path / "model")
    asked = [*SEARCH.split(), "--model", str(model), "--searches", "2", "--folder", str(tmp_path), "--write"]
    results = pruners.main(asked)
    assert set(results["pruners"]) == set(pruners.PRUNERS)
    assert all(
        0 < found["work"] <= 1 and found["low"] <= found["lost"] <= found["high"]
        for found in results["pruners"].values()
    )
    shown = pruners.table(results["pruners"], 4)
    assert shown in (tmp_path / "pruners_cpu.md").read_text()
    assert shown in capsys.readouterr().out
    trained = pruners.train(results["settings"], tmp_path)  # goes on with the study, in which nothing is left to do
    assert [len(curve) for curve in trained.curves] == [4] * 4
    assert trained.right.shape == (4, 20)


def test_a_replay_counts_what_a_pruner_lets_run_and_what_it_finds(pruners: ModuleType) -> None:
    early = [[0.5 + 0.01 * trial, 0.5, 0.5, 0.5] for trial in range(15)]
    curves = [*early, [0.1, 0.1, 0.1, 0.9]]  # the best in the end is the worst at first
    assert pruners.replay(curves, {"pruner": "none"}) == (1.0, 15)
    work, best = pruners.replay(curves, {"pruner": {"name": "asha", "reduction_factor": 4}})
    assert best == 14
    assert 16 + 3 * 4 <= round(64 * work) <= 16 + 3 * 8  # one evaluation of each, three more of those promoted


def test_what_a_pruner_loses_is_the_mean_over_searches(pruners: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = pruners.Trained([[0.1], [0.2], [0.3]], np.array([[0, 0], [1, 0], [1, 1]]))
    monkeypatch.setattr(pruners, "PRUNERS", {"never": {}, "always the first": {}})
    found = {"never": lambda curves: curves.index(max(curves)), "always the first": lambda curves: 0}
    asked = iter([name for name in found for _ in range(200)])
    monkeypatch.setattr(pruners, "replay", lambda curves, pruning: (0.5, found[next(asked)](curves)))
    results = pruners.compare(trained, 200)
    assert results["never"] == {"work": 0.5, "lost": 0.0, "low": 0.0, "high": 0.0}
    # Of three draws the best is trial 2 in 19 of 27, trial 1 in 7; the first is each in a third.
    assert results["always the first"]["lost"] == pytest.approx((19 + 7 / 2) / 27 - 1 / 2, abs=0.06)
    low, high = (results["always the first"][end] for end in ("low", "high"))
    assert low < results["always the first"]["lost"] < high


@pytest.mark.slow
def test_what_a_study_costs_is_divided_among_trials_and_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("overhead")
    results = benchmark.main(["--trials", "3", "--many", "4", "--rounds", "1", "--storage", "journal"])
    assert set(results["journal"]) == {"optuna", "hpo", "ratio"}
    assert "| journal |" in benchmark.table(results, 4)
    took = {("optuna", 2): 1.0, ("optuna", 10): 2.0, ("hpo", 2): 0.5, ("hpo", 10): 0.9}
    monkeypatch.setattr(benchmark, "measured", lambda side, kind, trials, evaluations: took[side, evaluations])
    costs = benchmark.run(["sqlite"], 10, 2, 10, 1)["sqlite"]
    assert costs["optuna"] == {"trial_ms": pytest.approx(75.0), "evaluation_ms": pytest.approx(12.5)}
    assert costs["hpo"] == {"trial_ms": pytest.approx(40.0), "evaluation_ms": pytest.approx(5.0)}
    assert costs["ratio"]["median"] == pytest.approx(0.45)


# ---------------------------------------------------------------- searches replayed on recorded runs


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("search_quality")


def recorded_run(rate: float, epochs: int, matched: list[float], mismatched: float, batch: int = 10) -> dict[str, Any]:
    """Return a row of a table whose runs are evaluated every 100 steps."""
    steps = [100 * (1 + index) for index in range(len(matched))]
    return {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "train_batch_size": batch,
        "warmup_steps": 10 * len(matched) // epochs,
        "total_model_steps": steps[-1],
        "learning_curves": {
            "matched": list(map(list, zip(steps, matched, strict=True))),
            "mismatched": [[1, mismatched]],
        },
    }


def test_a_run_is_charged_to_the_first_evaluation_at_or_after_a_step(quality: ModuleType) -> None:
    rows = [recorded_run(1e-5, 1, [0.1, 0.2], 0.3), recorded_run(1e-4, 2, [0.4, 0.5, 0.6, 0.7], 0.8, batch=20)]
    table = quality.synthetic_table.recorded.table_of([*rows, recorded_run(1e-3, 2, [0.4], 0.1)])
    assert table.lengths.tolist() == [2000, 8000, 1000]
    assert table.finals.tolist() == [0.2, 0.7, 0.4]
    assert table.tests.tolist() == [0.3, 0.8, 0.1]
    assert [table.evaluation(1, step) for step in (1, 2000, 2001, 8000, 9000)] == [0, 0, 1, 3, 3]
    assert table.params[0]["warmup_proportion"] == pytest.approx(0.1)
    assert "warmup_proportion" not in table.space.parameters  # it is the same in all runs
    assert table.space.parameters["learning_rate"].log
    assert not table.space.parameters["num_train_epochs"].log
    at = {"num_train_epochs": 2, "train_batch_size": 20}
    assert table.nearest([{"learning_rate": 2e-4, **at}, {"learning_rate": 9e-4, **at}]).tolist() == [1, 1]
    assert table.nearest([{"learning_rate": 1e-3, "num_train_epochs": 2, "train_batch_size": 11}]).tolist() == [2]


def test_the_median_pruner_of_the_replay_is_optunas(quality: ModuleType) -> None:
    methods, random = importlib.import_module("search_methods"), np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    completed: list[list[float]] = []
    stops = []
    for _ in range(40):
        curve, trial = random.random(random.integers(2, 8)).tolist(), study.ask()
        others = np.array([other + [np.nan] * (9 - len(other)) for other in completed])
        expected = methods.pruned_by_median(np.array(curve), others) if len(completed) >= 5 else None
        stop = None
        for step, value in enumerate(curve):
            trial.report(value, step)
            if trial.should_prune():
                stop = step
                break
        study.tell(trial, None if stop is not None else curve[-1], state=STATES[stop is not None])
        completed += [curve] if stop is None else []
        assert stop == expected
        stops.append(stop)
    assert stops.count(None) < 30
    assert max(stop for stop in stops if stop is not None) > 0


def test_methods_are_compared_with_the_full_search_of_the_same_draws(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = quality.synthetic_table.table(60)
    names = ["auto, 24", "halving, the same 64", "median, 16 of them", "asha with promotion, the same 64"]
    methods = {"whole": quality.whole} | {name: quality.METHODS[name] for name in names}
    found = quality.compare(table, methods, range(3))
    assert found["whole"] == {"work": 1.0, "gap": 0.0, "low": 0.0, "high": 0.0, "fifth": 0.0}
    for name in set(found) - {"full", "whole"}:
        assert 0 < found[name]["work"] < 0.6
        assert found[name]["low"] <= found[name]["gap"] <= found[name]["high"]
    assert "| auto, 24 |" in quality.shown(found)


def test_what_auto_replays_is_what_it_chooses(quality: ModuleType) -> None:
    methods, table = importlib.import_module("search_methods"), quality.synthetic_table.table(200)
    choice = methods.auto.choose("auto", "auto", None, 24, table.space.size)
    assert (choice.sampler, choice.pruner, choice.round_size) == ("cross_entropy", "two_rungs", 24)
    drawn = quality.drawn(table, 0)
    searches: list[Any] = []
    found = methods.Search.found
    methods.Search.found = lambda self: (searches.append(self), found(self))[1]
    try:
        methods.two_waves(24)(table, drawn, 0)
    finally:
        methods.Search.found = found
    (search,) = searches
    reached = [len(search.rungs.values(trial.intermediate_values)) for trial in search.trials]
    started = len(search.trials)
    assert 12 <= started <= 24
    assert sum(count == 2 for count in reached) >= -(-started // 4)
    states = [trial.state for trial in search.trials]
    assert states.count(TrialState.COMPLETE) >= 2
    assert TrialState.RUNNING not in states


def test_a_replay_is_written_with_its_command_and_its_processor(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality.pages, "RESULTS", tmp_path)
    asked = ["--table", "synthetic", "--seeds", "2", "--halves", "1", "--methods", "auto, 24", "--write"]
    results = quality.main(asked)
    assert len(results["halves"]) == 2
    page = (tmp_path / "search_quality_synthetic.md").read_text()
    assert quality.shown(results["found"]) in page
    assert quality.shown(results["found"]) in capsys.readouterr().out
    for fact in ("date", "cpu"):
        assert results["circumstances"][fact] in page
    assert json.loads((tmp_path / "search_quality_synthetic.json").read_text()) == results


def test_a_warm_start_is_learned_from_the_half_that_is_not_searched(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warm = importlib.import_module("warm_start")
    table = quality.synthetic_table.table(80)
    one, other = quality.halves(table, 1)
    assert not {tuple(run.values()) for run in one.params} & {tuple(run.values()) for run in other.params}
    good, bad = warm.from_whole(one, other, 0), warm.from_worst(one, other, 0)
    assert good.configurations == [{name: other.params[other.finals.argmax()][name] for name in one.space.parameters}]
    assert bad.sources[0].ranked == 4
    assert good.priors["learning_rate"].mean < bad.priors["learning_rate"].mean  # the worst rates are high
    assert warm.from_search(one, other, 0).sources[0].ranked <= 24
    monkeypatch.setattr(quality.pages, "RESULTS", tmp_path)
    monkeypatch.setattr(warm.synthetic_table, "table", lambda: table)
    results = warm.main(["--table", "synthetic", "--divisions", "1", "--seeds", "2", "--write"])
    assert warm.shown(results["parts"]) in (tmp_path / "warm_start_synthetic.md").read_text()
    assert json.loads((tmp_path / "warm_start_synthetic.json").read_text()) == results


def test_a_base_in_few_bits_is_measured_and_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    results = importlib.import_module("base_weights").main(["--layers", "1", "--tokens", "64", "--rounds", "1"])
    for sides in results["sides"].values():
        sizes = {each["side"]: each["bytes"] for each in sides}
        assert sizes["nf4"] < sizes["int8"] < sizes["full"]
        assert all(each["passes"][64]["seconds"] > 0 for each in sides)


# ---------------------------------------------------------------- searches at equal cost


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("search_peers")


def test_what_is_found_for_a_cost_is_the_best_run_that_was_trained_to_its_end(peers: ModuleType) -> None:
    rows = [recorded_run(rate, 1, [0.1, last], 0.5) for rate, last in ((1e-5, 0.6), (1e-4, 0.8), (1e-3, 0.7))]
    table = peers.synthetic_table.recorded.table_of(rows)
    trace = [(10.0, 0, 0.3, False), (20.0, 1, 0.5, False), (30.0, 2, 0.7, True), (40.0, 1, 0.8, True)]
    costs = (10, 29, 30, 39, 40, 99)
    assert [peers.equal_cost.found(table, trace, cost) for cost in costs] == [
        (0, False),
        (1, False),
        (2, True),
        (2, True),
        (1, True),
        (1, True),
    ]


def test_a_run_is_trained_once_and_a_search_that_proposes_nothing_new_ends(peers: ModuleType) -> None:
    rows = [recorded_run(rate, 1, [0.1, 0.2, 0.3, 0.4], 0.5) for rate in (1e-5, 1e-3)]
    ledger = peers.Ledger(peers.synthetic_table.recorded.table_of(rows), limit=7000)  # 4,000 examples each
    assert ledger.run({"learning_rate": 2e-5}) == 0
    assert ledger.train(0, 1) == (0.1, False)
    assert ledger.examples == 1000
    assert ledger.train(0, 1) == (0.1, False)
    assert ledger.train(0, 11) == (0.2, False)
    assert [units for units, _, ended in ledger.reports(0) if ended] == [31]
    assert ledger.examples == 4000
    assert ledger.train(1, 40) == (0.4, True)
    assert [(at, run, ended) for at, run, _, ended in ledger.trace] == [
        (1000, 0, False),
        (2000, 0, False),
        (3000, 0, False),
        (4000, 0, True),
        (8000, 1, True),
    ]
    with pytest.raises(peers.SpentError):
        ledger.train(0, 1)
    for _ in range(peers.equal_cost.IDLE):
        ledger.run({"learning_rate": 2e-5})
    with pytest.raises(peers.SpentError):
        ledger.run({"learning_rate": 2e-5})


def test_samplers_are_compared_at_equal_cost_with_the_full_search(peers: ModuleType) -> None:
    samplers = peers.search_samplers
    table = samplers.synthetic_table.table(60)
    searches = samplers.searches(["random", "grid", "tpe", "auto"])
    assert list(searches) == [
        *("random", "grid", "tpe"),
        *("random + asha", "grid + asha", "tpe + asha"),
        *("auto, 24", "auto, 64"),
    ]
    found = peers.equal_cost.compare(table, searches, range(5), (0.2, 1.0), 600.0, 1)
    assert {name: (each["seeds"], each["problem"]) for name, each in found.items()} == dict.fromkeys(
        searches, (5, None)
    )
    assert found["random"]["gaps"][1] == [0.0] * 5  # it is the full search
    assert found["random"]["gaps"][0] != [0.0] * 5
    assert found["random"]["unfinished"] == [0, 0]
    text = peers.equal_cost.shown(found, (0.2, 1.0), "random")
    assert "| random | 5 |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_libraries_are_run_beside_hpo_and_what_fails_is_said(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = peers.synthetic_table.table(60)
    monkeypatch.setattr(peers.synthetic_table, "table", lambda: table)
    monkeypatch.setattr(peers.pages, "RESULTS", tmp_path)
    monkeypatch.setitem(peers.PEERS, "broken", functools.partial(peers.syne_tune, "no such scheduler"))
    monkeypatch.setattr(peers, "OURS", {"random": peers.OURS["random"]})
    names = ["Optuna, TPE + median", "Optuna, TPE + Hyperband", "broken"]
    results = peers.main(["--table", "synthetic", "--peers", *names, "--seeds", "5", "--processes", "1", "--write"])
    page = (tmp_path / "search_peers_synthetic.md").read_text()
    assert "broken does not run here: " in page
    for name in names[:2]:
        assert f"| {name} | 5 |" in page
    assert all(f"{package} {version}" in page for package, version in peers.versions().items())
    assert json.loads((tmp_path / "search_peers_synthetic.json").read_text()) == results
    assert "| random | 5 |" in capsys.readouterr().out
