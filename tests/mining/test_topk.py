"""The exact search against a float64 sort.

Small integers have exact inner products in float32 and float64 alike, in bfloat16 too: ties are true ties,
and comparisons are equalities. Sizes straddle panels (6 or 12 queries, 8 to 32 passages) and chunks of 512
passages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hybridfast import _core
from hybridfast.mining import topk
from hybridfast.mining.topk import Excluded, top_k

CPU = torch.device("cpu")


def by_sorting(
    queries_QD: NDArray[Any],
    passages_ND: NDArray[Any],
    k: int,
    rows: NDArray[Any],
    barred_QN: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The first k of a stable descending sort of what is allowed."""
    scores_QN = queries_QD.astype(np.float64) @ passages_ND.astype(np.float64).T
    scores_QK = np.full((len(queries_QD), k), -np.inf)
    rows_QK = np.full((len(queries_QD), k), -1)
    for i, scores_N in enumerate(scores_QN):
        allowed = rows[~barred_QN[i, rows]]
        best = allowed[np.argsort(-scores_N[allowed], kind="stable")][:k]
        scores_QK[i, : len(best)], rows_QK[i, : len(best)] = scores_N[best], best
    return scores_QK, rows_QK


def integers(rng: np.random.Generator, rows: int, depth: int) -> NDArray[np.float32]:
    return rng.integers(-2, 3, (rows, depth)).astype(np.float32)


def random_exclusions(
    rng: np.random.Generator, queries: int, passages: int
) -> tuple[Excluded, NDArray[np.bool_]]:
    barred_GN = rng.random((4, passages)) < 0.2
    group_Q = rng.integers(0, 4, queries)
    indptr = np.cumsum([0, *barred_GN.sum(axis=1)])
    return Excluded(group_Q, indptr, np.nonzero(barred_GN)[1]), barred_GN[group_Q]


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(0, 30),
    passages=st.integers(1, 1100),
    depth=st.integers(1, 20),
    k=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_a_sort(queries: int, passages: int, depth: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries_QD, passages_ND = integers(rng, queries, depth), integers(rng, passages, depth)
    rows = np.flatnonzero(rng.random(passages) < 0.8)
    excluded, barred_QN = random_exclusions(rng, queries, passages)
    expected = by_sorting(queries_QD, passages_ND, k, rows, barred_QN)
    found = [
        top_k(queries_QD, passages_ND, k, rows=rows, excluded=excluded),
        top_k(queries_QD, passages_ND, k, rows=rows, excluded=excluded, threads=3),
        topk.on_device(queries_QD, passages_ND, k, rows, excluded, CPU),
    ]
    lists = (excluded.group_Q, excluded.indptr, excluded.rows)
    found.append(_core.top_k(queries_QD, passages_ND, rows, *lists, k, False, 1))
    for scores_QK, rows_QK in found:
        np.testing.assert_array_equal(scores_QK, expected[0])
        np.testing.assert_array_equal(rows_QK, expected[1])


def test_tiles_of_the_device_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "GPU_QUERIES", 5)
    monkeypatch.setattr(topk, "GPU_SCORES", 5 * 16)
    rng = np.random.default_rng(0)
    queries_QD, passages_ND, rows = integers(rng, 13, 7), integers(rng, 101, 7), np.arange(0, 101, 2)
    excluded, barred_QN = random_exclusions(rng, 13, 101)
    found = topk.on_device(queries_QD, passages_ND, 9, rows, excluded, CPU)
    for got, wanted in zip(found, by_sorting(queries_QD, passages_ND, 9, rows, barred_QN), strict=True):
        np.testing.assert_array_equal(got, wanted)


