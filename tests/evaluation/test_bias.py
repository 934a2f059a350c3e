"""Measures of language bias: each by hand, against SciPy, against published values, and under chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats

from hybridfast.evaluation import bias
from hybridfast.evaluation.measures import Golds
from hybridfast.evaluation.toplists import TopLists, top_lists

NAN = float("nan")


def lists_of(scores: ArrayLike, languages: ArrayLike, k: int) -> TopLists:
    """Of given scores (Q, N), as inner products with one-hot passages."""
    scores_QN = np.asarray(scores, np.float32)
    return top_lists(
        scores_QN, np.eye(scores_QN.shape[1], dtype="f"), k, languages, int(np.max(languages)) + 1
    )


def test_rank_distance_by_hand() -> None:
    """Golds at 1, 4 and 9; one alone; none; and one of two that was not retrieved."""
    golds = Golds.at([4, 1, 9, 5, 2, np.inf], [0, 3, 4, 4, 6])
    np.testing.assert_array_equal(bias.rank_distance(golds), [8, NAN, NAN, NAN])


def test_rank_distance_under_ties_is_the_mean_over_orders() -> None:
    """Two golds and two others share places 2 to 5, a third gold stands at 1 or at 6."""
    orders = [sorted(pair) for pair in itertools.combinations(range(2, 6), 2)]
    tied = [1, 1], [3, 3]
    first = Golds([0, 3], [0, *tied[0]], [0, *tied[1]])
    np.testing.assert_allclose(bias.rank_distance(first), [np.mean([high - 1 for _, high in orders])])
    last = Golds([0, 3], [*tied[0], 5], [*tied[1], 0])
    np.testing.assert_allclose(bias.rank_distance(last), [np.mean([6 - low for low, _ in orders])])


def test_chance_rank_distance_is_a_constant_scorers() -> None:
    """10,846 on XQuAD-R, of which the paper's 286.6 is 2.6 %."""
    chance = bias.chance_rank_distance([11, 2, 1, 0], 13_014)
    np.testing.assert_allclose(chance, [10 * 13_015 / 12, 13_015 / 3, NAN, NAN])
    assert round(chance[0]) == 10_846
    assert round(100 * 286.6 / chance[0], 1) == 2.6
    constant = Golds([0, 11], [0] * 11, [13_013] * 11)
    np.testing.assert_allclose(bias.rank_distance(constant), chance[:1])


def test_own_language_gold_first_by_hand() -> None:
    """The own gold before the other; behind it; tied with it; no other; no own; a query that lost its own."""
    golds = Golds(
        [0, 2, 4, 6, 7, 8, 10],
        [0, 3, 3, 0, 2, 2, 0, 0, 0, 5],
        [0, 0, 0, 0, 1, 1, 0, 0, 0, 0],
        missing_G=[False] * 8 + [True, False],
    )
    own_G = [True, False, True, False, True, False, True, False, True, False]
    np.testing.assert_array_equal(bias.own_language_gold_first(golds, own_G), [1, 0, 1 / 2, NAN, NAN, 0])


def test_own_language_first_by_hand() -> None:
    """Five passages in languages 0 0 1 1 1; lists of two."""
    scores = [[5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [5, 1, 5, 1, 1], [1, 1, 1, 1, 1]]
    lists = lists_of(scores, [0, 0, 1, 1, 1], 2)
    np.testing.assert_allclose(bias.own_language_first(lists, [0, 0, 0, 0]), [1, 0, 1 / 2, 2 / 5])
    np.testing.assert_allclose(bias.own_language_first(lists, [1, 1, 1, 1]), [0, 1, 1 / 2, 3 / 5])


def test_awrf_by_hand() -> None:
    """Two places: exposures of 1 and 1 / log2(3). A fair target is a half for each language."""
    a = 1 / (1 + 1 / math.log2(3))
    lists = lists_of([[3, 1, 2, 0], [3, 2, 1, 0], [1, 1, 1, 1]], [0, 0, 1, 1], 2)

    def divergence(p: float) -> float:  # of (p, 1 - p) from (1/2, 1/2), Jensen and Shannon's
        total = 0.0
        for x in (p, 1 - p):
            middle = (x + 1 / 2) / 2
            total += (x * math.log2(x / middle) if x else 0) / 2 + math.log2(1 / 2 / middle) / 4
        return total

    expected = [1 - divergence(a), 1 - divergence(1), 1]
    np.testing.assert_allclose(bias.awrf(lists, [[1, 1]] * 3), expected, rtol=1e-6)
    np.testing.assert_allclose(bias.awrf(lists, [[0, 4], [1, 0], [0, 0]])[1:], [1, NAN])
    assert bias.awrf(lists_of([[2, 1, 0, 0]], [0, 0, 1, 1], 2), [[0, 1]]) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 7))
