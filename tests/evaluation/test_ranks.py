"""gold_ranks against a full float64 sort.

Embeddings are small integers, whose products and sums are exact in float32 and float64 alike: ties are then
true ties, many of them, and every comparison below is an equality. Sizes straddle the panels of every
instruction set (6 or 12 queries, 8, 16 or 32 passages), the chunks of 512 passages, and the 8 MB blocks
(2,048 rows at D = 1,024).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.rank_problems import BAD_ROW, PASSAGES, QUERIES, make_problem, ranks_by_sorting
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridfast
from hybridfast import _core
from hybridfast.evaluation import ranks
from hybridfast.evaluation.ranks import TIES, gold_ranks, rank_counts


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(
    ("queries", "passages", "depth"),
    [(1, 1, 1), (5, 31, 3), (6, 32, 16), (13, 33, 7), (25, 1025, 40), (3, 2500, 1024), (2100, 65, 1024)],
)
def test_equals_a_sort(queries: int, passages: int, depth: int, ties: str) -> None:
    problem = make_problem(queries, passages, depth)
    expected = ranks_by_sorting(problem, np.ones(passages, bool), ties)
    np.testing.assert_array_equal(hybridfast.gold_ranks(*problem, ties=ties), expected)


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(0, 30),
    passages=st.integers(1, 70),
    depth=st.integers(1, 20),
    max_golds=st.integers(0, 40),  # beyond 32 golds a query's own golds need a second panel
    seed=st.integers(0, 2**32 - 1),
    ties=st.sampled_from(TIES),
)
def test_odd_shapes_and_pools(
    queries: int, passages: int, depth: int, max_golds: int, seed: int, ties: str
) -> None:
    problem = make_problem(queries, passages, depth, max_golds, seed=seed)
    pool_N = np.random.default_rng(seed).random(passages) < 0.7
    pool_N[problem[3]] = True
    expected = ranks_by_sorting(problem, pool_N, ties)
    np.testing.assert_array_equal(gold_ranks(*problem, pool=pool_N, ties=ties), expected)
    np.testing.assert_array_equal(gold_ranks(*problem, pool=np.flatnonzero(pool_N), ties=ties), expected)


@pytest.mark.parametrize("ties", TIES)
def test_one_pass_serves_every_pool(ties: str) -> None:
    """1,100 passages in 5 groups of which one is empty: a chunk of 512 holds pieces of several."""
    problem = make_problem(40, 1100, 9)
    group_N = np.random.default_rng(1).choice([0, 1, 3, 4], 1100)
    counts = rank_counts(*problem, passage_groups=group_N)
    assert counts.greater_GL.shape == (len(problem[3]), 5)
    np.testing.assert_array_equal(counts.ranks(ties), gold_ranks(*problem, ties=ties))
    for group in range(5):
        pool = counts.pool(group)
        inside_G = group_N[problem[3]] == group
        expected = gold_ranks(
            *problem[:2],
            gold_indptr=np.concatenate([[0], np.cumsum(inside_G)])[problem[2]],
            gold_indices=problem[3][inside_G],
            pool=group_N == group,
            ties=ties,
        )
        np.testing.assert_array_equal(pool.ranks(ties), expected)


def test_equal_passages_tie_whatever_their_scores() -> None:
    """Real-valued scores round, but equal passages must round alike in every place of every panel."""
    rng = np.random.default_rng(0)
    queries_QD = rng.standard_normal((20, 77)).astype(np.float32)
    passages_ND = np.repeat(rng.standard_normal((1, 77)).astype(np.float32), 100, axis=0)
    ranks = gold_ranks(queries_QD, passages_ND, np.arange(21), rng.integers(0, 100, 20))
    np.testing.assert_array_equal(ranks, np.full(20, 50.5))


def test_constant_scores() -> None:
    problem = np.zeros((2, 3), "f"), np.ones((10, 3), "f"), [0, 1, 3], [4, 0, 9]
    assert gold_ranks(*problem).tolist() == [5.5, 5.5, 5.5]
    assert gold_ranks(*problem, ties="best").tolist() == [1, 1.5, 1.5]
    assert gold_ranks(*problem, ties="worst").tolist() == [10, 9.5, 9.5]
    assert gold_ranks(*problem, ties="trec").tolist() == [6, 10, 1]


def test_threads_do_not_change_a_count() -> None:
    """20 queries and 5,000 passages of depth 700 make several blocks and chunks; real values, so ties are
    rare.
    """
    rng = np.random.default_rng(0)
    queries_QD = rng.standard_normal((20, 700)).astype(np.float32)
    passages_ND = rng.standard_normal((5000, 700)).astype(np.float32)
    golds = np.arange(21) * 10, rng.permutation(5000)[:200]
    alone = rank_counts(queries_QD, passages_ND, *golds, passage_groups=np.arange(5000) % 3, threads=1)
    for threads in (2, 3, 8):
        counts = rank_counts(
            queries_QD, passages_ND, *golds, passage_groups=np.arange(5000) % 3, threads=threads
        )
        for name in ("greater_GL", "tied_GL", "later_GL"):
            np.testing.assert_array_equal(getattr(counts, name), getattr(alone, name))


def test_memory_stays_bounded() -> None:
    """The 20,000 x 20,000 scores would take 1.6 GB; embeddings, golds and workspace take some 20 MB."""

    def resident(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024

    queries_QD, passages_ND, *golds = make_problem(20_000, 20_000, 4, max_golds=2)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("the peak of the resident memory can only be reset on Linux")
    before = resident("VmRSS")
    gold_ranks(queries_QD, passages_ND, *golds)
    assert resident("VmHWM") - before < 64e6


def test_every_instruction_set() -> None:
    """The level is chosen once per process, when the library is loaded, so each has a child of its own."""
    code = (
        "import os, sys; sys.path.append(sys.argv[1]); import rank_problems, numpy as np, torch\n"
        "for level in sys.argv[2:]:\n"
        "    if os.fork():\n"
        "        assert os.wait()[1] == 0, level\n"
        "        continue\n"
        "    os.environ['HYBRIDFAST_SIMD'] = level\n"
        "    from hybridfast import _core, gold_ranks\n"
        "    assert _core.build_info()['simd'] == level\n"
        "    for shape in ((13, 33, 7), (25, 1025, 40)):\n"
        "        problem = rank_problems.make_problem(*shape)\n"
        "        expected = rank_problems.ranks_by_sorting(problem, np.ones(shape[1], bool), 'expected')\n"
        "        np.testing.assert_array_equal(gold_ranks(*problem), expected)\n"
        "    sys.exit()\n"
    )
    levels = _core.build_info()["simd_supported"]
    subprocess.run([sys.executable, "-P", "-c", code, os.path.dirname(__file__), *levels], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_every_type(dtype: torch.dtype) -> None:
    """Integers up to 2 are exact in every type."""
    queries_QD, passages_ND, *golds = make_problem(30, 100, 11)
    tensors = (
        torch.tensor(queries_QD, dtype=dtype),
        torch.tensor(passages_ND, dtype=dtype, requires_grad=True),
    )
    expected = gold_ranks(queries_QD, passages_ND, *golds)
    np.testing.assert_array_equal(gold_ranks(*tensors, *map(torch.tensor, golds)), expected)
    np.testing.assert_array_equal(gold_ranks(queries_QD, tensors[1], *golds), expected)
    if dtype != torch.bfloat16:
        numpy_type = np.dtype(str(dtype).removeprefix("torch."))
        np.testing.assert_array_equal(
            gold_ranks(queries_QD.astype(numpy_type), passages_ND.astype(numpy_type), *golds), expected
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_value_is_widened_exactly(dtype: torch.dtype) -> None:
    """Against 1, the score of a one-dimensional passage is its value: every 97th of 65,536 bit patterns."""
    values_N = torch.arange(-(2**15), 2**15, 97, dtype=torch.int32).to(torch.int16).view(dtype)
    values_N = values_N[values_N.isfinite() & (values_N.abs() < 1e38)]
    assert len(values_N) > 600
    every = [0, len(values_N)], np.arange(len(values_N))
    expected = gold_ranks(torch.ones(1, 1), values_N[:, None].float(), *every)
    np.testing.assert_array_equal(gold_ranks(torch.ones(1, 1), values_N[:, None], *every), expected)


def test_views_are_read_as_they_are() -> None:
    queries_QD, passages_ND, *golds = make_problem(10, 50, 8)
    truncated = gold_ranks(queries_QD[:, :5], torch.tensor(passages_ND)[:, :5], *golds)
    expected = gold_ranks(queries_QD[:, :5].copy(), passages_ND[:, :5].copy(), *golds)
    np.testing.assert_array_equal(truncated, expected)
    transposed = np.asfortranarray(passages_ND)
    np.testing.assert_array_equal(
        gold_ranks(queries_QD, transposed, *golds), gold_ranks(queries_QD, passages_ND, *golds)
    )


def test_no_queries_and_no_golds() -> None:
    passages_ND = np.ones((3, 2), "f")
    assert gold_ranks(np.ones((0, 2), "f"), passages_ND, [0], []).shape == (0,)
    assert gold_ranks(np.ones((2, 2), "f"), passages_ND, [0, 0, 0], []).shape == (0,)
    assert gold_ranks(np.ones((2, 2), "f"), np.ones((0, 2), "f"), [0, 0, 0], []).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": np.ones(3, "f")}, r"queries must be \(rows, D\) with D >= 1, got \(3,\)"),
        ({"queries": np.ones((2, 0), "f")}, r"queries must be \(rows, D\) with D >= 1, got \(2, 0\)"),
        ({"queries": np.ones((2, 3))}, "queries must be float32, float16 or bfloat16, got float64"),
        ({"passages": torch.ones(4, 3, dtype=torch.int16)}, "passages must be float32, .* got int16"),
        (
            {"passages": torch.ones(4, 3, device="meta")},
            "passages must be on the CPU or a GPU, .* meta",
        ),
        ({"passages": np.ones((4, 5), "f")}, r"equally wide, got \(2, 3\) and \(4, 5\)"),
        ({"passages": BAD_ROW}, "passages must be finite, but row 2 holds NaN or infinity"),
        ({"queries": np.full((2, 3), np.inf, "f")}, "queries must be finite, but row 0"),
        ({"passages": PASSAGES * 3e38}, "scores would overflow float32: row 0 of queries has norm 1.73"),
        ({"gold_indptr": [0, 1]}, "gold_indptr must have 3 entries for 2 queries, got 2"),
        ({"gold_indptr": [0, 3, 2]}, "gold_indptr must rise from 0 to the 2 entries"),
        ({"gold_indptr": [0, 1, 3]}, "gold_indptr must rise from 0 to the 2 entries .* got 0 to 3"),
        ({"gold_indptr": [[0, 1, 2]]}, "gold_indptr must be a 1-D integer array, got 2-D"),
        ({"gold_indices": [0.0, 1.0]}, "gold_indices must be a 1-D integer array, got 1-D float64"),
        ({"gold_indices": [0, 4]}, r"gold_indices\[1\] = 4, a gold of query 1, is not a row of passages"),
        ({"gold_indices": [-1, 0]}, r"gold_indices\[0\] = -1, a gold of query 0, is not a row of passages"),
        ({"gold_indptr": [0, 2, 2], "gold_indices": [1, 1]}, r"gold_indices\[1\] = 1, .* repeats a gold"),
        ({"pool": [0, 2]}, r"gold_indices\[1\] = 1, a gold of query 1, is outside the pool"),
        ({"pool": np.array([True, False])}, r"pool must have one entry per passage, \(4,\), got \(2,\)"),
        ({"pool": [0, 1, 7]}, r"pool\[2\] = 7 is not a row of passages, which has 4"),
        ({"pool": []}, r"gold_indices\[0\] = 0, a gold of query 0, is outside the pool"),
        ({"ties": "random"}, "ties must be one of expected, best, worst, trec, got 'random'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "queries": QUERIES, "passages": PASSAGES, "gold_indptr": [0, 1, 2], "gold_indices": [0, 1],
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        gold_ranks(**(arguments | changes))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 0, 0], "passage_groups must have one entry per passage, 4, got 3"),
        ([0, 0, -2, 0], "passage_groups must be at least -1, got -2 at row 2"),
        ([-1, 0, 0, 0], r"gold_indices\[0\] = 0, a gold of query 0, is outside the pool"),
    ],
)
def test_bad_groups_are_named(groups: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_counts(QUERIES, PASSAGES, [0, 1, 2], [0, 1], groups)


@pytest.mark.parametrize(
    ("there", "triton", "message"),
    [
        ((False, True), True, "queries and passages must be on one device, got cpu and meta"),
        ((True, False), True, "queries and passages must be on one device, got meta and cpu"),
        (
            (torch.float32, torch.float16),
            True,
            r"must be of one dtype, got .*float32 and .*float16",
        ),
        ((True, True), False, "queries on a GPU need the package triton; move them to the CPU"),
    ],
)
def test_embeddings_that_no_kernel_reads(
    monkeypatch: pytest.MonkeyPatch, there: tuple[Any, Any], triton: bool, message: str
) -> None:
    """Tensors without values stand in for those of a GPU."""
    monkeypatch.setattr(ranks, "TRITON", triton)
    monkeypatch.setattr(ranks, "matrix_of", lambda values, name: values)
    queries, passages = (
        torch.empty(2, 3, device="meta", dtype=on if isinstance(on, torch.dtype) else torch.float32)
        if on
        else QUERIES
        for on in there
    )
    with pytest.raises(ValueError, match=message):
        gold_ranks(queries, passages, [0, 1, 2], [0, 1])


def test_unknown_tie_rule_of_counts() -> None:
    counts = rank_counts(QUERIES, PASSAGES, [0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match="ties must be one of"):
        counts.ranks("ties")
