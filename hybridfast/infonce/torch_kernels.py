"""The kernels of InfoNCE in plain torch, a chunk of queries at a time: every device, dtype and option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hybridfast.infonce.blocks import Block, Gradients, OneDirection, Sums, Weights

# Of the similarity matrix, held at once: 4 MB in float32, and a few temporaries of that size.
CHUNK_ENTRIES = 1 << 20


class _Chunk(NamedTuple):
    """Some queries of a block: their products with the passages, and which pairs are what."""

    rows: slice
    queries: Tensor  # in the dtype of the sums
    logits: Tensor  # similarity / temperature
    wanted: Tensor  # (similarity - margin) / temperature, what a positive scores
    positive: Tensor
    negative: Tensor


def _chunks(block: Block, passages: Tensor) -> Iterator[_Chunk]:
    """`passages`: the block's, in the dtype of the sums."""
    count = len(passages)
    column = torch.arange(count, device=passages.device)
    size = max(1, CHUNK_ENTRIES // count)
    for start in range(0, len(block.queries), size):
        rows = slice(start, start + size)
        queries = block.queries[rows].to(passages.dtype)
        similarities = queries @ passages.T
        positive = same = column == block.targets[rows, None]
        if block.query_groups is not None and block.passage_groups is not None:
            same = block.query_groups[rows, None] == block.passage_groups
            positive = same if block.by_group else positive
        negative = ~(positive | same)
        if block.excluded is not None:
            negative = negative & ~block.excluded
        wanted = (similarities - block.margin) / block.temperature
        yield _Chunk(rows, queries, similarities / block.temperature, wanted, positive, negative)


def _masked_logsumexp(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(logits.masked_fill(~mask, -torch.inf), dim)


def _share(logits: Tensor, logsumexp: Tensor) -> Tensor:
    """exp(logits - logsumexp); an empty sum has no shares."""
    return torch.exp(logits - logsumexp.masked_fill(logsumexp == -torch.inf, 0.0))


def negative_sums(block: Block, columns: bool) -> Sums:
    passages = block.passages.to(block.temperature.dtype)
    row_sums_Q = passages.new_empty(len(block.queries))
    column_sums_N = passages.new_full((len(passages),), -torch.inf) if columns else None
    for chunk in _chunks(block, passages):
        row_sums_Q[chunk.rows] = _masked_logsumexp(chunk.logits, chunk.negative, 1)
        if column_sums_N is not None:
            own = _masked_logsumexp(chunk.logits, chunk.negative, 0)
            column_sums_N = torch.logaddexp(column_sums_N, own)
    return Sums(row_sums_Q, column_sums_N)


def positive_costs(block: Block, sums: Sums, weights_Q: Tensor) -> tuple[Tensor, Weights]:
    passages = block.passages.to(block.temperature.dtype)
    costs_Q, row_weights_Q = torch.empty_like(sums.rows_Q), torch.empty_like(sums.rows_Q)
    column_weights_N = None if sums.columns_N is None else torch.zeros_like(sums.columns_N)
    for chunk in _chunks(block, passages):
        weights = weights_Q[chunk.rows, None]
        # A mask by `where`, not by a product: infinity outside the mask must not turn into NaN.
        off = torch.where(chunk.positive, sums.rows_Q[chunk.rows, None] - chunk.wanted, -torch.inf)
        costs_Q[chunk.rows] = torch.logaddexp(torch.zeros_like(off), off).sum(dim=1)
        row_weights_Q[chunk.rows] = (weights * torch.sigmoid(off)).sum(dim=1)
        if sums.columns_N is not None and column_weights_N is not None:
            off = torch.where(chunk.positive, sums.columns_N - chunk.wanted, -torch.inf)
            costs_Q[chunk.rows] += torch.logaddexp(torch.zeros_like(off), off).sum(dim=1)
            column_weights_N += (weights * torch.sigmoid(off)).sum(dim=0)
    return costs_Q, Weights(weights_Q, row_weights_Q, column_weights_N)


def gradients(block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]) -> Gradients:
    passages = block.passages.to(block.temperature.dtype)
    total = _Gradients(block, passages, needs)
    for chunk in _chunks(block, passages):
        row_sums = sums.rows_Q[chunk.rows, None]
        off = torch.sigmoid(row_sums - chunk.wanted)
        negative = weights.rows_Q[chunk.rows, None] * _share(chunk.logits, row_sums)
        if sums.columns_N is not None and weights.columns_N is not None:
            off = off + torch.sigmoid(sums.columns_N - chunk.wanted)
            negative = negative + weights.columns_N * _share(chunk.logits, sums.columns_N)
        total.add(chunk, negative, weights.losses_Q[chunk.rows, None] * off)
    return total.sums()


def one_direction(block: Block, weights_Q: Tensor, needs: tuple[bool, bool]) -> OneDirection:
    """Three products a chunk, since its logits are still there when the sums of its queries are known."""
    passages = block.passages.to(block.temperature.dtype)
    costs_Q = passages.new_empty(len(block.queries))
    row_weights_Q = torch.empty_like(costs_Q)
    total = _Gradients(block, passages, needs)
    for chunk in _chunks(block, passages):
        row_sums = _masked_logsumexp(chunk.logits, chunk.negative, 1)[:, None]
        off = torch.where(chunk.positive, row_sums - chunk.wanted, -torch.inf)
        costs_Q[chunk.rows] = torch.logaddexp(torch.zeros_like(off), off).sum(dim=1)
        positive = weights_Q[chunk.rows, None] * torch.sigmoid(off)
        row_weights_Q[chunk.rows] = positive.sum(dim=1)
        negative = row_weights_Q[chunk.rows, None] * _share(chunk.logits, row_sums)
        total.add(chunk, negative, positive)
    return OneDirection(costs_Q, Weights(weights_Q, row_weights_Q, None), total.sums())


class _Gradients:
    """`blocks.Kernels.gradients`, a chunk at a time."""

    def __init__(self, block: Block, passages: Tensor, needs: tuple[bool, bool]) -> None:
        self.block, self.passages = block, passages
        self.grad_q = passages.new_empty(block.queries.shape) if needs[0] else None
        self.grad_p = torch.zeros_like(passages) if needs[1] else None
        self.grad_t = torch.zeros_like(block.temperature)

    def add(self, chunk: _Chunk, negative: Tensor, positive: Tensor) -> None:
        """What its negatives add to d(objective)/d(logit), and its positives take from it."""
        gradient = torch.where(chunk.negative, negative, 0.0)
        gradient = torch.where(chunk.positive, -positive, gradient)
        self.grad_t -= (chunk.logits * gradient).sum()
        # Rounded like every factor of a product, and summed in the wider dtype.
        gradient = (gradient / self.block.temperature).to(self.block.queries.dtype).to(self.passages.dtype)
        if self.grad_q is not None:
            self.grad_q[chunk.rows] = gradient @ self.passages
        if self.grad_p is not None:
            self.grad_p += gradient.T @ chunk.queries

    def sums(self) -> Gradients:
        return self.grad_q, self.grad_p, self.grad_t / self.block.temperature
