"""Retrieval measures as functions of exact ranks alone, in expectation over the orders of tied passages.

A measure takes :class:`Golds` and returns one float64 per query: NaN for a query without golds, so that means
leave it out. Where golds tie with other passages it returns its expectation when ties are broken uniformly at
random, in closed form (McSherry and Najork, "Computing information retrieval performance measures efficiently
in the presence of tied scores", ECIR 2008), so a constant scorer earns what a random order earns. Without
ties, as after :meth:`Golds.best` or with ``ties="trec"``, it is the plain measure. A gold that was never
retrieved adds nothing and still counts among a query's golds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybridfast.evaluation.ranks import RankCounts, check_ties

__all__ = [
    "MEASURES",
    "Golds",
    "average_precision",
    "ndcg",
    "r_precision",
    "recall",
    "reciprocal_rank",
    "success",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Golds:
    """The relevant passages of each query as they stand in one pool, gathered into classes of equal scores.

    ``gold_indptr`` (Q + 1,) cuts the golds into queries. For each gold `greater_G` passages of the pool score
    higher and `tied_G` others score the same (default: none); `grades_G` says how relevant it is, above 0
    (default: 1); `missing_G` marks golds that were not retrieved. Golds of one query with equal `greater_G`
    tie with each other.

    Raises ValueError where these are not of one length, a count is negative, or golds of one query share a
    place that `tied_G` does not allow for.
    """

    def __init__(
        self,
        gold_indptr: ArrayLike,
        greater_G: ArrayLike,
        tied_G: ArrayLike | None = None,
        grades_G: ArrayLike | None = None,
        missing_G: ArrayLike | None = None,
    ) -> None:
        self.gold_indptr = indptr = np.asarray(gold_indptr)
        greater = np.asarray(greater_G, np.int64)
        if greater.ndim != 1 or indptr.ndim != 1 or not len(indptr) or indptr[-1] != len(greater):
            raise ValueError(
                f"gold_indptr must cut the golds into queries, got greater_G of shape {greater.shape} "
                f"and gold_indptr of shape {indptr.shape} ending at {indptr[-1:].tolist()}"
            )
        tied = np.zeros_like(greater) if tied_G is None else np.asarray(tied_G, np.int64)
        grades = np.ones(len(greater)) if grades_G is None else np.asarray(grades_G, np.float64)
        missing = np.zeros(len(greater), bool) if missing_G is None else np.asarray(missing_G, bool)
        for name, values in (("tied_G", tied), ("grades_G", grades), ("missing_G", missing)):
            if values.shape != greater.shape:
                raise ValueError(f"{name} must have one entry for each of the {len(greater)} golds")
        if min(greater.min(initial=0), tied.min(initial=0)) < 0:
            raise ValueError("greater_G and tied_G must be at least 0")
        if not (grades > 0).all():
            raise ValueError(f"grades_G must be above 0, got {grades.min()}")
        self.count_Q: Integers = np.diff(indptr)
        query_G = np.repeat(np.arange(len(self.count_Q)), self.count_Q)
        self.missing_Q = np.bincount(query_G[missing], minlength=len(self.count_Q))
        # What was retrieved, by query, score and then grade: the order in which ties are broken at best.
        self.order_G = np.lexsort((-grades, greater, query_G))
        if missing.any():
            self.order_G = self.order_G[~missing[self.order_G]]
        self.query_G, self.grades_G = query_G[self.order_G], grades[self.order_G]
        self._greater_G, self._all_grades_G, self._missing_G = greater, grades, missing
        first_G = np.ones(len(self.order_G), bool)
        first_G[1:] = (np.diff(self.query_G) != 0) | (np.diff(greater[self.order_G]) != 0)
        first_C = np.flatnonzero(first_G)
        self.class_G = np.cumsum(first_G) - 1
        self.query_C = self.query_G[first_C]
        self.start_C = greater[self.order_G][first_C]  # passages above the class
        self.size_C = tied[self.order_G][first_C] + 1  # passages in it
        self.golds_C = np.bincount(self.class_G, minlength=len(first_C))
        if (self.golds_C > self.size_C).any():
            c = int(np.argmax(self.golds_C > self.size_C))
            raise ValueError(
                f"query {self.query_C[c]} has {self.golds_C[c]} golds below {self.start_C[c]} passages, "
                f"where tied_G allows for {self.size_C[c]}"
            )
        within_G = np.arange(len(self.order_G)) - first_C[self.class_G]
        retrieved_before_Q = np.cumsum(self.count_Q - self.missing_Q) - (self.count_Q - self.missing_Q)
        self.before_C = first_C - retrieved_before_Q[self.query_C]  # golds of the query above the class
        self._best_G = self.start_C[self.class_G] + within_G
        self._worst_G = (self.start_C + self.size_C - 1)[self.class_G] - within_G

    @classmethod
    def of(cls, counts: RankCounts, ties: str = "expected", grades_G: ArrayLike | None = None) -> Golds:
        """The golds among all groups of `counts` together; for `ties` see :func:`hybridfast.gold_ranks`."""
        check_ties(ties)
        greater_G = counts.greater_GL.sum(axis=1, dtype=np.int64)
        if ties == "trec":
            later_G = counts.later_GL.sum(axis=1, dtype=np.int64)
            return cls(counts.gold_indptr, greater_G + later_G, None, grades_G, counts.missing_G)
        tied_G = counts.tied_GL.sum(axis=1, dtype=np.int64)
        return cls(counts.gold_indptr, greater_G, tied_G, grades_G, counts.missing_G).broken(ties)

    @classmethod
    def at(cls, ranks: ArrayLike, gold_indptr: ArrayLike, grades_G: ArrayLike | None = None) -> Golds:
        """Golds at known places, from 1, without ties; infinity is for one that was not retrieved.

        Raises ValueError for a rank that is no whole number from 1, or that two golds of one query share.
        """
        rank_G = np.asarray(ranks, np.float64)
        missing_G = np.isinf(rank_G)
        wrong_G = ~missing_G & ~((rank_G >= 1) & (np.rint(rank_G) == rank_G))
        if wrong_G.any():
            raise ValueError(f"ranks must be whole numbers from 1, got {rank_G[wrong_G][0]}")
        return cls(gold_indptr, np.where(missing_G, 1, rank_G) - 1, None, grades_G, missing_G)

    def best(self) -> Golds:
        """The order of tied passages that makes every measure largest: golds first, high grades first."""
        return self._placed(self._best_G)

    def worst(self) -> Golds:
        """The order of tied passages that makes every measure smallest: golds last, high grades last."""
        return self._placed(self._worst_G)

    def broken(self, ties: str) -> Golds:
        """These golds for "expected", else :meth:`best` or :meth:`worst`."""
        return self.best() if ties == "best" else self.worst() if ties == "worst" else self

    def _placed(self, greater_R: Integers) -> Golds:
        greater_G = self._greater_G.copy()
        greater_G[self.order_G] = greater_R
        return Golds(self.gold_indptr, greater_G, None, self._all_grades_G, self._missing_G)

    @property
    def ideal_grades_G(self) -> Floats:
        """All grades, missing golds' too, descending within each query."""
        query_G = np.repeat(np.arange(len(self.count_Q)), self.count_Q)
        return self._all_grades_G[np.lexsort((-self._all_grades_G, query_G))]

    def sum_over_classes(self, values_C: NDArray[Any]) -> Floats:
        """(Q,) NaN for a query without golds."""
        sums_Q = np.bincount(self.query_C, weights=values_C, minlength=len(self.count_Q))
        return np.where(self.count_Q > 0, sums_Q, np.nan)

    def first_class(self) -> tuple[NDArray[np.bool_], Integers]:
        """Which queries have a gold that was retrieved, (Q,), and the class of the best one for each."""
        known_Q = self.count_Q > self.missing_Q
        first_C = np.ones(len(self.query_C), bool)
        first_C[1:] = np.diff(self.query_C) != 0
        return known_Q, np.flatnonzero(first_C)


