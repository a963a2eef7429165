"""The tasks, by the name that a study file gives them. To add one, add an entry to `TASKS`."""

from __future__ import annotations

from typing import Any

from hpo.tasks.causal_lm.task import CausalLM
from hpo.tasks.classification.task import Classification
from hpo.tasks.masked_lm.task import MaskedLM
from hpo.tasks.multiple_choice.task import MultipleChoice
from hpo.tasks.multitask.task import MultiTask
from hpo.tasks.question_answering.task import QuestionAnswering
from hpo.tasks.seq2seq.task import Seq2Seq
from hpo.tasks.task import Task
from hpo.tasks.token_classification.task import TokenClassification

AUTO = "auto"
"""Stands in a study file for `single_label`, `multi_label` or `regression`, by the labels."""

TASKS: dict[str, Task] = {
    "single_label": Classification("single_label"),
    "multi_label": Classification("multi_label"),
    "regression": Classification("regression"),
    "token_classification": TokenClassification(),
    "question_answering": QuestionAnswering(),
    "multiple_choice": MultipleChoice(),
    "causal_lm": CausalLM(),
    "seq2seq": Seq2Seq(),
    "masked_lm": MaskedLM(),
    "multitask": MultiTask(),  # `tasks:` in a study file
}


def task_for(architecture: str, problem_type: str | None, labels: int) -> Task:
    """Return the task that a model is for.

    Args:
        architecture: Name of its class in transformers, e.g. `BertForTokenClassification`.
        problem_type: As in its configuration.
        labels: Number of its labels.
    """
    tasks = [task for task in TASKS.values() if task.loads(architecture)]
    if len(tasks) == 1:
        return tasks[0]
    unnamed = TASKS["regression" if labels == 1 else "single_label"]
    if problem_type is None:
        return unnamed
    return next((task for task in tasks or TASKS.values() if task.problem_type == problem_type), unnamed)


def reader_of(name: Any) -> Task:
    """Return the task that reads the files of a study; of an unknown one, and of `auto`, that of classification."""
    return TASKS.get(str(name), TASKS["single_label"])
