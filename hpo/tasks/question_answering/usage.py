"""The code that a model card shows: transformers has no pipeline for question answering any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.tasks.question_answering.keys import QuestionKeys

_CODE = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder, question, context = "FOLDER", "QUESTION", "CONTEXT"
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForQuestionAnswering.from_pretrained(folder)
length = min({max_length}, tokenizer.model_max_length)
# A model that has its CLS token last, as XLNet, was trained with the context before the question.
windows = tokenizer(question, context, truncation="only_second", max_length=length, stride={stride}, padding=True,
                    return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt")
of_context = torch.tensor([[part == 1 for part in windows.sequence_ids(i)] for i in range(len(windows.input_ids))])
with torch.no_grad():
    result = model(**{{name: windows[name] for name in tokenizer.model_input_names}})
scores = result.start_logits[:, :, None] + result.end_logits[:, None, :]  # [windows, first token, last token]
spans = torch.ones(scores.shape[1:], dtype=torch.bool).triu().tril({longest} - 1)  # answers of at most {longest} tokens
best = scores.masked_fill(~(spans & of_context[:, :, None] & of_context[:, None, :]), -torch.inf)
window, first, last = torch.unravel_index(best.argmax(), best.shape)
answer = context[windows.offset_mapping[window, first, 0] : windows.offset_mapping[window, last, 1]]
threshold = getattr(model.config, "no_answer_threshold", None)  # fitted on the validation split
if threshold is not None and scores[:, 0, 0].min() - best.max() > threshold:
    answer = ""  # there is none
"""


def code(settings: Mapping[str, Any]) -> str:
    """Return code that answers a question about a context of any length.

    Args:
        settings: The study's settings.
    """
    data = settings.get("data") or {}
    keys = QuestionKeys.model_validate({key: value for key, value in data.items() if key in QuestionKeys.model_fields})
    length = int(settings["max_length"])
    stride = "length // 3" if keys.stride is None else str(keys.stride)
    return _CODE.format(max_length=length, stride=stride, longest=keys.max_answer_length)
