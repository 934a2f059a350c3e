"""Measures against trec_eval, against a naive float64 sort, and by hand.

trec_eval has no ties to break here (scores are distinct) or breaks them as ties="trec" does (names sort as
rows do).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybridfast.evaluation import metrics
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
from hybridfast.evaluation.ranks import gold_ranks

NAN = float("nan")


def random_golds(
    rng: np.random.Generator, queries: int, passages: int, fewest: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    golds = [
        np.sort(rng.choice(passages, rng.integers(fewest, min(8, passages) + 1), replace=False))
        for _ in range(queries)
    ]
    indptr = np.cumsum([0] + [len(rows) for rows in golds])
    return indptr, np.concatenate([np.empty(0, np.int64), *golds])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("trec_name", "measure"),
    [
        ("map", metrics.average_precision),
        ("recip_rank", metrics.reciprocal_rank),
        ("recall_1", metrics.MEASURES["R@1"]),
        ("recall_10", metrics.MEASURES["R@10"]),
        ("recall_100", metrics.MEASURES["R@100"]),
        ("ndcg", metrics.ndcg),
        ("ndcg_cut_10", metrics.MEASURES["nDCG@10"]),
    ],
)
def test_equals_trec_eval(
    trec_name: str, measure: Callable[[object, object], NDArray[np.float64]], tied: bool
) -> None:
    """50 queries over 300 passages; with D = 3 and five values a coordinate, most scores are tied."""
    rng = np.random.default_rng(0)
    if tied:
        queries_QD = rng.integers(-2, 3, (50, 3)).astype("f")
        passages_ND = rng.integers(-2, 3, (300, 3)).astype("f")
    else:  # one-hot queries pick scores that are a permutation: no two are equal
        queries_QD = np.eye(50, dtype="f")
        passages_ND = np.stack([rng.permutation(300) for _ in range(50)], axis=1).astype("f")
    indptr, indices_G = random_golds(rng, 50, 300, fewest=1)
    names = [f"{row:06}" for row in range(300)]
    qrels = {str(q): {names[row]: 1 for row in indices_G[indptr[q] : indptr[q + 1]]} for q in range(50)}
    run = {
        str(q): dict(zip(names, scores_N.tolist(), strict=True))
        for q, scores_N in enumerate(queries_QD @ passages_ND.T)
    }
    results = pytrec_eval.RelevanceEvaluator(
        qrels, {"map", "recip_rank", "recall.1,10,100", "ndcg", "ndcg_cut.10"}
    ).evaluate(run)
    expected = [results[str(q)][trec_name] for q in range(50)]
    ranks = gold_ranks(queries_QD, passages_ND, indptr, indices_G, ties="trec")
    np.testing.assert_allclose(measure(ranks, indptr), expected, rtol=1e-6)


def test_by_hand() -> None:
    """Golds of the first query at 1, 3 and 12, none for the second, one at 2 for the third."""
    ranks, indptr = [12, 1, 3, 2], [0, 3, 3, 4]
    np.testing.assert_allclose(
        metrics.average_precision(ranks, indptr), [(1 / 1 + 2 / 3 + 3 / 12) / 3, NAN, 1 / 2]
    )
    np.testing.assert_allclose(
        metrics.average_precision(ranks, indptr, cut=2), [(1 / 1) / 2, NAN, (1 / 2) / 1]
    )
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks, indptr), [1, NAN, 1 / 2])
    np.testing.assert_allclose(metrics.recall(ranks, indptr, 3), [2 / 3, NAN, 1])
    np.testing.assert_allclose(
        metrics.ndcg(ranks, indptr, 2), [1 / (1 + 1 / math.log2(3)), NAN, 1 / math.log2(3)]
    )
    np.testing.assert_allclose(metrics.rank_distance(ranks, indptr), [11, NAN, NAN])


def test_no_query_at_all() -> None:
    assert metrics.average_precision([], [0]).shape == (0,)
    assert np.isnan(metrics.recall([], [0, 0], 5)).all()


def test_tied_golds_take_consecutive_places() -> None:
    """Three golds that tie with each other alone share rank 2 and fill places 1, 2 and 3."""
    ranks, indptr = [2, 2, 2], [0, 3]
    for name, measure in metrics.MEASURES.items():
        assert measure(ranks, indptr) == measure([1, 2, 3], indptr), name
    assert metrics.rank_distance(ranks, indptr) == 2


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 12),
    passages=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    ties=st.sampled_from(["best", "worst", "trec"]),
)
def test_best_and_worst_order_are_orders(queries: int, passages: int, seed: int, ties: str) -> None:
    """Under every rule but "expected", measures equal those of one actual order, found by sorting."""
    rng = np.random.default_rng(seed)
    queries_QD = rng.integers(-1, 2, (queries, 2)).astype("f")
    passages_ND = rng.integers(-1, 2, (passages, 2)).astype("f")
    indptr, indices_G = random_golds(rng, queries, passages)
    ranks = gold_ranks(queries_QD, passages_ND, indptr, indices_G, ties=ties)
    places: list[int] = []
    for q, scores_N in enumerate(queries_QD @ passages_ND.T):
        gold_N = np.isin(np.arange(passages), indices_G[indptr[q] : indptr[q + 1]])
        within_N = {"best": ~gold_N, "worst": gold_N, "trec": -np.arange(passages)}[ties]
        places += (np.flatnonzero(gold_N[np.lexsort((within_N, -scores_N))]) + 1).tolist()
    for measure in (*metrics.MEASURES.values(), metrics.rank_distance):
        np.testing.assert_allclose(measure(ranks, indptr), measure(places, indptr), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), passages=st.integers(1, 60))
def test_measures_of_expected_ranks_stay_between_best_and_worst(seed: int, passages: int) -> None:
    rng = np.random.default_rng(seed)
    problem = rng.integers(-1, 2, (9, 2)).astype("f"), rng.integers(-1, 2, (passages, 2)).astype("f")
    indptr, indices_G = random_golds(rng, 9, passages, fewest=1)
    ranks = {
        ties: gold_ranks(*problem, indptr, indices_G, ties=ties) for ties in ("best", "expected", "worst")
    }
    for name, measure in metrics.MEASURES.items():
        best_Q, expected_Q, worst_Q = (measure(rank_G, indptr) for rank_G in ranks.values())
        slack = 1e-12
        assert (best_Q <= 1 + slack).all(), name
        assert (expected_Q <= best_Q + slack).all(), name
        assert (worst_Q <= expected_Q + slack).all(), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.recall([1.0], [0, 1], 0), "the cut must be at least 1, got 0"),
        (lambda: metrics.ndcg([0.5], [0, 1]), "ranks must be at least 1, got 0.5"),
        (lambda: metrics.ndcg([NAN], [0, 1]), "ranks must be at least 1, got nan"),
        (
            lambda: metrics.average_precision([1.0, 2.0], [0, 1]),
            r"got ranks of shape \(2,\) .* ending at \[1\]",
        ),
        (lambda: metrics.average_precision([], []), r"gold_indptr of shape \(0,\) ending at \[\]"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def small_set() -> EvalSet:
    """Three items in English and German; the third is missing in German, and Greek passages answer
    nothing.
    """
    return EvalSet(
        name="small",
        queries=["a", "b", "c", "a", "b"],
        query_languages=["en", "en", "en", "de", "de"],
        items=["a", "b", "c", "a", "b"],
        passages=["a", "b", "c", "a", "b", "x", "y"],
        passage_languages=["en", "en", "en", "de", "de", "el", "el"],
        gold_indptr=np.array([0, 2, 4, 5, 7, 9]),
        gold_indices=np.array([0, 3, 1, 4, 2, 0, 3, 1, 4]),
    )


def evaluate_by_sorting(eval_set: EvalSet, scores_QN: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """mAP for each pair of languages and for all passages together, with one sort per query and pool."""
    languages, passage_languages = eval_set.languages, np.array(eval_set.passage_languages)
    size = len(languages)
    pairs: list[list[list[float]]] = [[[] for _ in languages] for _ in languages]
    multilingual: list[list[float]] = [[] for _ in languages]
    for query, scores_N in enumerate(scores_QN):
        start, stop = eval_set.gold_indptr[query : query + 2]
        row = languages.index(eval_set.query_languages[query])
        for column in range(size + 1):
            pool = passage_languages == languages[column] if column < size else np.ones(len(scores_N), bool)
            order = np.flatnonzero(pool)[np.argsort(-scores_N[pool], kind="stable")]
            places = np.flatnonzero(np.isin(order, eval_set.gold_indices[start:stop])) + 1
            if len(places):
                precision = float(np.mean(np.arange(1, len(places) + 1) / places))
                (pairs[row][column] if column < size else multilingual[row]).append(precision)
    return {
        "pairs": np.array([[np.mean(values) if values else NAN for values in row] for row in pairs]),
        "multilingual": np.array([np.mean(values) if values else NAN for values in multilingual]),
    }


def test_evaluation_equals_a_sort_per_pool() -> None:
    eval_set = small_set()
    rng = np.random.default_rng(0)
    queries_QD, passages_ND = rng.standard_normal((5, 4)), rng.standard_normal((7, 4))
    evaluation = evaluate_embeddings(eval_set, queries_QD.astype("f"), passages_ND.astype("f"))
    expected = evaluate_by_sorting(eval_set, queries_QD @ passages_ND.T)
    assert evaluation.languages == ["de", "el", "en"]
    np.testing.assert_allclose(evaluation.pairs["mAP"], expected["pairs"], rtol=1e-12)
    np.testing.assert_allclose(evaluation.multilingual["mAP"], expected["multilingual"], rtol=1e-12)
    pairs = expected["pairs"]
    assert evaluation.mono("mAP") == pytest.approx((pairs[0, 0] + pairs[2, 2]) / 2)
    assert evaluation.cross("mAP") == pytest.approx((pairs[0, 2] + pairs[2, 0]) / 2)
    assert evaluation.multi("mAP") == pytest.approx(np.nanmean(expected["multilingual"]))


def by_hand() -> Evaluation:
    """A retriever that puts English passages first and, within a language, the right one."""
    items = {"a": [1.0, 0, 0], "b": [0, 1.0, 0], "c": [0, 0, 1.0]}
    eval_set = small_set()
    queries_QD = np.array([[*items[text], 10] for text in eval_set.queries], "f")
    passages_ND = np.array(
        [
            [*items.get(text, [0, 0, 0]), float(language == "en")]
            for text, language in zip(eval_set.passages, eval_set.passage_languages, strict=True)
        ],
        "f",
    )
    return evaluate_embeddings(eval_set, queries_QD, passages_ND)


def test_evaluation_by_hand() -> None:
    """Multilingual: own English gold at 1, the German one at 4 behind the three English passages."""
    evaluation = by_hand()
    assert evaluation.summary() == {
        "mAP mono": 1,
        "mAP cross": 1,
        "mAP multi": pytest.approx(((2 * (1 / 1 + 2 / 4) / 2 + 1) / 3 + (1 / 1 + 2 / 4) / 2) / 2),
        "R@1 mono": 1,
        "R@1 cross": 1,
        "R@10 multi": 1,
        "rank distance": 3,
    }
    np.testing.assert_array_equal(evaluation.rank_distance, [3, NAN, 3])
    np.testing.assert_array_equal(evaluation.median_rank, [[4, NAN, 1], [NAN] * 3, [4, NAN, 1]])


def test_evaluation_as_json() -> None:
    evaluation = by_hand()
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    record = json.loads(text)
    assert record["languages"] == ["de", "el", "en"]
    assert record["pairs"]["R@1"] == [[1, None, 1], [None] * 3, [1, None, 1]]
    assert record["macro"]["mAP"]["multi"] == evaluation.multi("mAP")
    assert record["summary"] == evaluation.summary()


def test_collapsed_embeddings_score_like_chance() -> None:
    """Every score is equal: mAP of the German pool is that of rank 1.5 among 2, and not 1."""
    evaluation = evaluate_embeddings(small_set(), np.ones((5, 2), "f"), np.ones((7, 2), "f"))
    assert evaluation.pairs["mAP"][0, 0] == 1 / 1.5
    assert evaluation.pairs["MRR"][2, 2] == 1 / 2


@pytest.mark.parametrize("name", ["query_embeddings", "passage_embeddings"])
def test_embeddings_must_match_the_set(name: str) -> None:
    embeddings = {"query_embeddings": np.ones((5, 2), "f"), "passage_embeddings": np.ones((7, 2), "f")}
    embeddings[name] = np.ones((6, 2), "f")
    with pytest.raises(ValueError, match=rf"{name} must have one row for each of the [57] texts of small"):
        evaluate_embeddings(small_set(), **embeddings)
