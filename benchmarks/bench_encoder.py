"""Where a training step of a real encoder goes, and how far it is from the products of its tokens.

    python benchmarks/bench_encoder.py DATA_DIR                 # NTREX, English and German; packaged MiniLM
    python benchmarks/bench_encoder.py DATA_DIR --model DIR --data lohelp     # LibreOffice's help
    python benchmarks/bench_encoder.py DATA_DIR --memory 8192   # one batch of so many pairs, and the peak

The floor is 6 x weights in matrices x tokens, and attention's own products, at the rate that torch.mm reaches
for a layer's shapes in the same run (the fastest of its three products). Shares are of the step's time;
recomputing is the step with no activations kept over the step with all kept.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_train import help_rows, model_of, rows_of, sentences

from hybridfast import info_nce
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding
from hybridfast.training.chunks import Chunks
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import make_sampler
from hybridfast.training.optimizer import make_optimizer
from hybridfast.training.sparse import SparseTables, clip_gradients

TEMPERATURE = 0.05


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def product_rate(hidden: int, inner: int, tokens: int) -> float:
    """The products of two layers in a second: the fastest of forward and both gradients."""
    x, w, y = torch.randn(tokens, hidden), torch.randn(hidden, inner), torch.randn(tokens, inner)
    ways = (lambda: x @ w, lambda: y @ w.T, lambda: x.T @ y)
    for way in ways:
        way()
    return max(2 * tokens * hidden * inner / median_seconds(way, 9) for way in ways)


class Run:
    """A model, its data and its optimizer, as the trainer puts them together."""

    def __init__(self, arguments: argparse.Namespace, batch_size: int, cache: str) -> None:
        data_dir: Path = arguments.data_dir
        rows = help_rows(data_dir) if arguments.data == "lohelp" else rows_of(sentences(data_dir))
        self.model: Any = model_of(arguments.model)
        corpus = ParallelCorpus.from_rows(rows)
        tokens = embedding.tokenize(self.model, corpus, cache_dir=cache, progress=False)
        config = TrainConfig(alpha=0.0, batch_size=batch_size, temperature=TEMPERATURE)
        self.sides = embedding.sides(self.model, tokens)
        self.sampler = make_sampler(tokens, config)
        self.tables = SparseTables(self.model, config, tokens)
        self.optimizer = make_optimizer(self.model, config, self.tables.lazy)
        self.model.train()
        self.batch = self.sampler[0, 0]

    def step(self, chunks: Chunks, index: int) -> list[float]:
        """Seconds of data, encoder, loss, backward, optimizer."""
        laps = [time.perf_counter()]
        batch = self.sampler[0, index]
        laps.append(time.perf_counter())
        queries_QD, passages_ND, *_ = chunks.embed(batch, index)
        laps.append(time.perf_counter())
        loss = info_nce(queries_QD, passages_ND, TEMPERATURE)
        laps.append(time.perf_counter())
        loss.backward()
        laps.append(time.perf_counter())
        clip_gradients(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        laps.append(time.perf_counter())
        return [end - begin for begin, end in itertools.pairwise(laps)]

    def products(self, batch: Any) -> float:
        """FLOP of a batch's bare products."""
        config = self.model[0].auto_model.config
        weights = sum(
            weight.numel()
            for name, weight in self.model.named_parameters()
            if weight.ndim == 2 and "embedding" not in name and "pooler" not in name
        )
        lengths_B = lengths_of(batch).double()
        attention = 14 * config.num_hidden_layers * config.hidden_size * float((lengths_B**2).sum())
        return 6 * weights * float(lengths_B.sum()) + attention

    def rate(self) -> float:
        """What torch.mm reaches for a layer's shapes."""
        config = self.model[0].auto_model.config
        return product_rate(config.hidden_size, config.intermediate_size, 2048)


def lengths_of(batch: Any) -> torch.Tensor:
    return torch.cat(
        [
            torch.diff(side["offsets"], append=torch.tensor([len(side["input_ids"])]))
            for side in (batch.queries, batch.passages)
        ]
    )


def show_shares(arguments: argparse.Namespace, cache: str) -> None:
    run = Run(arguments, arguments.batch_size, cache)
    keeping, again = (Chunks(run.model, run.sides, None, memory) for memory in (1e12, 0.0))
    kept, recomputed, floors, tokens, places = [], [], [], 0, 0
    with run.tables:
        for index in range(1 + arguments.steps):  # in turns; the first step finds nothing ready
            kept.append(run.step(keeping, index))
            recomputed.append(run.step(again, index))
            floors.append(run.products(run.sampler[0, index]))
            counts = keeping.places_of(run.sampler[0, index])
            tokens, places = tokens + counts[0], places + counts[1]
    rate = run.rate()
    totals = [sum(laps) for laps in kept[1:]]
    parts = [sum(column) / sum(totals) for column in zip(*kept[1:], strict=True)]
    over = [total / (flop / rate) for total, flop in zip(totals, floors[1:], strict=True)]
    twice = [sum(laps) / total for laps, total in zip(recomputed[1:], totals, strict=True)]
    names = ("data", "encoder", "loss", "backward", "optimizer")
    print(f"{arguments.batch_size} pairs a step; padding {1 - tokens / places:.1%} of the places")
    step = statistics.median(totals)
    print(f"step {step:.2f} s, {arguments.batch_size / step:.1f} pairs/s")
    print("shares: " + ", ".join(f"{name} {part:.1%}" for name, part in zip(names, parts, strict=True)))
    print(f"step / bare products at torch.mm's {rate / 1e9:.0f} GFLOP/s: {statistics.median(over):.2f}")
    print(f"recomputing all / keeping all: {statistics.median(twice):.2f}")


def show_memory(arguments: argparse.Namespace, cache: str) -> None:
    run = Run(arguments, arguments.memory, cache)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with run.tables:
        chunks = Chunks(run.model, run.sides, None, arguments.activations * 1e9)
        seconds = sum(run.step(chunks, 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    state = sum(t.nbytes for of in run.optimizer.state.values() for t in of.values() if torch.is_tensor(t))
    weights = sum(parameter.nbytes for parameter in run.model.parameters())
    own = (state + weights) / 1e9
    print(
        f"{arguments.memory:,} pairs, a step of {seconds:.0f} s: the process grew by {peak - before:.2f} GB, "
        f"of which moments and gradients take {own:.2f}; {chunks.recomputed} chunks computed again"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument(
        "--model", help="a SentenceTransformer folder; default: the packaged all-MiniLM-L6-v2"
    )
    parser.add_argument("--data", choices=["ntrex", "lohelp"], default="ntrex")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory", type=int, help="pairs of one batch, whose peak memory is shown instead")
    parser.add_argument("--activations", type=float, default=0.5, help="gigabytes kept, with --memory")
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, model {arguments.model or 'MiniLM'}, {arguments.data}\n"
    )
    with tempfile.TemporaryDirectory() as cache:
        (show_memory if arguments.memory else show_shares)(arguments, cache)


if __name__ == "__main__":
    main()
