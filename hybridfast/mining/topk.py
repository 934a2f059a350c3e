"""The passages that score highest for each query: exactly, while scores stream by, or by a faiss index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridfast._core import largest_norm
from hybridfast._core import top_k as native_top_k

__all__ = ["Excluded", "FaissIndex", "check", "load_faiss", "search", "top_k"]

Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and rows, (Q, K) each

GPU_QUERIES, GPU_SCORES = 2_048, 1 << 25  # queries at a time; scores at a time, some 40 bytes for each


class Excluded:
    """What queries may not get: query q the rows ``rows[indptr[g]:indptr[g + 1]]`` with ``g = group_Q[q]``.

    Each group's rows ascend.
    """

    def __init__(
        self, group_Q: NDArray[np.int64], indptr: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        self.group_Q, self.indptr, self.rows = (
            np.ascontiguousarray(array, np.int64) for array in (group_Q, indptr, rows)
        )

    def of(self, queries: slice | NDArray[np.int64]) -> Excluded:
        """The same for some of the queries."""
        return Excluded(self.group_Q[queries], self.indptr, self.rows)

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every query and row that may not meet."""
        sizes_Q = np.diff(self.indptr)[self.group_Q]
        query = np.repeat(np.arange(len(sizes_Q)), sizes_Q)
        begins = np.repeat(self.indptr[self.group_Q] - (np.cumsum(sizes_Q) - sizes_Q), sizes_Q)
        return query, self.rows[begins + np.arange(len(query))]


def top_k(
    queries: NDArray[np.float32],
    passages: NDArray[np.float32],
    k: int,
    *,
    rows: NDArray[np.int64] | None = None,
    excluded: Excluded | None = None,
    threads: int | None = None,
    device: torch.device | str = "cpu",
) -> Found:
    """The `k` passages of the highest inner product with each query, exactly; equal scores by row.

    Args:
        queries, passages: (Q, D) and (N, D) float32; passages may be a memory map, of which tiles are read.
        rows: the passages to search, ascending; None: all.
        excluded: what queries may not get.
        threads: of the CPU; default: torch's. The result does not depend on it.
        device: where scores are formed; a GPU gets tiles of both sides.

    Returns:
        Scores (Q, k) float32, descending, and rows of `passages` (Q, k) int64; where there are fewer than
        `k`, minus infinity and -1.

    Raises:
        ValueError: bad shapes or types, `k` < 1, `rows` not ascending or out of range, embeddings that are
            not finite or so large that scores overflow.
    """
    check(queries, passages)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = np.arange(len(passages)) if rows is None else np.ascontiguousarray(rows, np.int64)
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(passages) or (np.diff(rows) <= 0).any()):
        raise ValueError(f"rows must ascend within the {len(passages)} passages")
    if excluded is None:
        excluded = Excluded(np.zeros(len(queries), np.int64), np.zeros(2, np.int64), np.empty(0, np.int64))
    if len(excluded.group_Q) != len(queries):
        raise ValueError(f"excluded must have a group for each of {len(queries)} queries")
    return search(queries, passages, k, rows, excluded, threads, device)


def search(
    queries: NDArray[np.float32],
    passages: NDArray[np.float32],
    k: int,
    rows: NDArray[np.int64],
    excluded: Excluded,
    threads: int | None = None,
    device: torch.device | str = "cpu",
) -> Found:
    """:func:`top_k` of what has been checked: a check reads all passages."""
    if torch.device(device).type != "cpu":
        return on_device(queries, passages, k, rows, excluded, torch.device(device))
    return native_top_k(
        np.require(queries, requirements=["C", "A"]),
        np.require(passages, requirements=["C", "A"]),
        rows,
        excluded.group_Q,
        excluded.indptr,
        excluded.rows,
        k,
        True,
        threads or torch.get_num_threads(),
    )


def check(queries: NDArray[np.float32], passages: NDArray[np.float32]) -> None:
    """A ValueError where inner products are not all finite float32 numbers."""
    norms = []
    for name, array in (("queries", queries), ("passages", passages)):
        if array.ndim != 2 or array.dtype != np.float32:
            raise ValueError(f"{name} must be (rows, D) float32, got {array.shape} {array.dtype}")
        row, norm = largest_norm(np.require(array, requirements=["C", "A"]), torch.get_num_threads())
        if not np.isfinite(norm):
            raise ValueError(f"{name} must be finite, but row {row} holds NaN or infinity")
        norms.append(norm)
    if queries.shape[1] != passages.shape[1]:
        raise ValueError(f"queries and passages must be equally wide, got {queries.shape}, {passages.shape}")
    if norms[0] * norms[1] > float(np.finfo(np.float32).max) / 2:
        raise ValueError(f"scores would overflow float32: norms are up to {norms[0]:.3g} and {norms[1]:.3g}")