def average_precision(golds: Golds, k: int | None = None, divisor: str = "min") -> Floats:
    """(1 / R) sum_i i / r_i over a query's R golds, ranks r_i ascending, at full depth.

    With `k`, golds behind it add nothing, and the divisor is min(R, k), as XTREME-R's mAP@20 (arXiv
    2104.07412) has it, or with ``divisor="R"`` R, as trec_eval's map_cut_k has it.
    """
    if divisor not in ("min", "R"):
        raise ValueError(f"divisor must be min or R, got {divisor!r}")
    inside_C = _inside(golds, k)
    harmonic_C = _harmonic(golds.start_C, inside_C)
    # Place j of a class of n, r of them golds, holds a gold with probability r / n; that is then expected to
    # be the (before + 1 + (j - 1)(r - 1)/(n - 1))th of the query, among start + j passages.
    density_C = golds.golds_C / golds.size_C
    others_C = (golds.golds_C - 1) / np.maximum(golds.size_C - 1, 1)
    sums_C = density_C * (
        (golds.before_C + 1) * harmonic_C + others_C * (inside_C - (golds.start_C + 1) * harmonic_C)
    )
    count_Q = golds.count_Q if k is None or divisor == "R" else np.minimum(golds.count_Q, k)
    return _divide(golds.sum_over_classes(sums_C), count_Q)


