"""Retrieval measures as functions of gold ranks alone, and the evaluation over all language pools.

Every measure takes flat ranks (G,), as :func:`hybridfast.gold_ranks` returns them, with the ``gold_indptr``
(Q + 1,) that cuts them into queries, and returns one float64 per query: NaN where it is undefined, for a
query without golds above all, so that means leave that query out.

Ranks may be fractional (ties="expected"). Equal ranks within a query are golds tied with each other that
share a mean rank: they are spread over consecutive places around it, so the i-th best gold never stands
before place i and every measure stays within [0, 1]. A measure of expected ranks is not the expectation of
the measure: a gold that ties with 99 others has rank 50.5 and recall@10 of 0, not of 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.ranks import RankCounts, rank_counts

__all__ = [
    "MEASURES",
    "Evaluation",
    "average_precision",
    "evaluate_counts",
    "evaluate_embeddings",
    "ndcg",
    "rank_distance",
    "recall",
    "reciprocal_rank",
]

Floats = NDArray[np.float64]


def average_precision(ranks: ArrayLike, gold_indptr: ArrayLike, cut: int | None = None) -> Floats:
    """(1 / R) sum_i i / r_i over a query's R golds, ranks r_i ascending, at full depth.

    With `cut`, golds behind it add nothing and the divisor is min(R, cut): XTREME-R's mAP@20 (arXiv
    2104.07412).
    """
    golds = _Golds(ranks, gold_indptr)
    precision_G = golds.place_G / golds.rank_G
    if cut is None:
        return golds.sum_per_query(precision_G) / golds.count_Q
    _check_cut(cut)
    return golds.sum_per_query(precision_G * (golds.rank_G <= cut)) / np.minimum(golds.count_Q, cut)


def reciprocal_rank(ranks: ArrayLike, gold_indptr: ArrayLike) -> Floats:
    """1 / rank of a query's best gold."""
    golds = _Golds(ranks, gold_indptr)
    return golds.sum_per_query((golds.place_G == 1) / golds.rank_G) / np.minimum(golds.count_Q, 1)


def recall(ranks: ArrayLike, gold_indptr: ArrayLike, k: int) -> Floats:
    """Share of a query's golds among the first `k`; at most k / R."""
    _check_cut(k)
    golds = _Golds(ranks, gold_indptr)
    return golds.sum_per_query(golds.rank_G <= k) / golds.count_Q


def ndcg(ranks: ArrayLike, gold_indptr: ArrayLike, k: int | None = None) -> Floats:
    """sum 1 / log2(1 + r) over a query's golds within `k`, divided by its value for the best possible order.

    Binary gains, so the gain variants of Jarvelin and Kekalainen (2002) and of trec_eval agree.
    """
    golds = _Golds(ranks, gold_indptr)
    gain_G = 1 / np.log2(1 + golds.rank_G)
    ideal_G = 1 / np.log2(1 + golds.place_G)
    if k is not None:
        _check_cut(k)
        gain_G = gain_G * (golds.rank_G <= k)
        ideal_G = ideal_G * (golds.place_G <= k)
    return _divide(golds.sum_per_query(gain_G), golds.sum_per_query(ideal_G))


def rank_distance(ranks: ArrayLike, gold_indptr: ArrayLike) -> Floats:
    """Largest minus smallest rank of a query's golds: how far language bias pulls translations apart.

    Undefined (NaN) for fewer than two golds. Elmahdy, Lin and Ahmad, arXiv 2408.10536.
    """
    golds = _Golds(ranks, gold_indptr)
    last_G = golds.place_G == golds.count_Q[golds.query_G]
    distance_Q = golds.sum_per_query(golds.rank_G * last_G) - golds.sum_per_query(
        golds.rank_G * (golds.place_G == 1)
    )
    return np.where(golds.count_Q >= 2, distance_Q, np.nan)


MEASURES: dict[str, Callable[[ArrayLike, ArrayLike], Floats]] = {
    "mAP": average_precision,
    "mAP@20": partial(average_precision, cut=20),
    "MRR": reciprocal_rank,
    "nDCG@10": partial(ndcg, k=10),
    "R@1": partial(recall, k=1),
    "R@10": partial(recall, k=10),
    "R@100": partial(recall, k=100),
}


