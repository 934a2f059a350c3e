"""Files read in one go against the same files read row by row: rows, numbers, fingerprints and errors.

Blocks are a few lines here, so that rows, quotes and errors fall on every side of their ends.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.data import assembly, blocks, checking
from hybridfast.data.blocks import RowByRow
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.reading import READERS

GOOD = {"id": "1", "lang": "en", "query": "q", "passage": "p"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BYTES", 120)
    monkeypatch.setattr(blocks, "ROWS", 3)


def outcome(path: Path, **options: Any) -> Any:
    """All that a corpus says of a file, or the error."""
    try:
        corpus = ParallelCorpus.load(path, **options)
    except ValueError as error:
        return str(error)
    arrays = (corpus.item_V, corpus.group_V, corpus.language_V, corpus.source_V, corpus.repeat_V)
    return corpus.table.to_pylist(), corpus.fingerprint, [array.tolist() for array in arrays]


def row_by_row(rows: object) -> Any:
    raise RowByRow


def assert_same(path: Path, **options: Any) -> None:
    found = outcome(path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "blocks", row_by_row)
        wanted = outcome(path, **options)
    assert found == wanted


# --- rows of all kinds -------------------------------------------------------------------------------------

texts = st.sampled_from(
    ["q", "p", "two words", "ein Straßenname", "ทะเล สีฟ้า", "\U0001f600", "a\nb", "a\r\nb", "it's", 'say "x"',
     '"', "a,b", "tab\there", "\u2028", "2020-01-01", "2020-01-01 10:00:00", "1e5", "null", "\\", " padded "]
)  # fmt: skip
odd = st.sampled_from(["", " ", "\u3000", None, 7, 7.0, 1.5, True, float("nan"), [], ["x", None, ""], {}])
values = {
    "id": st.integers(0, 6).map(str) | st.integers(0, 6) | st.just(" 3\t"),
    "lang": st.sampled_from(["en", "de", "EN ", "zh_hans"]),
    "query": texts,
    "passage": texts,
    "source": st.sampled_from(["a", "a", ""]),
    "split": st.sampled_from(["train", "dev", "Validation", "else", ""]),
    "anchor": texts,
    "positive": texts,
    "negative": texts | st.just(""),
    "negative_2": texts,
    "negatives": st.lists(texts, max_size=2),
    "other": st.none() | st.integers() | texts | st.dictionaries(texts, st.integers(), max_size=2),
}
FEW = ["id", "lang", "query", "passage"]


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with some of the columns, a few of them without one or with an odd value."""
    names = [*FEW, *draw(st.lists(st.sampled_from(sorted({*values} - {*FEW})), unique=True, max_size=4))]
    found = [
        {name: draw(values[name]) for name in names} | {"passage": f"p{i}"}
        for i in range(draw(st.integers(1, 9)))
    ]
    if draw(st.booleans()):
        row, name = draw(st.sampled_from(found)), draw(st.sampled_from(names))
        if draw(st.booleans()):
            row[name] = draw(odd)
        else:
            del row[name]
    if draw(st.booleans()):  # mostly ids of their own: else nearly all corpora are errors
        for i, row in enumerate(found):
            if row.get("id"):
                row["id"] = str(i) if isinstance(row["id"], str) else i
    return found


