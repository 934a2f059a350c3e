"""Rows a second from files to token ids, and what memory that takes.

    python benchmarks/bench_corpus.py                     # 1 M rows
    python benchmarks/bench_corpus.py --large 50000000    # and the memory of so many
    python benchmarks/bench_corpus.py --rows 0 --groups 100000000    # a sampler alone, of so many groups

Rows are of 8 + 24 words, drawn as often as they stand in the embedded corpus, or in the text files of a
folder (--text); a share (--rare) is of two of them in one, which hardly come again, as a large corpus has
ever new words. A parallel item has a row in each of the languages. Our own steps and those of `datasets` run
in processes of their own, of which there are --repeats; a figure is their median, but memory their largest
RssAnon, so pages of mapped files are not in it. A sampler is made of mapped files, once with their pages in
memory as far as it has room and once without; its token ids are the hole of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WORDS = {"query": 8, "passage": 24}
BATCH = 90_000
DISTINCT = 900_000
PAPER = 400_000_000  # rows, about
VOCABULARY = 30_000


# --- rows --------------------------------------------------------------------------------------------------


def word_counts(text: str | None) -> dict[str, Counter[str]]:
    """How often each word stands in each language's text."""
    counts: dict[str, Counter[str]] = {}
    if text is None:
        from hybridfast.data import cldr

        for row in cldr.training_rows():
            if row["lang"] not in ("th", "zh"):  # which write no blanks between words
                words = (row["query"] + " " + row["passage"]).split()
                counts.setdefault(row["lang"], Counter()).update(words)
    else:
        for path in sorted(Path(text).iterdir()):
            if path.is_file():
                words = path.read_text(encoding="utf-8", errors="ignore").split()
                counts[f"l{len(counts)}"] = Counter(words)
    return {name: words for name, words in sorted(counts.items()) if len(words) > 100}