def reciprocal_rank(golds: Golds, k: int | None = None) -> Floats:
    """1 / rank of a query's best gold; 0 where that is behind `k`."""
    known_Q, first = golds.first_class()
    start, size, count = golds.start_C[first], golds.size_C[first], golds.golds_C[first]
    inside = _inside(golds, k)[first]
    value = np.where(inside > 0, 1 / (start + 1), 0.0)  # right for classes of golds alone
    one = (count == 1) & (size > 1)
    value[one] = _harmonic(start[one], inside[one]) / size[one]
    several = np.flatnonzero((count > 1) & (size > count))
    if several.size:
        problems, which = np.unique(
            np.stack([size, count, start, inside], axis=1)[several], axis=0, return_inverse=True
        )
        value[several] = _first_of_several(problems)[which.ravel()]
    return _per_query(golds, known_Q, value)


def recall(golds: Golds, k: int | Integers) -> Floats:
    """Share of a query's golds among the first `k`, which may differ by query, (Q,); at most k / R."""
    found_C = golds.golds_C * (_inside(golds, k) / golds.size_C)
    return _divide(golds.sum_over_classes(found_C), golds.count_Q)


def r_precision(golds: Golds) -> Floats:
    """Share of golds among the first R, for a query with R golds."""
    return recall(golds, golds.count_Q)


def success(golds: Golds, k: int) -> Floats:
    """Whether any gold is among the first `k`: trec_eval's success_k, the Accuracy@k of DPR."""
    known_Q, first = golds.first_class()
    size, count, inside = golds.size_C[first], golds.golds_C[first], _inside(golds, k)[first]
    # None of the first `inside` of `size` places holds one of `count` golds.
    none = np.ones(len(first))
    for i in range(int(count.max(initial=0))):
        none *= np.where(i < count, np.maximum(size - inside - i, 0) / np.maximum(size - i, 1), 1)
    return _per_query(golds, known_Q, 1 - none)


def ndcg(golds: Golds, k: int | None = None, gain: str = "linear") -> Floats:
    """sum g / log2(1 + r) over a query's golds within `k`, divided by its value for the best possible order.

    The gain g of a gold is its grade ("linear": Jarvelin and Kekalainen, TOIS 2002, with the discount of
    trec_eval) or 2^grade - 1 ("exponential": Burges et al., ICML 2005); alike where grades are 0 and 1.
    """
    if gain not in ("linear", "exponential"):
        raise ValueError(f"gain must be linear or exponential, got {gain!r}")
    of = np.exp2 if gain == "exponential" else np.positive
    less = 1.0 if gain == "exponential" else 0.0
    inside_C = _inside(golds, k)
    discount_C = (inside_C > 0) / np.log2(golds.start_C + 2.0)
    tied = np.flatnonzero((golds.size_C > 1) & (inside_C > 0))
    begin, end = golds.start_C[tied], (golds.start_C + inside_C)[tied]
    table = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, 2 + end.max(initial=0))))])
    discount_C[tied] = table[end] - table[begin]
    gain_C = np.bincount(golds.class_G, weights=of(golds.grades_G) - less, minlength=len(golds.start_C))
    query_G = np.repeat(np.arange(len(golds.count_Q)), golds.count_Q)
    place_G = np.arange(len(query_G)) - golds.gold_indptr[query_G]
    ideal_G = (of(golds.ideal_grades_G) - less) / np.log2(place_G + 2.0)
    if k is not None:
        ideal_G = ideal_G * (place_G < k)
    ideal_Q = np.bincount(query_G, weights=ideal_G, minlength=len(golds.count_Q))
    return _divide(golds.sum_over_classes(gain_C * discount_C / golds.size_C), ideal_Q)


