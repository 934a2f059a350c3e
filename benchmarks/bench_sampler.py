"""Batches a second: HybridSampler beside sentence-transformers' sampler, a torch DataLoader and memcpy.

    pytest benchmarks/bench_sampler.py -s

Every comparison first asserts that the contenders deliver the same thing, then times them in turns. Printed
are medians and how many times the first contender's time the others need; below 1 they are the faster ones.
"""

from __future__ import annotations

import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hybridfast import HybridSampler, info_nce
from hybridfast.encoder.loading import train_tokenizer

GROUPS, LANGUAGES, PLAN_BATCH = 10_000_000, 2, 8192
TEXT_BATCH = 1024

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


def compare(
    benchmark: Any, section: str, contenders: dict[str, tuple[Callable[[], object], int]], rounds: int
) -> None:
    """Times contenders, name -> (function, pairs it takes), in turns; the first one is ours."""
    gc.collect()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}

    def turn() -> None:
        for name, (take, pairs) in contenders.items():
            clock = time.perf_counter()
            take()
            seconds[name].append((time.perf_counter() - clock) / pairs)

    benchmark.pedantic(turn, rounds=rounds, warmup_rounds=1)
    medians = {name: 1e9 * float(np.median(values[1:])) for name, values in seconds.items()}
    ours = next(iter(medians.values()))
    print(f"\n{section}; medians of {rounds} rounds")
    for name, nanoseconds in medians.items():
        print(f"  {name:<52} {nanoseconds:12.1f} ns a pair {nanoseconds / ours:9.2f} x")
        benchmark.extra_info[name] = nanoseconds


def forever(sampler: HybridSampler) -> Iterator[Any]:
    return chain.from_iterable(map(sampler.epoch, count()))


def drain(batches: Iterator[Any], n: int) -> Callable[[], None]:
    def take() -> None:
        for _ in islice(batches, n):
            pass

    return take


# --- planning with de-duplication, 10 M groups in 2 languages ----------------------------------------------


