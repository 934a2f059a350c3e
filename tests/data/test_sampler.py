"""HybridSampler: what a batch holds, that only (seed, epoch, index) decide it, and how iteration ends."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast import Batch, HybridSampler, _core


@dataclass
class Tokens:
    """A synthetic TokenizedCorpus."""

    languages: list[str]
    sources: list[str]
    token_ids: np.ndarray | None
    text_indptr: np.ndarray | None
    version_indptr: np.ndarray | None
    version_GL: np.ndarray
    source_G: np.ndarray
    passage_hash_V: np.ndarray | None
    query_hash_V: np.ndarray | None = None
    item_G: np.ndarray | None = None
    negative_hash_H: np.ndarray | None = None
    pad_id: int = 0
    fingerprint: str = "synthetic"


def make_tokens(groups=1000, languages=3, sources=1, missing=0.0, negatives=0, copies=1, sorted_sources=True):
    """`missing`: share of absent versions; `copies`: groups to a passage; up to `negatives` a version."""
    rng = np.random.default_rng(0)
    present_GL = rng.random((groups, languages)) >= missing
    present_GL[np.arange(groups), rng.integers(0, languages, groups)] = True
    version_GL = np.full((groups, languages), -1, np.int32)
    version_GL[present_GL] = np.arange(present_GL.sum(), dtype=np.int32)
    group_V, language_V = np.nonzero(present_GL)
    version_indptr = np.concatenate([[0], np.cumsum(2 + rng.integers(0, negatives + 1, len(group_V)))])
    text_indptr = np.concatenate([[0], np.cumsum(rng.integers(1, 30, version_indptr[-1]))])
    source_G = rng.integers(0, sources, groups).astype(np.int32)
    if sorted_sources:
        source_G.sort()
    hash_GL = rng.integers(0, 2**64, (groups, languages), dtype=np.uint64)
    return Tokens(
        languages=[f"language{i}" for i in range(languages)],
        sources=[f"source{i}" for i in range(sources)],
        token_ids=rng.integers(1, 30_000, text_indptr[-1]).astype(np.int32),
        text_indptr=text_indptr.astype(np.int64),
        version_indptr=version_indptr.astype(np.int64),
        version_GL=version_GL,
        source_G=source_G,
        passage_hash_V=hash_GL[group_V // copies, language_V],
    )


def with_query_hashes(tokens, copies):
    """So many groups to a query."""
    group_V, language_V = np.nonzero(tokens.version_GL >= 0)
    hash_GL = np.random.default_rng(1).integers(0, 2**64, tokens.version_GL.shape, dtype=np.uint64)
    return replace(tokens, query_hash_V=hash_GL[group_V // copies, language_V])


def with_negative_hashes(tokens, share=0.5):
    """A share of the hard negatives are passages of some version."""
    rng = np.random.default_rng(2)
    count = len(tokens.text_indptr) - 1 - 2 * (len(tokens.version_indptr) - 1)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copied = rng.random(count) < share
    hashes[copied] = rng.choice(tokens.passage_hash_V, copied.sum())
    return replace(tokens, negative_hash_H=hashes)


def arrays_of(batch: Batch) -> dict[str, np.ndarray]:
    arrays = {
        name: getattr(batch, name).numpy() for name in ("groups", "query_languages", "passage_languages")
    }
    arrays |= {name: getattr(batch, name).numpy() for name in ("flagged", "mask_groups")}
    for name in ("queries", "passages", "negatives"):
        texts = getattr(batch, name)
        arrays |= {f"{name}.{key}": value.numpy() for key, value in (texts or {}).items()}
    if batch.negative_rows is not None:
        arrays["negative_rows"] = batch.negative_rows.numpy()
    return arrays


def assert_equal_batches(left: Batch, right: Batch) -> None:
    assert (left.epoch, left.index, left.mode) == (right.epoch, right.index, right.mode)
    left_arrays, right_arrays = arrays_of(left), arrays_of(right)
    assert left_arrays.keys() == right_arrays.keys()
    for name, array in left_arrays.items():
        np.testing.assert_array_equal(array, right_arrays[name], err_msg=name)


# A corpus that takes every path: sources out of order, missing versions, equal passages, hard negatives, and
# so few groups that passes end inside batches of 64.
RICH = {
    "groups": 700,
    "languages": 4,
    "sources": 3,
    "missing": 0.2,
    "negatives": 3,
    "copies": 3,
    "sorted_sources": False,
}
KINDS = [
    ("mixed", "mixed"),
    ("paired", "mixed"),
    ("same", "mixed"),
    ("mixed", "single"),
    ("paired", "single"),
]


@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [  # known answers published with Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, seed, expected):
    assert tuple(_core.philox(counter, seed)) == expected


@pytest.mark.parametrize(("cross", "sources"), KINDS)
@pytest.mark.parametrize("dedup", ["group", "text", None])
def test_rows_exist_and_fit_the_mode(cross, sources, dedup):
    tokens = make_tokens(**RICH)
    sampler = HybridSampler(tokens, 64, cross=cross, sources=sources, dedup=dedup)
    for batch in sampler.epoch(0):
        groups, q, p = (batch.groups.numpy(), batch.query_languages.numpy(), batch.passage_languages.numpy())
        assert (tokens.version_GL[groups, q] >= 0).all()
        assert (tokens.version_GL[groups, p] >= 0).all()
        if batch.mode == "mono":
            assert len({*q, *p}) == 1
        elif cross == "same":
            assert (q == p).all()
            assert len(set(q)) > 1
        else:
            assert (q != p).all()
            assert (len(set(zip(q, p, strict=True))) == 1) == (cross == "paired")
        assert (len(set(tokens.source_G[groups])) == 1) == (sources == "single")


@pytest.mark.parametrize(("cross", "sources"), KINDS)
@pytest.mark.parametrize("dedup", ["group", "text"])
def test_repeated_rows_are_flagged_and_masked(cross, sources, dedup):
    tokens = make_tokens(**RICH)
    sampler = HybridSampler(tokens, 64, cross=cross, sources=sources, dedup=dedup)
    for batch in sampler.epoch(0):
        groups, p = batch.groups.numpy(), batch.passage_languages.numpy()
        keys = [[group] for group in groups.tolist()]
        if dedup == "text":
            for row, passage in zip(
                keys, tokens.passage_hash_V[tokens.version_GL[groups, p]].tolist(), strict=True
            ):
                row.append(("text", passage))
        seen: dict[object, int] = {}
        for i, row in enumerate(keys):
            met = [seen[key] for key in row if key in seen]
            assert bool(batch.flagged[i]) == bool(met)
            assert (batch.mask_groups[met] == batch.mask_groups[i]).all()
            assert met or batch.mask_groups[i] in groups[: i + 1]
            seen.update((key, i) for key in row if key not in seen)


@pytest.mark.parametrize("cross", ["mixed", "same"])
@pytest.mark.parametrize("dedup", ["group", "text"])
def test_groups_of_one_item_are_one_to_a_batch(cross, dedup):
    """Three passages answer each question, as three groups: mostly they part, else the mask unites them."""
    tokens = make_tokens(groups=900, missing=0.2)
    tokens.item_G = (np.arange(900) % 300).astype(np.int32)
    sampler = HybridSampler(tokens, 128, cross=cross, dedup=dedup, alpha=0.5)
    flagged = 0
    for batch in sampler.epoch(0):
        items = tokens.item_G[batch.groups.numpy()]
        first = {}
        for row, item in enumerate(items.tolist()):
            repeats = item in first
            assert batch.flagged[row] == repeats
            assert batch.mask_groups[row] == (batch.mask_groups[first[item]] if repeats else item)
            first.setdefault(item, row)
        flagged += int(batch.flagged.sum())
    assert 0 < flagged < 0.02 * 128 * len(sampler)  # a blind draw of 128 of 900 has 16 % repeats


def test_no_item_array_and_one_of_every_group_are_the_same():
    tokens = make_tokens(groups=300)
    alone = replace(tokens, item_G=np.arange(300, dtype=np.int32))
    for left, right in zip(
        HybridSampler(tokens, 64).epoch(0), HybridSampler(alone, 64).epoch(0), strict=True
    ):
        assert_equal_batches(left, right)


@pytest.mark.parametrize("copies", [2, 300])
def test_equal_queries_are_no_negatives_of_each_other(copies):
    """Of 900 groups two, or a third of all, ask the same; 300 in a batch of 128 cannot part."""
    tokens = with_query_hashes(make_tokens(groups=900), copies)
    for batch in HybridSampler(tokens, 128, dedup="text", alpha=0.5).epoch(0):
        versions = tokens.version_GL[batch.groups.numpy(), batch.query_languages.numpy()]
        asked = tokens.query_hash_V[versions]
        answers = tokens.version_GL[batch.groups.numpy(), batch.passage_languages.numpy()]
        told = tokens.passage_hash_V[answers]
        masks = batch.mask_groups.numpy()
        equal = (asked[:, None] == asked) | (told[:, None] == told)
        np.testing.assert_array_equal(masks[:, None] == masks, closure(equal))
        if copies == 2:
            assert batch.flagged.sum() <= 1


def closure(related):
    """Who is related through others."""
    while True:
        further = (related @ related.astype(int)) > 0
        if (further == related).all():
            return related
        related = further


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("dedup", ["group", "text", None])
def test_hard_negatives_that_are_passages_of_the_batch_are_masked(dedup, world_size):
    """By their text, over the global batch. Three groups have a passage: its rows may be masked apart."""
    tokens = with_negative_hashes(make_tokens(groups=300, negatives=3, copies=3))
    samplers = [
        HybridSampler(tokens, 128, dedup=dedup, negatives=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    masked = left_out = 0
    for index in range(len(samplers[0])):
        parts = [sampler[0, index] for sampler in samplers]
        known = {}
        for part in parts:
            answers = tokens.version_GL[part.groups.numpy(), part.passage_languages.numpy()]
            for text, mask in zip(
                tokens.passage_hash_V[answers].tolist(), part.mask_groups.tolist(), strict=True
            ):
                known.setdefault(text, set()).add(mask)
        for part in parts:
            wanted = []
            answers = tokens.version_GL[part.groups.numpy(), part.passage_languages.numpy()]
            for row, version in enumerate(answers.tolist()):
                first, last = tokens.version_indptr[version : version + 2] - 2 * version
                for text in tokens.negative_hash_H[first : last - 2].tolist():
                    masks = known.get(text, {-1})
                    if len(masks) == 1:
                        wanted.append((row, *masks))
                    left_out += len(masks) > 1
            got = zip(part.negative_rows.tolist(), part.negative_mask_groups.tolist(), strict=True)
            assert list(got) == wanted
            masked += sum(mask >= 0 for _, mask in wanted)
    assert masked > 100
    assert (left_out == 0) == (dedup == "text")


def test_more_languages_than_a_byte_numbers():
    """And the most of all: 4,096 are a plan's limit."""
    tokens = make_tokens(groups=5, languages=300)
    batch = HybridSampler(tokens, 4, alpha=0.0, batches_per_epoch=50)[0, 0]
    assert_equal_batches(batch, HybridSampler(tokens, 4, alpha=0.0, batches_per_epoch=50, threads=0)[0, 0])
    seen = {
        language
        for batch in HybridSampler(tokens, 4, alpha=0.5, batches_per_epoch=200).epoch(0)
        for language in batch.query_languages.tolist()
    }
    assert max(seen) > 255
    with pytest.raises(ValueError, match="languages must be at most 4096 in one sampler, got 5000"):
        HybridSampler(make_tokens(groups=1, languages=5000), 1)


