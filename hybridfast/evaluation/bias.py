"""Measures of language bias: whether a ranking treats a passage by its language.

Those named after ranks read :class:`~hybridfast.evaluation.measures.Golds` of the pool of all languages,
those named after lists :class:`~hybridfast.evaluation.toplists.TopLists` of it; all are expectations over the
orders of tied passages unless they say otherwise. They return one float64 per query, NaN where undefined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc

from hybridfast.evaluation.measures import Floats, Golds, Integers
from hybridfast.evaluation.toplists import TopLists

__all__ = [
    "LanguageTest",
    "awrf",
    "chance_rank_distance",
    "language_test",
    "list_correlation",
    "own_language_first",
    "own_language_gold_first",
    "peer",
    "places_within",
    "rank_distance",
]


def rank_distance(golds: Golds) -> Floats:
    """Largest minus smallest rank of a query's golds: how far language bias pulls translations apart.

    Undefined for fewer than two golds and where one was not retrieved. Elmahdy, Lin and Ahmad, arXiv
    2408.10536.
    """
    last_C = np.ones(len(golds.query_C), bool)
    last_C[:-1] = np.diff(golds.query_C) != 0
    _, first = golds.first_class()
    last = np.flatnonzero(last_C)
    # The extremes of r places drawn among n are expected at (n + 1) / (r + 1) and r (n + 1) / (r + 1).
    step_C = (golds.size_C + 1) / (golds.golds_C + 1)
    distance = (golds.start_C + golds.golds_C * step_C)[last] - (golds.start_C + step_C)[first]
    distance_Q = np.full(len(golds.count_Q), np.nan)
    distance_Q[golds.query_C[first]] = distance
    distance_Q[(golds.count_Q < 2) | (golds.missing_Q > 0)] = np.nan
    return distance_Q


def chance_rank_distance(golds_Q: ArrayLike, passages: int) -> Floats:
    """(R - 1) (N + 1) / (R + 1): the rank distance expected of R golds placed at random among N passages.

    The range of R order statistics of 1 ... N; what a constant scorer gets. NaN for fewer than two golds.
    """
    count_Q = np.asarray(golds_Q, np.float64)
    return np.where(count_Q >= 2, (count_Q - 1) * (passages + 1) / (count_Q + 1), np.nan)


def own_language_gold_first(golds: Golds, own_G: ArrayLike) -> Floats:
    """Whether the gold in the query's own language stands first among its golds; `own_G` marks those.

    1 for a retriever that always prefers its query's language, on average 1 / R for one blind to language and
    R golds of R languages. Undefined unless a query has golds in its own language and in others.
    """
    own = np.asarray(own_G, bool)
    query_G = np.repeat(np.arange(len(golds.count_Q)), golds.count_Q)
    own_Q = np.bincount(query_G[own], minlength=len(golds.count_Q))
    known_Q, first = golds.first_class()
    own_C = np.bincount(golds.class_G, weights=own[golds.order_G], minlength=len(golds.query_C))
    share_Q = np.full(len(golds.count_Q), np.nan)
    share_Q[known_Q] = own_C[first] / golds.golds_C[first]
    share_Q[(own_Q == 0) | (own_Q == golds.count_Q)] = np.nan
    return share_Q


def own_language_first(lists: TopLists, query_languages_Q: ArrayLike) -> Floats:
    """Whether the first passage of all is in the query's own language.

    Beside it stands the share of the pool in that language, which a retriever blind to language would get.
    """
    own_Q = np.asarray(query_languages_Q)
    languages_QK = lists.languages_QK
    tied_QK = (lists.scores_QK == lists.scores_QK[:, :1]) & (languages_QK >= 0)
    own = (tied_QK & (languages_QK == own_Q[:, None])).sum(axis=1)
    both = tied_QK.sum(axis=1)
    beyond = tied_QK.all(axis=1)  # then passages beyond the list tie for the first place too
    own = own + beyond * lists.beyond_QL[np.arange(len(own_Q)), own_Q]
    both = both + beyond * lists.beyond_QL.sum(axis=1)
    return np.where(both > 0, own / np.maximum(both, 1), np.nan)


def awrf(lists: TopLists, target_QL: ArrayLike) -> Floats:
    """1 - JS(exposure of each language in the list, target), the Jensen-Shannon divergence in bits.

    Attention-weighted rank fairness: Sapiezynski et al., WWW 2019; with logarithmic discount and this
    divergence as in TREC's Fair Ranking track 2022. Place p gives its passage's language an exposure of
    1 / log2(1 + p). `target_QL` (Q, L) holds weights above or equal to 0, here how many golds a query has in
    each language; a query without is undefined. 1 is fair, 0 is a list without any language of the golds.
    """
    target = np.asarray(target_QL, np.float64)
    exposure_QL = _exposure(lists, target.shape[1])
    with np.errstate(invalid="ignore"):
        target = target / target.sum(axis=1, keepdims=True)
        exposure_QL = exposure_QL / exposure_QL.sum(axis=1, keepdims=True)
    middle = (target + exposure_QL) / 2
    return 1 - (_divergence(target, middle) + _divergence(exposure_QL, middle)) / 2


def _exposure(lists: TopLists, languages: int) -> Floats:
    """(Q, L) the sum of 1 / log2(1 + p) over the places of each language."""
    queries, k = lists.rows_QK.shape
    listed_QK = lists.rows_QK >= 0
    weight_QK = np.where(listed_QK, 1 / np.log2(np.arange(2, k + 2)), 0.0)
    # Tied places share what they give.
    new_QK = np.ones((queries, k), bool)
    new_QK[:, 1:] = lists.scores_QK[:, 1:] != lists.scores_QK[:, :-1]
    class_F = np.cumsum(new_QK) - 1
    mean_C = np.bincount(class_F, weights=weight_QK.ravel()) / np.bincount(class_F)
    shared_QK = mean_C[class_F].reshape(queries, k) * listed_QK
    chance_QK = lists.chance_QK
    key_QK = np.arange(queries)[:, None] * languages + lists.languages_QK
    certain = listed_QK & ~chance_QK
    exposure_QL = np.zeros((queries, languages))
    np.add.at(exposure_QL.reshape(-1), key_QK[certain], shared_QK[certain])
    some = np.flatnonzero(chance_QK.any(axis=1))
    if some.size:  # the last class reaches beyond the list
        tied = listed_QK[some] & chance_QK[some]
        row, _ = np.nonzero(tied)
        key = row * languages + lists.languages_QK[some][tied]
        inside = np.bincount(key, minlength=len(some) * languages).reshape(len(some), languages)
        members = inside + lists.beyond_QL[some]
        given = (shared_QK[some] * tied).sum(axis=1, keepdims=True)
        exposure_QL[some] += given * members / members.sum(axis=1, keepdims=True)
    return exposure_QL


def _divergence(p: Floats, q: Floats) -> Floats:
    """Kullback-Leibler's, in bits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / q), np.where(np.isnan(p), np.nan, 0.0))
    return terms.sum(axis=1)


