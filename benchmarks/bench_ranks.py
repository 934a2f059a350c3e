"""Exact gold ranks against the usual ways to them: `pytest benchmarks/bench_ranks.py`.

512 queries, a single one and eight, with 11 golds each over 13,014 passages, XQuAD-R's pool. Embeddings lie
on a grid so coarse that every float32 inner product is exact in any order of summation: all contenders see
the same scores, and their ranks must agree to the last one before anything is timed. "trained" puts golds
near the top, "untrained" anywhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import hybridfast

faiss = pytest.importorskip("faiss")

PASSAGES, GOLDS = 13_014, 11
NOISE = {"trained": 1.0, "untrained": 30.0}


@dataclass(frozen=True)
class Problem:
    queries: torch.Tensor
    passages: torch.Tensor
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]

    @property
    def golds(self) -> NDArray[np.int64]:
        return self.indices.reshape(-1, GOLDS)

    @property
    def rows(self) -> int:
        """Queries scored at once by the contenders that hold a matrix of scores."""
        return min(256, len(self.queries))

    def blocks(self) -> list[slice]:
        return [slice(begin, begin + self.rows) for begin in range(0, len(self.queries), self.rows)]


def make_problem(noise: str, depth: int, queries: int) -> Problem:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((PASSAGES // GOLDS, depth))
    passages = rng.standard_normal((PASSAGES, depth))
    rows = rng.permutation(PASSAGES)[: len(items) * GOLDS].reshape(len(items), GOLDS)
    passages[rows] = items[:, None] + NOISE[noise] * rng.standard_normal((*rows.shape, depth))
    asked = rng.integers(0, len(items), queries)
    vectors = items[asked] + NOISE[noise] * rng.standard_normal((queries, depth))
    return Problem(
        on_grid(vectors), on_grid(passages), np.arange(queries + 1) * GOLDS, np.sort(rows[asked]).ravel()
    )


def on_grid(vectors: NDArray[np.float64]) -> torch.Tensor:
    """Integers with norms below 2^12, so that partial sums of products stay below 2^24."""
    scaled = 4000 * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return torch.from_numpy(np.rint(scaled).astype(np.float32))


def gold_ranks(problem: Problem) -> NDArray[np.float64]:
    return hybridfast.gold_ranks(problem.queries, problem.passages, problem.indptr, problem.indices)


def matmul_alone(problem: Problem) -> None:
    scores = torch.empty(problem.rows, PASSAGES)
    for block in problem.blocks():
        torch.mm(problem.queries[block], problem.passages.T, out=scores)


def matmul_argsort(problem: Problem) -> NDArray[np.float64]:
    scores, golds = torch.empty(problem.rows, PASSAGES), torch.from_numpy(problem.golds)
    places = torch.arange(1, PASSAGES + 1).expand(problem.rows, PASSAGES)
    ranks = []
    for block in problem.blocks():
        torch.mm(problem.queries[block], problem.passages.T, out=scores)
        order = scores.argsort(dim=1, descending=True)
        place_of_row = torch.empty_like(order).scatter_(1, order, places)
        ranks.append(place_of_row.gather(1, golds[block]))
    return torch.cat(ranks).ravel().double().numpy()


def matmul_sort(problem: Problem) -> NDArray[np.float64]:
    """Sorts values alone, which NumPy does with vector instructions, and finds the golds by bisection."""
    queries, passages = problem.queries.numpy(), problem.passages.numpy()
    scores = np.empty((problem.rows, PASSAGES), np.float32)
    ranks = np.empty(problem.golds.shape)
    for block in problem.blocks():
        np.matmul(queries[block], passages.T, out=scores)
        gold_scores = np.take_along_axis(scores, problem.golds[block], 1)
        scores.sort(axis=1)
        for row in range(problem.rows):
            below = np.searchsorted(scores[row], gold_scores[row], side="left")
            not_above = np.searchsorted(scores[row], gold_scores[row], side="right")
            ranks[block.start + row] = PASSAGES + 0.5 - (below + not_above) / 2
    return ranks.ravel()


def numpy_matmul_alone(problem: Problem) -> None:
    queries, passages = problem.queries.numpy(), problem.passages.numpy()
    scores = np.empty((problem.rows, PASSAGES), np.float32)
    for block in problem.blocks():
        np.matmul(queries[block], passages.T, out=scores)


def faiss_search(problem: Problem, depth: int) -> NDArray[np.float64]:
    """Ranks of the golds found; infinity for those behind `depth`."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(problem.passages.shape[1])
    index.add(problem.passages.numpy())
    ranks = np.full(problem.golds.shape, np.inf)
    for block in problem.blocks():
        _, found = index.search(problem.queries[block].numpy(), depth)
        place_of_row = np.full((problem.rows, PASSAGES), np.inf)
        np.put_along_axis(place_of_row, found, np.arange(1, depth + 1)[None], axis=1)
        ranks[block] = np.take_along_axis(place_of_row, problem.golds[block], 1)
    return ranks.ravel()


