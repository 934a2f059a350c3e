"""Measures against trec_eval, against every order of tied passages, and by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybridfast.evaluation import measures
from hybridfast.evaluation.measures import MEASURES, Golds
from hybridfast.evaluation.ranks import rank_counts

NAN = float("nan")
TREC = {  # trec_eval's names
    "map": "mAP",
    "map_cut_20": "map_cut_20",
    "recip_rank": "MRR",
    "ndcg": "nDCG",
    "ndcg_cut_10": "nDCG@10",
    "recall_1": "R@1",
    "recall_10": "R@10",
    "recall_100": "R@100",
    "success_1": "Success@1",
    "success_10": "Success@10",
    "Rprec": "R-precision",
}


def random_golds(
    rng: np.random.Generator, queries: int, passages: int, fewest: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    golds = [
        np.sort(rng.choice(passages, rng.integers(fewest, min(8, passages) + 1), replace=False))
        for _ in range(queries)
    ]
    indptr = np.cumsum([0] + [len(rows) for rows in golds])
    return indptr, np.concatenate([np.empty(0, np.int64), *golds])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(1, 150),
    levels=st.sampled_from([1, 2, 5, 10_000_000]),
    graded=st.booleans(),
)
def test_equals_trec_eval(seed: int, passages: int, levels: int, graded: bool) -> None:
    """Scores of 1, 2, 5 or very many values; trec_eval puts the later name first among ties, as "trec" does.

    One-hot queries pick a passage's coordinate as its score: no rounding separates the two sides.
    """
    rng = np.random.default_rng(seed)
    queries = 8
    passages_ND = rng.integers(0, levels, (passages, queries)).astype("f")
    indptr, indices_G = random_golds(rng, queries, passages, fewest=1)
    grades_G = rng.integers(1, 4, len(indices_G)) if graded else np.ones(len(indices_G), int)
    names = [f"{row:06}" for row in range(passages)]
    qrels = {
        str(q): {
            names[row]: int(grade)
            for row, grade in zip(
                indices_G[indptr[q] : indptr[q + 1]], grades_G[indptr[q] : indptr[q + 1]], strict=True
            )
        }
        for q in range(queries)
    }
    run = {str(q): dict(zip(names, passages_ND[:, q].tolist(), strict=True)) for q in range(queries)}
    asked = {
        "map",
        "map_cut.20",
        "recip_rank",
        "ndcg",
        "ndcg_cut.10",
        "recall.1,10,100",
        "success.1,10",
        "Rprec",
    }
    results = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    counts = rank_counts(np.eye(queries, dtype="f"), passages_ND, indptr, indices_G, None, 1)
    golds = Golds.of(counts, "trec", grades_G)
    for trec_name, name in TREC.items():
        expected = [results[str(q)][trec_name] for q in range(queries)]
        np.testing.assert_allclose(MEASURES[name](golds), expected, rtol=0, atol=1e-12, err_msg=name)


TINY = {
    "mAP@2": partial(measures.average_precision, k=2),
    "map_cut_3": partial(measures.average_precision, k=3, divisor="R"),
    "MRR@2": partial(measures.reciprocal_rank, k=2),
    "nDCG@3": partial(measures.ndcg, k=3),
    "nDCG@3 (2^g-1)": partial(measures.ndcg, k=3, gain="exponential"),
    "R@3": partial(measures.recall, k=3),
    "Success@2": partial(measures.success, k=2),
    "Success@4": partial(measures.success, k=4),
    **MEASURES,
}


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    grades=st.lists(st.sampled_from([0, 0, 1, 2, 3]), min_size=6, max_size=6),
    missing=st.booleans(),
)
def test_expectation_is_the_mean_over_all_orders(scores: list[int], grades: list[int], missing: bool) -> None:
    """Up to 720 permutations of up to 6 passages, each broken stably by score; best and worst bound them."""
    score_N, grade_N = np.array(scores), np.array(grades[: len(scores)])
    gold = np.flatnonzero(grade_N)
    grades_G = [*grade_N[gold], *([2] if missing else [])]
    indptr = [0, len(grades_G)]
    missing_G = [False] * len(gold) + [True] * missing
    greater = [(score_N > score_N[g]).sum() for g in gold] + [0] * missing
    tied = [(score_N == score_N[g]).sum() - 1 for g in gold] + [0] * missing
    golds = Golds(indptr, greater, tied, grades_G, missing_G)
    orders = np.array(list(itertools.permutations(range(len(scores)))))
    orders = np.take_along_axis(orders, np.argsort(-score_N[orders], axis=1, kind="stable"), axis=1)
    place_PN = np.argsort(orders, axis=1) + 1.0
    ranks_PG = np.concatenate([place_PN[:, gold], np.full((len(orders), int(missing)), np.inf)], axis=1)
    every = Golds.at(
        ranks_PG.ravel(),
        np.arange(len(orders) + 1) * len(grades_G),
        np.tile(np.array(grades_G, float), len(orders)),
    )
    for name, measure in TINY.items():
        values_P = measure(every)
        (expected,), (best,), (worst,) = measure(golds), measure(golds.best()), measure(golds.worst())
        np.testing.assert_allclose(expected, values_P.mean(), rtol=0, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(best, values_P.max(), rtol=0, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(worst, values_P.min(), rtol=0, atol=1e-12, err_msg=name)


def test_by_hand() -> None:
    """Golds of the first query at 1, 3 and 12, none for the second, one at 2 for the third."""
    golds = Golds.at([12, 1, 3, 2], [0, 3, 3, 4])
    for value, expected in (
        (measures.average_precision(golds), [(1 / 1 + 2 / 3 + 3 / 12) / 3, NAN, 1 / 2]),
        (measures.average_precision(golds, k=2), [(1 / 1) / 2, NAN, (1 / 2) / 1]),
        (measures.average_precision(golds, k=2, divisor="R"), [(1 / 1) / 3, NAN, 1 / 2]),
        (measures.reciprocal_rank(golds), [1, NAN, 1 / 2]),
        (measures.reciprocal_rank(golds, k=1), [1, NAN, 0]),
        (measures.recall(golds, 3), [2 / 3, NAN, 1]),
        (measures.success(golds, 1), [1, NAN, 0]),
        (measures.r_precision(golds), [2 / 3, NAN, 0]),
        (measures.ndcg(golds, 2), [1 / (1 + 1 / math.log2(3)), NAN, 1 / math.log2(3)]),
    ):
        np.testing.assert_allclose(value, expected, rtol=1e-15)


def test_graded_gains_by_hand() -> None:
    """Grades 1 and 3 at places 1 and 2; the best order swaps them."""
    golds, half = Golds.at([1, 2], [0, 2], [1, 3]), 1 / math.log2(3)
    np.testing.assert_allclose(measures.ndcg(golds), [(1 + 3 * half) / (3 + half)])
    np.testing.assert_allclose(measures.ndcg(golds, gain="exponential"), [(1 + 7 * half) / (7 + half)])


def test_constant_scorer_earns_chance() -> None:
    """3 golds among 1,000 passages of one score: values are those of random orders, from the literature."""
    golds, places = Golds([0, 3], [0, 0, 0], [999] * 3), np.arange(1, 1001)
    harmonic = (1 / places).sum()
    chance = (harmonic + (3 - 1) / 999 * (1000 - harmonic)) / 1000  # Bestgen, IPM 2015
    np.testing.assert_allclose(measures.average_precision(golds), [chance], rtol=1e-13)
    np.testing.assert_allclose(measures.recall(golds, 10), [0.01], rtol=1e-13)
    none = math.comb(997, 10) / math.comb(1000, 10)
    np.testing.assert_allclose(measures.success(golds, 10), [1 - none], rtol=1e-12)
    first = sum(math.comb(1000 - j, 2) / math.comb(1000, 3) / j for j in range(1, 999))
    np.testing.assert_allclose(measures.reciprocal_rank(golds), [first], rtol=1e-12)


def test_golds_that_tie_with_each_other_alone_are_certain() -> None:
    """Three golds that share the first three places, whatever their order."""
    tied, apart = Golds([0, 3], [0, 0, 0], [2, 2, 2]), Golds.at([1, 2, 3], [0, 3])
    for name, measure in MEASURES.items():
        np.testing.assert_allclose(measure(tied), measure(apart), rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("start", [0, 3, 62, 63, 64, 65, 1000, 10**6, 10**9])
def test_harmonic_sums_keep_their_digits(start: int) -> None:
    counts = np.array([0, 1, 2, 3, 40, 2000])
    exact = [math.fsum(1 / (start + j) for j in range(1, count + 1)) for count in counts]
    np.testing.assert_allclose(measures._harmonic(np.full(6, start), counts), exact, rtol=1e-13)


def test_golds_that_were_not_retrieved() -> None:
    """One of two golds at place 1, the other nowhere; a second query has lost its only gold."""
    golds = Golds.at([1, np.inf, np.inf], [0, 2, 3])
    np.testing.assert_allclose(measures.average_precision(golds), [1 / 2, 0])
    np.testing.assert_allclose(measures.reciprocal_rank(golds), [1, 0])
    np.testing.assert_allclose(measures.recall(golds, 10), [1 / 2, 0])
    np.testing.assert_allclose(measures.success(golds, 10), [1, 0])
    np.testing.assert_allclose(measures.ndcg(golds), [1 / (1 + 1 / math.log2(3)), 0])


def test_no_query_at_all() -> None:
    for name, measure in MEASURES.items():
        assert measure(Golds([0], [])).shape == (0,), name
        assert np.isnan(measure(Golds([0, 0], []))).all(), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.recall(Golds.at([1.0], [0, 1]), 0), "k must be at least 1, got 0"),
        (lambda: Golds.at([0.5], [0, 1]), "ranks must be whole numbers from 1, got 0.5"),
        (lambda: Golds.at([NAN], [0, 1]), "ranks must be whole numbers from 1, got nan"),
        (lambda: Golds.at([2, 2], [0, 2]), "query 0 has 2 golds below 1 passages, where tied_G allows for 1"),
        (lambda: Golds.at([1.0, 2.0], [0, 1]), r"got greater_G of shape \(2,\) .* ending at \[1\]"),
        (lambda: Golds([], []), r"gold_indptr of shape \(0,\) ending at \[\]"),
        (lambda: Golds([0, 1], [-1]), "greater_G and tied_G must be at least 0"),
        (lambda: Golds([0, 1], [1], grades_G=[0]), "grades_G must be above 0, got 0"),
        (lambda: Golds([0, 1], [1], [1, 2]), "tied_G must have one entry for each of the 1 golds"),
        (lambda: measures.ndcg(Golds.at([1], [0, 1]), gain="log"), "gain must be linear or exponential"),
        (lambda: measures.average_precision(Golds.at([1], [0, 1]), 5, "k"), "divisor must be min or R"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
