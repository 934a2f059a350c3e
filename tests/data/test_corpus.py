"""Reading and validating parallel data. Files are a handful of rows: every rule shows in one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.data.corpus import ParallelCorpus

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
    assert corpus.groups == [
        "pairs.jsonl:1",
        "pairs.jsonl:2",
    ]  # each row without an id is its own
    assert corpus.sources == ["pairs"]
    assert corpus.table.column("negatives").to_pylist() == [["n1", "n2", "n10"], []]
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: column 'lang' is missing.*language="):
        ParallelCorpus.load(path)


GOOD = {"id": "9", "lang": "en", "query": "q", "passage": "p"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'id': 1}", r":3: not JSON: .* column 2"),
        ("[1, 2]", r":3: expected a JSON object or other mapping, got list"),
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
        ("id,lang,query,passage\n1,en,q,p,x\n", r":2: 5 fields where the header has 4"),
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
