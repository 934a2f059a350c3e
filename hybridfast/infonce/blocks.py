"""InfoNCE out of three kernels over a block of queries and passages, whoever computes them.

A block is what the kernels see: some queries against some passages. One process has one; ranks that exchange
their passages have one for each shard, and merge the sums.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from hybridfast.infonce.backends import block_backend
from hybridfast.infonce.problem import Problem


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


class Sums(NamedTuple):
    """Log-sum-exp of s over the negatives; -inf where there are none."""

    rows_Q: Tensor  # of each query
    columns_N: Tensor | None  # of each passage, where both directions count


class Weights(NamedTuple):
    """d(objective)/d(what a block makes), given that of the losses."""

    losses_Q: Tensor  # of each query's costs
    rows_Q: Tensor  # of each query's sum
    columns_N: Tensor | None  # of each passage's sum


Gradients = tuple[Tensor | None, Tensor | None, Tensor]  # of queries, passages and temperature


class OneDirection(NamedTuple):
    """What the queries' direction alone amounts to; see `Kernels.positive_costs` and `Kernels.gradients`."""

    costs_Q: Tensor
    weights: Weights
    gradients: Gradients


class Kernels(Protocol):
    """What a backend computes: never holding Q x N, in a fixed order, without waiting for the device."""

    def negative_sums(self, block: Block, columns: bool) -> Sums:
        """The sums over each query's negatives and, with `columns`, over each passage's."""

    def positive_costs(self, block: Block, sums: Sums, weights_Q: Tensor) -> tuple[Tensor, Weights]:
        """What the positives cost against the sums, and the weight that this puts on each sum's softmax.

        Costs (Q,): log(1 + e^(row sum - logit)), summed over the query's positives, plus the same with their
        column sums. Weights of sums: those costs' derivatives by them, times weights_Q.
        """

    def gradients(self, block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]) -> Gradients:
        """Of the rows as they enter the products, where needed, and of the temperature; dtype of the sums.

        A negative's logit gets row weight * e^(s - row sum) + column weight * e^(s - column sum), a
        positive's -losses_Q * (sigmoid(row sum - logit) + sigmoid(column sum - logit)); empty sums give 0.
        The temperature's gradient is what comes through the similarities; `through_margin` is the rest.
        """

    def one_direction(self, block: Block, weights_Q: Tensor, needs: tuple[bool, bool]) -> OneDirection | None:
        """All three without column sums, for one product less; None where this backend has no such way."""


def kernels_of(problem: Problem) -> Kernels:
    """Those of its backend, imported when they are first used: not every build has them all."""
    queries = problem.queries
    name = block_backend(problem.backend, queries.device, queries.dtype, problem.compute_dtype)
    return cast(Kernels, importlib.import_module(f"hybridfast.infonce.{name}_kernels"))


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


def through_margin(temperature: Tensor, margin: float, weights: Weights) -> Tensor:
    """What of the temperature's gradient goes through the positives' margin / temperature."""
    weight = weights.rows_Q.sum() + (0.0 if weights.columns_N is None else weights.columns_N.sum())
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
    kernels: Kernels, problem: Problem, weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses (Q,) and, given `weights` (Q,) = d(objective)/d(losses), the gradients.

    Those of queries and passages where needed, and the temperature's.
    """
    count, device, needs = len(problem.passages), problem.queries.device, (problem.needs[0], problem.needs[1])
    unit_q, scale_q = unit_rows(problem.queries, problem.normalize, problem.product_dtype())
    unit_p, scale_p = unit_rows(problem.passages, problem.normalize, problem.product_dtype())
    targets, by_group = problem.targets_tensor(), problem.positive_groups()
    excluded = None
    share_Q = scale_q.new_full((len(unit_q),), 0.5 if problem.bidirectional else 1.0)
    if by_group is not None:
        query_groups, passage_groups = by_group
        share_Q = share_Q / count_in(query_groups, passage_groups)
        excluded = None if problem.in_batch else count_in(passage_groups, query_groups) > 0
    elif not problem.in_batch:
        excluded = torch.zeros(count, dtype=torch.bool, device=device)
        excluded.index_fill_(0, targets.clamp(0, count - 1), True)  # a GPU's targets are not checked
    block = Block(
        unit_q,
        unit_p,
        scalar_on(device, problem.temperature_tensor(), scale_q.dtype),
        problem.margin,
        targets,
        problem.query_groups,
        problem.passage_groups,
        by_group is not None,
        excluded,
    )
    weights_Q = share_Q if weights is None else share_Q * weights
    solved = None
    if weights is not None and not problem.bidirectional:
        solved = kernels.one_direction(block, weights_Q, needs)
    if solved is not None:
        costs_Q, of_sums, (grad_q, grad_p, grad_t) = solved
    else:
        sums = kernels.negative_sums(block, problem.bidirectional)
        costs_Q, of_sums = kernels.positive_costs(block, sums, weights_Q)
        if weights is None:
            return costs_Q * share_Q, None, None, None
        grad_q, grad_p, grad_t = kernels.gradients(block, sums, of_sums, needs)
    grad_t = grad_t + through_margin(block.temperature, problem.margin, of_sums)
    if problem.normalize and grad_q is not None:
        grad_q = through_norm(grad_q, unit_q, scale_q)
    if problem.normalize and grad_p is not None:
        grad_p = through_norm(grad_p, unit_p, scale_p)
    return costs_Q * share_Q, grad_q, grad_p, grad_t
