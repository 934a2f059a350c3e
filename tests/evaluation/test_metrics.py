"""The evaluation of a set against one sort per pool, and by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hybridfast.evaluation import trec
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_counts, evaluate_embeddings

NAN = float("nan")


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
    assert record["bias"]["own-language gold first"]["by_query_language"] == [0, None, 1]
    assert record["bias"]["PEER"]["refused"].startswith("PEER is a constant here")


def test_collapsed_embeddings_score_like_chance() -> None:
    """Every score is equal: a gold among 2 German passages, first or second, and one among 3 English ones."""
    evaluation = evaluate_embeddings(small_set(), np.ones((5, 2), "f"), np.ones((7, 2), "f"))
    assert evaluation.pairs["mAP"][0, 0] == pytest.approx((1 + 1 / 2) / 2)
    assert evaluation.pairs["MRR"][2, 2] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert evaluation.pairs["R@1"][2, 2] == pytest.approx(1 / 3)
    assert evaluation.bias["rank distance / chance"]["mean"] == pytest.approx(1)
    assert evaluation.bias["own-language preference"]["mean"] == pytest.approx(1)
    assert evaluation.bias["own-language gold first"]["mean"] == pytest.approx(1 / 2)
    assert evaluation.bias["Kendall's W"] == 0
    assert evaluation.bias["friedman_questions"]["p"] == 1
    for ties, value in (("best", 1), ("worst", 1 / 2)):
        evaluation = evaluate_embeddings(small_set(), np.ones((5, 2), "f"), np.ones((7, 2), "f"), ties)
        assert evaluation.pairs["mAP"][0, 0] == value


def test_one_language_only() -> None:
    """No pair across languages, no language to prefer."""
    eval_set = EvalSet(
        name="mono",
        queries=["a", "b"],
        query_languages=["en", "en"],
        items=["a", "b"],
        passages=["a", "b", "c"],
        passage_languages=["en", "en", "en"],
        gold_indptr=np.array([0, 1, 2]),
        gold_indices=np.array([0, 1]),
    )
    evaluation = evaluate_embeddings(eval_set, np.eye(2, 3, dtype="f"), np.eye(3, dtype="f"))
    assert evaluation.mono("mAP") == evaluation.multi("mAP") == 1
    assert np.isnan(evaluation.cross("mAP"))
    assert evaluation.bias["own-language preference"]["mean"] == 1
    assert np.isnan(evaluation.bias["own-language gold first"]["mean"])
    assert np.isnan(evaluation.bias["rank distance"]["mean"])
    assert np.isnan(evaluation.bias["Kendall's W"])
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_trec_ties_follow_the_ids_of_passages() -> None:
    """All scores tie: trec_eval puts the largest id first, which here is the first row's."""
    eval_set = replace(small_set(), passage_ids=[f"{9 - row}" for row in range(7)])
    evaluation = evaluate_embeddings(eval_set, np.ones((5, 2), "f"), np.ones((7, 2), "f"), ties="trec")
    np.testing.assert_array_equal(evaluation.pairs["MRR"][2, 2], (1 + 1 / 2 + 1 / 3) / 3)
    np.testing.assert_array_equal(evaluation.pairs["MRR"][0, 0], (1 + 1 / 2) / 2)
    evaluation = evaluate_embeddings(
        replace(
            eval_set,
            gold_indptr=np.array([0, 1, 1, 1, 1, 1]),
            gold_indices=np.array([0]),
            grades=np.ones(1, int),
        ),
        np.ones((5, 2), "f"),
        np.ones((7, 2), "f"),
        ties="trec",
    )
    assert evaluation.multilingual["MRR"][2] == 1


def test_a_run_that_lost_a_gold() -> None:
    """One query, golds in English and German; the run has the English one and a Greek passage."""
    eval_set = small_set()
    run = trec.Run(np.array([0, 2, 2, 2, 2, 2]), np.array([0, 5]), np.array([2.0, 1.0], "f"))
    lists = trec.top_lists_of(run, eval_set, 100)
    evaluation = evaluate_counts(eval_set, trec.run_counts(run, eval_set), "trec", lists)
    assert evaluation.multilingual["mAP"][2] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert np.isnan(evaluation.bias["rank distance"]["mean"])
    assert (evaluation.bias["golds"], evaluation.bias["golds not retrieved"]) == (9, 8)
    assert evaluation.bias["own language first"]["by_query_language"][2] == 1
    json.dumps(evaluation.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["query_embeddings", "passage_embeddings"])
def test_embeddings_must_match_the_set(name: str) -> None:
    embeddings = {"query_embeddings": np.ones((5, 2), "f"), "passage_embeddings": np.ones((7, 2), "f")}
    embeddings[name] = np.ones((6, 2), "f")
    with pytest.raises(ValueError, match=rf"{name} must have one row for each of the [57] texts of small"):
        evaluate_embeddings(small_set(), **embeddings)
