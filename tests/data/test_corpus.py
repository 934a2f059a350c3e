"""Reading and validating parallel data. Files are a handful of rows: every rule shows in one."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.data.columns import language_tag
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


MEMORY: dict[str, Callable[[], Any]] = {
    "Dataset": lambda: Dataset.from_list(ROWS),
    "selection": lambda: Dataset.from_list([*ROWS[::-1], {**ROWS[0], "query": "left out"}]).select(
        [3, 2, 1, 0]
    ),
    "stream": lambda: Dataset.from_list(ROWS).to_iterable_dataset(),
    "DatasetDict": lambda: DatasetDict(train=Dataset.from_list(ROWS)),
    "streams": lambda: IterableDatasetDict(train=Dataset.from_list(ROWS).to_iterable_dataset()),
    "table": lambda: pa.Table.from_pylist(ROWS),
    "DataFrame": lambda: pd.DataFrame(ROWS),
    "iterator": lambda: iter(ROWS),
}


@pytest.mark.parametrize(
    "form",
    [
        "jsonl", "json", "csv", "tsv", "jsonl.gz", "json.gz", "csv.gz", "tsv.gz", "parquet", "folder",
        "saved", "splits", "Dataset", "selection", "stream", "DatasetDict", "streams", "table", "DataFrame",
        "iterator",
    ],
)  # fmt: skip
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
    elif form.endswith(".gz"):
        plain = tmp_path / f"plain.{form[:-3]}"
        (write_json_lines if "json" in form else write_csv)(plain, ROWS)
        source.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        source = MEMORY[form]()
    corpus = ParallelCorpus.load(source)
    if form in MEMORY:
        assert ParallelCorpus.from_rows(MEMORY[form]()).table == corpus.table
    assert corpus.table.to_pylist() == [
        {
            **{name: row[name] for name in ("id", "lang", "query", "passage", "source")},
            "negatives": [row["negative_1"]] if "negative_1" in row else [],
            "split": "train",
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


def test_what_is_no_table_is_named_by_its_type() -> None:
    for wrong, name in ((7, "int"), (b"rows.csv", "bytes"), (GOOD, "dict"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"expected a path, .* got {name}$"):
            ParallelCorpus.load(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"dataset: row 2: expected a JSON object or other mapping, got tuple"
    ):
        ParallelCorpus.load([GOOD, ("1", "en", "q", "p")])
    splits = DatasetDict(dev=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS))
    assert len(ParallelCorpus.load(splits, split="dev")) == len(ROWS)
    with pytest.raises(ValueError, match=r"split must be one of dev, test, got 'train'"):
        ParallelCorpus.load(splits)
    with pytest.raises(ValueError, match=r"split must be one of dev, test"):
        ParallelCorpus.from_rows(splits)
    twice = pa.Table.from_arrays([pa.array(["1"])] * 2, names=["id", "id"])
    for table in (twice, twice.to_pandas()):
        with pytest.raises(ValueError, match="column 'id' appears twice"):
            ParallelCorpus.load(table)


def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    """Days beyond Python's year 9999, seconds in a zone that nobody knows."""
    days = pa.array([2**30] * len(ROWS), pa.int32()).cast(pa.date32())
    seconds = pa.array([2**40] * len(ROWS), pa.timestamp("s", tz="Mars/Olympus"))
    wide = pa.Table.from_pylist(ROWS).append_column("day", days).append_column("at", seconds)
    pq.write_table(wide, tmp_path / "wide.parquet")
    for source in (wide, tmp_path / "wide.parquet", Dataset(wide)):
        assert len(ParallelCorpus.load(source)) == len(ROWS)
    with pytest.raises(ValueError, match=r"column 'passage' is missing; the row has .*'day', 'at'"):
        ParallelCorpus.load(wide.drop_columns("passage"))


def test_a_transform_of_a_dataset_is_applied() -> None:
    shouted = Dataset.from_list(ROWS).with_transform(
        lambda batch: {**batch, "query": [query.upper() for query in batch["query"]]}
    )
    corpus = ParallelCorpus.load(shouted)
    assert corpus.table["query"].to_pylist() == [row["query"].upper() for row in ROWS]


# --- columns -----------------------------------------------------------------------------------------------


