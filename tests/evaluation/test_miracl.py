"""MIRACL's layout: the published topics and judgments, passages with titles, broken folders."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from evaluation.damage import damaged, objects, refused_or_sound, write
from hypothesis import HealthCheck, given, settings

from hybridfast.evaluation import miracl
from hybridfast.evaluation.judged import BLANKS

# Questions and judgments of the dev sets, as the data set's card on the hub counts them.
PUBLISHED = {
    "ar": (2896, 29197), "bn": (411, 4206), "en": (799, 8350), "es": (648, 6443), "fa": (632, 6571),
    "fi": (1271, 12008), "fr": (343, 3429), "hi": (350, 3494), "id": (960, 9668), "ja": (860, 8354),
    "ko": (213, 3057), "ru": (1252, 13100), "sw": (482, 5092), "te": (828, 1606), "th": (733, 7573),
    "zh": (393, 3928), "de": (305, 3144), "yo": (119, 1188),
}  # fmt: skip


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def files(language: str = "ar") -> dict[str, bytes]:
    home, corpus = f"miracl-v1.0-{language}", f"miracl-corpus-v1.0-{language}"
    return {
        f"{home}/topics/topics.miracl-v1.0-{language}-dev.tsv": "0\twhat is it?\n7\twö?\n".encode(),
        f"{home}/qrels/qrels.miracl-v1.0-{language}-dev.tsv": b"0 Q0 1#0 1\n0\tQ0\t2#0\t0\n7 Q0 2#1 1\n",
        f"{corpus}/docs-0.jsonl": jsonl(
            {"docid": "1#0", "title": "One", "text": "first"}, {"docid": "2#0", "title": "", "text": "bare"}
        ),
        f"{corpus}/docs-1.jsonl.gz": jsonl({"docid": "2#1", "title": "Two", "text": "last"}),
    }


def test_one_language_keeps_its_ids(tmp_path: Path) -> None:
    eval_set = miracl.load(write(tmp_path, files()))
    assert eval_set.queries == ["what is it?", "wö?"]
    assert eval_set.query_ids == ["0", "7"]
    assert eval_set.items == ["ar:0", "ar:7"]
    assert eval_set.passages == ["One first", "bare", "Two last"]
    assert eval_set.passage_ids == ["1#0", "2#0", "2#1"]
    assert eval_set.gold_indptr.tolist() == [0, 2, 3]
    assert eval_set.gold_indices.tolist() == [0, 1, 2]
    assert eval_set.grades.tolist() == [1, 0, 1]
    assert eval_set.relevant().gold_indptr.tolist() == [0, 1, 2]
    assert eval_set.notes == []
    assert miracl.load(tmp_path, title_separator="\n\n").passages == ["One\n\nfirst", "bare", "Two\n\nlast"]


def test_several_languages_are_one_set(tmp_path: Path) -> None:
    """Article numbers and questions' numbers repeat from one Wikipedia to the next."""
    write(tmp_path, files("sw") | files("bn"))
    eval_set = miracl.load(tmp_path)
    assert eval_set.query_ids == ["bn:0", "bn:7", "sw:0", "sw:7"]
    assert eval_set.query_languages == ["bn", "bn", "sw", "sw"]
    assert eval_set.passage_ids[3:] == ["sw:1#0", "sw:2#0", "sw:2#1"]
    assert eval_set.gold_indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(set(eval_set.clusters)) == 4
    assert miracl.load(tmp_path, ["sw"]).query_ids == ["0", "7"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    given = files()
    topics, qrels, corpus, _ = given
    given[topics] += b"8\tunjudged\n9\tnone relevant\n0\tagain\n"
    given[qrels] += b"9 Q0 1#0 0\nx Q0 1#0 1\n7 Q0 9#9 1\n7 Q0 8#8 0\n0 Q0 1#0 0\n"
    given[corpus] += jsonl({"docid": "1#0", "title": "", "text": "again"})
    eval_set = miracl.load(write(tmp_path, given))
    assert eval_set.query_ids == ["0", "7"]
    assert eval_set.grades.tolist() == [1, 0, 1]
    topics, qrels, corpus = (tmp_path / name for name in (topics, qrels, corpus))
    assert eval_set.notes == [
        f"1 queries with an id that was there before are left out; the first: '0' at {topics}:5",
        f"1 passages with an id that was there before are left out; the first: '1#0' at {corpus}:3",
        f"1 judgments of queries that are not there are left out; the first: 'x', '1#0' at {qrels}:5",
        f"2 judgments of passages that are not there are left out; the first: '7', '9#9' at {qrels}:6",
        f"1 judgments of a pair that was judged before are left out; the first: '0', '1#0' at {qrels}:8",
        "2 queries without a relevant passage are left out; the first: '8'",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("topics", b"0 what\n", r"topics.*\.tsv:1: expected id text"),
        ("topics", b"0\t\n", r"topics.*\.tsv:1: expected id text"),
        ("qrels", b"0\tQ0\t1#0\n", r"qrels.*\.tsv:1: expected query Q0 passage grade"),
        ("qrels", b"\n0\tQ0\t1#0\tyes\n", r"qrels.*\.tsv:2: the grade must be an integer, got 'yes'"),
        ("docs-0", jsonl({"docid": "1#0", "title": "t"}), r"docs-0\.jsonl:1: text must be text, got None"),
        (
            "docs-0",
            jsonl({"docid": 1, "title": "", "text": ""}),
            r"docs-0\.jsonl:1: docid must be text, got 1",
        ),
        ("docs-0", b'{"docid": "1"}\n{"docid"', r"docs-0\.jsonl:1: title"),
        ("docs-0", b"3\n", r"docs-0\.jsonl:1: expected a JSON object, got int"),
        (
            "qrels",
            b"7 Q0 nowhere 1\n",
            r"none of 2 queries has a relevant passage among 3; 1 judgments of pas",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    given = files()
    given = {path: content if name in path.split("/")[-1] else old for path, old in given.items()}
    with pytest.raises(ValueError, match=message):
        miracl.load(write(tmp_path, given))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        miracl.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no topics, such as .*topics\.miracl-v1\.0-ar-dev\.tsv"):
        miracl.load(tmp_path)
    with pytest.raises(ValueError, match=r"languages must be of MIRACL's, .* got 'it'"):
        miracl.load(tmp_path, ["it"])
    write(tmp_path, files())
    with pytest.raises(FileNotFoundError, match=r"miracl-corpus-v1\.0-sw has no docs-0"):
        miracl.load(tmp_path, ["ar", "sw"])
    (tmp_path / "miracl-corpus-v1.0-ar" / "docs-0.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks docs-0\.jsonl\.gz"):
        miracl.load(tmp_path)


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    write(tmp_path, files("te"))
    assert miracl.load(None, ["te"]).passage_ids == ["1#0", "2#0", "2#1"]
    assert asked == [
        ("miracl/miracl", "dataset", ["miracl-v1.0-te/*/*-dev.tsv"]),
        ("miracl/miracl-corpus", "dataset", ["miracl-corpus-v1.0-te/*"]),
    ]
    with pytest.raises(ValueError, match="needs languages"):
        miracl.load(None)


def test_published_topics_and_judgments(data_dir: Path, tmp_path: Path) -> None:
    """Over corpora of the judged passages alone, the others being too large to be here."""
    source = data_dir / "miracl"
    for language in PUBLISHED:
        home = tmp_path / f"miracl-v1.0-{language}"
        for kind in ("topics", "qrels"):
            (home / kind).mkdir(parents=True)
            name = f"{kind}.miracl-v1.0-{language}-dev.tsv"
            (home / kind / name).symlink_to(source / f"{kind}.{language}-dev.tsv")
        judged = {line.split()[2] for line in (source / f"qrels.{language}-dev.tsv").read_text().splitlines()}
        corpus = tmp_path / f"miracl-corpus-v1.0-{language}"
        corpus.mkdir()
        rows = jsonl(*({"docid": docid, "title": "", "text": docid} for docid in sorted(judged)))
        (corpus / "docs-0.jsonl").write_bytes(rows)
    eval_set = miracl.load(tmp_path)
    assert eval_set.notes == []
    assert Counter(eval_set.query_languages) == {tag: topics for tag, (topics, _) in PUBLISHED.items()}
    language_G = np.repeat(eval_set.query_languages, np.diff(eval_set.gold_indptr))
    assert Counter(language_G.tolist()) == {tag: judgments for tag, (_, judgments) in PUBLISHED.items()}
    assert (np.array(eval_set.passage_languages)[eval_set.gold_indices] == language_G).all()
    assert set(eval_set.grades.tolist()) == {0, 1}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_files=damaged(files()))
def test_damaged_files_are_named_or_read_right(tmp_path: Path, given_files: dict[str, bytes]) -> None:
    folder = write(tmp_path, given_files)
    eval_set = refused_or_sound(lambda: miracl.load(folder, ["ar"]), folder)
    if eval_set is None:
        return
    topics, qrels, *corpus = (given_files[name] for name in files())
    rows = [row for content in corpus for row in objects(content)]
    texts = {
        row["docid"].strip(BLANKS): " ".join(filter(None, [row["title"], row["text"]])) for row in rows[::-1]
    }
    assert dict(zip(eval_set.passage_ids, eval_set.passages, strict=True)) == texts
    asked = [
        line.rstrip("\r").split("\t", 1)
        for line in topics.decode("utf-8-sig").split("\n")
        if line.strip("\r")
    ]
    questions = {identifier.strip(BLANKS): text for identifier, text in asked[::-1]}
    graded: dict[tuple[str, str], int] = {}
    for line in qrels.decode("utf-8-sig").split("\n"):
        if line.strip(" \t\r"):
            query, _, passage, grade = re.split("[ \t]+", line.strip(" \t\r"))
            if query in questions and passage in texts:
                graded.setdefault((query, passage), int(float(grade)))
    relevant = {query for (query, _), grade in graded.items() if grade > 0}
    assert dict(zip(eval_set.query_ids, eval_set.queries, strict=True)) == {
        query: text for query, text in questions.items() if query in relevant
    }
    query_G = np.repeat(eval_set.query_ids, np.diff(eval_set.gold_indptr)).tolist()
    passage_G = [eval_set.passage_ids[row] for row in eval_set.gold_indices]
    assert dict(zip(zip(query_G, passage_G, strict=True), eval_set.grades.tolist(), strict=True)) == {
        pair: grade for pair, grade in graded.items() if pair[0] in relevant
    }
