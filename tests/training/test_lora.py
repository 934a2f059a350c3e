"""Adapters learn, are saved alone or merged, and come back as they were."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from encoder import model_kinds
from encoder.model_kinds import KINDS, ROWS
from sentence_transformers import SentenceTransformer

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import train
from hybridfast.training.lora import add_lora, merge
from hybridfast.training.optimizer import freeze, make_optimizer
from hybridfast.training.saving import save_model

TEXTS = [row["passage"] for row in ROWS[:6]]
SETTINGS = {"batch_size": 8, "max_steps": 3, "learning_rate": 1e-2, "lora_r": 4}

pytestmark = pytest.mark.filterwarnings("default")  # of PEFT, and of models that are made up


def trained(model: SentenceTransformer, cache: Path, config: TrainConfig) -> SentenceTransformer:
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=cache, progress=False)
    train(model, tokens, config)
    return model


def named(model: SentenceTransformer) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(
    "kind", ["XLM-R", "MPNet", "T5 encoder", "BERT, Dense, Normalize", "Router, two encoders"]
)
def test_what_was_trained_is_loaded(kind, merged, tmp_path, monkeypatch):
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    KINDS[kind]().save(str(tmp_path / "base"))
    model = loading.load(str(tmp_path / "base"), device="cpu")
    config = TrainConfig(**SETTINGS, lora_merge=merged)
    if kind.startswith("Router") and not merged:
        with pytest.raises(ValueError, match="base holds no transformer of its own"):
            add_lora(model, config)
        return
    before = model.encode(TEXTS)
    assert add_lora(model, config).startswith("LoRA: rank 4, alpha 8, in ")
    assert (model.encode(TEXTS) == before).all()  # adapters begin as nothing
    trained(model, tmp_path, config)
    after = model.encode(TEXTS)
    assert abs(after - before).max() > 1e-3
    save_model(tmp_path / "saved", model, config)
    assert bool(list(tmp_path.glob("saved/**/adapter_config.json"))) is not merged
    assert any("lora_" in name for name, _ in model.named_parameters()) is not merged
    for again in (model, loading.load(str(tmp_path / "saved"), device="cpu")):
        assert abs(again.encode(TEXTS) - after).max() < 1e-5 * max(1.0, abs(after).max())


def test_only_adapters_and_what_is_beside_the_encoder_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    model = KINDS["BERT, Dense, Normalize"]()
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainConfig(**SETTINGS, lora_target_modules=["key", "word_embeddings"])
    assert "alpha 8, in key, word_embeddings: " in add_lora(model, config)
    assert all("lora_" in name or name.startswith("2.") for name in named(model))
    trained(model, tmp_path, config)
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in kept:
            assert torch.equal(parameter, kept[plain]) is not plain.startswith("2."), name


def test_with_the_other_settings(tiny_xlm_r: Path, tmp_path: Path):
    """Rates by layer and of embeddings, frozen layers, averaged weights and checkpoints inside of layers."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        config = TrainConfig(
            **SETTINGS,
            lora_target_modules=["query", "word_embeddings"],
            lora_dropout=0.1,
            ema_decay=0.9,
            layer_lr_decay=0.5,
            embedding_learning_rate=0.5,
        )
        add_lora(model, config)
        freeze(model, r"layer\.0\..*lora_B")
        if checkpointing:
            model.gradient_checkpointing_enable()
        groups = make_optimizer(model, config).param_groups
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if name in named(model):
                expected = 0.5 if "embedding" in name else 0.005 if "layer.0" in name else 0.01
                assert rates[id(parameter)] == expected, name
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        torch.manual_seed(1)
        trained(model, tmp_path, config)
        # An adapter's A of a frozen B of zeros gets no gradient, and decays.
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == named(model)
        found.append({name: p.detach() for name, p in model.named_parameters()})
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name])


def test_an_adapter_that_was_there_becomes_part_of_the_weights(tiny_xlm_r: Path, tmp_path: Path):
    model = loading.load(str(tiny_xlm_r), device="cpu")
    config = TrainConfig(**SETTINGS, lora_merge=False)
    add_lora(model, config)
    trained(model, tmp_path, config)
    expected = model.encode(TEXTS)
    save_model(tmp_path / "saved", model, config)
    again = loading.load(str(tmp_path / "saved"), device="cpu")
    with pytest.raises(ValueError, match="lora_merge False: the model has an adapter"):
        add_lora(again, config)
    again = loading.load(str(tmp_path / "saved"), device="cpu")
    assert add_lora(again, TrainConfig()) is None
    assert named(again) == {name for name, _ in loading.load(str(tiny_xlm_r)).named_parameters()}
    assert abs(again.encode(TEXTS) - expected).max() < 1e-5
    assert merge(again) is False


def test_what_cannot_be_adapted_is_refused(tiny_xlm_r: Path, monkeypatch: pytest.MonkeyPatch):
    config = TrainConfig(**SETTINGS)
    with pytest.raises(ValueError, match="lora_r 4: StaticEmbedding has no linear layers"):
        add_lora(KINDS["static"](), config)
    model = loading.load(str(tiny_xlm_r), device="cpu")
    with pytest.raises(ValueError, match=r"lora_target_modules \['nothing'\]: "):
        add_lora(model, TrainConfig(**SETTINGS, lora_target_modules=["nothing"]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        add_lora(loading.load(str(tiny_xlm_r), device="cpu"), config)