lines = st.sampled_from(["\n", "\r\n"])
damage = st.sampled_from(
    ["\n", "\n \n", "{}\n", "[]\n", '{"id": "1"\n', "\r", '"', "x", '{"id": 1} {"id": 2}\n', "\ufeff", "\t,"]
)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """A file's bytes, seldom with something in a place where it may not be."""
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(damage) + text[place:]
    data = text.encode()
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(data)))
        data = data[:place] + b"\xff" + data[place:]
    return (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + data


@settings(max_examples=150, deadline=None)
@given(st.data(), rows(), lines, st.booleans(), st.sampled_from([None, "fr"]))
def test_json_lines(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    rows: list[Any],
    end: str,
    last: bool,
    language: str | None,
) -> None:
    text = end.join(json.dumps(row, ensure_ascii=data.draw(st.booleans())) for row in rows) + end * last
    path = tmp_path_factory.mktemp("json") / "rows.jsonl"
    path.write_bytes(data.draw(damaged(text)))
    assert_same(path, language=language)


@settings(max_examples=150, deadline=None)
@given(st.data(), rows(), lines, st.sampled_from(["csv", "tsv"]), st.sampled_from([None, "fr"]))
def test_separated_values(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    rows: list[Any],
    end: str,
    suffix: str,
    language: str | None,
) -> None:
    names = [*dict.fromkeys(name for row in rows for name in row)]
    file = io.StringIO()
    if suffix == "csv":
        quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        writer = csv.DictWriter(file, names, lineterminator=end, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    else:
        for row in [dict(zip(names, names, strict=True)), *rows]:
            file.write("\t".join(str(row.get(name) or "").replace("\t", " ") for name in names) + end)
    path = tmp_path_factory.mktemp("values") / f"rows.{suffix}"
    path.write_bytes(data.draw(damaged(file.getvalue())))
    assert_same(path, language=language)


@settings(max_examples=100, deadline=None)
@given(st.data(), rows(), st.sampled_from(["parquet", "arrow", "stream"]), st.sampled_from([None, "fr"]))
def test_tables(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    rows: list[Any],
    kind: str,
    language: str | None,
) -> None:
    names = [*dict.fromkeys(name for row in rows for name in row)]
    columns = {}
    for name in names:
        try:
            column = pa.array([row.get(name) for row in rows])
            if pa.types.is_struct(column.type):  # which Parquet cannot hold without a field
                column = pa.nulls(len(rows))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            column = pa.array([str(row.get(name)) for row in rows])
        if pa.types.is_string(column.type):
            kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
            column = column.cast(data.draw(st.sampled_from([*kinds[:3], kinds[0], *kinds])))
        columns[name] = column
    table = pa.table(columns)
    path = tmp_path_factory.mktemp("tables") / ("rows.parquet" if kind == "parquet" else "rows.arrow")
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=data.draw(st.sampled_from([4, 9])))
    else:
        make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    assert_same(path, language=language)


# --- what is read in one go, and what is not ---------------------------------------------------------------


def plain(count: int) -> list[dict[str, Any]]:
    return [
        {**GOOD, "id": str(i), "query": f"q {i}", "negative_1": "n", "x": {"y": [i]}} for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            separated = csv.DictWriter(file, [*rows[0]], delimiter="\t" if path.suffix == ".tsv" else ",")
            separated.writeheader()
            separated.writerows(rows)
    return path


def refused(*_: Any) -> Any:
    raise AssertionError("read row by row")


@pytest.mark.parametrize("suffix", sorted({*READERS} - {".json"}))
def test_plain_rows_are_not_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = write(tmp_path / f"rows{suffix}", plain(50))
    assert_same(path)
    monkeypatch.setattr(assembly, "_row_by_row", refused)
    corpus = ParallelCorpus.load(path)
    assert corpus.items == [str(i) for i in range(50)]
    assert corpus.table["negatives"].to_pylist() == [["n"]] * 50


@pytest.mark.parametrize("group", [5, 20])  # decoded whole, and some rows at a time
@pytest.mark.parametrize("place", [0.3, 0.6, 0.8])
def test_a_damaged_parquet_file(tmp_path: Path, group: int, place: float) -> None:
    path = tmp_path / "rows.parquet"
    rng = np.random.default_rng(0)
    some = [{**row, "passage": rng.bytes(300).hex()} for row in plain(40)]
    pq.write_table(pa.Table.from_pylist(some), path, row_group_size=group, compression="snappy")
    whole = path.read_bytes()
    begin = int(place * len(whole))
    path.write_bytes(whole[:begin] + bytes(2000) + whole[begin + 2000 :])
    assert_same(path)
    assert isinstance(outcome(path), str)
    path.write_bytes(whole[:begin])
    assert "not Parquet" in outcome(path)


def test_numbers_as_ids_and_lines_as_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "_row_by_row", refused)
    numbers = write(tmp_path / "numbers.jsonl", [{**GOOD, "id": i} for i in range(30)])
    assert ParallelCorpus.load(numbers).items == [str(i) for i in range(30)]
    floats = pa.table({**{k: [v] * 3 for k, v in GOOD.items()}, "id": [7.0, float("nan"), -0.0]})
    assert ParallelCorpus.from_rows(floats, language="en").items == ["7", "rows:2", "0"]
    pairs = write(tmp_path / "pairs.csv", [{"anchor": f"a\n{i}", "positive": "p"} for i in range(9)])
    assert ParallelCorpus.load(pairs, language="en").items[:3] == [f"pairs.csv:{2 + 2 * i}" for i in range(3)]


def test_one_odd_row_costs_its_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = plain(30)
    some[12]["id"] = 12.0
    path = write(tmp_path / "rows.jsonl", some)
    one_by_one: list[int] = []
    real = assembly._row_by_row

    def counted(file: Any, rows: Any, id_needed: bool) -> Any:
        for batch in real(file, rows, id_needed):
            one_by_one.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(assembly, "_row_by_row", counted)
    assert ParallelCorpus.load(path).items == [str(i) for i in range(30)]
    assert sum(one_by_one) <= 2  # of 120 bytes


def test_a_quote_that_is_text_does_not_swallow_what_follows(tmp_path: Path) -> None:
    """`5" disk` opens nothing; by counting quotes alone, the field behind it would end a record too early."""
    path = tmp_path / "rows.csv"
    records = [
        "id,lang,query,passage",
        '1,en,5" disk,p',
        '2,en,"a\nb","c\nd"',
        *(f"{i},en,q,p" for i in range(3, 9)),
    ]
    path.write_text("\n".join(records) + "\n")
    assert_same(path)
    assert ParallelCorpus.load(path).table["query"].to_pylist()[:2] == ['5" disk', "a\nb"]


@pytest.mark.parametrize("depth", [400, 5_000, 100_000])
def test_json_that_nests_deeply_is_what_python_says_of_it(tmp_path: Path, depth: int) -> None:
    text = json.dumps(GOOD)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}\n"
    (tmp_path / "deep.jsonl").write_text(text)
    assert_same(tmp_path / "deep.jsonl")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "zst"])
