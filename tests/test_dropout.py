import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpo.finetune import dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_mask_drops_a_share_p_and_keeps_the_mean(p):
    torch.manual_seed(0)
    mask = dropout.mask(torch.Size((1000, 1001)), p, torch.ones(()))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert (mask == 0).float().mean().item() == pytest.approx(p, abs=1.5e-3)
    assert mask.mean().item() == pytest.approx(1.0, abs=3e-3)


def test_mask_elements_are_independent_of_their_neighbours_in_a_word():
    torch.manual_seed(0)
    lanes = (dropout.mask(torch.Size((250_000, 4)), 0.5, torch.ones(())) > 0).double()
    correlation = torch.corrcoef(lanes.T) - torch.eye(4)
    assert correlation.abs().max().item() < 0.01


def test_same_seed_same_mask():
    torch.manual_seed(3)
    first = dropout.mask(torch.Size((7, 5)), 0.3, torch.ones(()))
    torch.manual_seed(3)
    assert torch.equal(first, dropout.mask(torch.Size((7, 5)), 0.3, torch.ones(())))


def test_module_is_silent_in_evaluation_and_masks_gradients_in_training():
    module, x = dropout.OwnDropout(0.4), torch.ones(50, 50, requires_grad=True)
    assert module.train(False)(x) is x
    y = module.train(True)(x)
    y.sum().backward()
    assert torch.equal((y == 0), (x.grad == 0))


def test_install_replaces_plain_dropouts_only():
    class Other(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(Other(0.3), nn.Linear(2, 2)))
    dropout.install(model)
    assert type(model[0]) is dropout.OwnDropout
    assert model[0].p == 0.2
    assert type(model[1][0]) is Other


def test_attention_without_masked_probabilities_is_fused_attention(monkeypatch):
    monkeypatch.setattr(dropout, "mask", lambda shape, p, like: torch.ones(shape))
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 4, 6, 8) for _ in range(3))
    allowed = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    allowed = allowed[:, None, None, :]
    ours = dropout.attention(q, k, v, allowed, 0.1, 8**-0.5)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)
    torch.testing.assert_close(ours, fused)
