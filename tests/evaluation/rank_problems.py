"""Problems whose ranks are known: embeddings of small integers, and their ranks by a full float64 sort."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

QUERIES, PASSAGES = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
BAD_ROW = np.ones((4, 3), np.float32)
BAD_ROW[2, 1] = np.nan

Problem = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def make_problem(
    queries: int, passages: int, depth: int, max_golds: int = 4, low: int = -2, high: int = 3, seed: int = 0
) -> Problem:
    """Random integers and for each query 0 to `max_golds` golds; every third passage repeats an earlier
    one.
    """
    rng = np.random.default_rng(seed)
    queries_QD = rng.integers(low, high, (queries, depth)).astype(np.float32)
    passages_ND = rng.integers(low, high, (passages, depth)).astype(np.float32)
    copies = rng.random(passages) < 1 / 3
    passages_ND[copies] = passages_ND[rng.integers(0, passages, copies.sum())]
    golds = [
        rng.choice(passages, min(rng.integers(0, max_golds + 1), passages), replace=False)
        for _ in range(queries)
    ]
    indptr = np.cumsum([0] + [len(rows) for rows in golds])
    return queries_QD, passages_ND, indptr, np.concatenate([np.empty(0, np.int64), *golds])


def ranks_by_sorting(problem: Problem, pool_N: NDArray[np.bool_], ties: str) -> NDArray[np.float64]:
    """Places in a stable descending sort, averaged over tied passages as `ties` asks."""
    queries_QD, passages_ND, indptr, indices_G = problem
    scores_QN = queries_QD.astype(np.float64) @ passages_ND.astype(np.float64).T
    rows_P = np.flatnonzero(pool_N)
    ranks: list[float] = []
    for scores_N, (start, stop) in zip(scores_QN, pairwise(indptr), strict=True):
        golds = indices_G[start:stop]
        is_gold_P = np.isin(rows_P, golds)
        order_within_ties = {"best": ~is_gold_P, "worst": is_gold_P, "trec": -rows_P, "expected": rows_P}[
            ties
        ]
        order_P = np.lexsort((order_within_ties, -scores_N[rows_P]))
        place_P = np.empty(len(rows_P))
        place_P[order_P] = np.arange(1, len(rows_P) + 1)
        for gold in golds:
            sharing_P = scores_N[rows_P] == scores_N[gold]
            if ties in ("best", "worst"):
                sharing_P &= is_gold_P
            elif ties == "trec":
                sharing_P = rows_P == gold
            ranks.append(place_P[sharing_P].mean())
    return np.array(ranks)