@dataclass(frozen=True)
class Evaluation:
    """Every measure in every pool of one evaluation; NaN where no query counts.

    `pairs[measure]` is (L, L): query language by row, the language of the passages ranked by column; its
    diagonal is monolingual, the rest cross-lingual. `multilingual[measure]` is (L,), by query language, over
    the passages of all languages together; so is `rank_distance`. `median_rank` (L, L) is the median rank, in
    that same pool, of the golds in the column's language for the queries in the row's. The measures are the
    keys of :data:`MEASURES`.
    """

    name: str
    languages: list[str]
    pairs: dict[str, Floats]
    multilingual: dict[str, Floats]
    rank_distance: Floats
    median_rank: Floats

    def mono(self, measure: str) -> float:
        """Monolingual: mean over languages."""
        return _mean(np.diagonal(self.pairs[measure]))

    def cross(self, measure: str) -> float:
        """Cross-lingual: mean over ordered pairs of different languages."""
        return _mean(self.pairs[measure][~np.eye(len(self.languages), dtype=bool)])

    def multi(self, measure: str) -> float:
        """Multilingual: mean over query languages."""
        return _mean(self.multilingual[measure])

    def summary(self) -> dict[str, float]:
        """The columns of the paper's tables."""
        return {
            "mAP mono": self.mono("mAP"),
            "mAP cross": self.cross("mAP"),
            "mAP multi": self.multi("mAP"),
            "R@1 mono": self.mono("R@1"),
            "R@1 cross": self.cross("R@1"),
            "R@10 multi": self.multi("R@10"),
            "rank distance": _mean(self.rank_distance),
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain lists and numbers, None for NaN."""
        return {
            "name": self.name,
            "languages": list(self.languages),
            "summary": _plain(self.summary()),
            "macro": {
                measure: _plain(
                    {"mono": self.mono(measure), "cross": self.cross(measure), "multi": self.multi(measure)}
                )
                for measure in self.pairs
            },
            "pairs": _plain(self.pairs),
            "multilingual": _plain(self.multilingual),
            "rank_distance": _plain(self.rank_distance),
            "median_rank": _plain(self.median_rank),
        }


def evaluate_embeddings(
    eval_set: EvalSet,
    query_embeddings: ArrayLike | torch.Tensor,
    passage_embeddings: ArrayLike | torch.Tensor,
    ties: str = "expected",
    threads: int | None = None,
) -> Evaluation:
    """All measures in the monolingual, cross-lingual and multilingual pools, from one pass over the
    scores.

    `query_embeddings` (Q, D) and `passage_embeddings` (N, D) are the embeddings of ``eval_set.queries`` and
    ``eval_set.passages`` in order. Scores are inner products: normalise the rows first where cosine is meant.
    A query counts only in pools that hold a gold of it. Dtypes, `ties`, `threads` and errors are those of
    :func:`hybridfast.gold_ranks`.
    """
    for name, embeddings, texts in (
        ("query_embeddings", query_embeddings, eval_set.queries),
        ("passage_embeddings", passage_embeddings, eval_set.passages),
    ):
        if np.shape(embeddings)[:1] != (len(texts),):
            raise ValueError(
                f"{name} must have one row for each of the {len(texts)} texts of {eval_set.name}, "
                f"got shape {tuple(np.shape(embeddings))}"
            )
    eval_set = eval_set.relevant()
    counts = rank_counts(
        query_embeddings,
        passage_embeddings,
        eval_set.gold_indptr,
        eval_set.gold_indices,
        np.searchsorted(eval_set.languages, eval_set.passage_languages),
        threads,
    )
    return evaluate_counts(eval_set, counts, ties)


def evaluate_counts(eval_set: EvalSet, counts: RankCounts, ties: str = "expected") -> Evaluation:
    """All measures from counts: of embeddings, as above, or of a run (:mod:`hybridfast.evaluation.trec`).

    `counts` are those of the golds of ``eval_set.relevant()``, grouped by ``eval_set.languages``.
    """
    eval_set = eval_set.relevant()
    languages = eval_set.languages
    query_language_Q = np.searchsorted(languages, eval_set.query_languages)

    def by_language(values_Q: Floats) -> Floats:
        return _mean_per_label(values_Q, query_language_Q, len(languages))

    columns: dict[str, list[Floats]] = {measure: [] for measure in MEASURES}
    for language in range(len(languages)):
        pool = counts.pool(language)
        ranks = pool.ranks(ties)
        for measure, function in MEASURES.items():
            columns[measure].append(by_language(function(ranks, pool.gold_indptr)))
    ranks = counts.ranks(ties)
    query_language_G = np.repeat(query_language_Q, np.diff(counts.gold_indptr))
    return Evaluation(
        name=eval_set.name,
        languages=languages,
        pairs={measure: np.stack(parts, axis=1) for measure, parts in columns.items()},
        multilingual={
            measure: by_language(function(ranks, counts.gold_indptr))
            for measure, function in MEASURES.items()
        },
        rank_distance=by_language(rank_distance(ranks, counts.gold_indptr)),
        median_rank=_median_per_pair(ranks, query_language_G, counts.gold_groups_G, len(languages)),
    )


class _Golds:
    """Gold ranks ascending within each query, tied ones spread, with each gold's query and place (from 1)."""

    def __init__(self, ranks: ArrayLike, gold_indptr: ArrayLike) -> None:
        rank_G, indptr = np.asarray(ranks, np.float64), np.asarray(gold_indptr)
        if rank_G.ndim != 1 or indptr.ndim != 1 or not len(indptr) or indptr[-1] != len(rank_G):
            raise ValueError(
                f"gold_indptr must cut the flat ranks into queries, got ranks of shape {rank_G.shape} "
                f"and gold_indptr of shape {indptr.shape} ending at {indptr[-1:].tolist()}"
            )
        if not (rank_G >= 1).all():
            raise ValueError(f"ranks must be at least 1, got {rank_G.min()}")
        self.count_Q = np.diff(indptr)
        self.query_G = np.repeat(np.arange(len(self.count_Q)), self.count_Q)
        if ((np.diff(rank_G) < 0) & (np.diff(self.query_G) == 0)).any():
            rank_G = rank_G[np.lexsort((rank_G, self.query_G))]
        self.place_G = np.arange(1, len(rank_G) + 1) - indptr[self.query_G]
        new_class_G = np.ones(len(rank_G), bool)
        new_class_G[1:] = (np.diff(rank_G) != 0) | (np.diff(self.query_G) != 0)
        class_G = np.cumsum(new_class_G) - 1
        starts, sizes = np.flatnonzero(new_class_G), np.bincount(class_G)
        # m golds of mean rank r go to r - (m - 1) / 2, ..., r + (m - 1) / 2.
        self.rank_G = rank_G + (np.arange(len(rank_G)) - starts[class_G]) - (sizes[class_G] - 1) / 2

    def sum_per_query(self, values_G: NDArray[Any]) -> Floats:
        """NaN for a query without golds."""
        sums_Q = np.bincount(self.query_G, weights=values_G, minlength=len(self.count_Q))
        return np.where(self.count_Q > 0, sums_Q, np.nan)


def _check_cut(k: int) -> None:
    if k < 1:
        raise ValueError(f"the cut must be at least 1, got {k}")


def _divide(sums: NDArray[Any], counts: NDArray[Any]) -> Floats:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _mean(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _mean_per_label(values_Q: Floats, label_Q: NDArray[Any], labels: int) -> Floats:
    known_Q = ~np.isnan(values_Q)
    sums = np.bincount(label_Q[known_Q], weights=values_Q[known_Q], minlength=labels)
    return _divide(sums, np.bincount(label_Q[known_Q], minlength=labels))


def _median_per_pair(values_G: Floats, row_G: NDArray[Any], column_G: NDArray[Any], languages: int) -> Floats:
    pair_G = row_G * languages + column_G
    order_G = np.argsort(pair_G, kind="stable")
    values_G, bounds = values_G[order_G], np.searchsorted(pair_G[order_G], np.arange(languages**2 + 1))
    medians = [
        float(np.median(values_G[start:stop])) if start < stop else np.nan for start, stop in pairwise(bounds)
    ]
    return np.array(medians).reshape(languages, languages)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if np.isnan(value) else value
