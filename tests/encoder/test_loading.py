"""A model before it is used: built, loaded, with prompts, lengths and similarity."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder import model_kinds

from hybridfast.encoder import loading
from hybridfast.encoder.loading import ModelSettings
from hybridfast.evaluation.encode import encode

TEXTS = ["the red fox", "ein roter Fuchs", "ทะเลสีฟ้า", "a blue sea", "the sea the sea"]


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


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({}, None, ("", "")),
        ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),
        ({"query": "q: ", "corpus": "c: "}, None, ("q: ", "c: ")),
        ({"query": "q: ", "document": "", "passage": "p: "}, None, ("q: ", "")),
        ({"sts": "s: "}, "sts", ("s: ", "s: ")),
    ],
)
def test_the_prompt_is_that_of_encode(
    prompts: dict[str, str], default: str | None, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loading.build_static(loading.train_tokenizer(TEXTS, 60), 16)
    model.prompts, model.default_prompt_name = prompts, default
    assert tuple(loading.prompt_of(model, task) for task in loading.TASKS) == expected
    seen: list[str] = []
    monkeypatch.setattr(
        model, "preprocess", lambda texts, prompt=None, **_: seen.append(prompt or "") or 1 / 0
    )
    for encode_side in (model.encode_query, model.encode_document):
        with pytest.raises(ZeroDivisionError):
            encode_side(TEXTS)
    assert tuple(seen) == expected


def test_lengths_are_saved_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    model = model_kinds.KINDS["BERT, mean"]()
    loading.set_lengths(model, 5, 100)  # the model takes 40
    model.save(str(tmp_path / "saved"))
    loaded = loading.load(str(tmp_path / "saved"), device="cpu")
    long = " ".join(model_kinds.WORDS * 4)
    for task, length in (("query", 5), ("document", 40)):
        assert loaded.preprocess([long], task=task)["input_ids"].shape == (1, length)


def test_a_model_that_cuts_no_texts_says_so() -> None:
    model = loading.build_static(loading.train_tokenizer(TEXTS, 60), 16)
    with pytest.raises(ValueError, match="max_passage_length 9: StaticEmbedding does not cut texts"):
        loading.set_lengths(model, None, 9)


def test_similarity(tmp_path: Path) -> None:
    model = loading.build_static(loading.train_tokenizer(TEXTS, 60), 16)
    assert loading.similarity(model) == "cosine"
    loading.set_similarity(model, "dot")
    model.save(str(tmp_path))
    assert loading.similarity(loading.load(str(tmp_path))) == "dot"
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match="compares by 'euclidean'; similarity must be one of 'cosine'"):
        loading.set_similarity(model, None)


def test_seeded_weights_repeat() -> None:
    tokenizer = loading.train_tokenizer(TEXTS, 60)
    embeddings = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        embeddings.append(loading.build_static(tokenizer, 16).encode(TEXTS))
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    assert not np.array_equal(embeddings[0], embeddings[2])


def test_a_word_of_a_million_characters_is_learnt_in_pieces() -> None:
    """Words grow a tokenizer's time with their square: uncut, this takes hours rather than seconds."""
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))
    tokenizer = loading.train_tokenizer([*TEXTS, word], 200)
    assert tokenizer.get_vocab_size() == 200
    assert len(tokenizer.encode(word, add_special_tokens=False).ids) > 1000
    assert "".join(tokenizer.encode(TEXTS[0], add_special_tokens=False).tokens) == "theredfox"


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing-model", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name}: no such model folder"):
        loading.load(name)


def test_damaged_weights_are_named(tiny_xlm_r: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_xlm_r, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # as a download that was cut off
    with pytest.raises(ValueError, match="model: the weights are damaged: "):
        loading.load(str(folder))


def test_settings_reach_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(
        "sentence_transformers.SentenceTransformer",
        lambda name, **options: given.update(options) or torch.nn.Identity(),
    )
    settings = ModelSettings(
        model="some/name",
        revision="abc",
        trust_remote_code=True,
        model_kwargs='{"attn_implementation": "eager"}',
    )
    monkeypatch.setattr(ModelSettings, "apply", lambda self, model, prompts: None)
    settings.load()
    assert given == {
        "device": None,
        "revision": "abc",
        "trust_remote_code": True,
        "model_kwargs": {"attn_implementation": "eager"},
    }
    for bad in ("[1]", "no json"):
        with pytest.raises(ValueError, match="model_kwargs must be a JSON object"):
            ModelSettings(model_kwargs=bad)
    with pytest.raises(ValueError, match="max_query_length must be >= 1, got 0"):
        ModelSettings(max_query_length=0)


def test_a_model_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", unreachable)
    with pytest.raises(OSError, match="model 'runs/gone' is neither a folder nor to be had"):
        loading.load("runs/gone")
