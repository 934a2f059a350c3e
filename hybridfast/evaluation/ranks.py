"""Exact ranks of relevant passages, without a sort, a truncated run or a Q x N matrix."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hybridfast.infonce.backends import TRITON

__all__ = [
    "TIES",
    "RankCounts",
    "check_scores_finite",
    "check_ties",
    "gold_ranks",
    "kernels_of",
    "matrix_of",
    "rank_counts",
]

TIES = ("expected", "best", "worst", "trec")


@dataclass(frozen=True)
class RankCounts:
    """How many passages of each group score above each gold, tie with it, and tie from a later row.

    ``gold_indptr`` is (Q + 1,), ``gold_groups_G`` the group each gold is in, the counts are (G, L) int32.
    Groups are disjoint, so a pool made of several has the sum of their counts: one pass over the scores gives
    the ranks in every language's pool and in the pool of all languages. ``missing_G`` marks golds that a run
    did not retrieve, whose rank is infinite; None where every passage was ranked.
    """

    gold_indptr: NDArray[np.int64]
    gold_groups_G: NDArray[np.int64]
    greater_GL: NDArray[np.int32]
    tied_GL: NDArray[np.int32]
    later_GL: NDArray[np.int32]
    missing_G: NDArray[np.bool_] | None = None

    @classmethod
    def joined(cls, parts: Sequence[RankCounts]) -> RankCounts:
        """Those of some queries, and then of others over the same passages."""
        if len(parts) == 1:
            return parts[0]
        sizes = [np.diff(part.gold_indptr) for part in parts]
        names = "gold_groups_G", "greater_GL", "tied_GL", "later_GL"
        return cls(
            np.concatenate([[0], *sizes]).cumsum(),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in names),
        )

    def pool(self, group: int) -> RankCounts:
        """The counts within one group: its golds against its passages."""
        inside_G = self.gold_groups_G == group
        kept_before = np.concatenate([[0], np.cumsum(inside_G)])
        column = slice(group, group + 1)
        return RankCounts(
            kept_before[self.gold_indptr],
            self.gold_groups_G[inside_G],
            self.greater_GL[inside_G, column],
            self.tied_GL[inside_G, column],
            self.later_GL[inside_G, column],
            None if self.missing_G is None else self.missing_G[inside_G],
        )

    def ranks(self, ties: str = "expected") -> NDArray[np.float64]:
        """Each gold's rank, (G,) float64, among all groups together; for `ties` see :func:`gold_ranks`."""
        check_ties(ties)
        if self.missing_G is None:
            return self._ranks(ties)
        return np.where(self.missing_G, np.inf, self._ranks(ties))

    def _ranks(self, ties: str) -> NDArray[np.float64]:
        greater_G, tied_G, later_G = (
            counts.sum(axis=1, dtype=np.int64) for counts in (self.greater_GL, self.tied_GL, self.later_GL)
        )
        if ties == "trec":
            return 1.0 + greater_G + later_G
        if ties == "expected":
            return 1.0 + greater_G + tied_G / 2
        # Golds of one query have equal scores exactly when equally many passages score higher.
        query_G = np.repeat(np.arange(len(self.gold_indptr) - 1), np.diff(self.gold_indptr))
        key_G = query_G * (greater_G.max(initial=0) + 1) + greater_G
        _, class_G, sizes = np.unique(key_G, return_inverse=True, return_counts=True)
        tied_golds_G = sizes[class_G] - 1
        others_G = tied_G - tied_golds_G if ties == "worst" else 0
        return 1.0 + greater_G + others_G + tied_golds_G / 2