def passage_ids(kind: str) -> np.ndarray:
    """(GROUPS,) which passage each group has."""
    rng = np.random.default_rng(0)
    if kind == "unique":
        return np.arange(GROUPS)
    if kind == "5x":
        return rng.integers(0, GROUPS // 5, GROUPS)
    return rng.zipf(1.3, GROUPS)


def mixed_bits(ids: np.ndarray) -> np.ndarray:
    """Distinct well-spread uint64 for distinct ids (splitmix64's finaliser)."""
    x = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@pytest.fixture(scope="module", params=["unique", "5x", "zipf"])
def plan_tokens(request: pytest.FixtureRequest) -> SimpleNamespace:
    ids = passage_ids(request.param)
    hash_GL = mixed_bits(ids[:, None] * LANGUAGES + np.arange(LANGUAGES))
    return SimpleNamespace(
        kind=request.param,
        languages=["a", "b"],
        sources=["s"],
        token_ids=None,
        text_indptr=None,
        version_indptr=None,
        version_GL=np.arange(GROUPS * LANGUAGES, dtype=np.int32).reshape(GROUPS, LANGUAGES),
        source_G=np.zeros(GROUPS, np.int32),
        query_hash_V=mixed_bits(np.arange(GROUPS * LANGUAGES) + 2**41),
        passage_hash_V=hash_GL.ravel(),
        pad_id=0,
        fingerprint=request.param,
    )


def test_plan(benchmark: Any, plan_tokens: SimpleNamespace) -> None:
    """HybridSampler takes 64 batches a turn: the work of a window of batches falls on the first of them.

    sentence-transformers' rows are one language's pairs, 10 M. It is handed their hashes; neither making
    those nor its shuffle of all rows at the start of an epoch is timed. On Zipf's passages it slows down from
    batch to batch; these are its first.
    """
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    contenders = {}
    for alpha in (1.0, 0.5, 0.0):
        sampler = HybridSampler(plan_tokens, PLAN_BATCH, alpha=alpha, dedup="text", threads=0)
        for batch in islice(sampler.epoch(0), 4):
            kept = batch.groups.numpy()[~batch.flagged.numpy()]
            versions = plan_tokens.version_GL[batch.groups, batch.passage_languages]
            hashes = plan_tokens.passage_hash_V[versions][~batch.flagged.numpy()]
            assert len(np.unique(kept)) == len(np.unique(hashes)) == len(kept)
        name = f"HybridSampler, one thread, alpha={alpha}"
        contenders[name] = drain(forever(sampler), 64), 64 * PLAN_BATCH
    theirs = NoDuplicatesBatchSampler(
        Sized(["query", "passage"], GROUPS),
        PLAN_BATCH,
        drop_last=True,
        generator=torch.Generator(),
        precompute_hashes=True,
    )
    passages = plan_tokens.passage_hash_V[::LANGUAGES]
    theirs._row_hashes = np.stack([mixed_bits(np.arange(GROUPS) + 2**40), passages], 1).view(np.int64)
    batches = iter(theirs)
    assert len(np.unique(passages[next(batches)])) == PLAN_BATCH
    contenders["sentence-transformers NoDuplicates, hashed"] = drain(batches, 1), PLAN_BATCH
    section = (
        f"plan and de-duplicate 10 M groups x 2 languages, {plan_tokens.kind} passages, batch {PLAN_BATCH}"
    )
    compare(benchmark, section, contenders, 9)


class Sized:
    """As much of a datasets.Dataset as a sampler with hashes looks at."""

    def __init__(self, column_names: list[str], rows: int) -> None:
        self.column_names, self.rows = column_names, rows

    def __len__(self) -> int:
        return self.rows


def test_first_batch_and_resume(benchmark: Any, plan_tokens: SimpleNamespace) -> None:
    """Construction, its first batch, and a resume at batch 1,000,000 of an epoch of 2,000,000."""
    if plan_tokens.kind != "unique":
        pytest.skip("once is enough")
    times = defaultdict(list)

    def start() -> None:
        clock = time.perf_counter()
        sampler = HybridSampler(plan_tokens, PLAN_BATCH, dedup="text")
        times["construction"].append(time.perf_counter() - clock)
        clock = time.perf_counter()
        batches = sampler.epoch(0)
        next(batches)
        times["first batch after construction"].append(time.perf_counter() - clock)
        batches.close()

    benchmark.pedantic(start, rounds=9, warmup_rounds=1)
    far = HybridSampler(plan_tokens, 1024, dedup="text", batches_per_epoch=2_000_000)
    for epoch in range(1, 8):
        clock = time.perf_counter()
        batches = far.epoch(epoch, start=1_000_000)
        next(batches)
        times["resume at batch 1,000,000 (of another epoch)"].append(time.perf_counter() - clock)
        batches.close()
    for name, seconds in times.items():
        print(f"\n{name}: median {1e3 * np.median(seconds):.1f} ms")


# --- plan, gather and pad real text ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_tokens() -> SimpleNamespace:
    """NTREX's sentences and their successors in 11 languages, 25 times over.

    Tokenized with 32,000 byte pairs learnt from them, which gives lengths like those of XLM-R's tokenizer.
    Repeated to 48,375 groups (about 0.15 GB of ids), so that the text does not lie in the processor's caches.
    """
    folder = Path(os.environ.get("HYBRIDFAST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "ntrex"
    if not folder.is_dir():
        pytest.skip(f"no data set at {folder}; set HYBRIDFAST_DATA")
    languages = sorted(file.stem for file in folder.glob("??.txt"))
    lines = {name: (folder / f"{name}.txt").read_text("utf-8").splitlines() for name in languages}
    groups, copies = 1935, 25
    texts = [
        text
        for g in range(groups)
        for name in languages
        for text in (f"Query: {lines[name][g]}", f"Passage: {lines[name][g + 1]}")
    ]
    rows = [encoding.ids for encoding in train_tokenizer(texts, 32_000).encode_batch(texts)]
    lengths = np.tile([len(row) for row in rows], copies)
    versions = groups * len(languages) * copies
    return SimpleNamespace(
        languages=languages,
        sources=["ntrex"],
        token_ids=np.tile(np.fromiter(chain.from_iterable(rows), np.int32), copies),
        text_indptr=np.concatenate([[0], np.cumsum(lengths)]),
        version_indptr=2 * np.arange(versions + 1),
        version_GL=np.arange(versions, dtype=np.int32).reshape(-1, len(languages)),
        source_G=np.zeros(groups * copies, np.int32),
        passage_hash_V=mixed_bits(np.arange(versions)),
        pad_id=0,
        fingerprint="ntrex",
    )


class Pairs(Dataset):
    """The (query, passage) ids of a key (group, query language, passage language)."""

    def __init__(self, tokens: SimpleNamespace) -> None:
        self.tokens = tokens

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        tokens, (group, query_language, passage_language) = self.tokens, key
        query = tokens.version_indptr[tokens.version_GL[group, query_language]]
        passage = tokens.version_indptr[tokens.version_GL[group, passage_language]] + 1
        return (
            tokens.token_ids[tokens.text_indptr[query] : tokens.text_indptr[query + 1]],
            tokens.token_ids[tokens.text_indptr[passage] : tokens.text_indptr[passage + 1]],
        )


def collate(rows: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, torch.Tensor]]:
    sides = []
    for texts in zip(*rows, strict=True):
        ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
        mask = np.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = text
            mask[i, : len(text)] = 1
        sides.append({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
    return sides


def same_texts(left: Any, right: Any) -> bool:
    return all(torch.equal(left[name], right[name]) for name in ("input_ids", "attention_mask"))


def test_text(benchmark: Any, text_tokens: SimpleNamespace) -> None:
    """The DataLoaders are handed the planned rows, whose drawing is not timed.

    memcpy copies the bytes of 40 batches' ids and masks from one place to another.
    """
    contenders = {}
    for threads in (0, 2):
        sampler = HybridSampler(text_tokens, TEXT_BATCH, threads=threads)
        contenders[f"HybridSampler, {threads} threads"] = drain(forever(sampler), 40), 40 * TEXT_BATCH

    planned = list(islice(HybridSampler(text_tokens, TEXT_BATCH).epoch(0), 40))
    arrays = [
        t.numpy() for batch in planned for side in (batch.queries, batch.passages) for t in side.values()
    ]
    targets = [np.empty_like(array) for array in arrays]

    def copy() -> None:
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)

    contenders["memcpy of the same bytes"] = copy, 40 * TEXT_BATCH

    keys = [torch.stack([b.groups, b.query_languages, b.passage_languages], 1).tolist() for b in planned]
    for workers in (0, 2, 4):
        loader = DataLoader(
            Pairs(text_tokens),
            batch_sampler=keys,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for expected, (queries, passages) in zip(planned, loader, strict=True):
            assert same_texts(expected.queries, queries)
            assert same_texts(expected.passages, passages)
        contenders[f"DataLoader, {workers} workers"] = (
            lambda loader=loader: [None for _ in loader],
            40 * TEXT_BATCH,
        )
    compare(benchmark, f"plan, gather and pad {TEXT_BATCH} pairs of NTREX text", contenders, 9)


# --- a training loop ---------------------------------------------------------------------------------------


STEPS = 50  # in a row; four times, so that a 99th percentile is not the longest wait


def test_step_never_waits(benchmark: Any, text_tokens: SimpleNamespace) -> None:
    """A static model of 256 dimensions at batch 4,096: how long each step waits for its batch.

    Beside it the same loop over a list of the same batches: what the scheduler alone does to this thread.
    """
    torch.manual_seed(0)
    embedding = torch.nn.EmbeddingBag(32_000, 256, mode="mean")
    optimizer = torch.optim.Adam(embedding.parameters(), lr=2e-3)
    sampler = HybridSampler(text_tokens, 4096, layout="flat", prefetch=8)
    waits, cpu, steps = defaultdict(list), defaultdict(list), []

    def train(name: str, batches: Iterator[Any]) -> None:
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        for batch in batches:
            got = time.perf_counter()
            waits[name].append(got - begin)
            cpu[name].append(time.thread_time() - begin_cpu)
            queries, passages = embedding(*batch.queries.values()), embedding(*batch.passages.values())
            groups = batch.mask_groups
            loss = info_nce(queries, passages, query_groups=groups, passage_groups=groups)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            begin, begin_cpu = time.perf_counter(), time.thread_time()
            steps.append(begin - got)

    def both() -> None:
        batches = chain.from_iterable(sampler.epoch(epoch) for epoch in count())
        train("start", islice(batches, STEPS // 5))  # the ring fills
        for _ in range(4):
            train("HybridSampler", islice(batches, STEPS))
            train("list", iter([sampler[0, i] for i in range(STEPS)]))

    benchmark.pedantic(both, rounds=1)
    step = np.median(steps)
    late, taken = (sampler.stats()[name] for name in ("late", "batches"))
    print(f"\nstep: median {1e3 * step:.1f} ms; {late} of {taken} batches were not ready")
    for name in ("HybridSampler", "list"):
        for clock, values in (("wall", waits[name]), ("CPU", cpu[name])):
            middle, high = np.quantile(values, [0.5, 0.99])
            print(
                f"  {name:<14} {clock:>4}: median {1e3 * middle:.3f} ms, "
                f"99th percentile {1e3 * high:.3f} ms = {100 * high / step:.2f} % of a step"
            )
