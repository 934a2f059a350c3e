"""The encoder: built, loaded, fed with token ids. What training feeds must be what ``encode`` computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import loading
from hybridfast.evaluation.encode import encode

TEXTS = ["the red fox", "ein roter Fuchs", "ทะเลสีฟ้า", "a blue sea", "the sea the sea"]
ROWS = [
    {"id": str(i), "lang": "en", "query": query, "passage": passage}
    for i, (query, passage) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))
]


def texts_of(tokens: TokenizedCorpus, side: int) -> list[np.ndarray]:
    """Queries (0) or passages (1) of all versions."""
    return [tokens.text(int(first) + side) for first in tokens.version_indptr[:-1]]


def test_static_training_features_embed_like_encode(tmp_path: Path) -> None:
    model = loading.build_static(loading.train_tokenizer(TEXTS, 60), 16)
    loading.set_prompts(model, "Query: ", "Passage: ")
    tokens = ParallelCorpus.from_rows(ROWS).tokenize(model.tokenizer, cache_dir=tmp_path, progress=False)
    batches = [
        {
            "input_ids": torch.from_numpy(np.concatenate(rows)).long(),
            "offsets": torch.tensor([0, *map(len, rows)]).cumsum(0)[:-1],
        }
        for rows in (texts_of(tokens, 0), texts_of(tokens, 1))
    ]
    expected = [model.encode_query(TEXTS), model.encode_document(TEXTS[::-1])]
    for got, wanted in zip(encoder.embed(model, *batches), expected, strict=True):
        torch.testing.assert_close(got.detach(), torch.from_numpy(wanted))
    assert loading.is_static(model)


def test_transformer_training_features_embed_like_encode(tiny_xlm_r: Path, tmp_path: Path) -> None:
    model = loading.load(str(tiny_xlm_r), device="cpu")
    loading.set_prompts(model, "Query: ", "Passage: ")
    tokens = ParallelCorpus.from_rows(ROWS).tokenize(
        model.tokenizer, max_query_length=40, max_passage_length=40, cache_dir=tmp_path, progress=False
    )
    rows = [torch.tensor(row).long() for row in texts_of(tokens, 0)]
    features = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokens.pad_id),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(row) for row in rows], batch_first=True
        ),
    }
    assert features["attention_mask"].sum() < features["attention_mask"].numel()  # there is padding to ignore
    expected = torch.from_numpy(model.encode_query(TEXTS))
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed(model, features)[0], expected, rtol=1e-4, atol=1e-5)
    assert not loading.is_static(model)


def test_prompts_are_saved_and_own_ones_kept(tmp_path: Path) -> None:
    model = loading.build_static(loading.train_tokenizer(TEXTS, 60), 16)
    loading.set_prompts(model, "Frage: ", None)
    before = model.prompts.get("document")
    model.save(str(tmp_path))
    loaded = loading.load(str(tmp_path))
    assert loaded.prompts["query"] == "Frage: "
    assert loaded.prompts.get("document") == before
    queries, passages = encode(loaded, TEXTS, TEXTS, batch_size=2, progress=False)
    np.testing.assert_array_equal(queries.numpy(), model.encode(["Frage: " + text for text in TEXTS]))
    assert not torch.equal(queries, passages)
    assert passages.dtype == torch.float32


def test_seeded_weights_repeat() -> None:
    tokenizer = loading.train_tokenizer(TEXTS, 60)
    embeddings = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        embeddings.append(loading.build_static(tokenizer, 16).encode(TEXTS))
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    assert not np.array_equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing-model", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name}: no such model folder"):
        loading.load(name)
