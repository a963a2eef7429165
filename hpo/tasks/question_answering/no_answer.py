"""Whether a model can learn that a question has no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import ModelError
from hpo.tasks.rows import EncodedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_blind(model: PreTrainedModel, rows: EncodedRows) -> None:
    """Refuse a model whose token of no answer sees nothing of the context, if questions have no answer.

    That is so where a model reads from left to right, as GPT-2, and the token is the first one: its logits are the same
    for all questions.

    Args:
        model: The model.
        rows: The windows of train.

    Raises:
        ModelError: It is such a model.
    """
    questions = rows.alignment.questions
    without = sum(not question.answers for question in questions)
    if without and not _sees_context(model, rows):
        raise ModelError(
            f"{type(model).__name__} reads from left to right, and the token that stands for no answer is before the "
            f"context: it sees nothing of it, so the model cannot learn which of the questions have no answer, as "
            f"{without} of {len(questions)} of train have none. Choose a model that reads in both directions, as BERT, "
            "or leave these questions out of the files"
        )


def _sees_context(model: PreTrainedModel, rows: EncodedRows) -> bool:
    """Return whether the logits of the token of no answer depend on the first token of the context."""
    import torch

    windows = rows.alignment.windows
    null, offsets = int(windows.null[0]), windows.padded_offsets(slice(0, 1), int(windows.lengths[0]))[0]
    first = int(np.flatnonzero(offsets[:, 1] > offsets[:, 0])[0])
    inputs: dict[str, Any] = {
        name: torch.as_tensor(np.asarray(values[0]), dtype=torch.int64, device=model.device)[None]
        for name, values in rows.inputs.items()
    }
    changed = inputs["input_ids"].clone()
    changed[0, first] = (changed[0, first] + 1) % model.config.get_text_config().vocab_size
    training = model.training
    model.train(False)
    with torch.no_grad():
        one, other = (
            model(**inputs | {"input_ids": ids}).start_logits[0, null] for ids in (inputs["input_ids"], changed)
        )
    model.train(training)
    return not torch.equal(one, other)
