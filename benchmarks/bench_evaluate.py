"""XQuAD-R once it is encoded: from embeddings to every figure of two models, with their significance.

    python benchmarks/bench_evaluate.py DATA_DIR/xquad-r [--depth 768] [--pytrec_eval]
    python benchmarks/bench_evaluate.py DATA_DIR/xquad-r --encode MODEL [--texts 2000]
    python benchmarks/bench_evaluate.py --mapped 2000000 [--depth 384] [--queries 2000]

Two made-up models: a unit vector for each question, and in every language a noisy copy of it for query and
gold, with a part that is common to the language, which is what biased models have. Prints the seconds of each
part; with --pytrec_eval also those of the usual way to the same measures: scores, a sort, dictionaries and
trec_eval, on a share of the queries and scaled up.

--encode times a model on some of the passages instead, against SentenceTransformer.encode(batch_size=32), and
says how far the embeddings are apart. --mapped ranks against so many made-up passages in a mapped float16
file, and says what memory that took: the process's own, and pages of the file, which the system takes back.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybridfast.encoder import embedding, loading, shards
from hybridfast.evaluation import lareqa
from hybridfast.evaluation.comparison import compare
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.measures import MEASURES
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
from hybridfast.evaluation.ranks import gold_ranks

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def embeddings(eval_set: EvalSet, depth: int, noise: float, seed: int) -> tuple[Floats, Floats]:
    """Unit vectors of queries and passages; golds lie near their question's."""
    rng = np.random.default_rng(seed)
    language_D = rng.standard_normal((len(eval_set.languages), depth)) / depth**0.5
    question_D = rng.standard_normal((int(eval_set.clusters.max()) + 1, depth)) / depth**0.5
    about_N = rng.standard_normal((len(eval_set.passages), depth)) / depth**0.5
    query_G = np.repeat(np.arange(len(eval_set.queries)), np.diff(eval_set.gold_indptr))
    about_N[eval_set.gold_indices] = question_D[eval_set.clusters[query_G]]  # a shared one: its last
    sides = []
    for about, tags in (
        (question_D[eval_set.clusters], eval_set.query_languages),
        (about_N, eval_set.passage_languages),
    ):
        rows = about + 0.5 * language_D[np.searchsorted(eval_set.languages, tags)]
        rows += noise * rng.standard_normal(rows.shape) / depth**0.5
        sides.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return sides[0], sides[1]


