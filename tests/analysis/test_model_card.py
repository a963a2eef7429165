from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpo.analysis import verdict_text as verdict
from hpo.analysis.export import chosen, weights_of
from hpo.analysis.model_card import card, warnings
from hpo.cli.study_text import settings_text, study_text
from hpo.core.errors import StudyError
from hpo.storage.snapshot import Results

Build = Callable[..., Results]

CLASSES = {
    "count": 2,
    "classes": [
        {"label": "a|b", "precision": 0.5, "recall": 1.0, "f1": 0.667, "support": 30, "predicted": 60},
        {"label": "c", "precision": None, "recall": 0.0, "f1": 0.0, "support": 30, "predicted": 0},
    ],
    "never_predicted": ["c"],
    "absent": [],
    "collapsed": False,
    "confusion": [[30, 0], [30, 0]],
}
TFIDF = {"says": "TF-IDF with logistic regression", "score": 0.9, "difference": -0.1, "low": -0.2, "high": -0.05}


def looked(results: Results, **changes: Any) -> Results:
    """Return a study with a look at its best trial."""
    assert results.best is not None
    look = {"metric": "accuracy", "examples": 60, "best": {"number": results.best.number, "score": 0.8}}
    look |= {"baseline": {"number": 0, "score": 0.78}, "difference": 0.02, "low": -0.01, "high": 0.05, "shown": False}
    look |= {"references": {"tfidf": TFIDF | {"shown": True}}, "classes": CLASSES, "trials": 5, **changes}
    return Results(results.name, results.direction, results.trials, {**results.attrs, "test:1": look})


def test_the_card_and_show_have_the_whole_verdict(sample_results: Build) -> None:
    results = looked(sample_results(5))
    written = card(results, chosen(results, None))
    for words in (
        "TF-IDF with logistic regression scores 0.9",
        "does not beat this baseline",
        "not other training seeds",
    ):
        assert words in written
        assert words in study_text(results)
    assert "| a\\|b | 0.5 | 1 | 0.667 | 30 | 60 |" in written
    assert "| c | 30 | 0 |" in written  # rows of the matrix are true labels
    assert "never predicts 1 of 2 labels: 'c'" in written
    assert "Confusion matrix" in study_text(results)


def test_the_card_and_best_name_what_was_not_searched(sample_results: Build) -> None:
    results = sample_results(3)
    best = chosen(results, None)
    for trial in results.trials:  # a study that searched neither
        del trial._params["batch_size"], trial._distributions["batch_size"]
    assert "- batch_size: 32" in card(results, best)
    assert "- warmup_ratio: 0.1" in card(results, best)  # the space fixes it
    assert "- dropout: the model's own" in card(results, best)
    assert "lora" not in card(results, best)
    assert '"batch_size": 32' in settings_text(best, results)
    assert "num_cycles" not in settings_text(best, results)
    assert {*results.not_searched(best)}.isdisjoint(best.params)


def test_a_custom_objective_has_no_defaults_of_fine_tuning(sample_results: Build) -> None:
    results = sample_results(3)
    results.attrs["config"].update(objective="mine:objective", model=None)
    assert results.not_searched(chosen(results, None)) == {"warmup_ratio": 0.1}


@pytest.mark.parametrize("where", ["validation", "test"])
def test_a_collapsed_model_is_warned_of(sample_results: Build, where: str) -> None:
    results = sample_results(5)
    best = chosen(results, None)
    assert warnings(results, best) == []
    assert "## Warning" not in card(results, best)
    if where == "validation":
        best.user_attrs["collapsed"] = True
    else:
        results = looked(results, classes={**CLASSES, "collapsed": True})
    (said,) = warnings(results, best)
    assert f"has collapsed: it gives every row of the {where} split the same answer" in said
    assert "## Warning" in card(results, best)
    to = {"collapsed": True, "collapse": "gives every word the tag 'O'"}
    best.user_attrs.update(to)
    (said,) = warnings(looked(results, classes={**CLASSES, **(to if where == "test" else {})}), best)
    assert f"has collapsed: it gives every word the tag 'O' on the {where} split" in said


def test_a_trial_that_is_not_the_best_says_so(sample_results: Build) -> None:
    results = looked(sample_results(5))
    best = chosen(results, None).number
    written = card(results, chosen(results, 0))
    assert f"trial 0 of an hpo study, whose best one is trial {best}" in written
    assert "this is the published default" in written
    assert "Confusion" not in written
    other = next(trial.number for trial in results.complete if trial.number not in (0, best))
    assert "test: not scored; only the best trial and the published default are" in card(
        results, chosen(results, other)
    )


def test_only_completed_trials_whose_weights_were_kept_can_be_exported(sample_results: Build, tmp_path: Any) -> None:
    results = sample_results(10)
    best = chosen(results, None).number
    with pytest.raises(StudyError, match="has no trial 99; it has 10"):
        chosen(results, 99)
    with pytest.raises(StudyError, match="trial 6 of 'sst2' is pruned"):
        chosen(results, 6)
    (tmp_path / "0").mkdir()
    assert weights_of(results, tmp_path, chosen(results, 0)) == tmp_path / "0"
    other = next(trial for trial in results.complete if trial.number not in (0, best))
    with pytest.raises(StudyError, match=r"were not saved; in .* are those of 0. A study saves"):
        weights_of(results, tmp_path, other)


def test_tables_are_as_wide_as_their_cells() -> None:
    text = verdict.as_text(("Title", ["", "a", "long name"], [["x", "1", "2"], ["longer", "10", "20"]]))
    assert text.splitlines() == [
        "Title:",
        "           a  long name",
        "  x        1          2",
        "  longer  10         20",
    ]
