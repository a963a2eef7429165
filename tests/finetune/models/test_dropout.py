import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpo.finetune.models import dropout


def mask(shape, rates, number=0, rows=0):
    """Return mask `number` of a forward pass."""
    for _ in range(number):
        dropout.drop(torch.ones(1), 0.5)
    return dropout.drop(torch.ones(shape), rates, rows)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_mask_drops_a_share_p_and_keeps_the_mean(p):
    found = mask((1000, 1001), p)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=1.5e-3)
    assert found.mean().item() == pytest.approx(1.0, abs=3e-3)


def test_draws_are_those_of_splitmix64():
    """Against its published first numbers for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    with dropout.drawing_from(torch.tensor([1234567])):
        draws = dropout._draws(1, 20, 0, torch.device("cpu"))
    words = [int(word) % 2**64 for word in draws.contiguous().view(torch.int64).flatten()]
    assert words[1:] == published


def test_mask_elements_are_independent_of_near_and_far_ones():
    drawn = (mask((1_000_000,), 0.5) > 0).double()
    for apart in (1, 2, 3, 4, 5, 8, 64, 384, 1024, 4096, 65536):
        correlation = torch.corrcoef(torch.stack([drawn[:-apart], drawn[apart:]]))[0, 1]
        assert abs(correlation) < 0.005, apart


def test_masks_differ_by_seed_step_micro_batch_and_place_in_the_model():
    keys = [dropout.key(seed, micro_batch) for seed in (0, 1, 2, 2**31) for micro_batch in (0, 1, 2)]
    drawn = []
    for key in keys:
        for number in (0, 1, 2):
            with dropout.drawing_from(torch.tensor([key])):
                drawn.append((mask((100_000,), 0.5, number) > 0).double())
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlations.abs().max() < 0.02


def test_same_key_same_mask():
    drawn = []
    for _ in range(2):
        with dropout.drawing_from(torch.tensor([3])):
            drawn += [mask((7, 5), 0.3), mask((7, 5), 0.3)]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_slots_mask_does_not_depend_on_its_neighbours(rows):
    rates = dropout.SlotRates(3, torch.device("cpu"))
    for slot, p in enumerate((0.3, 0.0, 0.6)):
        rates.set(slot, p)
    nothing = dropout.SlotRates(3, torch.device("cpu"))
    shape = (6, 4, 5) if rows == 0 else (4, 6, 5)
    with dropout.drawing_from(torch.tensor([10, 11, 12])):
        assert mask(shape, nothing, rows=rows).eq(1).all()
        together = mask(shape, rates, rows=rows).chunk(3, dim=rows)
    for key, p, found in zip((10, 11, 12), (0.3, 0.0, 0.6), together, strict=True):
        with dropout.drawing_from(torch.tensor([key])):
            mask((1,), 0.0)  # where a neighbour drops something and this slot does not
            own = torch.Size([2, 4, 5]) if rows == 0 else torch.Size([4, 2, 5])
            alone = dropout.SlotRates(1, torch.device("cpu"))
            alone.set(0, p)
            assert torch.equal(mask(own, alone, rows=rows), found)
            assert (found == 0).any() == (p > 0)


def test_module_does_nothing_in_evaluation_and_masks_gradients_in_training():
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
    monkeypatch.setattr(dropout, "drop", lambda input, rates: input)
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 4, 6, 8) for _ in range(3))
    allowed = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    allowed = allowed[:, None, None, :]
    ours = dropout.attention(q, k, v, allowed, 0.1, 8**-0.5)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)
    torch.testing.assert_close(ours, fused)
