"""Question answering behind the task seam: splits, rows, losses, the threshold, and what is said of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import squad_rows
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForQuestionAnswering

from hpo.analysis.bootstrap import resampled
from hpo.core.errors import DataError
from hpo.tasks import loading
from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import METRICS, score, suggested, worst_group
from hpo.tasks.question_answering.keys import QuestionKeys
from hpo.tasks.question_answering.losses import span_losses
from hpo.tasks.question_answering.predictions import ALWAYS, AnswerPredictions
from hpo.tasks.question_answering.scoring import RATES
from hpo.tasks.registry import TASKS, task_for

TASK = TASKS["question_answering"]
ROWS = squad_rows.written() + squad_rows.topics(60)


def keys(**settings: Any) -> QuestionKeys:
    return QuestionKeys.model_validate({"train": "train.jsonl", **settings})


def load(folder: Path, content: Any = ROWS, **settings: Any) -> Dataset:
    found = keys(**settings)
    if isinstance(found.train, str) and content is not None:
        squad_rows.write(folder / found.train, content)
    return loading.load(found, "question_answering", 0, folder)


def refused(folder: Path, content: Any = ROWS, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        load(folder, content, **settings)
    return str(error.value)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("share", [{"validation": 0.2, "test": 0.3}, {"validation": 10, "test": 20}])
def test_all_questions_about_a_context_stay_in_one_split(tmp_path: Path, share: dict[str, Any]) -> None:
    data = load(tmp_path, **share)
    contexts = [set(split.contexts) for split in data.splits.values()]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 37
    assert sum(len(split) for split in data.splits.values()) == len(ROWS) == 90
    for split in data.splits.values():
        groups = dict(zip(split.groups.tolist(), split.contexts, strict=True))
        assert len(groups) == len(set(split.contexts))  # the verdict resamples contexts
    assert not data.notes


def test_a_column_of_groups_joins_contexts(tmp_path: Path) -> None:
    rows = [{**row, "town": f"t{number % 6}"} for number, row in enumerate(squad_rows.made(60))]
    data = load(tmp_path, rows, group="town", test=0.34, validation=0.34)
    assert [len(set(split.members)) for split in data.splits.values()] == [2, 2, 2]
    assert all(len(set(split.groups)) == 2 for split in data.splits.values())
    assert "has no column 'city'; it has id, question, context, answers, town" in refused(tmp_path, rows, group="city")


def test_the_title_of_squads_articles_can_be_the_group(tmp_path: Path) -> None:
    document = squad_rows.document(ROWS)
    paragraphs = document["data"][0]["paragraphs"]
    document["data"] = [{"title": f"article {i}", "paragraphs": paragraphs[i::9]} for i in range(9)]
    data = load(tmp_path, document, train="squad.json", group="title")
    titles = [set(split.members) for split in data.splits.values()]
    assert sum(map(len, titles)) == len(set.union(*titles)) == 9


def test_conditions_and_a_sample_of_rows(tmp_path: Path) -> None:
    rows = [{**row, "kind": "ab"[number % 2]} for number, row in enumerate(squad_rows.made(80))]
    data = load(tmp_path, rows, where={"kind": "b"}, rows=30, validation=5, test=5)
    found = [each.id for split in data.splits.values() for each in split.questions]
    assert len(found) == 30
    assert {int(each[1:]) % 2 for each in found} == {1}


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, subset: Any, *, split: str) -> Any:
        assert (name, subset) == ("rajpurkar/squad_v2", None)
        return datasets.Dataset.from_list(squad_rows.topics(40, seed=len(split)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(tmp_path, None, dataset="rajpurkar/squad_v2", train="train", test="validation", validation=10)
    expected = squad_rows.topics(40, seed=len("validation"))
    assert [each.question for each in data.splits["test"].questions] == [row["question"] for row in expected]
    assert [bool(each.answers) for each in data.splits["test"].questions] == [
        bool(row["answers"]["text"]) for row in expected
    ]


def test_the_digest_depends_on_the_answers(tmp_path: Path) -> None:
    rows = squad_rows.made(40, unanswerable=0)
    first = load(tmp_path, rows).digest
    assert load(tmp_path, rows).digest == first
    rows[3] = {**rows[3], "answers": {"text": [], "answer_start": []}}
    assert load(tmp_path, rows).digest != first


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    none = [{**row, "answers": {"text": [], "answer_start": []}} for row in ROWS]
    assert "no question of train has an answer" in refused(tmp_path, none)
    (tmp_path / "t.csv").write_text("id,question,context,answers\n")
    assert "cannot read questions from .csv; use .json, .jsonl, .parquet" in refused(tmp_path, None, train="t.csv")
    squad_rows.write(tmp_path / "a.jsonl", ROWS[:40])
    squad_rows.write(tmp_path / "b.jsonl", ROWS[38:])
    message = refused(tmp_path, None, train=["a.jsonl", "b.jsonl"])
    assert "2 questions have the id of a question in another file, the first is" in message
    assert "b.jsonl, line 1" in message
    assert "a.jsonl, line 39" in message


def test_keys_that_do_not_go_together() -> None:
    problems = dict(TASK.key_problems(keys(question="text", context="text", separator=";")))
    assert "is column 'text', as data.question is" in problems["context",]
    assert "is for CSV and TSV files" in problems["separator",]
    assert not list(TASK.key_problems(keys()))


# ---------------------------------------------------------------- what is said of the data


def test_contexts_in_two_splits_and_questions_that_train_has_none_of_are_noted(tmp_path: Path) -> None:
    squad_rows.write(tmp_path / "test.jsonl", [{**row, "id": f"x{row['id']}"} for row in ROWS[:30:3]])
    answered = [row for row in ROWS if row["answers"]["text"]]
    notes = load(tmp_path, answered, test="test.jsonl", validation="test.jsonl").notes
    assert any("the contexts of 10 of 10 questions of test are in train too" in note for note in notes)
    assert any("2 of 10 questions of validation have no answer, and none of train" in note for note in notes)


def test_answers_in_no_window_and_answers_that_are_too_long_are_noted(tmp_path: Path) -> None:
    context = " ".join(tiny.FILLER[:40])
    rows = [{**ROWS[0], "id": "long", "question": "w1", "context": context, "answers": _answer(context, "w3", "w25")}]
    rows += [
        {**ROWS[0], "id": f"{i}", "question": f"w{i}", "context": f"w{i}", "answers": _answer(f"w{i}")} for i in (5, 6)
    ]
    data = load(tmp_path, rows, validation=1, test="train.jsonl")
    split, found = data.splits["test"], keys(max_answer_length=20)
    for length, words in ((24, "no window holds as a whole"), (64, "of more than 20 tokens, which is never given")):
        encoded = TASK.encode(split, found, tiny.tokenizer(), length)
        (note,) = TASK.row_notes({"test": encoded}, found)
        assert note.startswith("1 of 3 questions of test have an answer")
        assert words in note


def _answer(context: str, first: str | None = None, last: str | None = None) -> dict[str, Any]:
    start = context.index(first) if first else 0
    end = context.index(last) + len(last) if last else len(context)
    return {"text": [context[start:end]], "answer_start": [start]}


def test_facts_and_small_splits(tmp_path: Path) -> None:
    data = load(tmp_path, test=20, validation=20)
    answered = {name: int(split.gold.has_answer.sum()) for name, split in data.splits.items()}
    facts = TASK.facts(data)
    assert facts["questions with an answer"].startswith(f"{answered['train']} of {len(data.splits['train'])} train, ")
    assert len(TASK.doubts(data, "answer_f1")) == 2


def test_a_row_is_shown_with_its_answer(tmp_path: Path) -> None:
    rows = [
        {
            "id": "1",
            "question": "w1",
            "context": "w2 fine w3 warm w4",
            "answers": _answer("w2 fine w3 warm w4", "fine", "warm"),
        },
        {"id": "2", "question": "w1", "context": "w5 w6", "answers": {"text": [], "answer_start": []}},
        {"id": "3", "question": "w1", "context": "w7", "answers": _answer("w7")},
    ]
    split = load(tmp_path, rows, validation=1, test="train.jsonl").splits["test"]
    encoded = TASK.encode(split, keys(), tiny.tokenizer(), 32)
    tokens = [tiny.tokenizer().convert_ids_to_tokens(list(ids)) for ids in encoded.inputs["input_ids"]]
    assert [TASK.marked(encoded, row, tokens[row], ()) for row in range(2)] == [
        "[CLS] w1 [SEP] w2 [[fine w3 warm]] w4 [SEP] -> 'fine w3 warm', tokens 4 to 6",
        "[CLS] w1 [SEP] w5 w6 [SEP] -> no answer in this window (the token 0, [CLS], stands for none)",
    ]
    assert TASK.marked(encoded, 0, [*tokens[0][:3], "..."], ()).endswith("... -> 'fine w3 warm', tokens 4 to 6")


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_the_loss_is_that_of_transformers(kind: str) -> None:
    """For rows of one length; transformers counts padding too."""
    settings = {"vocab_size": 200, "pad_token_id": 0, **tiny.ENDS, **tiny.SIZES[kind]}
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(kind, **settings)).eval()
    ids, starts, ends = torch.randint(5, 200, (4, 9)), torch.tensor([0, 2, 8, 3]), torch.tensor([0, 5, 8, 4])
    result = model(input_ids=ids, start_positions=starts, end_positions=ends)
    targets = {"starts": starts, "ends": ends, "lengths": torch.full((4,), 9)}
    losses = TASK.loss(TASK.outputs(result), targets, 0.0, None)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), result.loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, torch.tensor([0.0, 0.1, 0.5])], ids=["none", "one", "each"])
def test_the_loss_of_a_row_does_not_depend_on_its_padding(smoothing: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(3, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = {"starts": torch.tensor([0, 3, 2]), "ends": torch.tensor([0, 3, 6]), "lengths": torch.tensor([4, 5, 7])}
    found = []
    for beyond in (0.0, 1e3, float("-inf")):
        padding = torch.arange(12) >= targets["lengths"][:, None]
        logits = [each.masked_fill(padding, beyond).requires_grad_() for each in (start, end)]
        losses = span_losses(*logits, targets, smoothing)
        losses.sum().backward()
        assert all((each.grad[padding] == 0).all() and each.grad.isfinite().all() for each in logits)
        found.append(losses.detach())
    short = [
        torch.nn.functional.cross_entropy(
            logits[row, :length],
            targets[name][row],
            label_smoothing=float(torch.as_tensor(smoothing).expand(3)[row]),
        )
        for row, length in enumerate(targets["lengths"].tolist())
        for name, logits in (("starts", start), ("ends", end))
    ]
    for losses in found:
        torch.testing.assert_close(losses, torch.stack(short).view(3, 2).mean(dim=1))


# ---------------------------------------------------------------- predictions


def predicted(folder: Path, seed: int = 0, scale: float = 3.0, rows: Any = ROWS, **settings: Any) -> AnswerPredictions:
    """Return predictions from random logits for the test split, which is all of train."""
    found = keys(validation=5, test="train.jsonl", **settings)
    squad_rows.write(folder / "train.jsonl", rows)
    split = loading.load(found, "question_answering", 0, folder).splits["test"]
    encoded = TASK.encode(split, found, tiny.tokenizer(), 32)
    rng = np.random.default_rng(seed)
    shape = len(encoded.units), 32
    answers = {name: rng.normal(scale=scale, size=shape).astype(np.float32) for name in ("start_logits", "end_logits")}
    result: AnswerPredictions = TASK.predictions(split, encoded, answers, found)
    assert len(result) == len(split) == len(rows)
    assert result.units.sum() == shape[0] > len(rows)
    return result


def test_the_fitted_threshold_is_the_best_one_and_is_used_unchanged(tmp_path: Path) -> None:
    found = predicted(tmp_path)
    for metric in ("answer_f1", "exact_match"):
        fitted = TASK.fitted(found, metric, keys())
        json.dumps(fitted, allow_nan=False)
        best = TASK.with_fitted(found, fitted)
        assert score(metric, best) == max(
            score(metric, TASK.with_fitted(found, {"no_answer_threshold": float(value)}))
            for value in [-1e3, *found.answers.null_differences, 1e3]
        )
    assert TASK.fitted(found, "answer_f1", keys(no_answer_threshold=1.5)) == {"no_answer_threshold": 1.5}
    assert predicted(tmp_path, no_answer_threshold=1.5).threshold == 1.5


def test_where_train_has_answers_only_there_is_no_threshold(tmp_path: Path) -> None:
    found = predicted(tmp_path, rows=squad_rows.made(40, unanswerable=0))
    assert found.threshold == ALWAYS
    assert found.answered.all()
    assert TASK.fitted(found, "answer_f1", keys()) == {"no_answer_threshold": None}
    assert TASK.with_fitted(found, {}).threshold == ALWAYS
    assert all(set(row) == {"predicted", "probability", "predicted_start"} for row in TASK.predicted_rows(found, ()))


def test_predicted_rows_are_pieces_of_the_contexts_or_empty(tmp_path: Path) -> None:
    found = TASK.with_fitted(predicted(tmp_path), {"no_answer_threshold": 0.0})
    rows = TASK.predicted_rows(found, ())
    assert {bool(row["predicted"]) for row in rows} == {False, True}
    for row, source in zip(rows, ROWS, strict=True):
        assert set(row) == set(TASK.answer_keys)
        assert 0 < row["probability"] <= 1
        assert (row["predicted"] == "") == (row["null_difference"] > 0) == (row["predicted_start"] is None)
        if row["predicted"]:
            start = row["predicted_start"]
            assert source["context"][start : start + len(row["predicted"])] == row["predicted"]


@given(st.lists(st.integers(0, 89), min_size=1, max_size=40))
def test_a_sample_of_questions_scores_as_its_counts(
    tmp_path_factory: pytest.TempPathFactory, sample: list[int]
) -> None:
    found = _once(tmp_path_factory)
    part = found.take(np.array(sample))
    for name in ("answer_f1", "exact_match", "loss"):
        sums = METRICS[name].counts(found)[sample].sum(axis=0)  # type: ignore[misc]
        assert score(name, part) == pytest.approx(METRICS[name].value(sums), rel=1e-12)
    assert part.predicted == [found.predicted[i] for i in sample]


_KNOWN: list[AnswerPredictions] = []


def _once(factory: pytest.TempPathFactory) -> AnswerPredictions:
    if not _KNOWN:
        _KNOWN.append(predicted(factory.mktemp("once")))
    return _KNOWN[0]


def test_the_bootstrap_and_groups_use_counts(tmp_path: Path) -> None:
    found = predicted(tmp_path)
    scores = resampled("answer_f1", [found, found], np.arange(len(found)) // 3)
    assert scores.shape == (2000, 2)
    assert (scores[:, 0] == scores[:, 1]).all()
    worst = worst_group("exact_match", found, [f"g{i // 30}" for i in range(len(found))])
    assert worst is not None
    assert (worst.rows, worst.compared) == (30, 3)


def test_a_model_that_answers_nothing_or_always_the_same_has_collapsed(tmp_path: Path) -> None:
    found = predicted(tmp_path)
    assert not found.collapsed
    nothing = TASK.with_fitted(found, {"no_answer_threshold": -1e9})
    assert nothing.collapsed
    assert TASK.collapse(nothing) == "answers no question"
    assert TASK.breakdown(nothing, ())["collapse"] == "answers no question"
    same = found.take(np.zeros(5, dtype=int))
    assert not same.collapsed  # the same answer is expected


def test_the_breakdown_tells_questions_with_and_without_an_answer_apart(tmp_path: Path) -> None:
    found = TASK.with_fitted(predicted(tmp_path), {"no_answer_threshold": 0.0})
    (table,) = TASK.breakdown(found, ())["tables"]
    has = found.scores.has_answer
    sums = found.counts.sum(axis=0)
    assert [row[:3] for row in table["rows"]] == [
        ["all", 90, found.answered.sum()],
        ["with an answer", has.sum(), found.answered[has].sum()],
        ["without an answer", (~has).sum(), found.answered[~has].sum()],
    ]
    assert table["rows"][0][3:] == [score("exact_match", found), score("answer_f1", found)]
    assert table["rows"][1][4] == RATES["has_answer_f1"](sums)
    assert table["rows"][2][3] == table["rows"][2][4] == RATES["no_answer_accuracy"](sums)
    json.dumps(table, allow_nan=False)


def test_outputs_that_are_not_finite_are_told(tmp_path: Path) -> None:
    assert predicted(tmp_path).finite
    assert not predicted(tmp_path, scale=np.inf).finite


# ---------------------------------------------------------------- names


def test_names_of_metrics_in_other_programs() -> None:
    for name in ("f1", "squad_f1", "eval_f1"):
        assert suggested(name, "question_answering") == "; did you mean answer_f1?"
    assert suggested("em", "question_answering") == "; did you mean exact_match?"
    assert "answer_f1" not in suggested("f1")


def test_a_model_of_this_task_is_known_by_its_class() -> None:
    assert task_for("XLNetForQuestionAnsweringSimple", None, 2) is TASK
    assert task_for("BertForQuestionAnswering", "regression", 1) is TASK