def list_correlation(lists: TopLists, clusters_Q: ArrayLike) -> Floats:
    """Spearman's correlation of a query's list with those of its translations, a mean over these.

    Yang, Jiang and Baldwin's mean rank correlation (MRL 2024), of rankings whose tail is unknown: passages
    behind a list share the mean rank of the rest of the pool, tied passages theirs, and those that are in a
    list by chance are not taken as members. 1 for equal lists, 0 on average for unrelated ones. Queries of
    one number in `clusters_Q` are translations. Undefined for a query without translations, and where a list
    puts all passages at one rank.
    """
    from scipy.stats import rankdata  # half a second, which a command's --help would take too

    cluster_Q = np.asarray(clusters_Q)
    rank_QK = rankdata(-lists.scores_QK, axis=1)
    member_QK = (lists.rows_QK >= 0) & ~lists.chance_QK
    result_Q = np.full(len(cluster_Q), np.nan)
    by_cluster = np.argsort(cluster_Q, kind="stable")
    for queries in np.split(by_cluster, np.flatnonzero(np.diff(cluster_Q[by_cluster])) + 1):
        if len(queries) < 2:
            continue
        member, rows = member_QK[queries], lists.rows_QK[queries]
        passages, column = np.unique(rows[member], return_inverse=True)
        rank_MU = np.zeros((len(queries), len(passages)))
        rank_MU[np.nonzero(member)[0], column] = rank_QK[queries][member]
        correlation = _rank_correlation(rank_MU, len(lists.passage_languages_N))
        np.fill_diagonal(correlation, np.nan)
        known = ~np.isnan(correlation)
        sums, counts = np.where(known, correlation, 0).sum(axis=1), known.sum(axis=1)
        result_Q[queries] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return result_Q


