"""Coverage by hand, and what the sampler itself refuses and leaves out."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import HybridSampler
from hybridfast.inspection import coverage

# Which languages each item has; the last has two passages in German, so two groups.
ITEMS = {"a": ["de", "en", "tr"], "b": ["de", "en"], "c": ["en"], "d": ["en", "zh-Hans"], "e": ["de", "en"]}


def corpus(split: str = "train") -> ParallelCorpus:
    rows = [
        {
            "id": name,
            "lang": lang,
            "query": f"{name} {lang}?",
            "passage": f"{name} {lang}.",
            "source": "one" if name in "ab" else "two",
            "split": split if name == "c" else "train",
        }
        for name, languages in ITEMS.items()
        for lang in languages
    ]
    return ParallelCorpus.from_rows([*rows, rows[-2] | {"passage": "another"}])


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = coverage.coverage(corpus())
    monkeypatch.setattr(coverage, "CHUNK", 2)  # in parts, the same
    found = coverage.coverage(corpus())
    assert found == whole
    assert (found["rows"], found["groups"], found["items"]) == (11, 6, 5)
    assert found["languages"] == {
        "de": {"rows": 4, "share_of_groups": 4 / 6},
        "en": {"rows": 5, "share_of_groups": 5 / 6},
        "tr": {"rows": 1, "share_of_groups": 1 / 6},
        "zh-Hans": {"rows": 1, "share_of_groups": 1 / 6},
    }
    assert found["missing_rows"] == 6 * 4 - 11
    assert found["groups_by_number_of_languages"] == {"1": 2, "2": 3, "3": 1, "4": 0}
    assert found["pairs"]["de"] == {"de": 4, "en": 3, "tr": 1, "zh-Hans": 0}
    assert found["pairs"]["zh-Hans"] == {"de": 0, "en": 1, "tr": 0, "zh-Hans": 1}
    assert found["smallest_pair"] == {"languages": ["de", "zh-Hans"], "groups": 0}
    assert found["sources"] == {
        "one": {"rows": 5, "groups": 2, "languages": {"de": 2, "en": 2, "tr": 1, "zh-Hans": 0}},
        "two": {"rows": 6, "groups": 4, "languages": {"de": 2, "en": 3, "tr": 0, "zh-Hans": 1}},
    }


def test_splits() -> None:
    assert coverage.splits(corpus()) == {"train": 11, "dev": 0, "test": 0}
    assert coverage.splits(corpus("validation")) == {"train": 10, "dev": 1, "test": 0}


def test_one_language_has_no_pairs() -> None:
    found = coverage.coverage(ParallelCorpus.from_rows([{"lang": "en", "anchor": "q", "positive": "p"}]))
    assert (found["pairs"], found["smallest_pair"]) == ({"en": {"en": 1}}, None)
    of = coverage.batches(found, 2)
    assert not any(of[kind]["fills"] for kind in ("mono", "cross_mixed", "cross_paired", "cross_same"))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6, 7])
def test_what_the_sampler_refuses(batch_size: int) -> None:
    text = corpus()
    found = coverage.batches(coverage.coverage(text), batch_size)

    def outcome(**options: Any) -> tuple[bool, str]:
        """Whether it makes batches, and what it says."""
        tokens = SimpleNamespace(
            **{name: getattr(text, name) for name in ("languages", "sources", "source_G", "item_G")},
            version_GL=text.version_GL,
            fingerprint="",
            pad_id=0,
            **dict.fromkeys(("query_hash_V", "passage_hash_V", "token_ids", "text_indptr", "version_indptr")),
        )
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                HybridSampler(tokens, batch_size, threads=0, **options).close()
            except ValueError as error:
                return False, str(error)
        return True, " ".join(str(warning.message) for warning in told)

    fills, said = outcome(alpha=1.0)
    assert fills == found["mono"]["fills"] == (batch_size <= found["mono"]["largest_batch_size"])
    if not fills:
        assert f"language '{next(iter(found['mono']['too_small']))}'" in said
    assert outcome(alpha=0.0)[0] == found["cross_mixed"]["fills"] == (batch_size <= 4)
    assert outcome(alpha=0.0, cross="same")[0] == found["cross_same"]["fills"] == (batch_size <= 6)
    fills, said = outcome(alpha=0.0, cross="paired")
    assert fills == found["cross_paired"]["fills"] == (batch_size <= 3)
    if fills:
        left_out = {"-".join(p["languages"]): p["groups"] for p in found["cross_paired"]["left_out"]}
        for i, one in enumerate(text.languages):
            for other in text.languages[i + 1 :]:
                common = int((text.version_GL[:, [i, text.languages.index(other)]] >= 0).all(axis=1).sum())
                assert (f"'{one}-{other}'" in said) == (0 < common < batch_size)
                assert left_out.get(f"{one}-{other}") == (common if common < batch_size else None)


def test_the_largest_batch_size_of_all_pairs() -> None:
    of = coverage.batches(coverage.coverage(corpus().where(np.arange(11) < 5)), 2)
    assert of["cross_paired"]["largest_batch_size_of_all_pairs"] == 1  # de-tr and en-tr
