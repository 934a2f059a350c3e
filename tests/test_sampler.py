"""HybridSampler: what a batch holds, that only (seed, epoch, index) decide it, and how iteration ends."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

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
            assert not met or batch.mask_groups[i] in batch.mask_groups[met]
            assert met or batch.mask_groups[i] == groups[i]
            seen.update((key, i) for key in row if key not in seen)


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


def test_plan_without_text():
    tokens = make_tokens()
    tokens.token_ids = tokens.text_indptr = tokens.version_indptr = None
    batch = HybridSampler(tokens, 64)[0, 0]
    assert batch.queries is None
    assert len(batch.groups) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1001}, "batch_size 1001 cannot be filled from language 'language0': 1000 groups"),
        ({"batch_size": 10, "world_size": 3}, "multiple of world_size 3, got 10"),
        ({"rank": 2, "world_size": 2}, "rank must be an integer in"),
        ({"alpha": 1.5}, "alpha must be in .*got 1.5"),
        ({"alpha": float("nan")}, "alpha must be in .*got nan"),
        ({"cross": "both"}, "cross must be one of .*got 'both'"),
        ({"dedup": "query"}, "dedup must be one of"),
        ({"languages": ["language0", "xx"]}, "languages must be different ones of"),
        ({"languages": []}, "languages must be different ones of"),
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
    for other in (HybridSampler(tokens, 32), HybridSampler(make_tokens(groups=999), 64, seed=1)):
        with pytest.raises(ValueError, match="another corpus or of a sampler with other options"):
            other.load_state_dict(state)


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
