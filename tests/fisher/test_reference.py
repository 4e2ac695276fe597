"""What plain autograd, which the fast routes are held against, costs and gives."""

import contextlib

import pytest
import torch

from flatlingo.fisher import reference
from flatlingo.fisher.reference import plain_norms, squared_norm


@pytest.mark.parametrize("size", [(0,), (5,), (300, 1000)], ids=str)
def test_a_squared_norm_takes_no_float64_copy_of_a_gradient(size):
    gradient = torch.randn(size, generator=torch.Generator().manual_seed(0))
    with torch.profiler.profile(profile_memory=True) as profile:
        found = squared_norm(gradient)
    torch.testing.assert_close(found, gradient.double().square().sum(), rtol=1e-12, atol=0)
    assert max(event.cpu_memory_usage for event in profile.events()) <= 8 * reference.SQUARED


@pytest.mark.parametrize("again", [True, False], ids=["graph kept", "graph freed"])
def test_gradients_of_a_large_model_are_never_formed_all_at_once(again, monkeypatch):
    formed = []
    grad = torch.autograd.grad

    def counted(*args, **options):
        found = grad(*args, **options)
        formed.append(sum(gradient.numel() for gradient in found))
        return found

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.Linear(30, 7), torch.nn.Linear(7, 3)).double()
    parameters, direction = [*model.parameters()], torch.ones(2, 3)
    logits = model(torch.randn(2, 4, dtype=torch.float64))
    slow = [gradient.square().sum() for gradient in grad(logits, parameters, direction.double(), retain_graph=True)]
    monkeypatch.setattr(torch.autograd, "grad", counted)
    monkeypatch.setattr(reference, "TOGETHER", 50)
    found = plain_norms(logits, parameters, direction, again=again)
    torch.testing.assert_close(found, torch.stack(slow), rtol=1e-12, atol=0)
    assert max(formed) == 30 * 7
    with contextlib.nullcontext() if again else pytest.raises(RuntimeError, match="second time"):
        plain_norms(logits, parameters, direction)
