"""BEIR's layout and that of mlir-benchmarks, from folders and from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.damage import damaged, objects, refused_or_sound, write
from evaluation.test_miracl import jsonl
from hypothesis import HealthCheck, given, settings

from hybridfast.evaluation import beir, readers
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.judged import BLANKS

FILES = {
    "corpus.jsonl": jsonl(
        {"_id": "d1", "title": "One", "text": "first", "lang": "en"},
        {"_id": "d2", "title": "", "text": "zweiter", "lang": "de", "metadata": {}},
        {"_id": "d3", "text": "third", "lang": "EN"},
    ),
    "queries.jsonl": jsonl(
        {"_id": "q1", "text": "which?", "lang": "en"}, {"_id": 2, "text": "was?", "lang": "de"}
    ),
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td3\t2\nq1\td1\t1\n2\td2\t1\n2\td3\t0\n",
}
MLIR = {
    "corpus.jsonl": jsonl(
        {"d1": {"text": "One first", "lang": "en"}}, {"d2": {"text": "zweiter", "lang": "de"}}
    ),
    "queries.jsonl": jsonl({"q1": "which?", "q2": "what?"}),
    "qrels.jsonl": jsonl({"q1": {"d1": 1, "d2": 2}}, {"q2": {"d2": 1.0}}),
}


def judged(eval_set: EvalSet) -> dict[tuple[str, str], int]:
    """Grades by ids."""
    query_G = np.repeat(np.arange(len(eval_set.queries)), np.diff(eval_set.gold_indptr))
    return {
        (eval_set.query_ids[query], eval_set.passage_ids[row]): grade
        for query, row, grade in zip(query_G, eval_set.gold_indices, eval_set.grades.tolist(), strict=True)
    }


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_folder(tmp_path: Path, end: str) -> None:
    folder = write(tmp_path / "wiki", {name + end: content for name, content in FILES.items()})
    eval_set = beir.load(folder)
    assert eval_set.name == "wiki"
    assert eval_set.passages == ["One first", "zweiter", "third"]
    assert eval_set.passage_languages == ["en", "de", "en"]
    assert eval_set.queries == ["which?", "was?"]
    assert eval_set.query_ids == eval_set.items == ["q1", "2"]
    assert eval_set.gold_indices.tolist() == [0, 2, 1, 2]
    assert eval_set.grades.tolist() == [1, 2, 1, 0]
    assert eval_set.relevant().gold_indptr.tolist() == [0, 2, 3]
    assert eval_set.notes == []
    assert beir.load(folder, title_separator="\n\n").passages[0] == "One\n\nfirst"
    assert readers.load(str(folder)).passages == eval_set.passages  # by its files
    assert readers.load("beir", str(folder), languages=["DE"]).passages == ["zweiter"]


def test_an_index_of_languages_and_other_splits(tmp_path: Path) -> None:
    bare = {name: content.replace(b'"lang"', b'"other"') for name, content in FILES.items()}
    folder = write(tmp_path, bare | {"qrels/dev.tsv": b"q1\t0\td2\t1\n"})  # TREC's columns, no header
    assert judged(beir.load(folder, "dev", "it")) == {("q1", "d2"): 1}
    assert set(beir.load(folder, language="it").passage_languages) == {"it"}
    with pytest.raises(ValueError, match=r"corpus\.jsonl:1: 'd1' has no lang \(or pass language\)"):
        beir.load(folder)
    with pytest.raises(FileNotFoundError, match=r"lacks qrels/train\.tsv and qrels\.jsonl"):
        beir.load(folder, "train", "it")


def test_mlir_benchmarks(tmp_path: Path) -> None:
    eval_set = beir.load(write(tmp_path, MLIR), language="en")
    assert eval_set.passages == ["One first", "zweiter"]
    assert eval_set.passage_languages == ["en", "de"]
    assert eval_set.query_languages == ["en", "en"]
    assert judged(eval_set) == {("q1", "d1"): 1, ("q1", "d2"): 2, ("q2", "d2"): 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", b'{"_id": "d1", "lang": "en"}\n', "corpus.jsonl:1: 'd1' has no text"),
        ("corpus.jsonl", b'{"_id": "", "text": "x", "lang": "en"}', "corpus.jsonl:1: the id must be text or"),
        (
            "corpus.jsonl",
            b'{"_id": "a", "text": "x", "lang": "e n"}',
            "corpus.jsonl:1: lang must be a language",
        ),
        ("corpus.jsonl", b'{"_id": "a", "text": "", "title": 3}', "corpus.jsonl:1: the title of 'a' must be"),
        ("queries.jsonl", b'\n{"_id": "q"', "queries.jsonl:2: not JSON"),
        ("queries.jsonl", b"[7]", "queries.jsonl:1: expected a JSON object, got int"),
        (
            "qrels/test.tsv",
            b"q\tc\ts\nq1\td1\n",
            "test.tsv:2: expected query, passage and grade between tabs",
        ),
        (
            "qrels/test.tsv",
            b"q\tc\ts\nq1\td1\thigh\n",
            "test.tsv:2: the grade must be an integer, got 'high'",
        ),
        ("qrels/test.tsv", b"q\tc\ts\nq1\td1\t0.5\n", "test.tsv:2: the grade must be an integer, got '0.5'"),
        ("qrels/test.tsv", b"q\tc\ts\n\xff\td1\t1\n", "test.tsv:2: not UTF-8"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError) as error:
        beir.load(write(tmp_path, FILES | {name: content}))
    assert message in str(error.value)


def test_broken_objects_are_named(tmp_path: Path) -> None:
    for rows, message in (
        ([{"q1": 3}], "qrels.jsonl:1: 'q1' must have {passage: grade}, got 3"),
        ([{"q1": {"d1": 1}}, {"q1": {"d2": True}}], "qrels.jsonl:2: the grade must be an integer, got True"),
        ([{"query-id": "q1", "score": 1}], "qrels.jsonl:1: no corpus-id"),
    ):
        with pytest.raises(ValueError) as error:
            beir.load(write(tmp_path, MLIR | {"qrels.jsonl": jsonl(*rows)}), language="en")
        assert message in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        beir.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks corpus\.jsonl"):
        beir.load(tmp_path)


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datasets import Dataset

    tables = {
        ("BeIR/tiny", "corpus", "corpus"): [{"_id": "d1", "title": "One", "text": "first"}],
        ("BeIR/tiny", "queries", "queries"): [{"_id": "q1", "title": "", "text": "which?"}],
        ("BeIR/tiny-qrels", None, "test"): [{"query-id": "q1", "corpus-id": "d1", "score": 1}],
    }

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        return Dataset.from_list(tables[name, config, split])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    eval_set = readers.load("beir", "BeIR/tiny", language="en")
    assert (eval_set.name, eval_set.passages, judged(eval_set)) == ("tiny", ["One first"], {("q1", "d1"): 1})
    with pytest.raises(ValueError, match=r"BeIR/tiny corpus:1: 'd1' has no lang"):
        beir.load("BeIR/tiny")
    with pytest.raises(OSError, match=r"BeIR/none could not be downloaded \(KeyError.*as data_dir"):
        beir.load("BeIR/none")

    def snapshot(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        assert (name, allow_patterns) == ("yjoonjang/mlir-benchmarks", ["MMLIR/XQuAD_test/*"])
        write(tmp_path / "MMLIR" / "XQuAD_test", MLIR)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    eval_set = beir.load("yjoonjang/mlir-benchmarks/MMLIR/XQuAD_test", language="en")
    assert (eval_set.name, len(eval_set.passages)) == ("XQuAD_test", 2)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=damaged(FILES))
def test_damaged_files_are_named_or_read_right(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = write(tmp_path, files)
    eval_set = refused_or_sound(lambda: beir.load(folder), folder)
    if eval_set is None:
        return
    texts: list[dict[str, str]] = []
    for name in ("corpus.jsonl", "queries.jsonl"):
        rows = objects(files[name])
        if not all("_id" in row for row in rows):
            return  # the other layout by chance
        texts.append({
            str(row["_id"]).strip(BLANKS): " ".join(filter(None, [row.get("title"), row["text"]]))
            for row in rows[::-1]
        })  # fmt: skip
    passages, queries = texts
    assert dict(zip(eval_set.passage_ids, eval_set.passages, strict=True)) == passages
    grades: dict[tuple[str, str], int] = {}
    table = files["qrels/test.tsv"].decode("utf-8-sig").split("\n")
    for line in table[table[0].strip(BLANKS).endswith("score") :]:
        if line.strip("\r"):
            query, *_, passage, grade = (field.strip(BLANKS) for field in line.split("\t"))
            if query in queries and passage in passages:
                grades.setdefault((query, passage), int(float(grade)))
    relevant = {query for (query, _), grade in grades.items() if grade > 0}
    assert judged(eval_set) == {pair: grade for pair, grade in grades.items() if pair[0] in relevant}
    found = dict(zip(eval_set.query_ids, eval_set.queries, strict=True))
    assert found == {query: queries[query] for query in queries if query in relevant}
