"""How sure a figure is, and a difference of two: bootstrap and randomisation over questions, Holm, seeds.

The unit is the question: its translations, and all they are asked of, are drawn together, for they succeed
and fail together; taken one by one they would make intervals several times too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Sample", "bootstrap", "holm", "interval", "mixed", "sign_flip_test"]

Floats = NDArray[np.float64]
_BLOCK = 1 << 21  # draws at a time: 16 MB


@dataclass(frozen=True)
class Sample:
    """Values of one figure that is averaged within cells and then over cells, summed by cluster.

    ``sums_CP`` and ``counts_CP`` are over the values of each cluster (a question) in each cell (a language,
    or an ordered pair of them); the figure is the mean over cells that hold a value of the mean of their
    values.
    """

    sums_CP: Floats
    counts_CP: Floats

    @classmethod
    def of(cls, values: ArrayLike, clusters: ArrayLike, cells: ArrayLike, number: int) -> Sample:
        """From flat values (V,), NaN where undefined, with the cluster, below `number`, and cell of each."""
        value_V, cluster_V, cell_V = np.asarray(values), np.asarray(clusters), np.asarray(cells)
        known_V = ~np.isnan(value_V)
        names, cell_V = np.unique(cell_V[known_V], return_inverse=True)
        key_V = cluster_V[known_V] * len(names) + cell_V.ravel()
        size = number * len(names)
        sums, counts = np.bincount(key_V, value_V[known_V], size), np.bincount(key_V, minlength=size)
        shape = number, len(names)
        return cls(sums.astype(np.float64).reshape(shape), counts.astype(np.float64).reshape(shape))

    @property
    def value(self) -> float:
        """The figure; NaN without any value."""
        if not self.sums_CP.shape[1]:
            return float("nan")
        return float((self.sums_CP.sum(axis=0) / self.counts_CP.sum(axis=0)).mean())

    @cached_property
    def linear(self) -> tuple[Floats, int, NDArray[np.bool_]]:
        """Each cluster's share (C,) in the cells where all clusters have as many values, how many these are,
        and which are the others (P,): there, a resample changes the divisor too.
        """
        even_P = (self.counts_CP == self.counts_CP[:1]).all(axis=0)
        total_P = self.counts_CP[:, even_P].sum(axis=0)
        return (self.sums_CP[:, even_P] / total_P).sum(axis=1), int(even_P.sum()), ~even_P

    def contributions(self) -> Floats:
        """(C,) parts of the clusters that sum to the figure, its divisors held fixed."""
        cells = max(1, self.sums_CP.shape[1])
        return (self.sums_CP / self.counts_CP.sum(axis=0)).sum(axis=1) / cells


def bootstrap(samples: Sequence[Sample], resamples: int, seed: int) -> Floats:
    """(B, F) the figures in `resamples` draws, with replacement, of as many clusters as there are.

    All samples must have the same clusters; a draw is the same for all of them, so their differences are
    paired. The result depends on `seed` and the number of clusters. Efron and Tibshirani, 1993; for clusters
    Davison and Hinkley, 1997, section 3.8.
    """
    clusters = _clusters(samples)
    linear_CF = np.stack([sample.linear[0] for sample in samples], axis=1)
    even_F = np.array([sample.linear[1] for sample in samples])
    uneven = [sample.linear[2] for sample in samples]
    sums = np.concatenate([s.sums_CP[:, cells] for s, cells in zip(samples, uneven, strict=True)], axis=1)
    counts = np.concatenate([s.counts_CP[:, cells] for s, cells in zip(samples, uneven, strict=True)], axis=1)
    # Samples of one pool share their counts, whose product need not be formed anew.
    distinct, which_P = _distinct(counts)
    stops = np.cumsum([0, *(int(cells.sum()) for cells in uneven)])
    rows = []
    for weights_BC in _draws(clusters, resamples, seed):
        value_BF, cells_BF = weights_BC @ linear_CF, np.tile(even_F, (len(weights_BC), 1))
        if stops[-1]:
            sums_B, counts_B = weights_BC @ sums, (weights_BC @ distinct)[:, which_P]
            means = np.divide(sums_B, counts_B, out=np.zeros_like(sums_B), where=counts_B > 0)
            for f in np.flatnonzero(np.diff(stops)):
                columns = slice(stops[f], stops[f + 1])
                value_BF[:, f] += means[:, columns].sum(axis=1)
                cells_BF[:, f] += (counts_B[:, columns] > 0).sum(axis=1)
        rows.append(np.divide(value_BF, cells_BF, out=np.full_like(value_BF, np.nan), where=cells_BF > 0))
    return np.concatenate(rows)


def sign_flip_test(differences_CF: ArrayLike, flips: int, seed: int) -> Floats:
    """(F,) two-sided p-values of paired differences: how often a sum as large arises with random signs.

    `differences_CF` (C, F) are what each cluster adds to a difference. Exchanging the systems within a
    cluster turns its sign; if they do not differ, every pattern of signs is as likely. p = (1 + #{|sum*| >=
    |sum|}) / (1 + flips). Fisher's randomisation test, as Smucker, Allan and Carterette (CIKM 2007) advise
    for IR.
    """
    differences = np.asarray(differences_CF, np.float64)
    observed_F = np.abs(differences.sum(axis=0))
    slack_F = 1e-12 * np.abs(differences).sum(axis=0)  # equal sums, added in another order
    as_large_F = np.zeros(differences.shape[1])
    generator = np.random.default_rng([seed, 1])
    for begin, stop in _blocks(len(differences), flips):
        signs = generator.integers(0, 2, (stop - begin, len(differences))) * 2.0 - 1
        as_large_F += (np.abs(signs @ differences) >= observed_F - slack_F).sum(axis=0)
    return (1 + as_large_F) / (1 + flips)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's (1979) adjusted p-values: those below a level are, with that probability, all true findings.

    NaN, a comparison that could not be made, stays and does not count.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p.ravel(), kind="stable")[: int((~np.isnan(p)).sum())]
    steps = p.ravel()[order] * np.arange(len(order), 0, -1)
    adjusted.ravel()[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def interval(draws_B: Floats, level: float = 0.95) -> tuple[float, float]:
    """The bootstrap's percentile interval; NaN where nothing could be drawn."""
    known = draws_B[~np.isnan(draws_B)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mixed(draws_SB: Floats, seed: int | Sequence[int]) -> Floats:
    """(B,) draws of the mean over seeds, of questions and seeds together, from draws of questions.

    `draws_SB` are the bootstrap's for each of the S runs that differ in their seed, from the same draws of
    questions. Seeds are drawn with replacement too, and what this moves is widened by sqrt(S / (S - 1)), for
    S values spread by that much less around their own mean than around the true one. With one seed it is the
    draws of questions: nothing is then known of seeds. `seed` is of these draws.
    """
    seeds, resamples = draws_SB.shape
    if seeds == 1:
        return draws_SB[0]
    generator = np.random.default_rng([*np.atleast_1d(seed), 2])
    picked_SB = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).T / seeds
    share_SB = 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (picked_SB - 1 / seeds)
    return (share_SB * draws_SB).sum(axis=0)


def _distinct(columns_CP: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """The different ones of many columns, and which of them each column is; np.unique would sort them."""
    place: dict[bytes, int] = {}
    which_P = np.array([place.setdefault(column.tobytes(), len(place)) for column in columns_CP.T], np.intp)
    _, first = np.unique(which_P, return_index=True)
    return columns_CP[:, first], which_P


def _clusters(samples: Sequence[Sample]) -> int:
    sizes = {len(sample.sums_CP) for sample in samples}
    if len(sizes) != 1:
        raise ValueError(f"samples must have the same clusters, got {sorted(sizes)} of them")
    return sizes.pop()


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """(B, C) how often each cluster is drawn."""
    generator = np.random.default_rng([seed, 0])
    for begin, stop in _blocks(clusters, resamples):
        rows = stop - begin
        drawn = generator.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _blocks(clusters: int, resamples: int) -> Iterator[tuple[int, int]]:
    if resamples < 1 or clusters < 1:
        raise ValueError(f"resamples and clusters must be at least 1, got {resamples} and {clusters}")
    step = max(1, _BLOCK // clusters)
    return ((begin, min(begin + step, resamples)) for begin in range(0, resamples, step))
