"""Lengths in characters and tokens, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import loading
from hybridfast.inspection import lengths


def corpus(passage_words: dict[str, list[int]], unknown: str = "") -> ParallelCorpus:
    """Passages of so many words that the vocabulary has, by language; queries are of one, zzz is none."""
    rows = [
        {
            "id": str(i),
            "lang": language,
            "query": f"Query {'zzz' if language == unknown else 'Passage'}",
            "passage": " ".join(["Passage"] * count),
        }
        for language, counts in passage_words.items()
        for i, count in enumerate(counts)
    ]
    return ParallelCorpus.from_rows(rows)


def test_characters() -> None:
    rows = [("en", "ab", "c" * 10_001), ("en", "abcd", "c"), ("zh", "北京", "𠀀" * 10_000)]
    text = ParallelCorpus.from_rows(
        [{"id": str(i), "lang": row[0], "query": row[1], "passage": row[2]} for i, row in enumerate(rows)]
    )
    found = lengths.characters(text)
    spread = {"texts": 2, "mean": 3.0, "median": 2, "p90": 4, "p99": 4, "longest": 4}
    assert found["query"]["languages"]["en"] == spread
    assert found["passage"]["languages"]["zh"]["longest"] == 10_000  # of characters, not bytes
    assert found["passage"]["all"]["mean"] == pytest.approx(20_002 / 3)
    assert (found["query"]["longer_than_10000"], found["passage"]["longer_than_10000"]) == (0, 1)


def test_the_length_that_keeps_99_percent() -> None:
    found = lengths._spread(np.arange(1, 201))
    assert (found["median"], found["p90"], found["p99"], found["longest"]) == (100, 180, 198, 200)
    assert (np.arange(1, 201) <= found["p99"]).mean() == 0.99
    assert (np.arange(1, 201) <= found["p99"] - 1).mean() < 0.99


def test_tokens_by_hand(tiny_xlm_r: Path) -> None:
    # The tokenizer puts <s> and </s> around; the model reads 40 tokens.
    text = corpus({"de": [3, 18, 60], "en": [1, 9, 30], "tr": [2, 36]}, unknown="tr")
    model = loading.load(str(tiny_xlm_r), device="cpu")
    loading.set_prompts(model, "", "Passage : ")
    loading.set_lengths(model, None, 24)
    found = lengths.tokens(model, text, 100)
    assert (found["rows"], found["of_rows"], found["reference"]) == (8, 8, "en")
    assert found["longest_that_the_model_reads"] == 40
    query, passage = found["query"], found["passage"]
    assert (query["limit"], passage["limit"]) == (40, 24)
    assert (query["prompt_and_special_tokens"], passage["prompt_and_special_tokens"]) == (2, 4)
    assert query["all"]["longest"] == query["all"]["median"] == 4
    assert query["languages"]["tr"]["unknown"] == 1 / 4
    assert query["languages"]["de"]["unknown"] == 0
    of = passage["languages"]
    assert [of[tag]["longest"] for tag in ("de", "en", "tr")] == [64, 34, 40]  # uncut
    assert of["de"]["mean"] == 81 / 3 + 4
    assert of["de"]["median"] == 22
    assert [of[tag]["truncated"] for tag in ("de", "en", "tr")] == [1 / 3, 1 / 3, 1 / 2]
    assert passage["all"]["truncated"] == 3 / 8
    assert of["en"]["times_reference"] == 1
    assert of["de"]["times_reference"] == 81 / 40
    assert of["tr"]["times_reference"] == 38 / 10  # the third group has no Turkish
    assert of["en"]["per_character"] == 40 / (40 * 8 - 3)  # Passage and a blank, but for the last


def test_a_sample_is_of_whole_groups_evenly(tiny_xlm_r: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus({"de": [i % 7 + 1 for i in range(50)], "en": [i % 7 + 1 for i in range(50)]})
    monkeypatch.setattr(lengths, "READ", 3)
    monkeypatch.setattr(lengths, "CHUNK", 16)
    found = lengths.tokens(loading.load(str(tiny_xlm_r), device="cpu"), text, 20)
    assert (found["rows"], found["of_rows"]) == (20, 100)
    chosen = np.flatnonzero(lengths._evenly(50, 0.2))
    assert chosen.tolist() == [4, 9, 14, 19, 24, 29, 34, 39, 44, 49]
    of = found["passage"]["languages"]
    assert of["de"]["texts"] == of["en"]["texts"] == 10
    assert of["de"]["mean"] == (chosen % 7 + 1).mean() + 2
    assert lengths._evenly(50, 1e-9).sum() == 1
    assert lengths._evenly(50, 7).all()


def test_a_static_encoder_cuts_nothing(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "Passage": 1, "Query": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    loading.build_static(tokenizer, 4).save(str(tmp_path))
    model = SentenceTransformer(str(tmp_path), device="cpu")
    found = lengths.tokens(model, corpus({"en": [5, 1000], "th": [1, 1]}, unknown="th"), 10)
    assert found["longest_that_the_model_reads"] is None
    assert found["passage"]["limit"] is None
    assert found["passage"]["all"]["longest"] == 1000
    assert found["passage"]["all"]["truncated"] == 0
    assert found["query"]["languages"]["th"]["unknown"] == 0.5


def test_languages_without_common_groups(tiny_xlm_r: Path) -> None:
    rows = [{"id": tag, "lang": tag, "query": "Query", "passage": "Passage"} for tag in ("de", "en")]
    model = loading.load(str(tiny_xlm_r), device="cpu")
    found = lengths.tokens(model, ParallelCorpus.from_rows(rows), 10)
    assert found["passage"]["languages"]["de"]["times_reference"] is None
