"""Bits of the groups in each language: what they are, and that plans of them are those of the arrays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from data.test_sampler import RICH, assert_equal_batches, make_tokens

from hybridfast import HybridSampler
from hybridfast.data import presence as module
from hybridfast.data.presence import presence


def stored(tokens):
    """The same corpus with what a cache has of it."""
    versions = len(tokens.version_indptr) - 1
    made = presence(tokens.version_GL, tokens.source_G, len(tokens.sources), versions)
    return SimpleNamespace(**{**tokens.__dict__, **made})


@pytest.mark.parametrize("groups", [1, 63, 64, 65, 700])
@pytest.mark.parametrize("sorted_sources", [True, False])
@pytest.mark.parametrize("chunk", [64, 1 << 17])
def test_bits_say_which_versions_there_are(groups, sorted_sources, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    tokens = make_tokens(groups, 3, sources=4, missing=0.4, sorted_sources=sorted_sources)
    made = presence(tokens.version_GL, tokens.source_G, 4, tokens.version_GL.max() + 1)
    order_G = np.argsort(tokens.source_G, kind="stable")
    if (np.diff(tokens.source_G) >= 0).all():
        assert made["order_G"].shape == (0,)
    else:
        np.testing.assert_array_equal(made["order_G"], order_G)
    sizes_S = np.bincount(tokens.source_G, minlength=4)
    np.testing.assert_array_equal(made["source_indptr"], np.append(0, np.cumsum(sizes_S)))
    bits_LP = np.unpackbits(made["present_LW"].view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits_LP[:, :groups].T, tokens.version_GL[order_G] >= 0)
    assert not bits_LP[:, groups:].any()


@pytest.mark.parametrize("cross", ["mixed", "paired", "same"])
@pytest.mark.parametrize("languages", [None, ["language2", "language0"]])
@pytest.mark.parametrize("corpus", [RICH, {"groups": 5000, "languages": 3, "missing": 0.3}, {"groups": 4100}])
def test_a_plan_reads_bits_in_place_of_versions(corpus, languages, cross):
    tokens = make_tokens(**corpus)
    options = {"cross": cross, "languages": languages, "seed": 3}
    expected, sampler = HybridSampler(tokens, 64, **options), HybridSampler(stored(tokens), 64, **options)
    assert (len(sampler), sampler.coverage()) == (len(expected), expected.coverage())
    for index in (0, 1, len(sampler) - 1):
        assert_equal_batches(sampler[0, index], expected[0, index])


def test_a_stored_plan_does_not_read_the_table():
    tokens = stored(make_tokens(**RICH))
    tokens.source_G = np.full_like(tokens.source_G, 99)  # would be refused
    tokens.items, tokens.item_G = len(tokens.source_G), np.zeros_like(tokens.source_G)
    expected = HybridSampler(make_tokens(**RICH), 64)
    assert_equal_batches(HybridSampler(tokens, 64)[0, 5], expected[0, 5])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("order_G", 2**31 - 1, "order_G holds 2147483647, not one of 700 groups"),
        ("present_LW", 2**64 - 1, "present_LW has bits behind the last group"),
        ("source_indptr", 10**9, "source_indptr must ascend from 0 to 700"),
    ],
)
def test_what_is_damaged_is_no_place_in_memory(name, value, message):
    tokens = stored(make_tokens(**RICH))
    getattr(tokens, name)[:] = value
    with pytest.raises((ValueError, RuntimeError), match=message):
        HybridSampler(tokens, 64)[0, 0]


def test_bits_that_vanish_are_an_error():
    # As when another process rewrites the mapped file in place: no look-up may leave its array.
    tokens = stored(make_tokens(**RICH))
    sampler = HybridSampler(tokens, 64)
    tokens.present_LW[:] = 0
    with pytest.raises(RuntimeError, match="present_LW changed after the sampler was made"):
        sampler[0, 0]


@pytest.mark.parametrize("shape", [{"present_LW": (4, 10)}, {"order_G": (699,)}])
def test_arrays_of_another_corpus_are_refused(shape):
    tokens = stored(make_tokens(**RICH))
    for name, of in shape.items():
        setattr(tokens, name, np.zeros(of, getattr(tokens, name).dtype))
        with pytest.raises(ValueError, match=f"{name} must have"):
            HybridSampler(tokens, 64)
