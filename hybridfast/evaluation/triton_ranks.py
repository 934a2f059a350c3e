# mypy: allow-untyped-defs, allow-incomplete-defs
"""What `hybridfast.evaluation.ranks` counts, on a GPU: twins of `_core.largest_norm` and `_core.rank_counts`.

Golds are scored first, by tiles of the shape that streams: a product is summed in the same order wherever in
a tile it stands, so equal passages tie to the bit. Then each program forms the scores of a tile of queries
with a tile of one group's passages, and adds to the counts of those queries' golds. Counts are integers: they
do not depend on the order in which programs finish.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from hybridfast.infonce.triton_tiles import FLOAT32, HALF, as_rows, launch, tile_products

Counts = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]

NORM_BYTES = 64 << 20  # of float64 rows held at a time


def largest_norm(embeddings: Tensor, threads: int = 1) -> tuple[int, float]:
    """A row and its Euclidean norm: the first whose norm is not finite, else the largest."""
    largest = (0, 0.0)
    step = max(1, NORM_BYTES // (8 * embeddings.shape[1]))
    for start in range(0, len(embeddings), step):
        norms = torch.linalg.vector_norm(embeddings[start : start + step], dim=1, dtype=torch.float64)
        wrong = (~norms.isfinite()).nonzero()
        row = int(wrong[0] if len(wrong) else norms.argmax())
        found = (start + row, float(norms[row]))
        if len(wrong):
            return found
        largest = max(largest, found, key=lambda pair: pair[1])
    return largest


@triton.jit
def _gold_scores_kernel(
    queries, passages, gold_queries, gold_rows, scores, G, D, query_stride, passage_stride,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The score of each gold: the diagonal of a square tile of their queries and passages."""
    golds = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_golds = tl.minimum(golds, G - 1)  # beyond the last, the last again; not stored
    scores_QN = tile_products(
        # "ieee": TF32, where torch has it switched on, would tie passages that differ.
        queries, passages, tl.load(gold_queries + at_golds), tl.load(gold_rows + at_golds), D,
        query_stride, passage_stride, BLOCK_Q, BLOCK_N, BLOCK_D, "ieee",
    )  # fmt: skip
    own = tl.arange(0, BLOCK_Q)[:, None] == tl.arange(0, BLOCK_N)[None, :]
    tl.store(scores + golds, tl.sum(tl.where(own, scores_QN, 0.0), 1), mask=golds < G)


@triton.jit
def _add(counts, at_counts, hits, counted):
    """Add what each query hit in this tile to its gold's count."""
    number = tl.sum(hits.to(tl.int32), 1)
    tl.atomic_add(counts + at_counts, number, mask=counted & (number > 0), sem="relaxed")


@triton.jit
def _count_kernel(
    queries, passages, gold_indptr, gold_rows, gold_scores,
    passage_rows, tile_groups, tile_starts, tile_stops, greater, tied, later,
    Q, groups, tiles, D, query_stride, passage_stride,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compare the scores of a tile of queries and passages with the scores of those queries' golds."""
    # Programs of one time share 16 tiles of queries, whose rows stay in the second-level cache.
    row_tile, tile = tl.swizzle2d(
        tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.cdiv(Q, BLOCK_Q), tiles, 16
    )
    rows = row_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_rows = tl.minimum(rows, Q - 1)
    places, stop = tl.load(tile_starts + tile) + tl.arange(0, BLOCK_N), tl.load(tile_stops + tile)
    passage = tl.load(passage_rows + tl.minimum(places, stop - 1))
    scores_QN = tile_products(
        queries, passages, at_rows, passage, D, query_stride, passage_stride,
        BLOCK_Q, BLOCK_N, BLOCK_D, "ieee",
    )  # fmt: skip
    first = tl.load(gold_indptr + at_rows)
    golds = tl.where(rows < Q, tl.load(gold_indptr + at_rows + 1) - first, 0)
    for number in range(0, tl.max(golds, 0)):
        counted = number < golds
        gold = tl.where(counted, first + number, 0)
        row = tl.load(gold_rows + gold)[:, None]
        score = tl.load(gold_scores + gold)[:, None]
        other = (places < stop)[None, :] & (passage[None, :] != row)
        same = other & (scores_QN == score)
        at_counts = gold * groups + tl.load(tile_groups + tile)
        _add(greater, at_counts, other & (scores_QN > score), counted)
        _add(tied, at_counts, same, counted)
        _add(later, at_counts, same & (passage[None, :] > row), counted)


def rank_counts(
    queries: Tensor,
    passages: Tensor,
    group_starts: NDArray[np.int64],
    group_rows: NDArray[np.int64],
    gold_indptr: NDArray[np.int64],
    gold_rows: NDArray[np.int64],
    threads: int,
) -> Counts:
    """How many passages of each group score above, tie with, and tie later than each gold: (G, L) each.

    `threads` are the CPU's, and change nothing here.
    """
    device, tiles = queries.device, FLOAT32 if queries.dtype == torch.float32 else HALF
    groups, golds = len(group_starts) - 1, len(gold_rows)
    counts = torch.zeros((3, golds, groups), dtype=torch.int32, device=device)
    if golds:
        queries, passages = as_rows(queries), as_rows(passages)
        indptr, rows = _on(device, gold_indptr), _on(device, gold_rows)
        gold_queries = _on(device, np.repeat(np.arange(len(queries)), np.diff(gold_indptr)))
        scores = torch.empty(golds, device=device)
        embeddings = (queries.shape[1], queries.stride(0), passages.stride(0))
        launch(
            _gold_scores_kernel, triton.cdiv(golds, tiles.queries), tiles,
            queries, passages, gold_queries, rows, scores, golds, *embeddings,
        )  # fmt: skip

        tiles_L = -(-np.diff(group_starts) // tiles.passages)
        group_T = np.repeat(np.arange(groups), tiles_L)
        place_T = np.arange(len(group_T)) - np.repeat(np.cumsum(tiles_L) - tiles_L, tiles_L)
        tile_table = (group_T, group_starts[group_T] + place_T * tiles.passages, group_starts[group_T + 1])
        launch(
            _count_kernel, triton.cdiv(len(queries), tiles.queries) * len(group_T), tiles,
            queries, passages, indptr, rows, scores, _on(device, group_rows),
            *(_on(device, column_T) for column_T in tile_table), *counts,
            len(queries), groups, len(group_T), *embeddings,
        )  # fmt: skip
    greater, tied, later = counts.cpu().numpy()
    return greater, tied, later


def _on(device: torch.device, integers: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(integers)).to(device)
