"""The loss behind the frozen head is cross-entropy, and its gradient is right, chunk by chunk."""

import pytest
import torch
from torch.nn import functional

from discord_lora.finetuning import head_loss as head

VOCABULARY = 320


@pytest.mark.parametrize("at_once", [VOCABULARY, 5 * VOCABULARY, 50 * VOCABULARY])
def test_the_head_in_chunks_is_cross_entropy(monkeypatch, at_once):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, VOCABULARY).requires_grad_(False)
    hidden = torch.randn(17, 32, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (17,))
    expected = functional.cross_entropy(layer(hidden), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, hidden)
    found = head.head_loss(hidden, layer, labels)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (found_gradient,) = torch.autograd.grad(found * 3, hidden)
    assert torch.allclose(found_gradient, gradient * 3, rtol=1e-5, atol=1e-6)


def test_all_logits_are_written_into_one_place():
    layer = torch.nn.Linear(8, VOCABULARY, bias=False).requires_grad_(False)
    head._place_for_logits.cache_clear()
    for targets in (3, 40, 17):
        head.head_loss(torch.randn(targets, 8), layer, torch.arange(targets))
    assert head._place_for_logits.cache_info().misses == 1


def test_a_label_that_could_not_be_less_likely_has_a_finite_loss():
    layer = torch.nn.Linear(2, VOCABULARY, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[7] = 500.0
    loss = head.head_loss(torch.ones(1, 2), layer.requires_grad_(False), torch.tensor([3]))
    assert float(loss) == pytest.approx(1000.0)


def test_small_gradients_survive_in_fp16():
    """They are stored before the loss scale is applied, and fp16 ends at 6e-8."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, VOCABULARY, bias=False).requires_grad_(False)
    with torch.no_grad():
        layer.weight.mul_(1e-4)
    hidden = torch.randn(5, 64)
    labels = torch.randint(0, VOCABULARY, (5,))
    half = layer.half().weight
    results = []
    for dtype in (torch.float32, torch.float16):
        layer.weight.data = half.to(dtype)
        states = hidden.half().to(dtype).requires_grad_()
        loss = head.head_loss(states, layer, labels) * 2.0**10
        results.append(torch.autograd.grad(loss, states)[0].float())
    assert (results[1] - results[0]).norm() < 2e-3 * results[0].norm()
