"""Tokenizing a corpus once, and mapping what was written. Texts are a few words each, known by their ids."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridfast.data import tokenizing, words
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import HybridSampler
from hybridfast.data.tokenizer import TokenizerIds
from hybridfast.data.tokens import TokenizedCorpus

ROWS: list[dict[str, Any]] = [
    {
        "id": "1",
        "lang": "en",
        "query": "red fox",
        "passage": "a fox is red",
        "source": "a",
        "negative_1": "no",
    },
    {"id": "1", "lang": "de", "query": "roter fuchs", "passage": "ein fuchs ist rot", "source": "a"},
    {"id": "2", "lang": "en", "query": "blue sea", "passage": "the sea is blue", "source": "b"},
    {"id": "3", "lang": "th", "query": "ทะเล", "passage": "ทะเล สีฟ้า", "source": "b", "negative_1": "x y"},
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Whole words; every word not listed is [UNK]."""
    known = ["[PAD]", "[UNK]", "q", "p", "red", "fox", "is", "a", "sea", "blue", "no"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def tokenized(tokenizer: Tokenizer, tmp_path: Path, **settings: Any) -> TokenizedCorpus:
    corpus = ParallelCorpus.from_rows(ROWS)
    return corpus.tokenize(
        tokenizer, query_prefix="q ", passage_prefix="p ", cache_dir=tmp_path, progress=False, **settings
    )


def test_word_by_word_the_files_are_the_same(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenized(tokenizer, tmp_path / "whole")
    monkeypatch.setattr(words, "MANY", 1)
    made: list[Any] = []
    by_words = words.by_words
    monkeypatch.setattr(words, "by_words", lambda *a: made.append(by_words(*a)) or made[-1])
    parts = tokenized(tokenizer, tmp_path / "words")
    assert len(made) == 2
    assert None not in made
    names = sorted(path.name for path in whole.path.iterdir())
    assert names == sorted(path.name for path in parts.path.iterdir())
    for name in names:
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes(), name


def test_tokens_of_every_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = tokenized(tokenizer, tmp_path)
    first = slice(*tokens.version_indptr[:2])
    assert [tokens.text(t).tolist() for t in range(first.start, first.stop)] == [
        [2, 4, 5],  # q red fox
        [3, 7, 5, 6, 4],  # p a fox is red
        [3, 10],  # p no
    ]
    assert np.diff(tokens.version_indptr).tolist() == [3, 2, 2, 3]
    assert tokens.version_GL.tolist() == [[1, 0, -1], [-1, 2, -1], [-1, -1, 3]]
    assert tokens.source_G.tolist() == [0, 1, 1]
    assert tokens.group_ids() == ["1", "2", "3"]
    assert len(set(tokens.passage_hash_V.tolist())) == len(ROWS)
    assert not tokens.token_ids.flags.writeable


def test_texts_that_the_model_reads_alike_have_one_hash(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Else a passage in other case is a negative of the question that it answers."""
    tokenizer.normalizer = normalizers.Lowercase()
    row = {
        "id": "1",
        "lang": "en",
        "query": "Red fox",
        "passage": "A fox is red",
        "negative_1": "a Fox is red ",
    }
    other = {"id": "2", "lang": "en", "query": "red fox", "passage": "blue sea", "negative_1": "sea blue"}
    tokens = ParallelCorpus.from_rows([row, other]).tokenize(tokenizer, cache_dir=tmp_path, progress=False)
    assert tokens.query_hash_V[0] == tokens.query_hash_V[1]
    assert tokens.negative_hash_H[0] == tokens.passage_hash_V[0]
    assert len({*tokens.negative_hash_H.tolist(), *tokens.passage_hash_V.tolist()}) == 3


def test_truncation_keeps_the_head(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = tokenized(tokenizer, tmp_path, max_query_length=2, max_passage_length=3)
    assert tokens.text(0).tolist() == [2, 4]
    assert tokens.text(1).tolist() == [3, 7, 5]
    with pytest.raises(ValueError, match="max_query_length must be >= 1, got 0"):
        tokenized(tokenizer, tmp_path, max_query_length=0)


def test_transformers_tokenizers_add_their_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    tokens = tokenized(wrapped, tmp_path, max_passage_length=4)
    for version, row in enumerate(ROWS):
        texts = ["q " + row["query"], "p " + row["passage"]]
        first = tokens.version_indptr[version]
        assert [tokens.text(first + i).tolist() for i in range(2)] == [
            wrapped(text, truncation=True, max_length=4)["input_ids"] for text in texts
        ]
    assert tokens.pad_id == 0


def test_the_cache_is_keyed_by_everything_that_shapes_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = ParallelCorpus.from_rows(ROWS)
    other_rows = [{**ROWS[0], "query": "red sea"}, *ROWS[1:]]
    wider = Tokenizer.from_str(tokenizer.to_str())
    wider.add_tokens(["fuchs"])
    variants = [
        corpus.tokenize(tokenizer, cache_dir=tmp_path, progress=False),
        corpus.tokenize(tokenizer, cache_dir=tmp_path, progress=False, query_prefix="other "),
        corpus.tokenize(tokenizer, cache_dir=tmp_path, progress=False, max_passage_length=2),
        corpus.tokenize(wider, cache_dir=tmp_path, progress=False),
        ParallelCorpus.from_rows(other_rows).tokenize(tokenizer, cache_dir=tmp_path, progress=False),
    ]
    assert len({tokens.fingerprint for tokens in variants}) == len(variants)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(t.fingerprint for t in variants)
    tokenizer.enable_truncation(1)  # state, not definition: the same cache
    assert corpus.tokenize(tokenizer, cache_dir=tmp_path).fingerprint == variants[0].fingerprint


def test_a_failed_tokenization_leaves_nothing(tmp_path: Path) -> None:
    def broken(texts: list[str], **_: Any) -> None:
        raise RuntimeError("no ids today")

    broken.get_vocab = lambda: {}  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="no ids today"):
        ParallelCorpus.from_rows(ROWS).tokenize(broken, cache_dir=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tokenized(tokenizer, tmp_path).path
    with open(folder / "token_ids.bin", "r+b") as file:
        file.truncate(8)
    with pytest.raises(ValueError, match=r"token_ids.bin: 8 bytes where \d+ were written; delete"):
        TokenizedCorpus.open(folder)
    with pytest.raises(FileNotFoundError, match="no token cache here"):
        TokenizedCorpus.open(tmp_path / "elsewhere")


def test_a_pickle_is_a_path(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = tokenized(tokenizer, tmp_path)
    copy = pickle.loads(pickle.dumps(tokens))
    assert copy.fingerprint == tokens.fingerprint
    assert np.array_equal(copy.token_ids, tokens.token_ids)
    assert len(pickle.dumps(tokens)) < 1_000


def test_a_file_is_tokenized_once_whatever_stands_beside_it(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding one costs that one: the others' ids are copied, and are those of tokenizing all."""
    monkeypatch.setattr(tokenizing, "CHUNK", 3)
    monkeypatch.setattr(tokenizing, "SHARD", 1)
    folder = tmp_path / "set"
    folder.mkdir()

    def add(name: str, language: str, **more: str) -> None:
        lines = [
            {
                "id": i,
                "lang": language,
                "query": f"red {i}",
                "passage": f"sea {name} {i}",
                "source": "s",
                **more,
            }
            for i in range(5)
        ]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    read: list[str] = []
    real = TokenizerIds.ids

    def ids(self: TokenizerIds, texts: Any) -> Any:
        read.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(TokenizerIds, "ids", ids)

    def tokens(cache: str, **settings: Any) -> TokenizedCorpus:
        read.clear()
        corpus = ParallelCorpus.load(folder)
        return corpus.tokenize(tokenizer, cache_dir=tmp_path / cache, progress=False, **settings)

    add("b-en.jsonl", "en")
    tokens("cache")
    add("a-de.jsonl", "de")
    add("c-th.jsonl", "th")
    joined = tokens("cache")
    assert len(read) == 2 * 10
    assert not any("b-en" in text for text in read)
    whole = tokens("other")
    assert len(read) == 2 * 15
    for name in whole.__dataclass_fields__:
        if name not in ("path",):
            assert np.array_equal(getattr(joined, name), getattr(whole, name)), name
    tokens("cache", query_prefix="q ")
    assert len(read) == 2 * 15  # by other settings they are other ids
    add("d-tr.jsonl", "tr", negative="sea a-de.jsonl 1")
    assert tokens("cache").negatives_left_out == 1  # which only the whole corpus tells
    assert len(read) == 2 * 5 + 4


def test_ids_take_two_bytes_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "CHUNK", 1)
    batches = []
    for largest in (65_535, 65_536):
        words = {"[UNK]": 0, "sea": largest, "red": 5}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokens = tokenized(tokenizer, tmp_path)
        assert tokens.token_ids.dtype == (np.uint16 if largest < 2**16 else np.int32)
        assert {*tokens.token_ids.tolist()} == {*words.values()}
        assert json.loads((tokens.path / "meta.json").read_text())["arrays"]["token_ids"][1] in (
            "uint16",
            "int32",
        )
        wide = replace(tokens, token_ids=tokens.token_ids.astype(np.int32))
        for some in (tokens, wide):
            for layout in ("flat", "padded"):
                with HybridSampler(some, 2, alpha=1.0, dedup=None, layout=layout, negatives=1) as sampler:
                    batches.append([batch.passages["input_ids"].tolist() for batch in sampler.epoch(0)])
        assert batches[-4:-2] == batches[-2:]


def test_earlier_caches_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With ids of four bytes, names of groups as JSON, no pieces, nothing made of other arrays."""
    tokens = tokenized(tokenizer, tmp_path)
    ids, names = tokens.token_ids.astype(np.int32), tokens.group_ids()
    with HybridSampler(tokens, 1) as sampler:
        batches = [batch.groups.tolist() for batch in sampler.epoch(0)]
    meta = json.loads((tokens.path / "meta.json").read_text())
    del meta["pieces"], meta["items"]
    for name in ("source_indptr", "order_G", "present_LW"):
        del meta["arrays"][name]
        (tokens.path / f"{name}.bin").unlink()
    meta["arrays"]["token_ids"][1] = "int32"
    (tokens.path / "meta.json").write_text(json.dumps(meta))
    ids.tofile(tokens.path / "token_ids.bin")
    (tokens.path / "groups.arrow").unlink()
    (tokens.path / "groups.json").write_text(json.dumps(names))
    earlier = tokenized(tokenizer, tmp_path)
    assert np.array_equal(earlier.token_ids, ids)
    assert earlier.token_ids.dtype == np.int32
    with HybridSampler(earlier, 1) as sampler:
        assert [batch.groups.tolist() for batch in sampler.epoch(0)] == batches
    assert (earlier.group_ids(), earlier.group_id(1)) == (names, names[1])