def test_exposure_is_its_mean_over_the_orders_of_ties(seed: int, k: int) -> None:
    """Six passages of three scores: orders are made by adding small numbers, and their exposures averaged."""
    rng = np.random.default_rng(seed)
    scores_N, languages = rng.integers(0, 3, 6), rng.integers(0, 2, 6)
    languages[0] = 1
    orders = np.array(list(itertools.permutations(range(6))))
    broken = bias._exposure(lists_of(scores_N + orders / 8, languages, k), 2)
    np.testing.assert_allclose(
        bias._exposure(lists_of(scores_N[None], languages, k), 2)[0], broken.mean(axis=0), rtol=1e-12
    )


def test_list_correlation_by_hand() -> None:
    """Of four passages lists have two, others share rank 3.5: 1 2 3.5 3.5 twice, 3.5 3.5 1 2, and the first
    swapped; and a question asked once.
    """
    scores = [[9, 8, 1, 0], [9, 8, 0, 1], [1, 0, 9, 8], [8, 9, 1, 0], [1, 2, 3, 4]]
    r = np.corrcoef([[1, 2, 3.5, 3.5], [1, 2, 3.5, 3.5], [3.5, 3.5, 1, 2], [2, 1, 3.5, 3.5]])
    expected = [*((r.sum(axis=1) - 1) / 3), NAN]
    found = bias.list_correlation(lists_of(scores, [0, 0, 1, 1], 2), [7, 7, 7, 7, 8])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12))
def test_list_correlation_equals_spearmans(seed: int, k: int) -> None:
    """Two random lists from twelve passages, the rest of which ties, by SciPy."""
    rng = np.random.default_rng(seed)
    scores_QN = np.stack([rng.permutation(12), rng.permutation(12)])
    lists = lists_of(scores_QN, np.zeros(12, int), k)
    cut = np.where(scores_QN >= 12 - k, scores_QN, -1)
    expected = stats.spearmanr(*cut).statistic
    np.testing.assert_allclose(bias.list_correlation(lists, [0, 0]), [expected] * 2, atol=1e-12)


def test_unrelated_lists_do_not_correlate() -> None:
    rng = np.random.default_rng(0)
    lists = lists_of(rng.random((300, 400)), np.zeros(400, int), 20)
    assert abs(bias.list_correlation(lists, np.repeat(np.arange(150), 2)).mean()) < 0.02


def test_a_list_without_order_correlates_with_nothing() -> None:
    lists = lists_of([[1, 1, 1, 1], [4, 3, 2, 1]], [0, 0, 1, 1], 2)
    assert np.isnan(bias.list_correlation(lists, [0, 0])).all()


def test_friedman_by_hand() -> None:
    """Three blocks that agree on three languages: chi-squared is 3 (3 - 1) and W is 1. With one reversed,
    rank sums are 5, 6 and 7: 12 / (3 * 3 * 4) * 2 = 2 / 3, and W = 1 / 9.
    """
    agreed = bias.language_test([[1, 2, 30], [4, 5, 6], [0, 1, np.inf]])
    assert (agreed.freedom, agreed.blocks) == (2, 3)
    np.testing.assert_allclose([agreed.statistic, agreed.w, agreed.p], [6, 1, math.exp(-3)])
    np.testing.assert_allclose(agreed.mean_ranks, [0, 1 / 2, 1], atol=1e-15)
    mixed = bias.language_test([[1, 2, 3], [1, 2, 3], [3, 2, 1]])
    np.testing.assert_allclose([mixed.statistic, mixed.w], [2 / 3, 1 / 9])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), languages=st.integers(3, 7), values=st.sampled_from([2, 4, 1000]))
def test_friedman_equals_scipys(seed: int, languages: int, values: int) -> None:
    """Of random places, with ties where there are but few values."""
    rng = np.random.default_rng(seed)
    places_BL = rng.integers(0, values, (rng.integers(3, 20), languages))
    places_BL[0] = np.arange(languages)  # so that not everything ties
    found, expected = bias.language_test(places_BL), stats.friedmanchisquare(*places_BL.T)
    np.testing.assert_allclose([found.statistic, found.p], expected, rtol=1e-9, atol=1e-12)


def test_skillings_and_mack_equals_their_published_example() -> None:
    """Skillings and Mack's (1981) assembly times of four methods by nine people: SM = 15.493 of 3 degrees."""
    places = [
        [3.2, 4.1, 3.8, 4.2],
        [3.1, 3.9, 3.4, 4.0],
        [4.3, 3.5, 4.6, 4.8],
        [3.5, 3.6, 3.9, 4.0],
        [3.6, 4.2, 3.7, 3.9],
        [4.5, 4.7, 3.7, NAN],
        [NAN, 4.2, 3.4, NAN],
        [4.3, 4.6, 4.4, 4.9],
        [3.5, NAN, 3.7, 3.9],
    ]
    found = bias.language_test(places)
    assert (found.freedom, found.blocks) == (3, 9)
    np.testing.assert_allclose(found.statistic, 15.493, atol=5e-4)