def batches(
    rows: int, counts: dict[str, Counter[str]], rare: float, languages: int = 9
) -> Iterator[pa.RecordBatch]:
    """Rows of items in so many languages. All ids differ; texts come again after DISTINCT rows."""
    names = list(counts)[:languages]
    rng = np.random.default_rng(0)
    tables = []
    for name in names:
        # What JSON would escape is left out: the lines are put together as they are.
        words = {w: n for w, n in counts[name].items() if '"' not in w and "\\" not in w and w.isprintable()}
        weight = np.fromiter(words.values(), float)
        tables.append((pa.array(words), np.cumsum(weight) / weight.sum()))
    made: list[dict[str, pa.Array]] = []
    for start in range(0, rows, BATCH):
        number_B = np.arange(start, start + BATCH)
        language_B = number_B % len(names)
        if start < DISTINCT:
            columns = {"lang": pa.array(names).take(pa.array(language_B))}
            for column, width in WORDS.items():
                texts = np.empty(BATCH, object)
                for i, (words, cumulative) in enumerate(tables):
                    mine = language_B == i
                    drawn = np.searchsorted(cumulative, rng.random(int(mine.sum()) * width))
                    drawn_words = words.take(pa.array(np.minimum(drawn, len(words) - 1)))
                    is_rare = rng.random(len(drawn)) < rare
                    halves = (
                        words.take(pa.array(rng.integers(len(words), size=is_rare.sum()))) for _ in "ab"
                    )
                    drawn_words = pc.replace_with_mask(
                        drawn_words, pa.array(is_rare), pc.binary_join_element_wise(*halves, "")
                    )
                    indptr = pa.array(np.arange(0, len(drawn) + 1, width, dtype=np.int32))
                    lists = pa.ListArray.from_arrays(indptr, drawn_words)
                    texts[mine] = pc.binary_join(lists, " ").to_numpy(zero_copy_only=False)
                columns[column] = pa.array(texts, pa.string())
            made.append(columns)
        # BATCH is a multiple of 9: a row's language is that of the row whose texts it has.
        ids = pa.array(number_B // len(names)).cast(pa.string())
        batch = pa.record_batch({"id": ids, **made[start // BATCH % len(made)]})
        yield batch.slice(0, min(BATCH, rows - start))


def write(folder: Path, rows: int, words: tuple[dict[str, Counter[str]], float], *, parquet: bool) -> None:
    """rows.jsonl and, if asked for, rows.parquet."""
    columns = None
    with open(folder / "rows.jsonl", "wb") as file:
        for batch in batches(rows, *words):
            parts: list[Any] = []
            for i, name in enumerate(batch.schema.names):
                parts += [f'{", " if i else "{"}"{name}": "', batch.column(i), '"']
            lines = pc.binary_join_element_wise(*parts[:-1], '"}\n', "")
            file.write(memoryview(lines.buffers()[2])[: lines.buffers()[2].size])
            if parquet:
                columns = columns or pq.ParquetWriter(folder / "rows.parquet", batch.schema)
                columns.write_batch(batch)
    if columns:
        columns.close()


def write_tokens(folder: Path, groups: int) -> None:
    """A cache as tokenizing leaves it, of groups in two languages, of which a tenth lacks one."""
    from hybridfast.data.presence import presence

    folder.mkdir()
    arrays: dict[str, Any] = {}

    def add(name: str, dtype: str, *shape: int) -> Any:
        path = folder / f"{name}.bin"
        with open(path, "wb") as file:
            file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        arrays[name] = (
            np.memmap(path, dtype, "r+", shape=shape) if path.stat().st_size else np.empty(shape, dtype)
        )
        return arrays[name]

    version_GL, source_G = add("version_GL", "int32", groups, 2), add("source_G", "int32", groups)
    item_G, rng, versions = add("item_G", "int32", groups), np.random.default_rng(0), 0
    for part in (slice(start, start + BATCH) for start in range(0, groups, BATCH)):
        item_G[part] = number_B = np.arange(part.start, min(part.stop, groups))
        source_G[part] = number_B * 3 // groups
        there_B2 = rng.random((len(number_B), 2)) >= 0.05
        there_B2[~there_B2.any(axis=1), 0] = True
        version_GL[part] = np.where(there_B2, versions - 1 + np.cumsum(there_B2).reshape(-1, 2), -1)
        versions += int(there_B2.sum())
    for name, size, step in (("version_indptr", versions, 2), ("text_indptr", 2 * versions, 8)):
        indptr = add(name, "int64", size + 1)
        for start in range(0, size + 1, BATCH):
            indptr[start : start + BATCH] = np.arange(start, min(start + BATCH, size + 1)) * step
    add("token_ids", "uint16", 16 * versions)  # a hole, as what follows, which no batch of here reads
    for name, dtype in (
        ("query_hash_V", "uint64"),
        ("passage_hash_V", "uint64"),
        ("negative_hash_H", "uint64"),
    ):
        add(name, dtype, 0 if name == "negative_hash_H" else versions)
    for name in ("group_V", "language_V"):
        add(name, "int32", versions)
    for name, values in presence(version_GL, source_G, 3, versions).items():
        add(name, values.dtype.name, *values.shape)[...] = values
    meta = {
        "fingerprint": "generated", "name": "generated", "settings": {}, "languages": ["de", "en"],
        "sources": ["a", "b", "c"], "items": groups, "pad_id": 0, "negatives_left_out": 0, "samples": [],
        "arrays": {name: [[*array.shape], array.dtype.name] for name, array in arrays.items()},
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    os.sync()  # pages that are not on the disk would stay in memory


# --- what is measured, each in a process of its own --------------------------------------------------------


class Peak:
    """The largest RssAnon while it watches, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes, self.base, self._ended = 0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.bytes = max(self.bytes, self._now())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def measured(step: str, folder: Path, *options: str) -> dict[str, float]:
    """What a step of STEPS says, run by itself."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _timed(work: Callable[[], int]) -> dict[str, float]:
    with Peak() as peak:
        begin, cpu = time.perf_counter(), sum(os.times()[:4])  # with that of ended children
        rows = work()
        seconds, cpu = time.perf_counter() - begin, sum(os.times()[:4]) - cpu
    return {"rows": rows, "seconds": seconds, "cpu": cpu, "peak": peak.bytes, "base": peak.base}


def read(folder: Path, name: str, memory: int) -> Any:
    from hybridfast import ParallelCorpus

    return ParallelCorpus.load(folder / name, cache_dir=folder / "cache", memory=memory)


def step_read(folder: Path, name: str, memory: int) -> dict[str, float]:
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    import hybridfast.data.corpus  # noqa: F401

    return _timed(lambda: len(read(folder, name, memory)))


def step_fingerprint(folder: Path, name: str, memory: int) -> dict[str, float]:
    corpus = read(folder, name, memory)
    return _timed(lambda: (corpus.fingerprint, len(corpus))[1])


def step_tokenize(folder: Path, name: str, memory: int) -> dict[str, float]:
    corpus, tokenizer = read(folder, name, memory), tokenizer_of(folder)
    corpus.fingerprint  # noqa: B018  is measured by itself
    return _timed(lambda: len(corpus.tokenize(tokenizer, cache_dir=folder / "cache", progress=False)))


def step_bare(folder: Path, name: str, memory: int) -> dict[str, float]:
    """The same texts, in lists of the same sizes, through the tokenizers library and no more."""
    corpus, tokenizer = read(folder, name, memory), tokenizer_of(folder)

    def work() -> int:
        for _, batch in corpus.parts("query", "passage", rows=16_384):
            for prefix, column in zip(("Query: ", "Passage: "), batch.columns, strict=True):
                texts = [prefix + text for text in column.to_pylist()]
                tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return len(corpus)

    return _timed(work)


def step_same(folder: Path, name: str, memory: int) -> dict[str, float]:
    """Ends in an error unless the ids in the cache, of every tenth batch, are those of the bare library."""
    corpus, tokenizer = read(folder, name, memory), tokenizer_of(folder)
    tokens = corpus.tokenize(tokenizer, cache_dir=folder / "cache", progress=False)
    rows = 0
    for number, (part, batch) in enumerate(corpus.parts("query", "passage", rows=1000)):
        if number % 10:
            continue
        for side, (prefix, longest) in enumerate((("Query: ", 64), ("Passage: ", 256))):
            texts = [prefix + text for text in batch.column(side).to_pylist()]
            wanted = tokenizer.encode_batch(texts, add_special_tokens=False)
            for row, encoding in enumerate(wanted, start=part.start):
                ids = tokens.text(int(tokens.version_indptr[row]) + side)
                assert ids.tolist() == encoding.ids[:longest], (row, prefix)
        rows += len(batch)
    return {"rows": rows}


def step_datasets(folder: Path, name: str, memory: int) -> dict[str, float]:
    """As its guides do it: transformers' tokenizer in a function for map."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(folder))

    def tokenized(rows: dict[str, list[str]]) -> dict[str, Any]:
        return {
            column: tokenizer(
                [f"{column.capitalize()}: {text}" for text in rows[column]], truncation=True, max_length=256
            )["input_ids"]
            for column in WORDS
        }

    def work() -> int:
        data = datasets.load_dataset(
            "json", data_files=str(folder / name), split="train", cache_dir=str(folder / "datasets")
        )
        return len(data.map(tokenized, batched=True, num_proc=2, remove_columns=[*WORDS]))

    return _timed(work)


def step_sampler(folder: Path, name: str, memory: int) -> dict[str, float]:
    """A sampler of a corpus in a cache and its first batch, and one that resumes, as a new process does."""
    from hybridfast import HybridSampler, TokenizedCorpus

    if name == "cold":
        for path in (folder / "tokens").iterdir():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    tokens = TokenizedCorpus.open(folder / "tokens")
    if name == "unprepared":  # as an earlier version's cache
        tokens = replace(tokens, items=0, source_indptr=None, order_G=None, present_LW=None)
    result: dict[str, float] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        begin, cpu = time.perf_counter(), time.process_time()
        done = work()
        result[what] = time.perf_counter() - begin
        result[f"{what}, CPU"] = time.process_time() - cpu
        return done

    sampler = timed("made", lambda: HybridSampler(tokens, 1024))
    batches = iter(sampler)
    timed("first batch", lambda: next(batches))
    state = {**sampler.state_dict(), "epoch": 2, "index": len(sampler) // 2}
    batches.close()

    def resumed() -> Any:
        again = HybridSampler(tokens, 1024)
        again.load_state_dict(state)
        return iter(again)

    batches = timed("resumed", resumed)
    timed("its first batch", lambda: next(batches))
    return result


def step_all(folder: Path, name: str, memory: int) -> dict[str, float]:
    tokenizer = tokenizer_of(folder)
    import hybridfast.data.corpus  # noqa: F401

    return _timed(
        lambda: len(
            read(folder, name, memory).tokenize(tokenizer, cache_dir=folder / "cache", progress=False)
        )
    )


STEPS = {
    "read": step_read, "fingerprint": step_fingerprint, "tokenize": step_tokenize, "bare": step_bare,
    "same": step_same,
    "datasets": step_datasets, "all": step_all, "sampler": step_sampler,
}  # fmt: skip


def tokenizer_of(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def machine() -> str:
    """Processor, cores and versions."""
    import datasets
    import tokenizers
    import transformers

    from hybridfast import build_info

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "a CPU")
    modules = [np, pa, tokenizers, transformers, datasets]
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}, "
        f"hybridfast {build_info()['version']}, "
        + ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=0, help="rows of a second file, for its memory")
    parser.add_argument("--large_tokenize", action="store_true", help="tokenize them, too")
    parser.add_argument("--groups", type=int, default=0, help="of a corpus that a sampler is made of")
    parser.add_argument("--text", help="a folder of text files, for their words")
    parser.add_argument("--rare", type=float, default=0.04, help="share of words that hardly come again")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where files are written; default a temporary one")
    parser.add_argument("--step", choices=STEPS, help="one measurement, as this program calls itself")
    parser.add_argument("--name", default="rows.jsonl")
    parser.add_argument("--memory", type=int, default=512 << 20)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.folder, options.name, options.memory)))
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.rows:
            compare(Path(folder), options)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.groups:
            sampler(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    from hybridfast.encoder.loading import train_tokenizer

    words = word_counts(options.text), options.rare
    write(folder, options.rows, words, parquet=True)
    first = next(batches(BATCH, *words))
    texts = [*first.column("query").to_pylist(), *first.column("passage").to_pylist()]
    train_tokenizer(texts, VOCABULARY).save(str(folder / "tokenizer.json"))
    size = (folder / "rows.jsonl").stat().st_size
    print(
        f"{options.rows:,} rows of 8 + 24 words, of which {options.rare:.0%} hardly come again, "
        f"{size / options.rows:.0f} bytes a row as JSON lines"
    )

    def speed(step: str, *more: str) -> dict[str, float]:
        runs = []
        for _ in range(options.repeats):
            for cache in ("cache", "datasets"):  # nothing is found there
                subprocess.run(["rm", "-rf", str(folder / cache)], check=True)
            runs.append(measured(step, folder, *more))
        seconds = statistics.median(run["seconds"] for run in runs)
        name = " ".join([step, *more])
        print(
            f"  {name:<28} {seconds:8.2f} s {options.rows / seconds:10,.0f} rows/s "
            f"{statistics.median(run['cpu'] for run in runs):8.2f} s of CPU "
            f"{max(run['peak'] for run in runs) / 1e6:8,.0f} MB, {runs[0]['base'] / 1e6:,.0f} before",
            flush=True,
        )
        return {"seconds": seconds}

    speed("read")
    speed("read", "--memory", "0")
    speed("read", "--name", "rows.parquet")
    speed("fingerprint")
    ours, rows = speed("tokenize"), measured("same", folder)["rows"]
    bare = speed("bare")
    print(
        f"  tokenize has {bare['seconds'] / ours['seconds']:.2f} of the bare library's speed; "
        f"the ids of {rows:,.0f} rows are the same"
    )
    ours, theirs = speed("all"), speed("datasets")
    print(
        f"  datasets' load_dataset and map take {theirs['seconds'] / ours['seconds']:.1f} x the time of all"
    )
    if options.large:
        memory(folder, options, words)


def sampler(folder: Path, options: argparse.Namespace) -> None:
    """Of a corpus in the cache: how long it takes until there is a sampler, and until there is a batch."""
    write_tokens(folder / "tokens", options.groups)
    print(f"{options.groups:,} groups in 2 languages; wall time, and that of the processor, in ms")
    for name in ("warm", "cold", "unprepared"):
        measured("sampler", folder, "--name", name if name == "cold" else "unprepared")  # which reads all
        runs = [measured("sampler", folder, "--name", name) for _ in range(options.repeats)]
        medians = {what: 1e3 * statistics.median(run[what] for run in runs) for what in runs[0]}
        figures = (
            f"{what} {medians[what]:.1f} ({medians[what + ', CPU']:.1f})"
            for what in medians
            if "," not in what
        )
        print(f"  {name}: {', '.join(figures)}", flush=True)


def memory(folder: Path, options: argparse.Namespace, words: tuple[dict[str, Counter[str]], float]) -> None:
    """Growth from few rows to many, both mapped; and what the paper's data would take."""
    (folder / "rows.parquet").unlink()
    runs: dict[str, list[dict[str, float]]] = {"read": [], "all": []}
    for rows in (options.rows, options.large):
        write(folder, rows, words, parquet=False)
        for step in runs if options.large_tokenize else ["read"]:
            subprocess.run(["rm", "-rf", str(folder / "cache")], check=True)
            run = measured(step, folder, "--memory", "0")
            kept = (file for file in (folder / "cache").rglob("*") if file.is_file())
            run["disk"] = sum(file.stat().st_size for file in kept)
            runs[step].append(run)
            print(
                f"  {step}, {rows:,} rows: {run['seconds']:.1f} s, peak {run['peak'] / 1e6:,.0f} MB, "
                f"of which {run['base'] / 1e6:,.0f} before; {run['seconds'] / rows * 1e6:.2f} us a row",
                flush=True,
            )
    for step, (small, large) in ((step, pair) for step, pair in runs.items() if pair):
        growth = (large["peak"] - small["peak"]) / (large["rows"] - small["rows"])
        scale, more = PAPER / large["rows"], PAPER - large["rows"]
        slower = large["seconds"] / large["rows"] / (small["seconds"] / small["rows"])
        print(
            f"  {step}: {growth:.2f} bytes a further row, {slower:.2f} x the time a row; {PAPER:,} rows: "
            f"{large['seconds'] * scale / 3600:.1f} h, peak {(large['peak'] + growth * more) / 1e9:.1f} GB, "
            f"{large['disk'] * scale / 1e9:.0f} GB on disk"
        )


if __name__ == "__main__":
    main()
