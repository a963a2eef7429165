import pytest
import tiny
import torch

from hpo.finetune.models import first_token
from hpo.finetune.models.loading import load_model
from hpo.tasks.registry import TASKS


@pytest.mark.parametrize(("kind", "shorter"), [("bert", True), ("roberta", True), ("electra", True), ("gpt2", False)])
def test_a_model_that_reads_the_first_token_is_shortened_without_a_difference(tmp_path, kind, shorter):
    folder = tiny.save_model(tmp_path, kind)
    model, _ = load_model(str(folder), folder, TASKS["single_label"], ["a", "b", "c"], pad=0)
    ids, mask = torch.randint(4, 70, (4, 11)), torch.ones(4, 11, dtype=torch.long)
    mask[1, 6:] = 0
    results = []
    for _ in range(2):
        logits = model.train(False)(input_ids=ids, attention_mask=mask).logits
        logits.pow(2).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients))
        model.zero_grad(set_to_none=True)
        if len(results) == 1:
            assert first_token.shorten(model) is shorter
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient)


def test_a_model_that_reads_other_tokens_is_not_changed(tmp_path):
    folder = tiny.save_model(tmp_path)
    model, _ = load_model(str(folder), folder, TASKS["single_label"], ["a", "b"])

    class MeanPooler(torch.nn.Module):
        def forward(self, hidden):
            return hidden.mean(dim=1)

    model.bert.pooler = MeanPooler()
    assert not first_token.shorten(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
