"""The definition of every op in plain torch: full matrices, autograd, float64 when the inputs are.

Nothing here is fast or lean. The tests compare the other backends with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridfast.infonce.problem import Problem


def unit_rows(rows: Tensor, normalize: bool) -> Tensor:
    """Rows over their norms; a zero row stays zero and passes no gradient, a row not finite is NaN."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    poison = torch.zeros_like(norm).masked_fill(~norm.isfinite(), torch.nan)
    if not normalize:
        return rows + poison
    zero = norm == 0
    return torch.where(zero, 0.0, rows / norm.masked_fill(zero, 1.0)) + poison


def pair_masks(problem: Problem) -> tuple[Tensor, Tensor]:
    """Which (query, passage) pairs are positive and which are negative, both (Q, N) bool.

    A pair is a negative unless it is a positive, its groups are equal or, without `in_batch`, its passage is
    a positive of any query.
    """
    targets = problem.targets_tensor()
    positive_QN = torch.arange(len(problem.passages), device=targets.device) == targets[:, None]
    negative_QN = ~positive_QN
    if problem.query_groups is not None and problem.passage_groups is not None:
        same_QN = problem.query_groups[:, None] == problem.passage_groups
        positive_QN = same_QN if problem.positives == "groups" else positive_QN
        negative_QN = ~(positive_QN | same_QN)
    if not problem.in_batch:
        negative_QN = negative_QN & ~positive_QN.any(dim=0)
    return positive_QN, negative_QN


def masked_logsumexp(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """log sum exp over the entries of the mask; -inf, without a gradient, where there are none."""
    empty = ~mask.any(dim=dim)
    safe = logits.masked_fill(~mask, -torch.inf).masked_fill(empty.unsqueeze(dim), 0.0)
    return torch.logsumexp(safe, dim).masked_fill(empty, -torch.inf)


def info_nce(queries: Tensor, passages: Tensor, temperature: float | Tensor = 0.05, **options: Any) -> Tensor:
    """InfoNCE (van den Oord et al., 2018, eq. 4) over similarities divided by a temperature.

    A positive pair (i, g) costs -log(e^s_ig / (e^s_ig + sum of e^s_ij over the negatives j of query i)) with
    s the similarity over the temperature and the margin (Yang et al., 2019) taken off the positive's. A
    query's loss is the mean over its positives; with `bidirectional`, of that and of the same with the
    negative queries of passage g in the denominator.

    Options are those of `hybridfast.info_nce`; what only changes how it is computed changes nothing here.
    """
    problem = Problem(queries, passages, temperature, **options)
    similarities_QN = unit_rows(queries, problem.normalize) @ unit_rows(passages, problem.normalize).T
    positive_QN, negative_QN = pair_masks(problem)
    logits_QN = similarities_QN / temperature
    wanted_QN = (similarities_QN - problem.margin) / temperature
    zero = torch.zeros_like(logits_QN)
    costs_QN = torch.logaddexp(zero, masked_logsumexp(logits_QN, negative_QN, 1)[:, None] - wanted_QN)
    if problem.bidirectional:
        columns_QN = torch.logaddexp(zero, masked_logsumexp(logits_QN, negative_QN, 0) - wanted_QN)
        costs_QN = (costs_QN + columns_QN) / 2
    losses_Q = torch.where(positive_QN, costs_QN, 0.0).sum(dim=1) / positive_QN.sum(dim=1)
    if problem.reduction == "none":
        return losses_Q
    return losses_Q.mean() if problem.reduction == "mean" else losses_Q.sum()
