"""How far two queries that mean the same are from ranking passages alike, without their score matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax, normalize

__all__ = ["divergence"]

TILE = 2**20  # scores at a time: some ten such tiles live together, 40 MB in float32


def divergence(queries: Tensor, seconds: Tensor, passages: Tensor) -> Tensor:
    """The sum over queries of KL(softmax cos(seconds_i, P) || softmax cos(queries_i, P)), P all passages.

    Cosines are not divided by a temperature, and all three get gradients (Yang et al., "Language Bias in
    Multilingual Information Retrieval", 2024). Neither pass holds more of the (Q, N) scores than tiles of
    rows: gradients are formed with the value.

    Args:
        queries, seconds: (Q, D) floating point, row by row the same question.
        passages: (N, D).

    Returns:
        A scalar, float32, or float64 for float64 inputs.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    units = [normalize(rows.to(wide), dim=1) for rows in (queries, seconds, passages)]
    total: Tensor = _Divergence.apply(*units)
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries_QD: Tensor, seconds_QD: Tensor, passages_ND: Tensor) -> Tensor:
        rows = max(1, TILE // max(1, len(passages_ND)))
        total = queries_QD.new_zeros(())
        grads = [torch.zeros_like(x) for x in (queries_QD, seconds_QD, passages_ND)]
        with torch.autocast(queries_QD.device.type, enabled=False):  # a divergence is of second order
            for a_RD, b_RD, grad_a, grad_b in zip(
                *(x.split(rows) for x in (queries_QD, seconds_QD, *grads[:2])), strict=True
            ):
                log_a_RN = log_softmax(a_RD @ passages_ND.T, 1)
                log_b_RN = log_softmax(b_RD @ passages_ND.T, 1)
                share_b_RN, gap_RN = log_b_RN.exp(), log_b_RN - log_a_RN
                found_R1 = (share_b_RN * gap_RN).sum(1, keepdim=True)
                total += found_R1.sum()
                if any(ctx.needs_input_grad):
                    from_a_RN = log_a_RN.exp_().sub_(share_b_RN)
                    from_b_RN = share_b_RN.mul_(gap_RN.sub_(found_R1))
                    torch.mm(from_a_RN, passages_ND, out=grad_a)
                    torch.mm(from_b_RN, passages_ND, out=grad_b)
                    grads[2].addmm_(from_a_RN.T, a_RD).addmm_(from_b_RN.T, b_RD)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            saved * grad if need else None
            for saved, need in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        )
