"""InfoNCE out of three kernels over a block of queries and passages, whoever computes them.

A block is what the kernels see: some queries against some passages. One process has one; ranks that exchange
their passages have one for each shard, and merge the sums.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Block(NamedTuple):
    """Queries against passages, both as they enter the products.

    With s_ij = <q_i, p_j> / temperature, a positive pair's logit is s_ij - margin / temperature. A pair is a
    negative unless it is a positive, its groups are equal or its passage is excluded.
    """

    queries: Tensor  # (Q, D), normalized, in the dtype of the products
    passages: Tensor  # (N, D), likewise
    temperature: Tensor  # scalar, in the dtype of the sums: float32, or float64 for float64 products
    margin: float
    targets: Tensor  # (Q,) int64 rows of `passages`; -1 where the positive is not among them
    query_groups: Tensor | None  # (Q,) int64
    passage_groups: Tensor | None  # (N,) int64
    by_group: bool  # all pairs of equal groups are positives, and `targets` says nothing
    excluded: Tensor | None  # (N,) bool: passages that are nobody's negative


class OneDirection(NamedTuple):
    """What the queries' direction alone amounts to; see `Kernels.positive_costs` and `Kernels.gradients`."""

    costs_Q: Tensor
    row_weights_Q: Tensor
    gradients: tuple[Tensor | None, Tensor | None, Tensor]


class Kernels(Protocol):
    """What a backend computes: never holding Q x N, in a fixed order, without waiting for the device."""

    def negative_sums(self, block: Block, columns: bool) -> tuple[Tensor, Tensor | None]:
        """Log-sum-exp of s over each query's negatives (Q,) and, with `columns`, over each passage's (N,)."""

    def positive_costs(
        self, block: Block, row_sums_Q: Tensor, column_sums_N: Tensor | None, weights_Q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the positives cost against the sums, and the weight that this puts on each sum's softmax.

        Costs (Q,): log(1 + e^(row sum - logit)), summed over the query's positives, plus the same with their
        column sums. Weights: those costs' derivatives, times weights_Q, by row sum (Q,) and column sum (N,).
        """

    def gradients(
        self,
        block: Block,
        row_sums_Q: Tensor,
        row_weights_Q: Tensor,
        column_sums_N: Tensor | None,
        column_weights_N: Tensor | None,
        weights_Q: Tensor,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Of the rows as they enter the products, where needed, and of the temperature; dtype of the sums.

        A negative's logit gets row_weight * e^(s - row sum) + column_weight * e^(s - column sum), a
        positive's -weights_Q * (sigmoid(row sum - logit) + sigmoid(column sum - logit)); empty sums give 0.
        The temperature's gradient is what comes through the similarities; `through_margin` is the rest.
        """

    def one_direction(self, block: Block, weights_Q: Tensor, needs: tuple[bool, bool]) -> OneDirection | None:
        """All three without column sums, for one product less; None where this backend has no such way."""


def unit_rows(rows: Tensor, normalize: bool, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as they enter the products, and the inverse norms (rows, 1) that made them, in the sums' dtype."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    scale = torch.where(norms > 0, 1 / norms, 0.0) if normalize else torch.ones_like(norms)
    scale = scale.masked_fill(~norms.isfinite(), torch.nan)  # NaN and infinity reach every loss they touch
    return (rows * scale).to(compute_dtype), scale


def through_norm(grad: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """The gradient of rows, from that of the rows over their norms."""
    unit = unit.to(grad.dtype)
    return (grad - unit * (grad * unit).sum(dim=1, keepdim=True)) * scale


def through_margin(
    temperature: Tensor, margin: float, row_weights_Q: Tensor, column_weights_N: Tensor | None
) -> Tensor:
    """What of the temperature's gradient goes through the positives' margin / temperature."""
    weight = row_weights_Q.sum() + (0.0 if column_weights_N is None else column_weights_N.sum())
    return -margin / temperature.square() * weight


def scalar_on(device: torch.device, scalar: Tensor, dtype: torch.dtype) -> Tensor:
    """The scalar on the device; one of the CPU's goes by value, since a copy would wait for the device."""
    if scalar.device.type == "cpu":
        return torch.full((), scalar.item(), dtype=dtype, device=device)
    return scalar.to(device=device, dtype=dtype)


def count_in(groups: Tensor, others: Tensor) -> Tensor:
    """How often each of `groups` occurs in `others`."""
    others = others.sort().values
    return torch.searchsorted(others, groups, right=True) - torch.searchsorted(others, groups)


def info_nce(
    kernels: Kernels,
    queries: Tensor,
    passages: Tensor,
    temperature: Tensor,
    targets: Tensor,
    query_groups: Tensor | None,
    passage_groups: Tensor | None,
    *,
    positives: str,
    bidirectional: bool,
    in_batch: bool,
    margin: float,
    normalize: bool,
    compute_dtype: torch.dtype,
    weights: Tensor | None,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses (Q,) and, given `weights` = d(objective)/d(losses), the gradients.

    Those of queries and passages where needed, and the temperature's.
    """
    unit_q, scale_q = unit_rows(queries, normalize, compute_dtype)
    unit_p, scale_p = unit_rows(passages, normalize, compute_dtype)
    by_group = positives == "groups" and query_groups is not None and passage_groups is not None
    excluded = None
    share_Q = scale_q.new_full((len(queries),), 0.5 if bidirectional else 1.0)
    if by_group and query_groups is not None and passage_groups is not None:
        share_Q = share_Q / count_in(query_groups, passage_groups)
        excluded = None if in_batch else count_in(passage_groups, query_groups) > 0
    elif not in_batch:
        excluded = torch.zeros(len(passages), dtype=torch.bool, device=queries.device)
        excluded.index_fill_(0, targets.clamp(0, len(passages) - 1), True)  # a GPU's targets are not checked
    block = Block(
        unit_q,
        unit_p,
        scalar_on(queries.device, temperature, scale_q.dtype),
        margin,
        targets,
        query_groups,
        passage_groups,
        by_group,
        excluded,
    )
    weights_Q = share_Q if weights is None else share_Q * weights
    solved = None
    if weights is not None and not bidirectional:
        solved = kernels.one_direction(block, weights_Q, needs)
    column_weights_N = None
    if solved is not None:
        costs_Q, row_weights_Q, (grad_q, grad_p, grad_t) = solved
    else:
        row_sums_Q, column_sums_N = kernels.negative_sums(block, bidirectional)
        costs_Q, row_weights_Q, column_weights_N = kernels.positive_costs(
            block, row_sums_Q, column_sums_N, weights_Q
        )
        if weights is None:
            return costs_Q * share_Q, None, None, None
        grad_q, grad_p, grad_t = kernels.gradients(
            block, row_sums_Q, row_weights_Q, column_sums_N, column_weights_N, weights_Q, needs
        )
    grad_t = grad_t + through_margin(block.temperature, margin, row_weights_Q, column_weights_N)
    if normalize and grad_q is not None:
        grad_q = through_norm(grad_q, unit_q, scale_q)
    if normalize and grad_p is not None:
        grad_p = through_norm(grad_p, unit_p, scale_p)
    return costs_Q * share_Q, grad_q, grad_p, grad_t