def test_only_named_and_numbered_columns_are_negatives() -> None:
    row = {
        **GOOD,
        "negative_10": "n10", "negative_2": "n2", "negative": "n", "negatives": ["l1", None, "", "l2"],
        "negative_1_idx": "cell_42", "negative_source": "bm25", "negative_": "x", "negative_score": 0.5,
        "negative_3_id": 7, "negative_4": None, "negative_5": float("nan"), "hard_negative": "x",
    }  # fmt: skip
    for rows in ([row], Dataset.from_list([row])):
        corpus = ParallelCorpus.from_rows(rows)
        assert corpus.table["negatives"].to_pylist() == [["l1", "l2", "n", "n2", "n10"]]
    from_arrays = pd.DataFrame([{**GOOD, "negatives": np.array(["n1", "n2"], object)}])
    assert ParallelCorpus.load(from_arrays).table["negatives"].to_pylist() == [["n1", "n2"]]


@pytest.mark.parametrize("missing", [None, "", float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_what_is_missing_is_no_value(missing: Any) -> None:
    for column in ("id", "lang", "query", "passage"):
        with pytest.raises(
            ValueError, match=rf"rows: row 2: (column '{column}' is missing|{column} is empty)"
        ):
            ParallelCorpus.from_rows([{**GOOD, "id": "1"}, {**GOOD, column: missing}])
    optional = {**GOOD, "source": missing, "negative_1": missing, "negatives": missing, "split": missing}
    assert ParallelCorpus.from_rows([optional]).table.to_pylist() == [
        {**GOOD, "negatives": [], "source": "rows", "split": "train"}
    ]
    bare = [{**GOOD, "id": missing, "lang": missing, "query": f"q{i}"} for i in range(2)]
    assert ParallelCorpus.from_rows(bare, language="en").items == ["rows:1", "rows:2"]
    pairs = [
        {"id": missing, "lang": "en", "anchor": f"q{i}", "positive": "p", "query": missing} for i in "ab"
    ]
    assert ParallelCorpus.from_rows(pairs).items == ["rows:1", "rows:2"]


def test_an_id_has_one_spelling(tmp_path: Path) -> None:
    sevens = ["7", " 7\t", 7, 7.0, np.int64(7), np.float32(7)]
    rows = [{**GOOD, "id": seven, "lang": f"l{i}"} for i, seven in enumerate(sevens)]
    assert ParallelCorpus.from_rows(rows).items == ["7"]
    gaps = pd.DataFrame([{**GOOD, "id": 7}, {**GOOD, "id": None}])  # pandas makes the column float
    gaps.to_parquet(tmp_path / "gaps.parquet")
    for source in (gaps, tmp_path / "gaps.parquet"):
        assert ParallelCorpus.load(source, language="en").items[0] == "7"
        with pytest.raises(ValueError, match=r": row 2: column 'id' is missing"):
            ParallelCorpus.load(source)
    with pytest.raises(ValueError, match="row 1: id is empty"):
        ParallelCorpus.from_rows([{**GOOD, "id": " "}])
    for wrong in (True, np.True_, 1.5, float("inf"), 2.0**53, b"7", [7]):
        with pytest.raises(ValueError, match="row 1: id must be text or an integer, got "):
            ParallelCorpus.from_rows([{**GOOD, "id": wrong}])
    assert ParallelCorpus.from_rows([{**GOOD, "id": 2**60 + 1}]).items == [str(2**60 + 1)]


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("en", "en"), ("EN", "en"), (" en\t", "en"), ("l001", "l001"),
        ("zh_hans", "zh-Hans"), ("ZH-cn", "zh-CN"),
        ("zh_Hant_TW", "zh-Hant-TW"), ("eng_Latn", "eng-Latn"), ("es-419", "es-419"), ("de-1996", "de-1996"),
        ("sl-Rozaj-BISKE", "sl-rozaj-biske"), ("en-CA-X-CA-Abcd", "en-CA-x-ca-abcd"), ("aa", "aa"),
    ],
)  # fmt: skip
def test_languages_have_one_spelling(written: str, tag: str) -> None:
    assert language_tag(written) == language_tag(tag) == tag
    rows = [{**GOOD, "id": "1", "lang": written}, {**GOOD, "id": "2", "lang": tag}]
    assert ParallelCorpus.from_rows(rows).languages == [tag]
    assert ParallelCorpus.from_rows([{**GOOD, "lang": None}], language=written).languages == [tag]


@pytest.mark.parametrize(
    "wrong", [" ", "en us", "en--US", "-en", "en_", "de@euro", "en;de", "français", 7, ["en"]]
)
def test_what_is_no_language_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"row 1: lang must be "):
        ParallelCorpus.from_rows([{**GOOD, "lang": wrong}])