def _rank_correlation(rank_MU: Floats, passages: int) -> Floats:
    """(M, M) correlation of rankings of all passages, given the ranks of those that are listed, else 0."""
    here = (rank_MU > 0).astype(np.float64)
    size = here.sum(axis=1, keepdims=True)
    absent, mean = passages - size, (passages + 1) / 2
    behind = size + (absent + 1) / 2  # the rank that a list's absent passages share
    common = rank_MU @ here.T  # (A, B): ranks in A, summed over the passages that B lists too
    alone = rank_MU.sum(axis=1, keepdims=True) - common
    neither = passages - size - size.T + here @ here.T
    products = rank_MU @ rank_MU.T + alone * behind.T + alone.T * behind + neither * behind * behind.T
    covariance = products - passages * mean**2
    variance = (rank_MU**2).sum(axis=1, keepdims=True) + absent * behind**2 - passages * mean**2
    scale = np.sqrt(np.maximum(variance, 0) * np.maximum(variance.T, 0))
    return np.divide(covariance, scale, out=np.full_like(scale, np.nan), where=scale > 1e-9)


@dataclass(frozen=True)
class LanguageTest:
    """Whether ranks depend on language, over blocks that each rank some of the languages.

    `statistic` is chi-squared distributed with `freedom` degrees if they do not; `p` is its upper tail. `w`
    is 0 for blocks that do not agree and 1 if all rank the languages alike. `mean_ranks` (L,) is the mean
    rank of each language within a block on a scale from 0, always first, to 1, always last; NaN if it is in
    no block.
    """

    statistic: float
    freedom: int
    p: float
    w: float
    blocks: int
    mean_ranks: Floats


def language_test(places_BL: ArrayLike) -> LanguageTest:
    """Friedman's test and Kendall's W where no place is missing; Skillings and Mack's where some are NaN.

    `places_BL` (B, L) says where block b puts language l, smaller is better; only the order within a block
    counts, infinite is last, and equal places are tied. Blocks should be independent: one a question. Blocks
    with fewer than two languages say nothing. The statistic is A' V^- A for the sums A of sqrt(12 / (k + 1))
    (rank - (k + 1) / 2) over blocks of k languages and their covariance V given the ties (Skillings and Mack,
    Technometrics 1981; complete, it is Friedman's with Conover's correction for ties); W divides it by its
    maximum, the sum of k - 1 over blocks (Kendall and Babington Smith 1939). If everything ties, W is 0 and p
    is 1; without any block of two languages all are NaN.
    """
    places = np.asarray(places_BL, np.float64)
    known = ~np.isnan(places)
    used = known.sum(axis=1) >= 2
    places, known = places[used], known[used]
    languages = places.shape[1]
    if not len(places):
        return LanguageTest(np.nan, 0, np.nan, np.nan, 0, np.full(languages, np.nan))
    order = places_within(places)
    size_B = known.sum(axis=1)
    deviation = np.where(known, order - (size_B[:, None] + 1) / 2, 0.0)
    weight_B = np.sqrt(12 / (size_B + 1))
    sums_L = (weight_B[:, None] * deviation).sum(axis=0)
    spread_B = weight_B**2 * (deviation**2).sum(axis=1) / (size_B - 1)  # k / (k - 1) times the variance
    shared = known.astype(np.float64)
    covariance = np.diag(spread_B @ shared) - shared.T @ (shared * (spread_B / size_B)[:, None])
    scaled_BL = np.where(known, (order - 1) / (size_B[:, None] - 1), 0.0)
    in_L = known.sum(axis=0)
    scaled = np.divide(scaled_BL.sum(axis=0), in_L, out=np.full(languages, np.nan), where=in_L > 0)
    freedom = int(np.linalg.matrix_rank(covariance, hermitian=True))
    if freedom == 0:
        return LanguageTest(0.0, 0, 1.0, 0.0, len(places), scaled)
    statistic = float(sums_L @ np.linalg.pinv(covariance, hermitian=True) @ sums_L)
    return LanguageTest(
        statistic,
        freedom,
        float(chdtrc(freedom, statistic)),
        statistic / float((size_B - 1).sum()),
        len(places),
        scaled,
    )


