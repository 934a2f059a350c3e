"""Lists of the first passages against a full sort, and who shares the score of the last place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.evaluation.toplists import top_lists


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(1, 40),
    k=st.integers(1, 45),
    levels=st.sampled_from([1, 2, 1000]),
)
def test_equals_a_sort(seed: int, passages: int, k: int, levels: int) -> None:
    """Integer embeddings, few levels for many ties."""
    rng = np.random.default_rng(seed)
    queries_QD = rng.integers(-levels, levels + 1, (5, 2)).astype("f")
    passages_ND = rng.integers(-levels, levels + 1, (passages, 2)).astype("f")
    language_N = rng.integers(0, 3, passages)
    lists = top_lists(queries_QD, passages_ND, k, language_N, 3)
    k = min(k, passages)
    assert lists.rows_QK.shape == (5, k)
    for query, scores_N in enumerate(queries_QD @ passages_ND.T):
        rows_K = lists.rows_QK[query]
        np.testing.assert_array_equal(lists.scores_QK[query], np.sort(scores_N)[::-1][:k])
        np.testing.assert_array_equal(scores_N[rows_K], lists.scores_QK[query])
        assert len(set(rows_K.tolist())) == k
        tied = np.flatnonzero(scores_N == lists.scores_QK[query, -1])
        beyond = tied[~np.isin(tied, rows_K)]
        np.testing.assert_array_equal(lists.beyond_QL[query], np.bincount(language_N[beyond], minlength=3))
        ends_by_chance = scores_N[rows_K] == scores_N[rows_K[-1]] if beyond.size else np.zeros(k, bool)
        np.testing.assert_array_equal(lists.chance_QK[query], ends_by_chance)


def test_equal_passages_tie_whatever_the_product_rounds_to() -> None:
    """One random passage 3,001 times: a product's columns may differ in the last bit, scores not."""
    rng = np.random.default_rng(0)
    queries_QD = rng.standard_normal((7, 77)).astype("f")
    passages_ND = np.tile(rng.standard_normal(77).astype("f"), (3001, 1))
    lists = top_lists(queries_QD, passages_ND, 10, np.arange(3001) % 2, 2)
    assert (lists.scores_QK == lists.scores_QK[:, :1]).all()
    np.testing.assert_array_equal(lists.beyond_QL.sum(axis=1), 2991)


def test_half_precision_is_scored_in_float32() -> None:
    rng = np.random.default_rng(1)
    queries, passages = (torch.from_numpy(rng.standard_normal((n, 16))).bfloat16() for n in (3, 30))
    half = top_lists(queries, passages, 5, np.zeros(30, int), 1)
    full = top_lists(queries.float(), passages.float(), 5, np.zeros(30, int), 1)
    np.testing.assert_array_equal(half.scores_QK, full.scores_QK)


def test_renumbered_rows_keep_order_and_language() -> None:
    rng = np.random.default_rng(2)
    queries, passages, language_N = rng.standard_normal((4, 8)), rng.standard_normal((9, 8)), np.arange(9) % 3
    order_N = rng.permutation(9)
    plain = top_lists(queries, passages, 4, language_N, 3)
    moved = top_lists(queries, passages[order_N], 4, language_N[order_N], 3).renumbered(order_N)
    np.testing.assert_array_equal(plain.rows_QK, moved.rows_QK)
    np.testing.assert_array_equal(plain.languages_QK, moved.languages_QK)


def test_k_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_lists(np.ones((1, 2)), np.ones((1, 2)), 0, [0], 1)