def test_compressed_files_and_damaged_ones(tmp_path: Path, suffix: str) -> None:
    data = write(tmp_path / "plain.jsonl", plain(200)).read_bytes()
    packed = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[suffix](data)
    path = tmp_path / f"rows.jsonl.{suffix}"
    path.write_bytes(packed)
    assert ParallelCorpus.load(path).items == [str(i) for i in range(200)]
    kind = {"gz": "gzip", "bz2": "bzip2", "zst": "Zstandard"}[suffix]
    for broken in (packed[:-20], b"plain text", packed[:40] + b"0" * 40 + packed[80:]):
        path.write_bytes(broken)
        assert_same(path)
        with pytest.raises(ValueError, match=rf"rows.jsonl.{suffix}:\d+: not {kind}"):
            ParallelCorpus.load(path)


def test_what_a_folder_has_and_is_not_read_is_said(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", plain(3))
    assert ParallelCorpus.load(tmp_path).notes == []
    (tmp_path / "more").mkdir()
    (tmp_path / "rows.xml").touch()
    (tmp_path / ".hidden").touch()
    assert ParallelCorpus.load(tmp_path).notes == [f"Not read in {tmp_path}: more/, rows.xml"]


def test_blanks_are_python_s() -> None:
    """Else a text of such characters is empty to one reader and not to the other."""
    characters = pa.array([chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000])
    blank = checking.pc.utf8_is_space(characters).to_numpy(zero_copy_only=False)
    assert np.array_equal(blank, [character.isspace() for character in characters.to_pylist()])
    trimmed = checking.pc.utf8_trim_whitespace(characters).to_pylist()
    assert trimmed == [character.strip() for character in characters.to_pylist()]