def test_languages_are_found_as_they_are_spelled():
    tokens = replace(make_tokens(), languages=["en", "zh-Hans", "de"])
    sampler = HybridSampler(tokens, 64, languages=["EN ", "zh_hans"], language_weights={"EN": 2})
    assert sampler.languages == ["en", "zh-Hans"]


def test_deduplication_leaves_flags_only_where_it_must():
    # Each passage belongs to 5 of 5,000 groups. 20 batches of 500 expect 20 * 500 * 499 / 2 * 4 / 4,999 =
    # 1,996 pairs of equal passages if drawn blindly. A window of 4 batches must keep what exceeds 4 of one.
    tokens = make_tokens(groups=5000, languages=1, copies=5)
    options = {"alpha": 1.0, "dedup": "text", "batches_per_epoch": 20}
    blind = sum(int(b.flagged.sum()) for b in HybridSampler(tokens, 500, dedup_window=1, **options).epoch(0))
    batches = list(HybridSampler(tokens, 500, dedup_window=4, **options).epoch(0))
    parted = sum(int(batch.flagged.sum()) for batch in batches)
    rows = np.concatenate([batch.groups.numpy() for batch in batches]).reshape(5, 2000)
    least = sum(np.maximum(np.bincount(window // 5) - 4, 0).sum() for window in rows)
    assert blind > 1500
    assert least <= parted <= least + 5


@pytest.mark.parametrize(("groups", "batch_size"), [(1000, 100), (1000, 96), (5000, 700), (4097, 4097)])
@pytest.mark.parametrize("dedup", ["group", "text"])
def test_every_row_once_per_pass(groups, batch_size, dedup):
    # One language, one stream: its rows must be whole passes over the groups, up to exchanges in windows of 4
    # batches. Both permutations occur: tables up to 4,096 groups and Feistel networks above.
    tokens = make_tokens(groups=groups, languages=1)
    batches = 12 * -(-groups // batch_size)
    sampler = HybridSampler(tokens, batch_size, alpha=1.0, dedup=dedup, batches_per_epoch=batches)
    window = 4 * batch_size
    rows = np.concatenate([batch.groups.numpy() for batch in sampler.epoch(0)])
    whole = len(rows) // window * window
    counts = Counter(rows[:whole].tolist())
    assert set(counts.values()) <= {whole // groups, -(-whole // groups)}
    assert len(counts) == groups


@pytest.mark.parametrize(("cross", "sources"), KINDS)
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_text_is_the_corpus_text(cross, sources, layout):
    tokens = make_tokens(**RICH)
    sampler = HybridSampler(
        tokens, 64, cross=cross, sources=sources, layout=layout, negatives=2, batches_per_epoch=8
    )

    def token_ids(text: int) -> list[int]:
        return tokens.token_ids[tokens.text_indptr[text] : tokens.text_indptr[text + 1]].tolist()

    def rows(texts: dict[str, torch.Tensor]) -> list[list[int]]:
        ids = texts["input_ids"]
        if layout == "flat":
            return [row.tolist() for row in ids.tensor_split(texts["offsets"][1:])]
        mask = texts["attention_mask"]
        lengths = mask.sum(1).tolist()
        assert max(lengths) == ids.shape[1]
        for row, row_mask, length in zip(ids, mask, lengths, strict=True):
            assert row_mask[:length].all()
            assert not row_mask[length:].any()
            assert (row[length:] == tokens.pad_id).all()
        return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    for batch in sampler.epoch(1):
        groups = batch.groups.numpy()
        queries = tokens.version_GL[groups, batch.query_languages.numpy()]
        passages = tokens.version_GL[groups, batch.passage_languages.numpy()]
        first, last = tokens.version_indptr[passages], tokens.version_indptr[passages + 1]
        assert rows(batch.queries) == [token_ids(t) for t in tokens.version_indptr[queries]]
        assert rows(batch.passages) == [token_ids(t + 1) for t in first]
        chosen = {}
        for row, text in zip(batch.negative_rows.tolist(), rows(batch.negatives), strict=True):
            chosen.setdefault(row, []).append(text)
        for i in range(len(groups)):
            own = [token_ids(t) for t in range(first[i] + 2, last[i])]
            assert len(chosen.get(i, [])) == min(2, len(own))
            assert all(own.count(text) >= chosen[i].count(text) for text in chosen.get(i, []))


@pytest.mark.parametrize(("cross", "sources"), KINDS)
@pytest.mark.parametrize("options", [{"dedup": "text"}, {"dedup": "group"}, {"length_buckets": 3}])
def test_batches_depend_on_nothing_but_seed_epoch_index(cross, sources, options):
    tokens = make_tokens(**RICH)
    options = {"cross": cross, "sources": sources, "negatives": 2, "draw": "stratified", "seed": 7, **options}
    reference = HybridSampler(tokens, 64, threads=0, **options)
    expected = list(reference.epoch(3))
    for threads, prefetch in [(1, 1), (2, 2), (8, 64), (2, 1)]:
        sampler = HybridSampler(tokens, 64, threads=threads, prefetch=prefetch, **options)
        got = list(sampler.epoch(3))
        assert len(got) == len(expected) == len(sampler)
        for left, right in zip(expected, got, strict=True):
            assert_equal_batches(left, right)
    for index in reversed(range(len(expected))):  # random access, in an order iteration never takes
        assert_equal_batches(expected[index], reference[3, index])
    restarted = list(pickle.loads(pickle.dumps(reference)).epoch(3, start=5))
    for left, right in zip(expected[5:], restarted, strict=True):
        assert_equal_batches(left, right)


@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize(("cross", "sources"), KINDS)
def test_ranks_concatenate_to_the_global_batch(world_size, cross, sources):
    tokens = make_tokens(**RICH)
    options = {"cross": cross, "sources": sources, "dedup": "text", "layout": "flat", "negatives": 1}
    whole = HybridSampler(tokens, 64, **options)
    ranks = [HybridSampler(tokens, 64, rank=r, world_size=world_size, **options) for r in range(world_size)]
    for batch, *parts in zip(whole.epoch(0), *(rank.epoch(0) for rank in ranks), strict=True):
        for name in ("groups", "query_languages", "passage_languages", "flagged", "mask_groups"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        for name in ("queries", "passages", "negatives"):
            ids = torch.cat([getattr(part, name)["input_ids"] for part in parts])
            assert torch.equal(ids, getattr(batch, name)["input_ids"])


def test_seeds_and_epochs_differ():
    tokens = make_tokens()
    batches = {
        (seed, epoch): HybridSampler(tokens, 64, alpha=1.0, seed=seed, languages=["language0"])[
            epoch, 0
        ].groups
        for seed in (0, 1, 2**63)
        for epoch in (0, 1, 2**31)
    }
    distinct = {tuple(groups.tolist()) for groups in batches.values()}
    assert len(distinct) == len(batches)


def test_one_language_and_pure_modes():
    tokens = make_tokens(languages=1)
    assert {batch.mode for batch in HybridSampler(tokens, 100, alpha=1.0).epoch(0)} == {"mono"}
    assert {batch.mode for batch in HybridSampler(make_tokens(), 100, alpha=0.0).epoch(0)} == {"cross"}
    with pytest.raises(ValueError, match="two or more languages"):
        HybridSampler(tokens, 100, alpha=0.5)


def test_every_option_has_its_field():
    """Options reach the native side by name: one that is no field there would be without effect."""
    fields = vars(_core.PlanOptions).keys() | vars(_core.GatherOptions).keys()
    options = set(inspect.signature(HybridSampler).parameters)
    assert options - fields == {"tokens", "alpha", "threads", "prefetch", "pin_memory"}
    named_here = {"language_names", "source_names"}
    assert {name for name in fields if not name.startswith("_")} - options == named_here


def test_plan_without_text():
    tokens = make_tokens()
    tokens.token_ids = tokens.text_indptr = tokens.version_indptr = None
    batch = HybridSampler(tokens, 64)[0, 0]
    assert batch.queries is None
    assert len(batch.groups) == 64


def test_pinned_batches_hold_the_same_ids():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="pin_memory=True needs CUDA"):
            HybridSampler(make_tokens(), 8, pin_memory=True)
        return
    pinned = HybridSampler(make_tokens(), 8, pin_memory=True)[0, 0]
    assert all(tensor.is_pinned() for side in (pinned.queries, pinned.passages) for tensor in side.values())
    assert_equal_batches(pinned, HybridSampler(make_tokens(), 8)[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1001}, "batch_size 1001 cannot be filled from language 'language0': 1000 groups"),
        ({"batch_size": 10, "world_size": 3}, "multiple of world_size 3, got 10"),
        ({"rank": 2, "world_size": 2}, "rank must be an integer in"),
        ({"alpha": 1.5}, "alpha must be in .*got 1.5"),
        ({"alpha": float("nan")}, "alpha must be in .*got nan"),
        ({"alpha": [(0, 0.5), (10, 1.5)], "batches_per_epoch": 20}, r"alpha must be in .*got 1\.5"),
        ({"alpha": [(10, 0.5), (5, 1.0)]}, "alpha must be .step, alpha. points in rising order"),
        ({"alpha": []}, "alpha must be .step, alpha. points in rising order"),
        ({"cross": "both"}, "cross must be one of .*got 'both'"),
        ({"dedup": "query"}, "dedup must be one of"),
        ({"languages": ["language0", "xx"]}, "languages must be some of"),
        ({"languages": []}, "languages must be some of"),
        ({"language_weights": {"language0": 0}}, r"language_weights\['language0'\] must be positive, got 0"),
        ({"source_weights": {"other": 1.0}}, "source_weights must map some of"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"seed": -1}, "seed must be an integer"),
        ({"prefetch": 0}, "prefetch must be an integer"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HybridSampler(make_tokens(), **{"batch_size": 100, **options})


def test_a_language_without_data_is_named():
    tokens = make_tokens()
    tokens.version_GL[:, 1] = -1
    with pytest.raises(ValueError, match="no group has a version in 'language1'"):
        HybridSampler(tokens, 100)
    assert HybridSampler(tokens, 100, languages=["language0", "language2"]).coverage() == {
        "language0": 1.0,
        "language2": 1.0,
    }


@pytest.mark.parametrize("threads", [0, 2])
def test_state_resumes_at_the_next_batch(threads):
    tokens = make_tokens()
    sampler = HybridSampler(tokens, 64, threads=threads)
    batches = iter(sampler.epoch(2))
    for _ in range(5):
        next(batches)
    state = sampler.state_dict()
    assert (state["epoch"], state["index"]) == (2, 5)
    resumed = HybridSampler(tokens, 64, threads=threads)
    resumed.load_state_dict(state)
    for left, right in zip(batches, resumed, strict=True):
        assert_equal_batches(left, right)
    assert (resumed.state_dict()["epoch"], resumed.state_dict()["index"]) == (3, 0)
    for _ in zip(
        range(len(sampler)), sampler.epoch(4), strict=True
    ):  # stops at the last, without StopIteration
        state = sampler.state_dict()
    assert (state["epoch"], state["index"]) == (5, 0)
    for other in (HybridSampler(tokens, 32), HybridSampler(make_tokens(groups=999), 64, seed=1)):
        with pytest.raises(ValueError, match="another corpus or of a sampler with other options"):
            other.load_state_dict(state)


@pytest.mark.parametrize(("array", "value"), [("source_G", 5), ("version_GL", 10**6)])
def test_arrays_that_contradict_each_other(array, value):
    tokens = make_tokens()
    getattr(tokens, array)[17] = value
    with pytest.raises(ValueError, match=rf"{array}.* {value}, not one of"):
        HybridSampler(tokens, 64)


@pytest.mark.parametrize("options", [{"dedup": "text"}, {"length_buckets": 2}, {"cross": "paired"}, {}])
def test_versions_that_vanish_are_an_error(options):
    # As when another process rewrites the mapped file in place: no look-up may leave its array.
    tokens = make_tokens(missing=0.1)
    sampler = HybridSampler(tokens, 64, **options)
    tokens.version_GL[:] = -1
    for index in range(8):
        with pytest.raises(RuntimeError, match="version_GL changed after the sampler was made"):
            sampler[0, index]


def test_without_deduplication_a_batch_may_exceed_its_groups():
    tokens = make_tokens(groups=100)
    batch = HybridSampler(tokens, 250, alpha=1.0, dedup=None)[0, 0]
    assert set(np.bincount(batch.groups)) == {2, 3}  # two passes and a half


def test_arrays_outlive_the_sampler():
    # Held batches keep their memory: none of it may be recycled for a later batch.
    sampler = HybridSampler(make_tokens(), 64, prefetch=2)
    held = list(sampler.epoch(0))
    again = [sampler[0, i] for i in range(len(sampler))]
    sampler.close()
    del sampler
    for left, right in zip(held, again, strict=True):
        assert_equal_batches(left, right)


def test_close_ends_iterations():
    sampler = HybridSampler(make_tokens(), 10)
    batches = iter(sampler.epoch(0))
    next(batches)
    with sampler:
        pass
    assert list(batches) == []
    with pytest.raises(ValueError, match="closed"):
        sampler.epoch(0)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_in_its_turn(threads):
    # The group whose offsets are spoilt first comes in some batch; those before it must still be delivered.
    tokens = make_tokens()
    sampler = HybridSampler(tokens, 50, threads=threads, prefetch=16)
    good = list(sampler.epoch(0))
    spoilt = good[30].groups[0].item()
    first = next(i for i, batch in enumerate(good) if spoilt in batch.groups)
    for version in tokens.version_GL[spoilt]:
        tokens.text_indptr[tokens.version_indptr[version] + 1] = 2**60
    batches = sampler.epoch(0)
    for expected in good[:first]:
        assert_equal_batches(expected, next(batches))
    with pytest.raises(RuntimeError, match=r"text_indptr: text .* spans tokens"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("damage", ["truncated", "rewritten", "removed"])
def test_a_changed_corpus_file_is_an_error(tmp_path, damage):
    tokens = make_tokens()
    path = tmp_path / "token_ids.bin"
    tokens.token_ids.tofile(path)
    mapped = replace(tokens, token_ids=np.memmap(path, np.int32, mode="r"))
    sampler = HybridSampler(mapped, 64)
    assert_equal_batches(sampler[0, 0], HybridSampler(tokens, 64)[0, 0])
    if damage == "truncated":
        os.truncate(path, 4096)
    elif damage == "rewritten":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    with pytest.raises(RuntimeError, match=r"corpus file .*token_ids\.bin"):
        sampler[0, 1]
    with pytest.raises(RuntimeError, match=r"corpus file .*token_ids\.bin"):
        list(sampler.epoch(0))


def test_predefined_batches_come_as_given():
    tokens = make_tokens(**RICH)
    source = HybridSampler(tokens, 32)
    rows = [torch.stack([b.groups, b.query_languages, b.passage_languages], 1) for b in source.epoch(0)]
    batches = torch.stack(rows).to(torch.int32).numpy()
    sampler = HybridSampler(tokens, 32, batches=batches)
    assert len(sampler) == len(batches)
    for expected, got in zip(source.epoch(0), sampler.epoch(0), strict=True):
        assert_equal_batches(expected, got)
    batches[3, 5] = np.argwhere(tokens.version_GL < 0)[0][[0, 1, 1]]
    with pytest.raises(ValueError, match=r"batches\[3\] names a version"):
        HybridSampler(tokens, 32, batches=batches)


def test_length_buckets_cut_padding_and_keep_their_window():
    # One language, one stream: windows of 4 batches hold the same rows with and without buckets.
    tokens = make_tokens(groups=4000, languages=1)
    options = {"alpha": 1.0, "batches_per_epoch": 40}
    plain, bucketed = (
        HybridSampler(tokens, 100, **options),
        HybridSampler(tokens, 100, length_buckets=4, **options),
    )
    rows = [np.stack([b.groups.numpy() for b in sampler.epoch(0)]) for sampler in (plain, bucketed)]
    for window in range(0, 40, 4):
        assert set(rows[0][window : window + 4].ravel()) == set(rows[1][window : window + 4].ravel())
    assert bucketed.stats()["padding_share"] < 0.85 * plain.stats()["padding_share"]


def test_sources_get_their_share():
    tokens = make_tokens(groups=4000, languages=1, sources=4)
    sizes = np.bincount(tokens.source_G)

    def shares(**options):
        sampler = HybridSampler(tokens, 100, alpha=1.0, batches_per_epoch=400, **options)
        groups = np.concatenate([batch.groups.numpy() for batch in sampler.epoch(0)])
        return np.bincount(tokens.source_G[groups]) / len(groups)

    # Mixed sources are dealt exactly; drawn ones (400 draws) have a standard deviation below 0.025.
    roots = np.sqrt(sizes) / np.sqrt(sizes).sum()
    explicit = np.array([1, 2, 3, 4]) / 10
    weights = {f"source{i}": i + 1.0 for i in range(4)}
    np.testing.assert_allclose(shares(), sizes / sizes.sum(), atol=1e-3)
    np.testing.assert_allclose(shares(temperature=2.0), roots, atol=1e-3)
    np.testing.assert_allclose(shares(source_weights=weights), explicit, atol=1e-3)
    np.testing.assert_allclose(shares(source_weights=weights, sources="single"), explicit, atol=0.1)
    with pytest.raises(ValueError, match=r"source 'source3': .* groups"):
        HybridSampler(tokens, 1500, alpha=1.0, source_weights=weights | {"source3": 100.0})


def test_pairs_that_cannot_fill_a_batch_are_left_out():
    tokens = make_tokens(groups=1000, languages=3)
    tokens.version_GL[30:, 2] = -1  # 30 groups in the third language
    options = {"alpha": 0.0, "cross": "paired"}
    with pytest.warns(UserWarning, match="language pair 'language2-language1': 30 groups"):
        sampler = HybridSampler(tokens, 50, **options)
    assert all(2 not in batch.query_languages for batch in sampler.epoch(0))
    assert sampler.coverage() == {"language0": 1.0, "language1": 1.0, "language2": 0.03}


def chi_square_z(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic in standard deviations from its mean."""
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def modes_of(sampler: HybridSampler, epoch: int = 0) -> np.ndarray:
    return np.array([batch.mode == "mono" for batch in sampler.epoch(epoch)])


def test_modes_are_binomial():
    # 20,000 batches at alpha 0.3: the share's standard deviation is 0.0032, the lag-1 correlation's 0.0071.
    sampler = HybridSampler(make_tokens(), 8, alpha=0.3, batches_per_epoch=20_000)
    mono = modes_of(sampler)
    assert abs(mono.mean() - 0.3) < 4 * 0.0032
    assert abs(np.corrcoef(mono[:-1], mono[1:])[0, 1]) < 4 * 0.0071
    assert abs(np.corrcoef(mono, modes_of(sampler, 1))[0, 1]) < 4 * 0.0071
    assert sampler.stats()["modes"]["mono"] == mono.sum() + modes_of(sampler, 1).sum()


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.47])
def test_stratified_blocks_hold_exactly_alpha(alpha):
    sampler = HybridSampler(make_tokens(), 8, alpha=alpha, draw="stratified", batches_per_epoch=1000)
    blocks = modes_of(sampler).reshape(10, 100)
    assert (blocks.sum(1) == round(100 * alpha)).all()
    assert len({tuple(block) for block in blocks}) == 10  # in another order each time


def test_alpha_schedules():
    # From all cross to all mono over two epochs, as points and as a function; steps go on across epochs.
    tokens = make_tokens()
    points = HybridSampler(tokens, 8, alpha=[(0, 0.0), (2000, 1.0)], batches_per_epoch=1000)
    function = HybridSampler(tokens, 8, alpha=lambda step: step / 2000, batches_per_epoch=1000)
    shares = []
    for epoch in (0, 1):
        mono = modes_of(points, epoch)
        assert (mono == modes_of(function, epoch)).all()
        shares += [mono[:500].mean(), mono[500:].mean()]
    np.testing.assert_allclose(shares, [0.125, 0.375, 0.625, 0.875], atol=0.08)  # deviations below 0.022
    with pytest.raises(ValueError, match="alpha must be in"):
        HybridSampler(tokens, 8, alpha=lambda step: step)


@pytest.mark.parametrize("cross", ["mixed", "paired", "same"])
@pytest.mark.parametrize("weights", [None, {"language0": 3.0, "language2": 2.0}])
def test_languages_follow_their_weights(cross, weights):
    # About 2,000 draws each for batches (mono, paired), 16,000 for rows (mixed, same).
    sampler = HybridSampler(
        make_tokens(languages=4), 8, cross=cross, language_weights=weights, batches_per_epoch=4000
    )
    counts = {"mono": np.zeros((4, 4)), "other": np.zeros((4, 4))}
    for batch in sampler.epoch(0):
        whole = batch.mode == "mono" or cross == "paired"
        pairs = torch.stack([batch.query_languages, batch.passage_languages])[
            :, : 1 if whole else None
        ].numpy()
        np.add.at(counts["mono" if batch.mode == "mono" else "other"], tuple(pairs), 1)
    weight_L = np.array([3, 1, 2, 1.0]) if weights else np.ones(4)
    share_L = weight_L / weight_L.sum()
    same = np.diag(share_L)
    if cross == "paired":
        different = np.outer(share_L, share_L) * (1 - np.eye(4))
        different /= different.sum()
    else:  # the query's language, then the passage's among the others
        different = np.outer(share_L, share_L) * (1 - np.eye(4)) / (1 - share_L[:, None])
    for name, expected in (("mono", same), ("other", same if cross == "same" else different)):
        cells = expected > 0
        assert counts[name][~cells].sum() == 0
        assert abs(chi_square_z(counts[name][cells], expected[cells] * counts[name].sum())) < 4


POWERS = sorted({n for k in range(12, 21) for n in (2**k - 1, 2**k, 2**k + 1)})


@pytest.mark.parametrize("sizes", [range(1, 4097), POWERS], ids=["all up to 4096", "around powers of two"])
def test_permutations_are_bijections(sizes):
    for n in sizes:
        assert (np.bincount(_core.permutation(n, seed=n), minlength=n) == 1).all()


def dependence(permutations, n: int) -> list[float]:
    """z of chi-squares: pairs of elements 1 to 8 apart, element by position, their parities."""
    lagged, placed, parity = np.zeros((8, 16, 16)), np.zeros((32, 32)), np.zeros((2, 2))
    positions = np.arange(n)
    for elements in permutations:
        cell = elements.astype(np.int64) * 16 // n
        for lag in range(1, 9):
            lagged[lag - 1] += np.bincount(cell[:-lag] * 16 + cell[lag:], minlength=256).reshape(16, 16)
        finer = elements.astype(np.int64) * 32 // n
        placed += np.bincount(positions * 32 // n * 32 + finer, minlength=1024).reshape(32, 32)
        parity += np.bincount(positions % 2 * 2 + elements % 2, minlength=4).reshape(2, 2)
    share_16, share_32, share_2 = (np.bincount(positions * k // n) / n for k in (16, 32, 2))
    share_2 = np.bincount(positions % 2) / n
    return [chi_square_z(counts, counts.sum() * np.outer(share_16, share_16)) for counts in lagged] + [
        chi_square_z(placed, placed.sum() * np.outer(share_32, share_32)),
        chi_square_z(parity, parity.sum() * np.outer(share_2, share_2)),
    ]


@pytest.mark.parametrize(("n", "keys"), [(4096, 250), (4097, 250), (5000, 200), (65_536, 16), (262_144, 4)])
def test_permutations_look_random(n, keys):
    # About a million elements each. The same statistics of NumPy's shuffle stay within 4 for these seeds, and
    # those of an affine permutation, which is a bijection too, are in the thousands.
    rng = np.random.default_rng(0)
    control = dependence((rng.permutation(n) for _ in range(keys)), n)
    ours = dependence((_core.permutation(n, seed=5, pass_=key) for key in range(keys)), n)
    affine = dependence(((np.arange(n) * 1_000_003 + key) % n for key in range(keys)), n)
    assert max(map(abs, control)) < 4
    assert max(map(abs, ours)) < 4
    assert max(affine) > 1000


@given(
    corpus=st.fixed_dictionaries(
        {
            "groups": st.integers(40, 300),
            "languages": st.integers(2, 5),
            "sources": st.integers(1, 3),
            "missing": st.sampled_from([0.0, 0.1]),
            "copies": st.integers(1, 4),
            "sorted_sources": st.booleans(),
        }
    ),
    options=st.fixed_dictionaries(
        {
            "batch_size": st.integers(1, 8).map(lambda n: 2 * n),
            "alpha": st.sampled_from([0.0, 0.4, 1.0]),
            "cross": st.sampled_from(["mixed", "paired", "same"]),
            "draw": st.sampled_from(["bernoulli", "stratified"]),
            "dedup": st.sampled_from(["group", "text", None]),
            "dedup_window": st.integers(1, 16),
            "length_buckets": st.integers(1, 4),
            "temperature": st.sampled_from([1.0, 3.0]),
            "seed": st.integers(0, 2**64 - 1),
        }
    ),
    epoch=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_batch_of_any_plan(corpus, options, epoch, data):
    tokens = make_tokens(**corpus)
    sampler = HybridSampler(tokens, threads=1, **options)
    index = data.draw(st.integers(0, len(sampler) - 1))
    batch = sampler[epoch, index]
    assert_equal_batches(batch, next(sampler.epoch(epoch, start=index)))
    groups = batch.groups.numpy()
    for languages in (batch.query_languages.numpy(), batch.passage_languages.numpy()):
        assert (tokens.version_GL[groups, languages] >= 0).all()
    if options["dedup"]:
        assert len(set(groups[~batch.flagged.numpy()])) == (~batch.flagged).sum()
        assert len(set(batch.mask_groups.tolist())) <= (~batch.flagged).sum()
    halves = [HybridSampler(tokens, rank=rank, world_size=2, **options)[epoch, index] for rank in (0, 1)]
    assert torch.equal(torch.cat([half.mask_groups for half in halves]), batch.mask_groups)


# What follows runs in processes of its own, which must end by themselves within a minute.
PRELUDE = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from test_sampler import HybridSampler, assert_equal_batches, make_tokens
sampler = HybridSampler(make_tokens(), 16, threads=2, prefetch=4, seed=3)
def threads():
    return len(os.listdir("/proc/self/task"))
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", PRELUDE + script]
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [*command, here, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert err == ""
    return out


def test_break_leaves_nothing_behind():
    out = finish(
        start(
            """
import resource
next(sampler.epoch(0))
def rounds(n):
    for _ in range(n):
        for batch in sampler.epoch(0):
            if batch.index == 3:
                break
rounds(200)
before, memory = threads(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rounds(2000)
print(threads() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
"""
        )
    )
    more_threads, more_kilobytes = map(int, out.split())
    assert more_threads == 0
    assert more_kilobytes < 4096  # 2,000 iterations' stacks alone would be gigabytes


def test_fork_with_a_live_sampler():
    out = finish(
        start(
            """
import warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork with threads
batches = sampler.epoch(0)
seen = [next(batches) for _ in range(3)]
def go_on(name):
    rest = list(batches)
    for batch in seen + rest:
        assert_equal_batches(batch, sampler[0, batch.index])
    assert len(seen) + len(rest) == len(sampler) == len(list(sampler.epoch(1)))
    os.write(1, name.encode() + b" ")  # in one piece, beside the other process's
child = os.fork()
if child == 0:
    go_on("child")
    sys.exit(0)
go_on("parent")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
        )
    )
    assert sorted(out.split()) == ["child", "parent"]


def test_interpreter_exit_with_live_iterations():
    out = finish(start("held = [sampler.epoch(e) for e in range(3)]; print(next(held[1]).index)"))
    assert out == "0\n"


def test_ctrl_c():
    process = start(
        """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
batches = 0
try:
    print("ready", flush=True)
    while True:
        for batch in sampler:
            batches += 1
except KeyboardInterrupt:
    print(batches > 0, threads(), flush=True)
del batch
sampler.close()
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert finish(process).startswith("True")


def test_kill_and_resume(tmp_path):
    # The process writes its state, as a trainer does, and what it got; it is killed three times in mid-epoch.
    script = """
import json, pathlib
state, log = pathlib.Path(sys.argv[2]), open(sys.argv[3], "a")
if state.exists():
    sampler.load_state_dict(json.loads(state.read_text()))
while True:
    for batch in sampler:
        print(batch.epoch, batch.index, batch.groups.sum().item(), file=log, flush=True)
        temporary = state.with_suffix(".new")
        temporary.write_text(json.dumps(sampler.state_dict()))
        temporary.replace(state)
        time.sleep(0.002)
"""
    state, log = tmp_path / "state.json", tmp_path / "log.txt"
    for delay in (0.25, 0.1, 0.31):
        log.touch()
        before = log.stat().st_size
        process = start(script, str(state), str(log))
        while log.stat().st_size == before:
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(delay)
        process.kill()
        process.communicate()
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines() if line.count(" ") == 2]
    sampler = HybridSampler(make_tokens(), 16, seed=3)
    steps = [epoch * len(sampler) + index for epoch, index, _ in lines]
    assert steps[0] == 0
    # Going on repeats at most the batch that was delivered but not yet in the saved state.
    assert set(np.diff(steps)) <= {0, 1}
    for epoch, index, total in lines[:: max(1, len(lines) // 50)]:
        assert sampler[epoch, index].groups.sum() == total


# --- second texts, vectors of groups, kinds of pairs mixed in a batch --------------------------------------


def second_language(sampler, tokens, epoch, index, row, group, side, own):
    """By definition: Philox word `side` of purpose 7, scaled to the other languages of the group."""
    present = [
        i
        for i, name in enumerate(sampler.languages)
        if tokens.version_GL[group, tokens.languages.index(name)] >= 0
    ]
    others = [language for language in present if language != own]
    word = _core.philox((7 | row << 3, epoch, index, 0), sampler.seed)[side]
    return others[word * len(others) >> 32] if others else own


@pytest.mark.parametrize("cross", ["mixed", "paired", "same"])
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_second_texts_are_the_groups_in_other_languages(cross, layout):
    tokens = make_tokens(**{**RICH, "missing": 0.5})
    options = {"cross": cross, "layout": layout, "negatives": 1, "seed": 9, "batches_per_epoch": 8}
    options |= {"languages": ["language2", "language0", "language3"]}
    plain = HybridSampler(tokens, 32, **options)
    samplers = {
        name: HybridSampler(tokens, 32, second=name, **options) for name in ("queries", "passages", "both")
    }
    alone = 0
    for batch, *seconds in zip(plain.epoch(2), *(s.epoch(2) for s in samplers.values()), strict=True):
        assert batch.second_queries is batch.second_passages is batch.second_query_languages is None
        for name, got in zip(samplers, seconds, strict=True):
            assert_equal_batches(got, batch)
            asked = {"queries": "query", "passages": "passage"}
            for side, (texts, language) in enumerate(asked.items()):
                languages = getattr(got, f"second_{language}_languages")
                if name not in (texts, "both"):
                    assert languages is getattr(got, f"second_{texts}") is None
                    continue
                own = getattr(got, f"{language}_languages").tolist()
                groups = got.groups.tolist()
                wanted = [
                    second_language(plain, tokens, 2, got.index, row, group, side, own[row])
                    for row, group in enumerate(groups)
                ]
                assert languages.tolist() == wanted
                alone += sum(one == other for one, other in zip(wanted, own, strict=True))
                columns = [tokens.languages.index(plain.languages[language]) for language in wanted]
                versions = tokens.version_GL[groups, columns]
                first = tokens.version_indptr[versions] + side
                ids = [
                    tokens.token_ids[slice(*tokens.text_indptr[text : text + 2])].tolist() for text in first
                ]
                held = getattr(got, f"second_{texts}")
                if layout == "flat":
                    rows = [row.tolist() for row in held["input_ids"].tensor_split(held["offsets"][1:])]
                else:
                    lengths = held["attention_mask"].sum(1).tolist()
                    rows = [row[:n].tolist() for row, n in zip(held["input_ids"], lengths, strict=True)]
                assert rows == ids
    assert alone > 0  # of groups in one language, which monolingual batches have


@pytest.mark.parametrize("dedup", ["text", "group"])
def test_rows_that_share_a_passage_in_some_language_are_masked_alike(dedup):
    """Three groups have each passage; with dedup="text", no text is both a positive and a negative."""
    tokens = make_tokens(groups=300, missing=0.2, copies=3)
    options = {"dedup": dedup, "alpha": 0.3, "negatives": 1}
    united = 0
    sampler, halves = (
        [
            HybridSampler(tokens, 64, second="both", rank=rank, world_size=world, **options)
            for rank in range(world)
        ]
        for world in (1, 2)
    )
    for batch, plain in zip(sampler[0].epoch(0), HybridSampler(tokens, 64, **options).epoch(0), strict=True):
        groups, masks = batch.groups.numpy(), batch.mask_groups.numpy()
        for name in ("groups", "query_languages", "passage_languages", "flagged"):
            assert torch.equal(getattr(batch, name), getattr(plain, name))
        told = [
            tokens.passage_hash_V[tokens.version_GL[groups, languages.numpy()]]
            for languages in (batch.passage_languages, batch.second_passage_languages)
        ]
        equal = sum((one[:, None] == other for one in told for other in told), np.eye(64, dtype=bool)) > 0
        if dedup == "group":
            np.testing.assert_array_equal(masks, plain.mask_groups)
            continue
        np.testing.assert_array_equal(masks[:, None] == masks, closure(equal))
        united += (masks != plain.mask_groups.numpy()).sum()
        parts = [half[0, batch.index].mask_groups for half in halves]
        assert torch.equal(torch.cat(parts), batch.mask_groups)
    assert (united > 0) == (dedup == "text")


def test_second_languages_are_uniform():
    # 4 other languages, 16,000 rows: what the row has is no part of it.
    sampler = HybridSampler(make_tokens(languages=5), 16, alpha=0.0, second="both", batches_per_epoch=1000)
    counts = np.zeros((2, 5, 5))
    together = np.zeros((5, 5))
    for batch in sampler.epoch(0):
        for side, (own, second) in enumerate(
            (
                (batch.query_languages, batch.second_query_languages),
                (batch.passage_languages, batch.second_passage_languages),
            )
        ):
            np.add.at(counts[side], (own.numpy(), second.numpy()), 1)
        np.add.at(
            together, tuple((batch.second_query_languages.numpy(), batch.second_passage_languages.numpy())), 1
        )
    off = ~np.eye(5, dtype=bool)
    for side in counts:
        assert np.diag(side).sum() == 0
        expected = (side.sum(1, keepdims=True) / 4 * off)[off]
        assert abs(chi_square_z(side[off], expected)) < 4
    assert (together > 0).all()


@pytest.mark.parametrize("threads", [0, 3])
def test_vectors_of_groups(tmp_path, threads):
    tokens = make_tokens(**RICH)
    rng = np.random.default_rng(0)
    small = rng.standard_normal((700, 5)).astype(np.float16)
    mapped = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=(700, 96))
    mapped[:] = rng.standard_normal((700, 96))
    mapped.flush()
    sampler = HybridSampler(tokens, 64, group_vectors=[small, mapped], threads=threads)
    plain = HybridSampler(tokens, 64)
    assert sampler.fingerprint == plain.fingerprint
    for batch, without in zip(sampler.epoch(0), plain.epoch(0), strict=True):
        assert_equal_batches(batch, without)
        assert without.group_vectors == ()
        for whole, got in zip((small, mapped), batch.group_vectors, strict=True):
            assert torch.equal(got, torch.from_numpy(whole[batch.groups.numpy()]))
    half = HybridSampler(tokens, 64, group_vectors=[mapped], rank=1, world_size=2)[0, 3]
    assert torch.equal(half.group_vectors[0], sampler[0, 3].group_vectors[1][32:])
    with pytest.raises(ValueError, match=r"group_vectors\[1\] must be \(700, K\), got \(699, 5\)"):
        HybridSampler(tokens, 64, group_vectors=[small, small[1:]])
    with pytest.raises(
        ValueError, match=r"group_vectors\[0\] must be C-contiguous float32 or float16, got f"
    ):
        HybridSampler(tokens, 64, group_vectors=[small.astype(np.float64)])
    with pytest.raises(ValueError, match=r"group_vectors\[0\] must be C-contiguous .* in another order"):
        HybridSampler(tokens, 64, group_vectors=[np.asfortranarray(small)])
    os.truncate(tmp_path / "vectors", 4096)
    with pytest.raises(RuntimeError, match=r"corpus file was changed .*vectors \("):
        sampler[0, 1]


def mixed_rows(tokens, seed, alphas, batch_size, weights):
    """By definition, of one cell that deals its groups in place: (group, query, passage) of every position.

    Which pairs are of one language is a number of the kinds' purpose, with the cell's number and one.
    """
    groups = np.flatnonzero((tokens.version_GL >= 0).sum(1) > 1)
    passes = [
        _core.permutation(len(groups), seed, pass_=i)
        for i in range(1 + len(alphas) * batch_size // len(groups))
    ]
    dealt = groups[np.concatenate(passes)]
    for position in range(len(alphas) * batch_size):
        group = dealt[position]
        present = np.flatnonzero(tokens.version_GL[group] >= 0)
        kind = _core.philox((0 | 1 << 3, 0, position, 0), seed)
        words = _core.philox((3, 0, position, 0), seed)
        same = (kind[0] << 21 | kind[1] >> 11) * 2.0**-53 < alphas[position // batch_size]
        if weights is None:
            query = words[0] * len(present) >> 32
            passage = words[2] * (len(present) - 1) >> 32
            passage += passage >= query
            yield group, present[query], present[query if same else passage]
        else:
            of = np.array(weights)[present]
            number = (words[0] << 21 | words[1] >> 11) * 2.0**-53
            query = min(np.searchsorted(np.cumsum(of), number * of.sum(), side="right"), len(of) - 1)
            other = of * (np.arange(len(of)) != query)
            number = (words[2] << 21 | words[3] >> 11) * 2.0**-53
            passage = min(np.searchsorted(np.cumsum(other), number * other.sum(), side="right"), len(of) - 1)
            yield group, present[query], present[query if same else passage]


@pytest.mark.parametrize("alpha", [0.3, [(0, 0.0), (19, 1.0)]])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 2.0]])
def test_mixed_rows_are_those_of_the_definition(alpha, weights):
    """40 batches of 32 from 300 groups, some in one language, without de-duplication: as they are dealt."""
    tokens = make_tokens(groups=300, missing=0.3)
    named = weights and {f"language{i}": weight for i, weight in enumerate(weights)}
    options = {"mix": "rows", "dedup": None, "batches_per_epoch": 20, "seed": 5, "language_weights": named}
    sampler = HybridSampler(tokens, 32, alpha=alpha, **options)
    alphas = [alpha] * 20 if alpha == 0.3 else [index / 19 for index in range(20)]
    wanted = np.array([*mixed_rows(tokens, 5, alphas, 32, weights)]).reshape(20, 32, 3)
    for batch, rows in zip(sampler.epoch(0), wanted, strict=True):
        got = torch.stack([batch.groups, batch.query_languages, batch.passage_languages], 1).numpy()
        np.testing.assert_array_equal(got, rows)
        assert batch.mode == "rows"
    assert sampler.stats()["modes"] == {"mono": 0, "cross": 0, "same": 0, "rows": 20}


@pytest.mark.parametrize("sources", ["mixed", "single"])
@pytest.mark.parametrize("options", [{"dedup": "text"}, {"length_buckets": 3}])
def test_mixed_rows_of_any_plan(sources, options):
    """Windows, sources, a course of alpha over two epochs: shares, threads, random access and ranks."""
    tokens = make_tokens(**RICH)
    options = {"mix": "rows", "sources": sources, "batches_per_epoch": 60, **options}
    options["alpha"] = [(0, 0.0), (119, 1.0)]
    sampler = HybridSampler(tokens, 32, threads=0, **options)
    threaded = HybridSampler(tokens, 32, threads=3, **options)
    halves = [HybridSampler(tokens, 32, rank=rank, world_size=2, **options) for rank in (0, 1)]
    shares = []
    for epoch in (0, 1):
        for batch, other in zip(sampler.epoch(epoch), threaded.epoch(epoch), strict=True):
            assert_equal_batches(batch, other)
            groups = batch.groups.numpy()
            for languages in (batch.query_languages, batch.passage_languages):
                assert (tokens.version_GL[groups, languages.numpy()] >= 0).all()
            shares.append((batch.query_languages == batch.passage_languages).double().mean().item())
        for index in (59, 7, 30):
            batch = sampler[epoch, index]
            assert_equal_batches(batch, threaded[epoch, index])
            parts = [half[epoch, index] for half in halves]
            assert torch.equal(torch.cat([part.passage_languages for part in parts]), batch.passage_languages)
    assert shares[0] == 0
    # 960 rows a quarter: deviations below 0.016, and rows change places within windows.
    np.testing.assert_allclose(np.reshape(shares, (4, 30)).mean(1), [0.125, 0.375, 0.625, 0.875], atol=0.08)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="mix='rows' needs cross='mixed', got 'paired'"):
        HybridSampler(make_tokens(), 8, mix="rows", cross="paired")
    with pytest.raises(ValueError, match="mix 'rows' needs two or more languages"):
        HybridSampler(make_tokens(languages=1), 8, mix="rows")
    with pytest.raises(ValueError, match=r"second must be one of .*got 'all'"):
        HybridSampler(make_tokens(), 8, second="all")
    with pytest.raises(ValueError, match="alpha below 1 needs two or more languages"):
        HybridSampler(make_tokens(languages=1), 8, alpha=[(0, 1.0), (5000, 1.0), (9000, 0.5)])


def test_second_texts_of_predefined_batches_and_of_plans_without_text():
    tokens = make_tokens(**RICH)
    source = HybridSampler(tokens, 32, dedup=None, second="both")
    rows = [torch.stack([b.groups, b.query_languages, b.passage_languages], 1) for b in source.epoch(0)]
    again = HybridSampler(tokens, 32, dedup=None, second="both", batches=torch.stack(rows).int().numpy())
    bare = HybridSampler(
        replace(tokens, token_ids=None, text_indptr=None, version_indptr=None), 32, dedup=None, second="both"
    )
    for batches in zip(source.epoch(0), again.epoch(0), bare.epoch(0), strict=True):
        for name in ("second_query_languages", "second_passage_languages"):
            for batch in batches[1:]:
                assert torch.equal(getattr(batch, name), getattr(batches[0], name))
        for name in ("second_queries", "second_passages"):
            assert torch.equal(getattr(batches[0], name)["input_ids"], getattr(batches[1], name)["input_ids"])
            assert getattr(batches[2], name) is None


def mapped_flags(path: Path) -> list[str]:
    """What the system was told of each mapping of a file."""
    found, of = [], ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            of = line
        elif line.startswith("VmFlags") and of.endswith(str(path)):
            found.append(line)
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux")
@pytest.mark.parametrize("free", [0, 1 << 40])
def test_what_does_not_fit_into_memory_is_read_without_what_stands_around_it(tmp_path, monkeypatch, free):
    tokens = make_tokens(**RICH)
    vectors = np.random.default_rng(0).random((700, 3), np.float32)
    tokens.token_ids.tofile(tmp_path / "token_ids.bin")
    vectors.tofile(tmp_path / "vectors.bin")
    mapped = replace(tokens, token_ids=np.memmap(tmp_path / "token_ids.bin", np.int32, mode="r"))
    mapped_vectors = np.memmap(tmp_path / "vectors.bin", np.float32, mode="r", shape=(700, 3))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    expected = HybridSampler(tokens, 64, group_vectors=[vectors])
    sampler = HybridSampler(mapped, 64, group_vectors=[mapped_vectors])
    assert_equal_batches(sampler[0, 3], expected[0, 3])
    assert torch.equal(sampler[0, 3].group_vectors[0], expected[0, 3].group_vectors[0])
    for name in ("token_ids.bin", "vectors.bin"):
        flags = mapped_flags(tmp_path / name)
        assert len(flags) == (1 if free else 2)  # the caller's keeps its read-ahead
        assert sum(" rr" in line for line in flags) == (0 if free else 1)
    os.truncate(tmp_path / "token_ids.bin", 4096)
    with pytest.raises(RuntimeError, match=r"corpus file .*token_ids\.bin"):
        sampler[0, 1]