def filtered_and_not(queries: NDArray[Any], passages: NDArray[Any], k: int) -> Any:
    nobody = np.empty(0, np.int64)
    problem = (queries, passages, np.arange(len(passages)), nobody, nobody, nobody, k)
    return _core.top_k(*problem, True, 2), _core.top_k(*problem, False, 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_rounded_products_leave_out_nothing(scale: float, dtype: str) -> None:
    """Clusters, so that many scores lie closer to the k-th best than bfloat16 tells apart."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((20, 48))
    passages_ND = scale * (centres[rng.integers(0, 20, 6000)] + 0.02 * rng.standard_normal((6000, 48)))
    passages_ND *= rng.uniform(0.5, 2, (6000, 1))
    queries_QD = centres[rng.integers(0, 20, 25)] + 0.02 * rng.standard_normal((25, 48))
    both = [x.astype(np.float32) for x in (queries_QD, passages_ND)]
    if dtype == "int16":
        both = [torch.from_numpy(x).bfloat16().view(torch.int16).numpy() for x in both]
    else:
        both = [x.astype(dtype) for x in both]
    with_filter, without = filtered_and_not(both[0], both[1], 40)
    for got, wanted in zip(with_filter, without, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_scores_that_are_all_equal_or_vanish() -> None:
    ones = np.ones((3000, 9), np.float32)
    for queries_QD, passages_ND in (
        (ones[:14], ones),
        (ones[:14] * 1e-30, ones * 1e-12),
        (0 * ones[:3], ones),
    ):
        for scores_QK, rows_QK in filtered_and_not(queries_QD, passages_ND, 70):
            np.testing.assert_array_equal(rows_QK, np.arange(70)[None].repeat(len(queries_QD), 0))
            assert (scores_QK == scores_QK[0, 0]).all()


def test_more_candidates_than_fit_one_block() -> None:
    """k = 5,000 holds 15,064 candidates a query: 64 MB are 46 panels of 12."""
    rng = np.random.default_rng(2)
    queries_QD, passages_ND = integers(rng, 600, 4), integers(rng, 6000, 4)
    _, rows_QK = top_k(queries_QD, passages_ND, 5000)
    _, expected = by_sorting(
        queries_QD[::97], passages_ND, 5000, np.arange(6000), np.zeros((7, 6000), np.bool_)
    )
    np.testing.assert_array_equal(rows_QK[::97], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"queries": np.full((2, 3), np.nan, np.float32)}, "queries must be finite, but row 0 holds NaN"),
        ({"passages": np.full((4, 3), np.inf, np.float32)}, "passages must be finite, but row 0 holds NaN"),
        ({"passages": np.full((4, 3), 1e38, np.float32)}, "scores would overflow float32"),
        ({"passages": np.ones((4, 2), np.float32)}, "queries and passages must be equally wide"),
        ({"queries": np.ones((2, 3))}, r"queries must be \(rows, D\) float32, got \(2, 3\) float64"),
        ({"rows": np.array([2, 1])}, "rows must ascend within the 4 passages"),
        ({"rows": np.array([1, 4])}, "rows must ascend within the 4 passages"),
        ({"excluded": Excluded(*[np.zeros(1, np.int64)] * 3)}, "a group for each of 2 queries"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    problem = {"queries": np.full((2, 3), 9.0, np.float32), "passages": np.ones((4, 3), np.float32), "k": 2}
    with pytest.raises(ValueError, match=message):
        top_k(**(problem | change))


PROGRAM = f"""
import importlib.util, numpy as np
spec = importlib.util.spec_from_file_location("_core", {_core.__file__!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
rng = np.random.default_rng(0)
q, p = (rng.integers(-9, 10, (n, 37)).astype(np.float32) for n in (29, 2100))
nobody = np.empty(0, np.int64)
scores, rows = core.top_k(q, p, np.arange(2100), nobody, nobody, nobody, 33, True, 2)
print(core.build_info()["simd"], scores.sum(), (rows * np.arange(1, 34)).sum())
"""


def test_every_instruction_set_finds_the_same() -> None:
    printed = {}
    for level in _core.build_info()["simd_supported"]:
        environment = {**os.environ, "HYBRIDFAST_SIMD": level}
        command = [sys.executable, "-P", "-c", PROGRAM]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        name, *printed[level] = result.stdout.split()
        assert name == level
    assert len({tuple(values) for values in printed.values()}) == 1


def test_an_index_of_faiss() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(3)
    queries_QD, passages_ND, rows = integers(rng, 9, 8), integers(rng, 300, 8), np.arange(5, 300, 3)
    passages_ND += np.arange(300, dtype=np.float32)[:, None] / 4096  # no ties, and exact still
    excluded, barred_QN = random_exclusions(rng, 9, 300)
    found = topk.FaissIndex("Flat", passages_ND, rows).top_k(queries_QD, 12, excluded)
    for got, wanted in zip(found, by_sorting(queries_QD, passages_ND, 12, rows, barred_QN), strict=True):
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(ValueError, match="index 'IVF4096,Flat': "):
        topk.FaissIndex("IVF4096,Flat", passages_ND, rows)
    with pytest.raises(ValueError, match="index 'Nonsense': "):
        topk.FaissIndex("Nonsense", passages_ND, rows)
