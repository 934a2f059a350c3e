"""The divergence of two rankings: its gradients, and what it holds. Its value is in test_objective.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hybridfast.infonce import consistency


def test_gradients_are_those_of_the_value(monkeypatch) -> None:
    monkeypatch.setattr(consistency, "TILE", 50)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (5, 5, 17)]
    for rows in inputs:
        rows.requires_grad_()
    assert torch.autograd.gradcheck(consistency.divergence, inputs)
    frozen = [rows.detach() for rows in inputs[:2]]
    assert torch.autograd.gradcheck(lambda rows: consistency.divergence(*frozen, rows), inputs[2:])
    alike = consistency.divergence(inputs[0], inputs[0], inputs[2])
    assert alike.item() == 0


def test_no_pass_holds_all_scores(monkeypatch) -> None:
    """Of 256 queries and 512 passages, in both passes no tensor is larger than a tile or the embeddings."""
    monkeypatch.setattr(consistency, "TILE", 4096)
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            got = function(*args, **(kwargs or {}))
            if isinstance(got, Tensor):
                largest[0] = max(largest[0], got.numel())
            return got

    inputs = [torch.randn(rows, 8, requires_grad=True) for rows in (256, 256, 512)]
    with Sizes():
        consistency.divergence(*inputs).backward()
    assert largest[0] == 4096  # a tile; the passages have as many
    assert all(rows.grad is not None for rows in inputs)