@pytest.mark.parametrize("column", ["id", "query", "passage", "source", "negative_1", "negatives"])
def test_half_a_character_is_named_by_line_and_column(tmp_path: Path, column: str) -> None:
    cut: Any = "cut emoji \ud83d"
    row = {**GOOD, column: [cut] if column == "negatives" else cut}
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ({**GOOD, "id": "1"}, row)))
    name = "negatives" if "negative" in column else column
    with pytest.raises(
        ValueError, match=rf"s.jsonl:2: {name} holds half a character, '.ud83d' at position 11"
    ):
        ParallelCorpus.load(path)
    whole = {**GOOD, "query": "a \0 and \U0001f600"}
    assert ParallelCorpus.load(write_json_lines(path, [whole])).table["query"].to_pylist() == [whole["query"]]


def test_half_a_character_behind_the_first_chunk_is_named_by_line() -> None:
    rows = ({**GOOD, "id": i, "query": "\udc00" if i == 40_000 else "q"} for i in range(1, 40_010))
    with pytest.raises(ValueError, match="rows: row 40000: query holds half a character"):
        ParallelCorpus.from_rows(rows)


# --- several passages of a question ------------------------------------------------------------------------


def test_further_passages_of_a_question_are_groups_of_their_own() -> None:
    versions = [
        ("a", "en", "p1"), ("b", "en", "p9"), ("a", "en", "p2"), ("a", "de", "d1"), ("a", "en", "p3"),
        ("b", "de", "d9"), ("a", "de", "d2"), ("c", "en", "p1"),
    ]  # fmt: skip
    rows = [{"id": i, "lang": lang, "query": f"{i} {lang}", "passage": text} for i, lang, text in versions]
    corpus = ParallelCorpus.from_rows(rows)
    assert corpus.items == ["a", "b", "c"]
    assert corpus.groups == ["a", "b", "c", "a#2", "a#3"]
    assert corpus.item_V.tolist() == [0, 1, 0, 0, 0, 1, 0, 2]
    assert corpus.group_V.tolist() == [0, 1, 3, 0, 4, 1, 3, 2]
    assert corpus.repeat_V.tolist() == [0, 0, 1, 0, 2, 0, 1, 0]
    assert corpus.item_G.tolist() == [0, 1, 2, 0, 0]
    assert corpus.version_GL.tolist() == [[3, 0], [5, 1], [-1, 7], [6, 2], [-1, 4]]
    assert {array.dtype for array in (corpus.item_V, corpus.group_V, corpus.item_G)} == {np.dtype(np.int32)}
    with pytest.raises(
        ValueError, match=r"row 9: id 'a' in language 'en' is already at rows: row 3, with this"
    ):
        ParallelCorpus.from_rows([*rows, rows[2]])
    with pytest.raises(ValueError, match=r"row 9: .* is already at rows: row 1, with another query: 'a en'"):
        ParallelCorpus.from_rows([*rows, {**rows[2], "query": "other", "passage": "p4"}])
    with pytest.raises(ValueError, match=r"row 9: id 'a' is in source 'x', but in 'rows' before"):
        ParallelCorpus.from_rows([*rows, {**rows[2], "passage": "p4", "source": "x"}])


def test_single_passages_are_one_group_an_item() -> None:
    corpus = ParallelCorpus.from_rows(ROWS)
    assert corpus.groups == corpus.items
    assert (corpus.group_V == corpus.item_V).all()
    assert corpus.item_G.tolist() == [0, 1, 2]
    assert not corpus.repeat_V.any()


# --- files -------------------------------------------------------------------------------------------------

JSON_ROWS = [{**GOOD, "id": "1"}, {**GOOD, "id": "2", "passage": "two\nlines"}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(JSON_ROWS),
        json.dumps(JSON_ROWS, indent=2),
        "\n \n" + json.dumps(JSON_ROWS, indent="\t") + "\n\n",
        "[\n" + ",\n".join(map(json.dumps, JSON_ROWS)) + "\n]\n",
        "\n".join(json.dumps(row, indent=2) for row in JSON_ROWS),
        "\r\n".join(map(json.dumps, JSON_ROWS)),
    ],
)
def test_json_of_any_layout(tmp_path: Path, name: str, text: str) -> None:
    for start in ("", "\ufeff"):
        (tmp_path / name).write_text(start + text, encoding="utf-8", newline="")
        read = ParallelCorpus.load(tmp_path / name).table.select(list(GOOD)).to_pylist()
        assert read == JSON_ROWS


