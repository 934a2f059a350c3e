"""The evaluation in one call, and its figures per query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridfast import evaluation
from hybridfast.encoder.loading import build_static, train_tokenizer
from hybridfast.evaluation import encode
from hybridfast.evaluation.metrics import Evaluation

EVAL_SET = evaluation.EvalSet(
    name="animals",
    queries=["red fox", "roter fuchs", "grey wolf"],
    query_languages=["en", "de", "en"],
    items=["fox", "fox", "wolf"],
    passages=["red fox", "grey wolf", "roter fuchs", "grauer wolf"],
    passage_languages=["en", "en", "de", "de"],
    gold_indptr=np.array([0, 2, 4, 5]),
    gold_indices=np.array([0, 2, 0, 2, 1]),
)


@pytest.mark.parametrize("name", evaluation.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(evaluation, name) is not None


def test_a_model_its_folder_and_its_embeddings_evaluate_alike(tmp_path) -> None:
    model = build_static(train_tokenizer(EVAL_SET.passages, 100), 32)
    model.save(str(tmp_path / "model"))
    expected = encode.evaluate(model, EVAL_SET, progress=False).to_dict()
    assert evaluation.evaluate(model, EVAL_SET).to_dict() == expected
    assert evaluation.evaluate(str(tmp_path / "model"), EVAL_SET).to_dict() == expected
    sides = encode.embed(model, EVAL_SET, progress=False)
    assert evaluation.evaluate(sides, EVAL_SET).to_dict() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (np.eye(3), np.eye(3), np.eye(3)),
            "a model or the embeddings of queries and of passages, got 3 arr",
        ),
        (np.eye(3), "a SentenceTransformer, its name or a pair of arrays, got ndarray"),
    ],
)
def test_anything_else_is_refused(given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        evaluation.evaluate(given, EVAL_SET)  # type: ignore[arg-type]


def test_figures_per_query_as_arrow_and_pandas() -> None:
    """By hand: four passages on axes, queries that see them in a known order."""
    passages = np.eye(4, dtype="f")
    queries = np.array([[4, 3, 2, 1], [4, 3, 2, 1], [1, 2, 4, 3]], "f")
    found = evaluation.evaluate((queries, torch.from_numpy(passages)), EVAL_SET)
    table = found.to_arrow()
    assert table["query"].to_pylist() == EVAL_SET.query_ids
    assert table["language"].to_pylist() == ["en", "de", "en"]
    assert table["question"].to_pylist() == ["fox", "fox", "wolf"]
    # Golds at 1 and 3 of four; then one at 3, which has none in another language.
    assert table["mAP multi"].to_pylist() == pytest.approx([(1 + 2 / 3) / 2, (1 + 2 / 3) / 2, 1 / 3])
    assert table["mAP mono"].to_pylist() == pytest.approx([1, 1, 1 / 1])
    assert table["mAP cross"].to_pylist() == [1, 1, None]
    assert table["rank distance"].to_pylist() == [2, 2, None]
    frame = found.to_pandas()
    assert list(frame.columns) == table.column_names
    # What the summary says is the mean over languages of the means of these.
    for pool in ("mono", "multi"):
        mean = frame.groupby("language")[f"mAP {pool}"].mean().mean()
        assert mean == pytest.approx(found.summary()[f"mAP {pool}"])


def test_without_ranks_there_are_no_figures_per_query() -> None:
    bare = Evaluation("bare", [], {}, {}, np.empty(0), np.empty((0, 0)))
    with pytest.raises(ValueError, match="the evaluation of bare holds no ranks"):
        bare.to_arrow()


def test_a_set_is_known_by_its_fingerprint() -> None:
    from dataclasses import replace

    same = replace(EVAL_SET, notes=["left out"])
    assert same.fingerprint == EVAL_SET.fingerprint
    for other in (
        replace(EVAL_SET, queries=["red", "foxroter fuchs", "grey wolf"]),
        replace(EVAL_SET, gold_indices=np.array([0, 2, 0, 3, 1])),
        replace(EVAL_SET, passages=["red fox", "grey wolf", "roter fuchs", "\ud800"]),
    ):
        assert other.fingerprint != EVAL_SET.fingerprint