def test_incomplete_blocks_that_agree_have_a_w_of_one() -> None:
    found = bias.language_test([[1, 2, NAN], [NAN, 1, 2], [1, NAN, 2], [1, 2, 3], [1, NAN, NAN]])
    assert found.blocks == 4
    assert 0.9 < found.w <= 1 + 1e-12


def test_p_values_of_the_language_test_are_uniform_without_bias() -> None:
    """400 tests of 60 blocks of random order, a third of the places missing: by Kolmogorov and Smirnov."""
    rng = np.random.default_rng(0)
    places = rng.random((400, 60, 5))
    places[rng.random(places.shape) < 1 / 3] = NAN
    assert stats.kstest([bias.language_test(blocks).p for blocks in places], "uniform").pvalue > 0.01


def test_language_test_where_nothing_can_be_said() -> None:
    tied = bias.language_test(np.ones((4, 3)))
    assert (tied.statistic, tied.p, tied.w, tied.blocks) == (0, 1, 0, 4)
    alone = bias.language_test([[1, NAN], [NAN, 2]])
    assert alone.blocks == 0
    assert np.isnan([alone.statistic, alone.p, alone.w, *alone.mean_ranks]).all()


def test_peer_by_hand() -> None:
    """Ranks 1 2 and 3 4 of two languages: H = 3 * (2 * 1 + 2 * 1) / 5 = 2.4, p = erfc(sqrt(1.2)).

    A second query has one language, a third none.
    """
    found = bias.peer([1, 2, 3, 4, 5, 6], [0, 4, 6, 6], [0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(found, [math.erfc(math.sqrt(2.4 / 2)), 1, NAN])


def test_peer_equals_kruskal_and_wallis() -> None:
    """Where ranks have no gaps, SciPy's H is the same; two grades by their weights."""
    rng = np.random.default_rng(0)
    ranks, languages = rng.permutation(12) + 1.0, rng.permutation([0, 1, 2] * 4)
    expected = stats.kruskal(*(ranks[languages == i] for i in range(3))).pvalue
    np.testing.assert_allclose(bias.peer(ranks, [0, 12], languages), [expected])
    grades = np.array([1, 2] * 6)
    alone = [
        bias.peer(ranks[grades == g], [0, 6], languages[grades == g], weights={1: 1.0})[0] for g in (1, 2)
    ]
    both = bias.peer(ranks, [0, 12], languages, grades, {1: 0.25, 2: 0.75})
    np.testing.assert_allclose(both, [0.25 * alone[0] + 0.75 * alone[1]])


def test_peer_of_golds_that_were_not_retrieved() -> None:
    """They stand behind: language 1 has lost both golds, which share the mean of places 3 and 4, or of 11 and
    12 behind a cut of 10. Ranks that are all equal say nothing.
    """
    lost = [1, 2, np.inf, np.inf]
    for k, behind in ((None, 3.5), (10, 11.5)):
        ranks = np.array([1, 2, behind, behind])
        away = ranks - ranks.mean()
        h = 3 * 2 * (away[:2].mean() ** 2 + away[2:].mean() ** 2) / (away**2).sum()
        np.testing.assert_allclose(bias.peer(lost, [0, 4], [0, 0, 1, 1], k=k), [math.erfc(math.sqrt(h / 2))])
    assert bias.peer([np.inf] * 4, [0, 4], [0, 0, 1, 1]) == 1
    assert bias.peer([7] * 4, [0, 4], [0, 0, 1, 1]) == 1


def test_peer_is_refused_where_it_is_a_constant() -> None:
    """One gold in each of 11 languages: whatever the ranks, H = 10 and p = 0.4405."""
    with pytest.raises(
        ValueError, match="PEER is a constant here: no query has a grade with two golds of one"
    ):
        bias.peer(np.arange(1, 12), [0, 11], np.arange(11))
    rng = np.random.default_rng(0)
    ranks = np.concatenate([rng.permutation(50)[:11] + 1.0, [1, 2, 3, 4]])
    with_another = bias.peer(ranks, [0, 11, 15], [*range(11), 0, 0, 1, 1])
    assert round(with_another[0], 4) == 0.4405


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda: bias.peer([1, 2], [0, 2], [0, 0], weights={1: 0.5}), "weights must sum to 1, got 0.5")],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