BAD = {**GOOD, "query": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([GOOD, BAD], indent=1), r":8: query is empty"),
        (json.dumps([GOOD, 7], indent=1), r":8: expected a JSON object or other mapping, got int"),
        (json.dumps(GOOD, indent=1) + "\n" + json.dumps(BAD, indent=1), r":7: query is empty"),
        (json.dumps([GOOD], indent=1)[:-1], r":8: not JSON: expected ',' or '\]' in the array"),
        (json.dumps([GOOD]) + "\n{}", r":2: not JSON: expected nothing after the array"),
        (json.dumps([GOOD])[:-1] + '\n{"id": 2}]', r":2: not JSON: expected ',' or"),
        (json.dumps([GOOD])[:-1] + ',\n{"id" 2}]', r":2: not JSON: Expecting ':' delimiter at column 7"),
        ('{"id": 1, "id": 2}', r":1: column 'id' appears twice"),
        ('[\n{"id": 1},\n{"id": 1, "x": 3, "x": 2}]', r":2: column 'lang' is missing"),
        (json.dumps(GOOD) + '\n{"id": 1, "x": 3, "x": 2}', r":2: column 'x' appears twice"),
        (json.dumps(GOOD) + '\n{"id": 2,', r":2: not JSON"),
        (json.dumps({"data": [GOOD]}), r":1: column 'lang' is missing; the row has 'data'"),
        ("[]", r": no rows"),
        ("", r": no rows"),
    ],
)
def test_a_bad_json_is_named_by_the_line_of_its_object(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match="bad.json" + message):
        ParallelCorpus.load(tmp_path / "bad.json")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quote_is_text_in_tsv_and_quotes_in_csv(tmp_path: Path, end: str) -> None:
    lines = [
        "id\tlang\tquery\tpassage",
        '1\ten\t"\t5" disk',
        '2\ten\t"a" b\t"open',
        "",
        "3\ten\tq\tlast\u2028one",
    ]
    (tmp_path / "rows.tsv").write_text(end.join(lines), encoding="utf-8", newline="")
    table = ParallelCorpus.load(tmp_path / "rows.tsv").table
    assert table["query"].to_pylist() == ['"', '"a" b', "q"]
    assert table["passage"].to_pylist() == ['5" disk', '"open', "last\u2028one"]
    lines = ["id,lang,query,passage", '1,en,"a ""b"", c","two', 'lines"', "", "2,en,q,p"]
    (tmp_path / "rows.csv").write_text(end.join(lines) + end, encoding="utf-8", newline="")
    table = ParallelCorpus.load(tmp_path / "rows.csv").table
    assert table["query"].to_pylist() == ['a "b", c', "q"]
    assert table["passage"].to_pylist() == [f"two{end}lines", "p"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,lang,query,passage", "1,en,q,p", "2,en,q"], r":3: 3 fields where the header has 4"),
        (["id,lang,query,passage", "1,en,q,p,x"], r":2: 5 fields where the header has 4"),
        (["id,lang,query,lang,passage", "1,en,q,de,p"], r":1: column 'lang' appears twice"),
        (["", "id,lang,query,passage", "1,en,,p"], r":3: query is empty"),
        (["id,lang,query,passage"], r": no rows"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_bad_fields_are_named_by_line(tmp_path: Path, suffix: str, lines: list[str], message: str) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_text("\n".join(lines).replace(",", "," if suffix == "csv" else "\t") + "\n")
    with pytest.raises(ValueError, match=path.name + message):
        ParallelCorpus.load(path)


def test_a_record_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text('id,lang,query,passage\n1,en,"a\nb",p\n\n2,en,"c\nd"\n')
    with pytest.raises(ValueError, match=r"bad.csv:5: 3 fields where the header has 4"):
        ParallelCorpus.load(tmp_path / "bad.csv")


def test_nameless_columns_may_repeat(tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_text("id,lang,query,passage,,\n1,en,q,p,,\n")
    assert len(ParallelCorpus.load(tmp_path / "sheet.csv")) == 1


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"plain text")
    with pytest.raises(ValueError, match=r"rows.jsonl.gz:1: not gzip"):
        ParallelCorpus.load(path)
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-4])
    with pytest.raises(ValueError, match=r"rows.jsonl.gz:\d: not gzip"):
        ParallelCorpus.load(path)


# --- sources and folders -----------------------------------------------------------------------------------


def write_folder(folder: Path, names: dict[str, list[str]], **changes: Any) -> Path:
    """A file a name, each with rows of the same ids in its languages."""
    folder.mkdir()
    for number, (name, languages) in enumerate(names.items()):
        rows = [{**GOOD, "id": f"{number}-{lang}", "lang": lang, **changes} for lang in languages]
        write_json_lines(folder / name, rows)
    return folder