@contextmanager
def timed(what: str, seconds: dict[str, float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[what] = seconds.get(what, 0) + time.perf_counter() - begin


def by_pytrec_eval(eval_set: EvalSet, queries: Floats, passages: Floats, share: int) -> float:
    """Seconds for all queries in the three pools, measured on the first `share`; ranking by a full sort."""
    import pytrec_eval

    asked = {"map", "map_cut.20", "recip_rank", "ndcg", "ndcg_cut.10", "recall", "success", "Rprec"}
    names = np.array(eval_set.passage_ids)
    languages = np.searchsorted(eval_set.languages, eval_set.passage_languages)
    pools = [np.flatnonzero(languages == i) for i in range(len(eval_set.languages))]
    begin = time.perf_counter()
    for pool in [*pools, np.arange(len(names))]:
        inside = np.zeros(len(names), bool)
        inside[pool] = True
        qrels: dict[str, dict[str, int]] = {}
        run: dict[str, dict[str, float]] = {}
        scores = torch.mm(torch.from_numpy(queries[:share]), torch.from_numpy(passages[pool]).T)
        ordered, at = scores.sort(dim=1, descending=True)
        for q in range(share):
            golds = eval_set.gold_indices[eval_set.gold_indptr[q] : eval_set.gold_indptr[q + 1]]
            qrels[str(q)] = {names[g]: 1 for g in golds if inside[g]}
            run[str(q)] = dict(zip(names[pool[at[q].numpy()]].tolist(), ordered[q].tolist(), strict=True))
        pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    return (time.perf_counter() - begin) * len(queries) / share


def against_products(eval_set: EvalSet, queries: Floats, passages: Floats) -> None:
    """The golds' ranks in the pool of all languages, and the bare products of the same matrices, in turns."""
    seconds: dict[str, list[float]] = {"gold_ranks": [], "torch.mm": []}
    left, right = torch.from_numpy(queries), torch.from_numpy(passages).T
    golds = eval_set.gold_indptr, eval_set.gold_indices
    scores = torch.empty(len(queries), len(passages))
    for _ in range(4):
        for what, call in (
            (
                "gold_ranks",
                lambda: gold_ranks(queries, passages, *golds),
            ),
            ("torch.mm", lambda: torch.mm(left, right, out=scores)),
        ):
            begin = time.perf_counter()
            call()
            seconds[what].append(time.perf_counter() - begin)
    products = 2e-9 * len(queries) * len(passages) * queries.shape[1]
    ours, theirs = (statistics.median(some[1:]) for some in seconds.values())
    print(
        f"gold_ranks {ours:.2f} s, {products / ours:.0f} GFLOP/s; torch.mm {theirs:.2f} s, "
        f"{products / theirs:.0f} GFLOP/s: {theirs / ours:.2f} of its rate"
    )


def encoding(eval_set: EvalSet, name: str, count: int) -> None:
    """Texts a second of a model, ours and sentence-transformers', in turns; the best of two each."""
    model = loading.load(name, device="cpu")
    texts = np.random.default_rng(0).permutation(np.unique(eval_set.passages))[:count].tolist()
    seconds: dict[str, float] = {}
    for _ in range(2):
        for what, call in (
            ("hybridfast", lambda: embedding.encode(model, "document", texts, batch_size=256).numpy()),
            (
                "SentenceTransformer.encode",
                lambda: model.encode_document(texts, batch_size=32, convert_to_numpy=True),
            ),
        ):
            begin = time.perf_counter()
            rows = call()
            seconds[what] = min(time.perf_counter() - begin, seconds.get(what, np.inf))
            if what == "hybridfast":
                ours = rows
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    print(f"{len(texts):,} texts, {torch.get_num_threads()} threads")
    for what, value in seconds.items():
        print(f"{what}: {len(texts) / value:.1f} texts/s")
    ratio = seconds["SentenceTransformer.encode"] / seconds["hybridfast"]
    print(f"ratio {ratio:.2f}; unit embeddings differ by {np.abs(ours - rows).max():.1e} at most")


def mapped(passages: int, depth: int, queries: int) -> None:
    """Ranks from a map, and the memory of it, sampled while they are counted."""
    sample, done = np.zeros(2, np.int64), threading.Event()

    def memory() -> Integers:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return np.array([int(lines[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile")])

    def watch() -> None:
        while not done.wait(0.02):
            np.maximum(sample, memory(), out=sample)

    def made_up(number_B: Integers, _: object) -> Floats:
        return rng.standard_normal((len(number_B), depth), np.float32)

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        first_N = np.arange(passages)
        path = Path(folder) / "passages.npy"
        passages_ND = shards.stored(path, first_N, made_up, name="passages", dtype="float16")
        queries_QD = rng.standard_normal((queries, depth), np.float32)
        indptr, golds = np.arange(queries + 1), rng.integers(passages, size=queries)
        del first_N
        before = memory()
        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.perf_counter()
        ranks = gold_ranks(queries_QD, passages_ND, indptr, golds)
        seconds = time.perf_counter() - begin
        done.set()
        watcher.join()
    print(
        f"{queries:,} x {passages:,} x {depth}, a file of {passages_ND.nbytes >> 20:,} MB, "
        f"{torch.get_num_threads()} threads: {seconds:.1f} s, "
        f"{2e-9 * queries * passages * depth / seconds:.0f} GFLOP/s, mean rank {ranks.mean():,.0f}"
    )
    print(f"own memory beyond that before: {sample[0] - before[0]:,} MB, of it 8 bytes a passage: ", end="")
    print(f"{8 * passages >> 20:,} MB; pages of files in memory: {sample[1]:,} MB")


def main() -> None:
    """The command: see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path, nargs="?")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--pytrec_eval", action="store_true")
    parser.add_argument("--encode", metavar="MODEL")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--mapped", type=int, metavar="PASSAGES")
    parser.add_argument("--queries", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.mapped:
        mapped(arguments.mapped, arguments.depth or 384, arguments.queries)
        return
    if arguments.data_dir is None:
        parser.error("DATA_DIR is needed without --mapped")
    eval_set = lareqa.load(arguments.data_dir)
    if arguments.encode:
        encoding(eval_set, arguments.encode, arguments.texts)
        return
    depth = arguments.depth or 768
    models = {
        name: embeddings(eval_set, depth, noise, seed)
        for seed, (name, noise) in enumerate((("a", 2.0), ("b", 2.05)))
    }
    seconds: dict[str, float] = {}
    evaluations: dict[str, Evaluation] = {}
    for name, sides in models.items():
        with timed("ranks, lists, measures and bias of a model", seconds):
            evaluations[name] = evaluate_embeddings(eval_set, *sides)
    with timed("significance", seconds):
        ranked = {name: evaluation.ranked for name, evaluation in evaluations.items()}
        comparison = compare(ranked, "a", resamples=arguments.resamples)  # type: ignore[arg-type]
    print(
        f"{len(eval_set.queries):,} queries, {len(eval_set.passages):,} passages, D = {depth}, "
        f"{torch.get_num_threads()} threads, {len(MEASURES)} measures in three pools, "
        f"{len(comparison.estimates['a'])} figures\n"
    )
    print(comparison.table())
    seconds["ranks, lists, measures and bias of a model"] /= len(models)
    for what, value in seconds.items():
        print(f"\n{what}: {value:.2f} s", end="")
    whole = seconds["ranks, lists, measures and bias of a model"] * len(models) + seconds["significance"]
    print(f"\nboth models and their significance: {whole:.2f} s")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    against_products(eval_set, *models["a"])
    if arguments.pytrec_eval:
        usual = by_pytrec_eval(eval_set, *models["a"], share=256)
        ratio = usual / seconds["ranks, lists, measures and bias of a model"]
        print(
            f"matmul, sort and pytrec_eval, one model, measures alone: {usual:.0f} s (from 256 queries), "
            f"{ratio:.0f} times ours"
        )


if __name__ == "__main__":
    main()
