"""Exact top-k for mining against faiss: `python benchmarks/bench_mine.py [--rows 200000]`.

As many unit queries as passages, in topics, 384 dimensions, the best 64 of every query, on the same cores.
Both sides take turns by slices of the queries, and each slice's results are compared before the next: the
scores agree to float32 rounding at every place, so the lists differ by nothing but ties to rounding. Beside
them the limit: how fast torch multiplies the same matrices and does nothing with the scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from bench_ranks import peak_megabytes
from numpy.typing import NDArray

from hybridfast import build_info
from hybridfast.mining.topk import top_k

ROUNDING = 2e-6  # of inner products of unit vectors, summed in another order
MM_QUERIES = 1_024  # whose scores fit the memory


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_data(rows: int, depth: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((rows // 100, depth), dtype=np.float32)
    passages = unit(
        topics[rng.integers(0, len(topics), rows)] + rng.standard_normal((rows, depth), dtype=np.float32)
    )
    near = passages[rng.permutation(rows)]
    return unit(near + 0.04 * rng.standard_normal((rows, depth), dtype=np.float32)), passages


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, help="So many of them only.")
    parser.add_argument("--depth", type=int, default=384)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--slices", type=int, default=8)
    options = parser.parse_args()
    queries, passages = make_data(options.rows, options.depth)
    queries = queries[: options.queries]
    threads = torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(options.depth)
    index.add(passages)
    passages_T = torch.from_numpy(passages).T
    bfloat16_T = passages_T.bfloat16()
    seconds: dict[str, list[float]] = {"hybridfast top_k": [], "faiss IndexFlatIP": []}
    limits: dict[str, list[float]] = {"torch.mm alone": [], "torch.mm alone, bfloat16": []}
    same, places = 0, 0
    for part in np.array_split(queries, options.slices):
        ours, (scores_QK, rows_QK) = timed(top_k, part, passages, options.k)
        theirs, (faiss_scores_QK, faiss_rows_QK) = timed(index.search, part, options.k)
        np.testing.assert_allclose(scores_QK, faiss_scores_QK, atol=ROUNDING, rtol=0)
        same += int((rows_QK == faiss_rows_QK).sum())
        places += rows_QK.size
        for name, value in zip(seconds, (ours, theirs), strict=True):
            seconds[name].append(value)
        block = torch.from_numpy(part[:MM_QUERIES])
        for name, left, right in zip(
            limits, (block, block.bfloat16()), (passages_T, bfloat16_T), strict=True
        ):
            limits[name].append(timed(torch.mm, left, right)[0] * len(part) / len(block))
    print(
        f"{len(queries):,} queries x {options.rows:,} passages x {options.depth}, best {options.k}, "
        f"{threads} threads, {build_info()['simd_bfloat16']}; faiss {faiss.__version__}, "
        f"torch {torch.__version__}\n"
    )
    print("| way | seconds | GFLOP/s | x faiss |\n| --- | --: | --: | --: |")
    flop = 2.0 * len(queries) * len(passages) * options.depth
    for name, values in (seconds | limits).items():
        # Limits are of a part of each slice: the median slice stands for all.
        total = sum(values) if name in seconds else median(values) * options.slices
        ratio = sum(seconds["faiss IndexFlatIP"]) / total
        print(f"| {name} | {total:.1f} | {flop / total / 1e9:.0f} | {ratio:.2f} |")
    peak = peak_megabytes(lambda: top_k(queries[:MM_QUERIES], passages, options.k))
    print(f"\n{same / places:.4%} of the places hold the same row, the others a tie to rounding.")
    print(f"A call with {MM_QUERIES:,} queries adds {peak:.0f} MB to the memory.")


if __name__ == "__main__":
    main()