def places_within(places_BL: ArrayLike) -> Floats:
    """(B, L) ranks within each block, from 1, tied ones at their mean; NaN stays and does not count."""
    from scipy.stats import rankdata

    places = np.asarray(places_BL, np.float64)
    known = ~np.isnan(places)
    # An absent language takes a place behind all, where it does not touch the ranks of the others.
    filled = np.where(known, np.where(np.isinf(places), np.finfo(np.float64).max, places), np.inf)
    return np.where(known, rankdata(filled, axis=1), np.nan)


def peer(
    ranks: ArrayLike,
    gold_indptr: ArrayLike,
    gold_languages_G: ArrayLike,
    grades_G: ArrayLike | None = None,
    weights: Mapping[float, float] | None = None,
    k: int | None = None,
) -> Floats:
    """Probability of equal expected rank: the p-value of Kruskal and Wallis over the languages of golds.

    For each grade, H = (n - 1) sum_l n_l (mean_l - mean)^2 / sum (r - mean)^2 over the ranks r of the golds
    of that grade in each language l, referred to chi-squared; `weights` (default: alike for all grades) sums
    the grades' p-values (Yang et al., arXiv 2405.00978). Golds behind `k`, and those of infinite rank, share
    the mean of the ranks that follow it; golds that all have one rank, or one language, give 1.

    Raises ValueError where no query has a grade with two golds of one language and golds of another: H is
    then n - 1 and the p-value a constant, whatever the ranks (0.4405 for 11 golds in 11 languages).
    """
    rank_G, indptr = np.asarray(ranks, np.float64), np.asarray(gold_indptr)
    language_G = np.asarray(gold_languages_G)
    grade_G = np.ones(len(rank_G)) if grades_G is None else np.asarray(grades_G, np.float64)
    grades = np.unique(grade_G)
    weight = dict.fromkeys(grades.tolist(), 1 / max(len(grades), 1)) if weights is None else dict(weights)
    if not np.isclose(sum(weight.values()), 1) and len(grades):
        raise ValueError(f"weights must sum to 1, got {sum(weight.values())}")
    query_G = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    lost_G = np.isinf(rank_G) | (rank_G > (np.inf if k is None else k))
    peer_Q = np.where(np.diff(indptr) > 0, 0.0, np.nan)
    informative = False
    for grade, share in weight.items():
        p_Q, tested_Q = _kruskal(rank_G, query_G, language_G, lost_G, grade_G == grade, len(peer_Q), k)
        informative |= bool(tested_Q.any())
        peer_Q += share * p_Q
    if not informative:
        raise ValueError(
            "PEER is a constant here: no query has a grade with two golds of one language and golds of "
            "another, so Kruskal and Wallis's H is the number of golds less one whatever their ranks"
        )
    return peer_Q


def _kruskal(
    rank_G: Floats,
    query_G: Integers,
    language_G: Integers,
    lost_G: NDArray[np.bool_],
    chosen_G: NDArray[np.bool_],
    queries: int,
    k: int | None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Each query's p-value over its chosen golds, 1 where languages cannot differ, and whether H can vary."""
    query, language, lost = query_G[chosen_G], language_G[chosen_G], lost_G[chosen_G]
    rank = np.where(lost, 0.0, rank_G[chosen_G])
    lost_Q = np.bincount(query[lost], minlength=queries)
    deepest_Q = np.zeros(queries)
    np.maximum.at(deepest_Q, query, rank)
    behind_Q = (deepest_Q if k is None else float(k)) + (lost_Q + 1) / 2
    rank = np.where(lost, behind_Q[query], rank)

    def sums(key: Integers, values: Floats | None = None, size: int = queries) -> Floats:
        return np.bincount(key, weights=values, minlength=size).astype(np.float64)

    count_Q = sums(query)
    mean_Q = sums(query, rank) / np.maximum(count_Q, 1)
    away = rank - mean_Q[query]
    groups, group = np.unique(np.stack([query, language]), axis=1, return_inverse=True)
    group, group_query = group.ravel(), groups[0]
    count_K = sums(group, None, len(group_query))
    between_Q = sums(group_query, sums(group, away, len(group_query)) ** 2 / np.maximum(count_K, 1))
    within_Q, languages_Q = sums(query, away**2), sums(group_query)
    varies_Q = (within_Q > 0) & (languages_Q >= 2)
    h_Q = np.divide((count_Q - 1) * between_Q, within_Q, out=np.zeros(queries), where=varies_Q)
    p_Q = np.where(varies_Q, chdtrc(np.maximum(languages_Q - 1, 1), h_Q), 1.0)
    return p_Q, (languages_Q >= 2) & (count_Q > languages_Q)
