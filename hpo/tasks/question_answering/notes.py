"""What the user should know of the questions of a study, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpo.tasks.dataset import Dataset
from hpo.tasks.question_answering.windows import Windows


def of_data(data: Dataset) -> list[str]:
    """Return notes on contexts that are in two splits, and on questions without an answer that train has none of."""
    found = []
    train = data.splits["train"]
    for name, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        contexts, seen = data.splits[name].contexts, set(data.splits[other].contexts)
        if shared := sum(context in seen for context in contexts):
            found.append(
                f"the contexts of {shared} of {len(contexts)} questions of {name} are in {other} too: its scores are "
                "optimistic for questions about new texts"
            )
    for name in ("validation", "test") if not train.unanswerable else ():
        has = data.splits[name].gold.has_answer
        if not has.all():
            found.append(
                f"{(~has).sum()} of {len(has)} questions of {name} have no answer, and none of train: a model that "
                "always answers gets them wrong"
            )
    return found


def of_windows(windows: Mapping[str, Windows], max_answer_length: int) -> list[str]:
    """Return notes on answers that no window holds, and on those that are too long to be given.

    Args:
        windows: Split -> its windows.
        max_answer_length: Tokens of an answer at most.
    """
    found = []
    for name, each in windows.items():
        questions = int(each.example[-1]) + 1
        if each.lost:
            found.append(
                f"{len(each.lost)} of {questions} questions of {name} have an answer that no window holds as a whole: "
                "they count as without an answer in training, and cannot be answered; raise max_length or data.stride"
            )
        long = np.unique(each.example[each.ends - each.starts >= max_answer_length])
        if len(long):
            found.append(
                f"{len(long)} of {questions} questions of {name} have an answer of more than {max_answer_length} "
                "tokens, which is never given; raise data.max_answer_length"
            )
    return found


def facts(data: Dataset) -> dict[str, str]:
    """Return how many questions of each split have an answer, and how many contexts there are."""
    answered = {name: split.gold.has_answer for name, split in data.splits.items()}
    told = [f"{has.sum()} of {len(has)} {name}" for name, has in answered.items()]
    contexts = [f"{len(set(split.contexts))} {name}" for name, split in data.splits.items()]
    return {"questions with an answer": ", ".join(told), "contexts": ", ".join(contexts)}