def on_device(
    queries: NDArray[np.float32],
    passages: NDArray[np.float32],
    k: int,
    rows: NDArray[np.int64],
    excluded: Excluded,
    device: torch.device,
) -> Found:
    """:func:`top_k` by torch. A score and its place are one integer, so that ties are settled by place."""
    scores_QK = np.full((len(queries), k), -np.inf, np.float32)
    rows_QK = np.full((len(queries), k), -1, np.int64)
    tile = max(k, GPU_SCORES // GPU_QUERIES)
    for begin in range(0, len(queries), GPU_QUERIES):
        some = slice(begin, begin + GPU_QUERIES)
        block_QD = torch.from_numpy(np.ascontiguousarray(queries[some])).to(device)
        query, row = excluded.of(some).pairs()
        place = np.searchsorted(rows, row)
        hit = place < len(rows)
        hit[hit] = rows[place[hit]] == row[hit]
        query, place = query[hit], place[hit]
        best_QK = torch.empty((len(block_QD), 0), dtype=torch.int64, device=device)
        for first in range(0, len(rows), tile):
            some_rows = rows[first : first + tile]
            tile_ND = torch.from_numpy(np.ascontiguousarray(passages[some_rows])).to(device)
            scores_QN = block_QD @ tile_ND.T
            inside = (place >= first) & (place < first + tile)
            scores_QN[torch.from_numpy(query[inside]), torch.from_numpy(place[inside] - first)] = -torch.inf
            keys_QN = torch.cat([best_QK, _keys(scores_QN, first)], dim=1)
            best_QK = keys_QN.topk(min(k, keys_QN.shape[1]), dim=1).values
        best_scores, best_places = _scores_and_places(best_QK)
        there = best_scores > -np.inf
        width = best_QK.shape[1]
        scores_QK[some, :width] = best_scores
        rows_QK[some, :width] = np.where(there, rows[best_places] if len(rows) else -1, -1)
    return scores_QK, rows_QK


_LAST = 2**32 - 1


def _keys(scores_QN: Tensor, first: int) -> Tensor:
    """Integers in the order of the scores, and of equal scores in the reverse order of their places."""
    bits = (scores_QN + 0.0).view(torch.int32)  # -0 + 0 is 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + (_LAST - first - torch.arange(scores_QN.shape[1], device=bits.device))


def _scores_and_places(keys_QK: Tensor) -> Found:
    ordered = (keys_QK >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32).cpu().numpy(), (_LAST - (keys_QK & _LAST)).cpu().numpy()


def load_faiss(factory: str) -> Any:
    """The module faiss; an ImportError that says what needs it."""
    try:
        import faiss
    except ImportError:
        raise ImportError(f"index {factory!r} needs the package faiss-cpu") from None
    return faiss


class FaissIndex:
    """An approximate search by faiss over some passages.

    Args:
        factory: as ``faiss.index_factory`` reads it: ``HNSW32``, ``IVF1024,Flat``, ...
        rows: the passages to search, ascending.

    Raises:
        ImportError: faiss is not installed.
        ValueError: it knows no such index, or the passages are too few to train it.
    """

    def __init__(self, factory: str, passages: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        faiss = load_faiss(factory)
        self.passages, self.rows = passages, rows
        try:
            self.index: Any = faiss.index_factory(passages.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if not self.index.is_trained:
                self.index.train(np.ascontiguousarray(passages[rows]))
            for begin in range(0, len(rows), 1 << 16):
                self.index.add(np.ascontiguousarray(passages[rows[begin : begin + (1 << 16)]]))
        except RuntimeError as error:
            raise ValueError(f"index {factory!r}: {str(error).splitlines()[-1]}") from None

    def top_k(self, queries: NDArray[np.float32], k: int, excluded: Excluded) -> Found:
        """As :func:`top_k`, of what the index finds; scores are exact."""
        sizes = np.diff(excluded.indptr)[excluded.group_Q]
        wide = min(k + int(sizes.max(initial=0)), len(self.rows))
        _, place_QW = self.index.search(np.ascontiguousarray(queries), wide)
        row_QW = np.where(place_QW >= 0, self.rows[np.maximum(place_QW, 0)], -1)
        query, row = excluded.pairs()
        barred = np.isin(
            row_QW + np.arange(len(queries))[:, None] * len(self.passages),
            row + query * len(self.passages),
        )
        scores_QW = np.full(row_QW.shape, -np.inf, np.float32)
        for i, found in enumerate(row_QW):
            there = (found >= 0) & ~barred[i]
            scores_QW[i, there] = self.passages[found[there]] @ queries[i]
        order_QW = np.lexsort((row_QW, -scores_QW), axis=1)[:, :k]
        scores_QK = np.full((len(queries), k), -np.inf, np.float32)
        rows_QK = np.full((len(queries), k), -1, np.int64)
        scores_QK[:, : order_QW.shape[1]] = np.take_along_axis(scores_QW, order_QW, 1)
        rows_QK[:, : order_QW.shape[1]] = np.take_along_axis(row_QW, order_QW, 1)
        rows_QK[scores_QK == -np.inf] = -1
        return scores_QK, rows_QK
