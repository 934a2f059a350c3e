"""What training feeds is what ``encode`` computes, for every kind of model; or the model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder import model_kinds
from encoder.model_kinds import KINDS, ROWS, WORDS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, Dense

from hybridfast.data import words
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.words import WordIds
from hybridfast.encoder import embedding, loading
from hybridfast.encoder.embedding import Side

pytestmark = pytest.mark.filterwarnings("default")  # of models that are made up


READ_WHOLE = {"BERT, cut on the left", "word embeddings, LSTM"}  # the latter by no tokenizer of the library's


@pytest.fixture(autouse=True)
def _models_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_training_embeds_like_encode(kind: str, tmp_path: Path) -> None:
    assert model_kinds.difference(KINDS[kind](), tmp_path / "cache") < 1e-5


@pytest.mark.parametrize("kind", ["BERT, prompt not pooled", "Qwen2, padded left, last token", "static"])
def test_evaluation_embeds_like_encode(kind: str) -> None:
    model = KINDS[kind]()
    loading.set_prompts(model, "Query : ", "")
    texts = [row["query"] for row in ROWS]
    got = embedding.encode(model, "query", texts, batch_size=5)
    torch.testing.assert_close(got, torch.from_numpy(model.encode_query(texts, batch_size=5)))
    with pytest.raises(ValueError, match="texts must hold at least one text"):
        embedding.encode(model, "query", [], batch_size=5)


def test_ids_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in batches sorted by length: here two texts at a time."""
    side = Side(KINDS["Qwen2, padded left, last token"](), "query", ["sun"])
    texts = [row["query"] for row in ROWS]
    wanted = [side.ids([text])[0] for text in texts]
    monkeypatch.setattr(embedding, "CHUNK", 2)
    ids_T, lengths_B = side.ids(texts)
    for got, own in zip(np.split(ids_T, np.cumsum(lengths_B)[:-1]), wanted, strict=True):
        np.testing.assert_array_equal(got, own)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_word_by_word_are_those_of_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(KINDS[kind](), "query", ["sun"])
    texts = [" ".join(row["query"] for row in ROWS[i:]) + "\n[SEP]  é" * (i % 3) for i in range(len(ROWS))]
    wanted = side.ids(texts)
    monkeypatch.setattr(words, "MANY", 1)
    got = side.ids(texts)
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(got[1], wanted[1])
    assert isinstance(side._words.read, WordIds) == (kind not in READ_WHOLE)


def refusal(model: SentenceTransformer, rows: list[dict[str, Any]] = ROWS) -> str:
    with pytest.raises(ValueError) as error:
        embedding.tokenize(model, ParallelCorpus.from_rows(rows), progress=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_without_token_ids_is_refused() -> None:
    model = SentenceTransformer(modules=[BoW(WORDS), Dense(len(WORDS), 8)], device="cpu")
    assert refusal(model) == (
        "the model's BoW, for a query, reads no token ids with a mask or offsets, but sentence_embedding"
    )


def test_features_that_ids_do_not_tell_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = KINDS["BERT, mean"]()
    own = model.preprocess
    extra = {"bbox": torch.zeros(6, 1)}
    monkeypatch.setattr(model, "preprocess", lambda *a, **k: {**own(*a, **k), **extra})
    assert "also reads bbox, which token ids do not tell" in refusal(model)


def test_token_types_that_vary_within_a_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = KINDS["BERT, token type 2"]()
    own = model.preprocess

    def varied(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        features = own(*arguments, **options)
        features["token_type_ids"][:, 0] = 1
        return features

    monkeypatch.setattr(model, "preprocess", varied)
    assert "gives a text's tokens several token types" in refusal(model)


def test_a_model_that_embeds_ids_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: here, the first token is lost on the way."""
    own = Side.features

    def first_lost(self: Side, input_ids: torch.Tensor, *others: Any) -> dict[str, Any]:
        return own(self, input_ids.index_fill(0, torch.tensor([0]), 0), *others)

    monkeypatch.setattr(Side, "features", first_lost)
    assert "embeds token ids unlike texts, or" in refusal(KINDS["BERT, CLS"]())


def test_a_model_that_reads_texts_by_their_neighbours_is_refused() -> None:
    model = KINDS["static"]()
    model[0].tokenizer.enable_padding()  # to the longest of those read together; EmbeddingBag has no mask
    assert "reads a text otherwise when others are with it" in refusal(model)


def test_a_model_that_cannot_encode_is_refused() -> None:
    """Qwen2's tokenizer pads by a token of its own, for which this model has no embedding."""
    model = model_kinds.sentence(model_kinds.decoder("left", None), pooling="lasttoken")
    assert "cannot encode: IndexError: index out of range" in refusal(model)
    model = model_kinds.sentence(model_kinds.decoder("left", None, family="Qwen3"))
    assert "cannot read texts: ValueError: Asking to pad" in refusal(model)


def test_a_model_whose_embeddings_depend_on_their_neighbours_is_refused() -> None:
    assert "unlike itself beside a longer one, by 1" in refusal(model_kinds.positions_of_padding())


def test_the_cache_tells_models_apart(tmp_path: Path) -> None:
    """Everything that shapes ids is part of its key: the same words, read in ten ways."""
    corpus = ParallelCorpus.from_rows(ROWS)
    kinds = [
        "BERT, mean",
        "BERT, query_length 5",
        "BERT, no special tokens",
        "BERT, cut on the left",
        "Qwen2, the end pads",
        "Qwen2, chat template",
        "Router, two encoders",
        "static",
    ]
    models = [KINDS[kind]() for kind in kinds]
    models.append(model_kinds.with_prompts(KINDS["BERT, mean"](), "Query : ", ""))
    models.append(model_kinds.with_prompts(KINDS["BERT, mean"](), "", "Passage : "))
    made = [embedding.tokenize(model, corpus, cache_dir=tmp_path, progress=False) for model in models]
    assert len({tokens.fingerprint for tokens in made}) == len(made)
    again = embedding.tokenize(KINDS["BERT, mean"](), corpus, cache_dir=tmp_path, progress=False)
    assert again.fingerprint == made[0].fingerprint
    with pytest.raises(ValueError, match=r"makes other token ids than .* holds"):
        embedding.sides(models[0], made[1])