@pytest.mark.parametrize(
    ("names", "sources"),
    [
        ({"de.jsonl": ["de"], "en.jsonl": ["EN "]}, ["set"]),
        ({"zh_cn.jsonl": ["zh-CN"], "pt.jsonl": ["pt-BR"], "sr-Latn.jsonl": ["sr_latn"]}, ["set"]),
        ({"news-de.jsonl": ["de"], "news-en.jsonl": ["en"], "wiki.en.jsonl": ["en"]}, ["news", "wiki"]),
        ({"de_train.jsonl": ["de"], "en_train.jsonl": ["en"]}, ["train"]),
        ({"de-en.jsonl": ["de", "en"], "fr.jsonl": ["fr", "en"]}, ["de-en", "fr"]),
        ({"model.jsonl": ["de"], "deed.jsonl": ["de"], "so.jsonl": ["en"]}, ["deed", "model", "so"]),
        ({"train-00000-of-00002.jsonl": ["de", "en"], "train-00001-of-00002.jsonl": ["de"]}, ["train"]),
        ({"de-00000-of-00002-0a1b.jsonl": ["de"], "de-00001-of-00002-0a1c.jsonl": ["de"]}, ["set"]),
        ({"part-00000-ab.c000.jsonl": ["de", "en"], "part-00001-ab.c000.jsonl": ["de"]}, ["set"]),
        ({"wmt19.jsonl": ["de"], "wmt20.jsonl": ["de"]}, ["wmt19", "wmt20"]),
    ],
)
def test_a_files_name_without_shard_and_language_is_its_source(
    tmp_path: Path, names: dict[str, list[str]], sources: list[str]
) -> None:
    assert ParallelCorpus.load(write_folder(tmp_path / "set", names)).sources == sources
    named = write_folder(tmp_path / "named", names, source="own")
    assert ParallelCorpus.load(named).sources == ["own"]


def test_a_folder_of_one_file_a_language_is_one_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "by_language"
    folder.mkdir()
    for lang in ("de", "en"):
        rows = [{"id": i, "lang": lang, "query": f"q{i}", "passage": f"p{i}"} for i in range(3)]
        write_json_lines(folder / f"{lang}.jsonl", rows)
        write_json_lines(folder / f"._{lang}.jsonl", ["not data"])
    corpus = ParallelCorpus.load(folder)
    assert (corpus.items, corpus.sources) == (["0", "1", "2"], ["by_language"])
    assert ParallelCorpus.load(folder / "de.jsonl").sources == ["de"]
    monkeypatch.chdir(folder)
    assert ParallelCorpus.load(".").sources == ["by_language"]
    write_json_lines(folder / "other.jsonl", [{**rows[0], "lang": "fr"}])
    with pytest.raises(ValueError, match=r"other.jsonl:1: id '0' is in source 'other', but in 'by_language'"):
        ParallelCorpus.load(folder)


def test_a_file_names_the_language_only_where_all_of_a_folder_do(tmp_path: Path) -> None:
    bare = {"id": "1", "query": "q", "passage": "p"}
    for name in ("de", "zh_hans"):
        write_json_lines(tmp_path / f"{name}.jsonl", [bare])
    assert ParallelCorpus.load(tmp_path).coverage() == {"de": 1, "zh-Hans": 1}
    write_json_lines(tmp_path / "zh_hans.jsonl", [{**bare, "id": "2"}])
    assert ParallelCorpus.load(tmp_path, language="fr").languages == ["fr"]
    with pytest.raises(ValueError, match=r"de.jsonl:1: column 'lang' is missing"):
        ParallelCorpus.load(tmp_path / "de.jsonl")
    write_json_lines(tmp_path / "es.jsonl", [{**bare, "id": None}])
    with pytest.raises(ValueError, match=r"es.jsonl:1: column 'id' is missing"):
        ParallelCorpus.load(tmp_path)
    write_json_lines(tmp_path / "train.jsonl", [bare])
    with pytest.raises(ValueError, match=r"de.jsonl:1: column 'lang' is missing"):
        ParallelCorpus.load(tmp_path)


def test_a_fingerprint_does_not_see_where_files_end(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_json_lines(tmp_path / "set" / "1.jsonl", ROWS[:2])
    write_json_lines(tmp_path / "set" / "2.jsonl", ROWS[2:])
    assert ParallelCorpus.load(tmp_path / "set").fingerprint == ParallelCorpus.from_rows(ROWS).fingerprint


def test_files_of_one_stem_make_different_ids(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"query": "q", "passage": "p"}])
    write_json_lines(tmp_path / "a.jsonl", [{"query": "q", "passage": "p"}] * 2)
    assert ParallelCorpus.load(tmp_path, language="en").items == ["a.csv:2", "a.jsonl:1", "a.jsonl:2"]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.tuples(texts.map(str.strip), st.sampled_from(["en", "de", "th"])),
        st.tuples(texts, texts),
        min_size=1,
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
