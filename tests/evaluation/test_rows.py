"""An evaluation set from one's own rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.evaluation import rows
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import evaluate_embeddings


def test_rows_of_one_id_answer_each_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    versions = [("b", "en"), ("a", "de"), ("b", "de"), ("c", "en"), ("b", "th")]
    path.write_text(
        "".join(
            json.dumps({"id": i, "lang": lang, "query": f"q {i} {lang}", "passage": f"p {i} {lang}"}) + "\n"
            for i, lang in versions
        )
    )
    eval_set = rows.load(path)
    assert eval_set.queries[2] == "q b de"
    assert eval_set.passages[4] == "p b th"
    assert eval_set.languages == ["de", "en", "th"]
    assert golds_of(eval_set) == [[0, 2, 4], [1], [0, 2, 4], [3], [0, 2, 4]]


def golds_of(eval_set: EvalSet) -> list[list[int]]:
    return [part.tolist() for part in np.split(eval_set.gold_indices, eval_set.gold_indptr[1:-1])]


def test_a_perfect_retriever_of_shared_passages_is_perfect() -> None:
    """Four paragraphs with five questions each, as in any set like SQuAD."""
    texts = [
        {"id": f"{p}-{q}", "lang": lang, "query": f"{lang} {q} on {p}", "passage": f"{lang} paragraph {p}"}
        for q in range(5)
        for p in range(4)
        for lang in ("en", "de")
    ]
    eval_set = rows.from_corpus(ParallelCorpus.from_rows(texts))
    assert len(eval_set.queries) == 40
    assert eval_set.passages == [row["passage"] for row in texts[:8]]
    axes = np.eye(4, dtype=np.float32)
    queries = axes[[int(item[0]) for item in eval_set.items]]
    passages = axes[[int(text[-1]) for text in eval_set.passages]]
    summary = evaluate_embeddings(eval_set, queries, passages).summary()
    assert [value for name, value in summary.items() if name.startswith("mAP")] == [1, 1, 1]


def test_equal_passages_of_two_languages_are_two_candidates_and_equal_queries_two_queries() -> None:
    texts = [
        {"id": "a", "lang": "de", "query": "Ort?", "passage": "Berlin"},
        {"id": "a", "lang": "en", "query": "place?", "passage": "Berlin"},
        {"id": "b", "lang": "en", "query": "place?", "passage": "Rome"},
        {"id": "c", "lang": "en", "query": "capital?", "passage": "Berlin"},
    ]
    eval_set = rows.from_corpus(ParallelCorpus.from_rows(texts))
    assert eval_set.passages == ["Berlin", "Berlin", "Rome"]
    assert eval_set.passage_languages == ["de", "en", "en"]
    assert eval_set.queries == ["Ort?", "place?", "place?", "capital?"]
    assert golds_of(eval_set) == [[0, 1], [0, 1], [2], [1]]


def test_several_passages_of_a_question_are_all_its_golds() -> None:
    texts = [
        {"id": "a", "lang": "en", "query": "q", "passage": "first"},
        {"id": "b", "lang": "en", "query": "other", "passage": "second"},
        {"id": "a", "lang": "en", "query": "q", "passage": "second"},
        {"id": "a", "lang": "de", "query": "f", "passage": "erste"},
        {"id": "a", "lang": "en", "query": "q", "passage": "third"},
    ]
    eval_set = rows.from_corpus(ParallelCorpus.from_rows(texts))
    assert eval_set.queries == ["q", "other", "f"]
    assert eval_set.items == ["a", "b", "a"]
    assert eval_set.passages == ["first", "second", "erste", "third"]
    assert golds_of(eval_set) == [[0, 1, 2, 3], [1], [0, 1, 2, 3]]