CONTENDERS: dict[str, Callable[[Problem], Any]] = {
    "gold_ranks": gold_ranks,
    "torch.mm alone, no ranks": matmul_alone,
    "np.matmul alone, no ranks": numpy_matmul_alone,
    "np.matmul, sort, bisect": matmul_sort,
    "torch.mm, argsort": matmul_argsort,
    "faiss IndexFlatIP, depth 1,000": partial(faiss_search, depth=1000),
    "faiss IndexFlatIP, full depth": partial(faiss_search, depth=PASSAGES),
}


def check_ranks(name: str, problem: Problem, ranks: NDArray[np.float64]) -> None:
    """An argsort breaks ties as it likes, between the best and the worst rank; bisection finds the mean."""
    best, worst = (
        hybridfast.gold_ranks(problem.queries, problem.passages, problem.indptr, problem.indices, ties=ties)
        for ties in ("best", "worst")
    )
    if name in ("gold_ranks", "np.matmul, sort, bisect"):
        assert (ranks == (best + worst) / 2).all()
        return
    found = np.isfinite(ranks)
    # Among golds tied with each other best and worst are means, so a sort may leave them by half a gold each.
    slack = (GOLDS - 1) / 2
    assert (ranks[found] >= best[found] - slack).all()
    assert (ranks[found] <= worst[found] + slack).all()
    assert (worst[~found] + slack > 1000).all()
    assert found.all() or "1,000" in name


def peak_megabytes(function: Callable[[], Any]) -> float:
    """What a call adds to the resident memory at its peak (Linux)."""

    def resident(key: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{key}:")[1].split()[0])

    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up left behind would hide the peak
    Path("/proc/self/clear_refs").write_text("5")  # resets it
    before = resident("VmRSS")
    function()
    return (resident("VmHWM") - before) / 1024


Key = tuple[str, int, int]  # noise, depth, queries
Figures = dict[Key, dict[str, tuple[float, float]]]  # median seconds and peak megabytes of each contender


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Collects every measurement and prints them as one table when all have run."""
    collected: Figures = {}
    yield collected
    if not collected:
        return
    lines = [f"{PASSAGES} passages, {GOLDS} golds a query, {torch.get_num_threads()} threads", ""]
    lines.append("| embeddings | D | queries | way | median ms | x gold_ranks | peak MB |")
    lines.append("| --- | --: | --: | --- | --: | --: | --: |")
    for (noise, depth, queries), rows in collected.items():
        for name, (median, peak) in rows.items():
            ratio = median / rows["gold_ranks"][0] if "gold_ranks" in rows else float("nan")
            lines.append(
                f"| {noise} | {depth} | {queries} | {name} | {median * 1e3:.1f} | {ratio:.2f} | {peak:.0f} |"
            )
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n", *lines, sep="\n")


@pytest.fixture(
    scope="module",
    params=[
        ("trained", 384, 512),
        ("untrained", 384, 512),
        ("trained", 768, 512),
        ("trained", 384, 1),
        ("trained", 384, 8),
    ],
    ids=str,
)
def problem(request: pytest.FixtureRequest) -> tuple[Key, Problem]:
    return request.param, make_problem(*request.param)


@pytest.mark.parametrize("name", CONTENDERS)
def test_gold_ranks(benchmark: Any, figures: Figures, problem: tuple[Key, Problem], name: str) -> None:
    key, data = problem
    function = CONTENDERS[name]
    ranks = function(data)
    if ranks is not None:
        check_ranks(name, data, ranks)
    benchmark.group = "{}, D = {}, {} queries".format(*key)
    benchmark.pedantic(function, args=(data,), rounds=5)
    if not benchmark.disabled:
        peak = peak_megabytes(partial(function, data))
        benchmark.extra_info["peak_megabytes"] = peak
        figures.setdefault(key, {})[name] = benchmark.stats.stats.median, peak