MEASURES: dict[str, Callable[[Golds], Floats]] = {
    "mAP": average_precision,
    "mAP@20": partial(average_precision, k=20),
    "map_cut_20": partial(average_precision, k=20, divisor="R"),
    "MRR": reciprocal_rank,
    "MRR@10": partial(reciprocal_rank, k=10),
    "nDCG": ndcg,
    "nDCG@10": partial(ndcg, k=10),
    "nDCG@10 (2^g-1)": partial(ndcg, k=10, gain="exponential"),
    "R@1": partial(recall, k=1),
    "R@10": partial(recall, k=10),
    "R@100": partial(recall, k=100),
    "Success@1": partial(success, k=1),
    "Success@10": partial(success, k=10),
    "R-precision": r_precision,
}


def _inside(golds: Golds, k: int | Integers | None) -> Integers:
    """(C,) how many places of each class are among the first `k`."""
    if k is None:
        return golds.size_C
    if np.ndim(k):
        return np.clip(np.asarray(k)[golds.query_C] - golds.start_C, 0, golds.size_C)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return np.clip(k - golds.start_C, 0, golds.size_C)


def _per_query(golds: Golds, known_Q: NDArray[np.bool_], values: Floats) -> Floats:
    """Values of the queries that have a retrieved gold; 0 where all are missing, NaN where there are none."""
    result_Q = np.where(golds.count_Q > 0, 0.0, np.nan)
    result_Q[known_Q] = values
    return result_Q


_SMALL = 64  # from here on the series below is exact to the last digits
_TABLE = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, _SMALL + 1))])


def _harmonic(start: Integers, count: Integers) -> Floats:
    """1 / (start + 1) + ... + 1 / (start + count), to 13 digits however far down it begins.

    Differences of a running sum would lose the digits that AP at depth needs; beyond the table it is the
    asymptotic series of the digamma function at half-integers.
    """
    stop = start + count
    sums = _TABLE[np.minimum(stop, _SMALL)] - _TABLE[np.minimum(start, _SMALL)]
    low, high = np.maximum(start, _SMALL) + 0.5, np.maximum(stop, _SMALL) + 0.5
    series = np.log1p((high - low) / low)
    for power, factor in ((2, 1 / 24), (4, -7 / 960), (6, 31 / 8064)):
        series += factor * (high**-power - low**-power)
    return np.where(count == 1, 1 / (start + 1), sums + series)


def _first_of_several(problems: Integers) -> Floats:
    """The expectation of 1 / (start + J), 0 for J > inside, J the first place of `golds` among `size`.

    A row of `problems` is (size, golds, start, inside).
    """
    result = np.empty(len(problems))
    for size in np.unique(problems[:, 0]):
        rows = np.flatnonzero(problems[:, 0] == size)
        left_J = size - np.arange(size)  # places from j on
        for block in np.array_split(rows, -(-len(rows) * int(size) // 1_000_000)):
            _, count, start, inside = (column[:, None] for column in problems[block].T)
            hit_PJ = np.minimum(count / left_J, 1)
            none_PJ = np.cumprod(1 - hit_PJ, axis=1)
            none_PJ = np.concatenate([np.ones((len(block), 1)), none_PJ[:, :-1]], axis=1)
            place_J = np.arange(1, size + 1)
            result[block] = (none_PJ * hit_PJ * (place_J <= inside) / (start + place_J)).sum(axis=1)
    return result


def _divide(sums: NDArray[Any], counts: NDArray[Any]) -> Floats:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
