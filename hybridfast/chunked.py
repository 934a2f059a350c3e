"""InfoNCE in plain torch, a chunk of queries at a time: every device, dtype and option, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Of the similarity matrix, held at once: 4 MB in float32, and a few temporaries of that size.
CHUNK_ENTRIES = 1 << 20


def _unit_rows(rows: Tensor, normalize: bool, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as they enter the products, in the dtype of the sums, and the inverse norms that made them."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    scale = torch.where(norms > 0, 1 / norms, 0.0) if normalize else torch.ones_like(norms)
    scale = scale.masked_fill(~norms.isfinite(), torch.nan)  # NaN and infinity reach every loss they touch
    return (rows * scale).to(compute_dtype).to(rows.dtype), scale


def _masked_logsumexp(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(logits.masked_fill(~mask, -torch.inf), dim)


def _share(logits: Tensor, logsumexp: Tensor) -> Tensor:
    """exp(logits - logsumexp); an empty sum has no shares."""
    return torch.exp(logits - logsumexp.masked_fill(logsumexp == -torch.inf, 0.0))


class _Chunk:
    """Some rows of the problem: which pairs are positive and negative, and their logits."""

    def __init__(
        self, rows: slice, logits: Tensor, wanted: Tensor, positive: Tensor, negative: Tensor
    ) -> None:
        self.rows = rows
        self.logits = logits  # similarity / temperature
        self.wanted = wanted  # (similarity - margin) / temperature, what a positive scores
        self.positive = positive
        self.negative = negative
        self.positive_share = positive.to(logits.dtype) / positive.sum(dim=1, keepdim=True)


def info_nce(
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
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses (Q,) and, given `weights` = d(objective)/d(losses), the three gradients.

    With n the log-sum-exp of a query's negatives and t a positive's logit, a positive costs
    log(1 + e^(n - t)): its gradient is -sigmoid(n - t), shared out among the negatives in proportion to e^s.
    """
    count = len(passages)
    unit_q, scale_q = _unit_rows(queries, normalize, compute_dtype)
    unit_p, scale_p = _unit_rows(passages, normalize, compute_dtype)
    temperature = temperature.to(device=queries.device, dtype=unit_q.dtype)
    column = torch.arange(count, device=queries.device)
    used = torch.zeros(count, dtype=torch.bool, device=queries.device)
    if not in_batch:
        if positives == "groups" and query_groups is not None and passage_groups is not None:
            used = torch.isin(passage_groups, query_groups)
        else:
            used[targets] = True

    def chunks() -> Iterator[_Chunk]:
        size = max(1, CHUNK_ENTRIES // count)
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            similarities = unit_q[rows] @ unit_p.T
            positive = same = column == targets[rows, None]
            if query_groups is not None and passage_groups is not None:
                same = query_groups[rows, None] == passage_groups
                positive = same if positives == "groups" else positive
            wanted = (similarities - margin) / temperature
            yield _Chunk(rows, similarities / temperature, wanted, positive, ~(positive | same | used))

    column_sums = unit_p.new_full((count,), -torch.inf)
    column_weights = torch.zeros_like(column_sums)
    if bidirectional:
        for chunk in chunks():
            column_sums = torch.logaddexp(column_sums, _masked_logsumexp(chunk.logits, chunk.negative, 0))
        if weights is not None:
            for chunk in chunks():
                off = torch.sigmoid(column_sums - chunk.wanted) * chunk.positive_share
                column_weights += (off * weights[chunk.rows, None]).sum(dim=0)

    losses = unit_q.new_empty(len(queries))
    grad_q, grad_p = torch.empty_like(unit_q), torch.zeros_like(unit_p)
    grad_t = torch.zeros_like(temperature)
    half = 0.5 if bidirectional else 1.0
    for chunk in chunks():
        sums = _masked_logsumexp(chunk.logits, chunk.negative, 1)[:, None]
        zero = torch.zeros_like(chunk.logits)
        costs = torch.logaddexp(zero, sums - chunk.wanted)
        if bidirectional:
            costs = costs + torch.logaddexp(zero, column_sums - chunk.wanted)
        losses[chunk.rows] = half * torch.where(chunk.positive, costs * chunk.positive_share, 0.0).sum(dim=1)
        if weights is None:
            continue
        weight = weights[chunk.rows, None]
        off = torch.sigmoid(sums - chunk.wanted) * chunk.positive_share
        negative = weight * off.sum(dim=1, keepdim=True) * _share(chunk.logits, sums)
        if bidirectional:
            off = off + torch.sigmoid(column_sums - chunk.wanted) * chunk.positive_share
            negative = negative + column_weights * _share(chunk.logits, column_sums)
        # A mask by `where`, not by a product: infinity outside the mask must not turn into NaN.
        positive = torch.where(chunk.positive, -weight * off, 0.0)
        gradient = half * (torch.where(chunk.negative, negative, 0.0) + positive)
        grad_t -= (torch.where(chunk.positive, chunk.wanted, chunk.logits) * gradient).sum() / temperature
        gradient = (gradient / temperature).to(compute_dtype).to(unit_q.dtype)
        grad_q[chunk.rows] = gradient @ unit_p
        grad_p += gradient.T @ unit_q[chunk.rows]
    if weights is None:
        return losses, None, None, None

    if normalize:
        grad_q = (grad_q - unit_q * (grad_q * unit_q).sum(dim=1, keepdim=True)) * scale_q
        grad_p = (grad_p - unit_p * (grad_p * unit_p).sum(dim=1, keepdim=True)) * scale_p
    return losses, grad_q, grad_p, grad_t
