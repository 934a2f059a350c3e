"""Reading, validating and tokenizing parallel data. Files are a handful of rows: every rule shows in one."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridfast.corpus import ParallelCorpus, TokenizedCorpus

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


def write_json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [*ROWS[0]], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Whole words; every word not listed is [UNK]."""
    words = ["[PAD]", "[UNK]", "q", "p", "red", "fox", "is", "a", "sea", "blue", "no"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    "form", ["jsonl", "json", "csv", "tsv", "parquet", "folder", "saved", "splits", "Dataset"]
)
def test_every_form_reads_the_same_rows(tmp_path: Path, form: str) -> None:
    source: Any = tmp_path / f"rows.{form}"
    if form in ("jsonl", "json"):
        write_json_lines(source, ROWS)
    elif form in ("csv", "tsv"):
        write_csv(source, ROWS)
    elif form == "parquet":
        Dataset.from_list(ROWS).to_parquet(str(source))
    elif form == "folder":
        source.mkdir()
        write_json_lines(source / "1.jsonl", ROWS[:2])
        write_csv(source / "2.csv", ROWS[2:])
        (source / "notes.txt").write_text("not data")
    elif form == "saved":
        Dataset.from_list(ROWS).save_to_disk(str(source))
    elif form == "splits":
        DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(source))
    else:
        source = Dataset.from_list(ROWS)
    corpus = ParallelCorpus.load(source)
    assert corpus.table.to_pylist() == [
        {
            **{name: row[name] for name in ("id", "lang", "query", "passage", "source")},
            "negatives": [row["negative_1"]] if "negative_1" in row else [],
        }
        for row in ROWS
    ]
    assert corpus.groups == ["1", "2", "3"]
    assert corpus.coverage() == {"de": 1, "en": 2, "th": 1}
    assert corpus.sources == ["a", "b"]


def test_a_dataset_named_rather_than_found_goes_to_load_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Dataset:
        asked.append((name, config, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(ParallelCorpus.load("someone/pairs", config="all", split="validation")) == len(ROWS)
    assert asked == [("someone/pairs", "all", "validation")]


def test_sentence_transformers_columns(tmp_path: Path) -> None:
    rows = [{"anchor": "q1", "positive": "p1", "negative_2": "n2", "negative_1": "n1", "negative_10": "n10"}]
    path = write_json_lines(tmp_path / "pairs.jsonl", [*rows, {"anchor": "q2", "positive": "p2"}])
    corpus = ParallelCorpus.load(path, language="en")
    assert corpus.groups == ["pairs:1", "pairs:2"]  # without an id every row is a group of its own
    assert corpus.sources == ["pairs"]
    assert corpus.table.column("negatives").to_pylist() == [["n1", "n2", "n10"], []]
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: column 'lang' is missing.*language="):
        ParallelCorpus.load(path)


GOOD = {"id": "9", "lang": "en", "query": "q", "passage": "p"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'id': 1}", r":3: not JSON: .* column 2"),
        ("[1, 2]", r":3: expected a JSON object, got list"),
        (json.dumps({**GOOD, "query": "  "}), r":3: query is empty"),
        (json.dumps({**GOOD, "passage": 7}), r":3: passage must be text, got 7"),
        (
            json.dumps({"id": "9", "lang": "en", "query": "q"}),
            r":3: column 'passage' is missing; the row has 'id'",
        ),
        (json.dumps({"lang": "en", "query": "q", "passage": "p"}), r":3: column 'id' is missing"),
        (json.dumps({"id": "9", "query": "q", "passage": "p"}), r":3: column 'lang' is missing"),
        (json.dumps({**GOOD, "negatives": "n"}), r":3: negatives must be a list of texts, got 'n'"),
        (json.dumps({**GOOD, "negative_1": " "}), r":3: negative_1 is empty"),
        (json.dumps({**GOOD, "id": "1"}), r":3: id '1' in language 'en' is already at .*bad.jsonl:1"),
        (
            json.dumps({**GOOD, "id": "1", "lang": "de", "source": "other"}),
            r":3: id '1' is in source 'other', but in 'bad' before",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**GOOD, "id": "1"}) + "\n\n" + bad + "\n")
    with pytest.raises(ValueError, match="bad.jsonl" + message):
        ParallelCorpus.load(path)


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("id,lang,query,passage\n1,de,Straße,gut\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv:2: not UTF-8: byte 0xdf at column 10"):
        ParallelCorpus.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lang,query,passage\n1,en,q,p,x\n", r":2: more fields than the header's 4"),
        ('id,lang,query,passage\n1,en,"q"x,p\n', r":2: not CSV"),
        ("id,lang,query\n1,en,q\n", r":2: column 'passage' is missing"),
        ("", r": no rows"),
    ],
)
def test_a_bad_csv_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.csv" + message):
        ParallelCorpus.load(path)


def test_places_that_hold_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.jsonl: no such file"):
        ParallelCorpus.load(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"the folder holds none of .csv"):
        ParallelCorpus.load(tmp_path)
    (tmp_path / "rows.xml").write_text("<rows/>")
    with pytest.raises(ValueError, match=r"the suffix must be one of .csv"):
        ParallelCorpus.load(tmp_path / "rows.xml")
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"rows.parquet: not Parquet"):
        ParallelCorpus.load(tmp_path / "rows.parquet")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="split must be one of train, got 'dev'"):
        ParallelCorpus.load(tmp_path / "saved", split="dev")


def tokenized(tokenizer: Tokenizer, tmp_path: Path, **settings: Any) -> TokenizedCorpus:
    corpus = ParallelCorpus.from_rows(ROWS)
    return corpus.tokenize(
        tokenizer, query_prefix="q ", passage_prefix="p ", cache_dir=tmp_path, progress=False, **settings
    )


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


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.tuples(texts, st.sampled_from(["en", "de", "th"])), st.tuples(texts, texts), min_size=1
    )
)
def test_any_text_survives_json_lines(
    tmp_path_factory: pytest.TempPathFactory, versions: dict[tuple[str, str], tuple[str, str]]
) -> None:
    rows = [
        {"id": group, "lang": lang, "query": query, "passage": passage}
        for (group, lang), (query, passage) in versions.items()
    ]
    path = write_json_lines(tmp_path_factory.mktemp("any") / "rows.jsonl", rows)
    read = ParallelCorpus.load(path).table.select(["id", "lang", "query", "passage"]).to_pylist()
    assert read == rows