def gold_ranks(
    queries: ArrayLike | torch.Tensor,
    passages: ArrayLike | torch.Tensor,
    gold_indptr: ArrayLike,
    gold_indices: ArrayLike,
    pool: ArrayLike | None = None,
    ties: str = "expected",
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Rank, over the whole pool, of every passage relevant to each query; scores are inner products.

    `queries` (Q, D) and `passages` (N, D) are float32, float16 or bfloat16 NumPy arrays or tensors, on the
    CPU or both on one GPU; products and sums are float32. Query q's golds are
    ``gold_indices[gold_indptr[q]:gold_indptr[q + 1]]``, distinct rows of `passages`; it may have none. `pool`
    is a (N,) bool mask or an integer array holding a set of rows, None for all of them. Returns (G,) float64
    ranks from 1, aligned with `gold_indices`.

    A rank is 1 + the number of pool passages that score higher + what `ties` says of the other pool passages
    whose float32 score equals the gold's, as that of an equal passage always does:

    - "expected": half their number, the mean over all orders of the tied passages;
    - "best", "worst": those that are not golds of the query stand behind, before all tied golds;
    - "trec": those in later rows stand before: trec_eval's order (score descending, then document name
      descending) when names sort as rows do.

    Golds of one query that tie with each other share their mean rank, except under "trec".

    Workspace is some 20 MB and 12 bytes per gold and 8 per passage (on a GPU 64 MB, 32 and 8), whatever
    Q x N. The result depends neither on `threads` (of the CPU, default: torch's) nor on the order of the
    passages ("trec" excepted). Raises ValueError for bad shapes, types, devices and rows, for golds outside
    the pool, and for embeddings that are not finite or so large that scores overflow.
    """
    check_ties(ties)
    if pool is None:
        groups_N = None
    else:
        rows = len(matrix_of(passages, "passages"))
        groups_N = np.where(_pool_mask(pool, rows), 0, -1)
    return rank_counts(queries, passages, gold_indptr, gold_indices, groups_N, threads).ranks(ties)


def rank_counts(
    queries: ArrayLike | torch.Tensor,
    passages: ArrayLike | torch.Tensor,
    gold_indptr: ArrayLike,
    gold_indices: ArrayLike,
    passage_groups: ArrayLike | None = None,
    threads: int | None = None,
) -> RankCounts:
    """What :func:`gold_ranks` counts, kept apart by group of passages, all in one pass over the scores.

    `passage_groups` is (N,) integer: the group (a language, say) each passage is in, from 0; -1 for passages
    in no pool; None for a single group. The other arguments and the errors are those of :func:`gold_ranks`.
    """
    query_array, passage_array = matrix_of(queries, "queries"), matrix_of(passages, "passages")
    kernels = kernels_of(query_array, passage_array)
    if query_array.shape[1] != passage_array.shape[1]:
        raise ValueError(
            "queries and passages must be equally wide, "
            f"got {tuple(query_array.shape)} and {tuple(passage_array.shape)}"
        )
    rows = len(passage_array)
    if rows >= 2**31:  # counts are int32
        raise ValueError(f"passages must have fewer than 2**31 rows, got {rows}")
    groups_N = np.zeros(rows, np.int64) if passage_groups is None else _groups(passage_groups, rows)
    indptr, indices_G = _golds(gold_indptr, gold_indices, len(query_array), rows)
    outside = np.flatnonzero(groups_N[indices_G] < 0)
    if outside.size:
        raise ValueError(f"{_gold_at(outside[0], indptr, indices_G)} is outside the pool")
    if threads is None:
        threads = torch.get_num_threads()
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    check_scores_finite(kernels, query_array, passage_array, threads)

    if passage_groups is None:
        pool_rows, pool_starts = np.arange(rows), np.array([0, rows])
    else:
        by_group = np.argsort(groups_N, kind="stable")
        starts = np.searchsorted(groups_N[by_group], np.arange(groups_N.max(initial=0) + 2))
        # Those in no pool, of group -1, come first.
        pool_rows, pool_starts = by_group[starts[0] :], starts - starts[0]
    problem = (query_array, passage_array, pool_starts, pool_rows, indptr, indices_G)
    counts = kernels.rank_counts(*problem, threads)
    return RankCounts(indptr, groups_N[indices_G], *counts)


def check_ties(ties: str) -> None:
    """Raises ValueError for a rule that is not among :data:`TIES`."""
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, got {ties!r}")


def matrix_of(values: ArrayLike | torch.Tensor, name: str) -> NDArray[Any] | torch.Tensor:
    """Those of the CPU as a C-contiguous matrix of float32, float16 or the int16 bits of bfloat16; copied
    only if they must be. Those of a GPU as they are.
    """
    array = values.detach() if isinstance(values, torch.Tensor) else np.asarray(values)
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{name} must be float32, float16 or bfloat16, got {dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be (rows, D) with D >= 1, got {tuple(array.shape)}")
    if isinstance(array, torch.Tensor):
        if array.device.type == "cuda":
            return array
        if array.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU or a GPU, got a tensor on {array.device}")
        array = (array.view(torch.int16) if array.dtype == torch.bfloat16 else array).numpy()
    return np.require(array, requirements=["C", "A"])


def kernels_of(queries: NDArray[Any] | torch.Tensor, passages: NDArray[Any] | torch.Tensor) -> Any:
    """The module whose `largest_norm` and `rank_counts` work where these embeddings are."""
    devices = [x.device if isinstance(x, torch.Tensor) else torch.device("cpu") for x in (queries, passages)]
    if devices[0] != devices[1]:
        raise ValueError(f"queries and passages must be on one device, got {devices[0]} and {devices[1]}")
    if devices[0].type == "cpu":
        return importlib.import_module("hybridfast._core")
    if queries.dtype != passages.dtype:
        raise ValueError(
            f"queries and passages on a GPU must be of one dtype, got {queries.dtype} and {passages.dtype}"
        )
    if not TRITON:
        raise ValueError("queries on a GPU need the package triton; move them to the CPU")
    return importlib.import_module("hybridfast.evaluation.triton_ranks")


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} must be a 1-D integer array, got {array.ndim}-D {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _golds(
    gold_indptr: ArrayLike, gold_indices: ArrayLike, queries: int, passages: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    indptr, indices_G = _integers(gold_indptr, "gold_indptr"), _integers(gold_indices, "gold_indices")
    if len(indptr) != queries + 1:
        raise ValueError(
            f"gold_indptr must have {queries + 1} entries for {queries} queries, got {len(indptr)}"
        )
    if indptr[0] != 0 or indptr[-1] != len(indices_G) or (np.diff(indptr) < 0).any():
        raise ValueError(
            f"gold_indptr must rise from 0 to the {len(indices_G)} entries of gold_indices, "
            f"got {indptr[0]} to {indptr[-1]}"
        )
    wrong = np.flatnonzero((indices_G < 0) | (indices_G >= passages))
    if wrong.size:
        raise ValueError(
            f"{_gold_at(wrong[0], indptr, indices_G)} is not a row of passages, which has {passages}"
        )
    query_G = np.repeat(np.arange(queries), np.diff(indptr))
    order_G = np.lexsort((indices_G, query_G))
    repeated = (np.diff(query_G[order_G]) == 0) & (np.diff(indices_G[order_G]) == 0)
    if repeated.any():
        again = order_G[np.flatnonzero(repeated)[0] + 1]
        raise ValueError(f"{_gold_at(again, indptr, indices_G)} repeats a gold of its query")
    return indptr, indices_G


def _gold_at(position: int, indptr: NDArray[np.int64], indices_G: NDArray[np.int64]) -> str:
    query = np.searchsorted(indptr, position, side="right") - 1
    return f"gold_indices[{position}] = {indices_G[position]}, a gold of query {query},"


def _groups(passage_groups: ArrayLike, passages: int) -> NDArray[np.int64]:
    groups_N = _integers(passage_groups, "passage_groups")
    if len(groups_N) != passages:
        raise ValueError(f"passage_groups must have one entry per passage, {passages}, got {len(groups_N)}")
    if groups_N.min(initial=0) < -1:
        row = int(np.argmin(groups_N))
        raise ValueError(f"passage_groups must be at least -1, got {groups_N[row]} at row {row}")
    return groups_N


def _pool_mask(pool: ArrayLike, passages: int) -> NDArray[np.bool_]:
    array = np.asarray(pool)
    if array.dtype == bool:
        if array.shape != (passages,):
            raise ValueError(f"pool must have one entry per passage, ({passages},), got {array.shape}")
        return array
    rows = _integers(array, "pool")
    wrong = np.flatnonzero((rows < 0) | (rows >= passages))
    if wrong.size:
        raise ValueError(
            f"pool[{wrong[0]}] = {rows[wrong[0]]} is not a row of passages, which has {passages}"
        )
    mask = np.zeros(passages, bool)
    mask[rows] = True
    return mask


def check_scores_finite(
    kernels: Any,
    queries: NDArray[Any] | torch.Tensor,
    passages: NDArray[Any] | torch.Tensor,
    threads: int,
) -> None:
    """By Cauchy and Schwarz no partial sum of an inner product exceeds the product of the norms."""
    norms = []
    for name, array in (("queries", queries), ("passages", passages)):
        row, norm = kernels.largest_norm(array, threads)
        if not np.isfinite(norm):
            raise ValueError(f"{name} must be finite, but row {row} holds NaN or infinity")
        norms.append((name, row, norm))
    # Half of the range: partial sums are rounded.
    if norms[0][2] * norms[1][2] > float(np.finfo(np.float32).max) / 2:
        sizes = " and ".join(f"row {row} of {name} has norm {norm:.3g}" for name, row, norm in norms)
        raise ValueError(f"scores would overflow float32: {sizes}")
