"""XQuAD-R once it is encoded: from embeddings to every figure of two models, with their significance.

    python benchmarks/bench_evaluate.py DATA_DIR/xquad-r [--depth 768] [--pytrec_eval]

Two made-up models: a unit vector for each question, and in every language a noisy copy of it for query and
gold, with a part that is common to the language, which is what biased models have. Prints the seconds of each
part; with --pytrec_eval also those of the usual way to the same measures: scores, a sort, dictionaries and
trec_eval, on a share of the queries and scaled up.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybridfast.evaluation import lareqa
from hybridfast.evaluation.comparison import compare
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.measures import MEASURES
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings

Floats = NDArray[np.float32]


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


def main() -> None:
    """The command: see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--depth", type=int, default=768)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--pytrec_eval", action="store_true")
    arguments = parser.parse_args()
    eval_set = lareqa.load(arguments.data_dir)
    models = {
        name: embeddings(eval_set, arguments.depth, noise, seed)
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
        f"{len(eval_set.queries):,} queries, {len(eval_set.passages):,} passages, D = {arguments.depth}, "
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
    if arguments.pytrec_eval:
        usual = by_pytrec_eval(eval_set, *models["a"], share=256)
        print(f"matmul, sort and pytrec_eval, one model, measures alone: {usual:.0f} s (from 256 queries)")


if __name__ == "__main__":
    main()
