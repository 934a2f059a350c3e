"""mteb's own tasks on our exact search give mteb's own scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hybridfast.encoder.loading import build_static, train_tokenizer
from hybridfast.evaluation.mteb import ExactIndex, exact_search

QUERY, DOCUMENT = "Query: ", "Passage: "


def toy_task() -> Any:
    """30 documents with titles, 8 queries, graded judgments; made where mteb is."""
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class Toy(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = mteb.TaskMetadata(
            name="ToyRetrieval",
            description="made up",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            reference=None,
            dataset={"path": "none/none", "revision": "1"},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=("2020-01-01", "2020-01-02"),
            domains=["Written"],
            task_subtypes=[],
            license="cc0-1.0",
            annotations_creators="derived",
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            words = np.array(["red", "blue", "green", "fox", "wolf", "bear", "sea", "tree", "sun", "moon"])
            rng = np.random.default_rng(0)
            texts = [" ".join(rng.choice(words, 4)) for _ in range(30)]
            corpus = [{"id": f"d{i}", "title": text.split()[0], "text": text} for i, text in enumerate(texts)]
            queries = [{"id": f"q{i}", "text": " ".join(rng.choice(words, 3))} for i in range(8)]
            judged = {f"q{i}": {f"d{i}": 2, f"d{i + 8}": 1} for i in range(8)}
            split = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": judged,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Toy()


@pytest.mark.filterwarnings("default")  # of mteb's
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_scores_are_those_of_mteb(similarity: str) -> None:
    task = toy_task()
    import mteb

    words = ["red blue green fox wolf bear sea tree sun moon"]
    model = build_static(train_tokenizer(words, 100), 16)
    model.prompts = {"query": QUERY, "document": DOCUMENT}
    model.similarity_fn_name = similarity
    search = exact_search(model)
    assert isinstance(search, mteb.models.SearchProtocol)
    scores = []
    for of in (model, search):
        result = mteb.evaluate(of, task, cache=None, show_progress_bar=False, co2_tracker=False)
        scores.append(result.task_results[0].scores["test"][0])
    theirs, ours = scores
    assert 0 < theirs["ndcg_at_10"] < 1
    figures = [name for name, value in theirs.items() if isinstance(value, float)]
    assert "map_at_100" in figures
    assert {name: ours[name] for name in figures} == pytest.approx(
        {name: theirs[name] for name in figures}, nan_ok=True
    )


def test_the_index_ranks_everything_or_what_it_is_told() -> None:
    index = ExactIndex(cosine=True)
    passages = np.array([[1, 0], [0, 5], [3, 3], [2, 0]], "f")
    index.add_documents(passages[:3], ["a", "b", "c"])
    index.add_documents(torch.from_numpy(passages[3:]), ["d"])
    scores, places = index.search(np.array([[2, 0], [0, 1]], "f"), 3)
    assert places == [[3, 0, 2], [1, 2, 3]]  # of equal ones the last id, as trec_eval
    np.testing.assert_allclose(scores, [[1, 1, 0.5**0.5], [1, 0.5**0.5, 0]], atol=1e-6)
    told = {"q0": ["b", "c"], "q1": []}
    scores, places = index.search(np.eye(2, dtype="f"), 5, None, told, {0: "q0", 1: "q1"})
    assert places == [[1, 0], []]
    assert scores[0] == pytest.approx([0.5**0.5, 0])
    with pytest.raises(ValueError, match="query_idx_to_id must be given"):
        index.search(np.eye(2, dtype="f"), 5, None, told)
    index.clear()
    index.add_documents(passages[1:2], ["b"])
    assert index.search(np.eye(2, dtype="f"), 5)[1] == [[0], [0]]


@pytest.mark.filterwarnings("default")
def test_a_model_that_compares_otherwise_is_refused() -> None:
    pytest.importorskip("mteb", reason="mteb is not installed")
    model = build_static(train_tokenizer(["red fox"], 60), 8)
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match="must compare by cosine or dot, got 'euclidean'"):
        exact_search(model)
