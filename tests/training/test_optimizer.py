"""Which weights are stepped how."""

from __future__ import annotations

import pytest
import torch

from hybridfast.training.config import TrainConfig
from hybridfast.training.optimizer import freeze, make_optimizer, trainable


def rates_of(model, **settings) -> dict[str, tuple[float, float]]:
    """Each weight's learning rate and decay."""
    groups = make_optimizer(model, TrainConfig(**settings)).param_groups
    by_id = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if id(p) in by_id}


def test_biases_and_norms_are_not_decayed(model):
    rates = rates_of(model, weight_decay=0.1, learning_rate=1e-3)
    assert len(rates) == len(list(model.parameters()))
    for name, (rate, decay) in rates.items():
        assert rate == 1e-3
        assert decay == (0.0 if "bias" in name or "LayerNorm" in name else 0.1), name


def test_layers_have_falling_rates(model):
    rates = rates_of(model, learning_rate=1.0, layer_lr_decay=0.5, embedding_learning_rate=7.0)
    for name, (rate, _) in rates.items():
        expected = {"layer.1.": 1.0, "layer.0.": 0.5, "_embeddings.weight": 7.0, "pooler": 1.0}
        found = [value for part, value in expected.items() if part in name]
        assert rate == (found[0] if found else 1.0), name
    least = rates_of(model, learning_rate=1.0, layer_lr_decay=0.5)
    assert {rate for name, (rate, _) in least.items() if "_embeddings.weight" in name} == {0.25}


def test_what_is_frozen_keeps_its_bits(model):
    freeze(model, r"embeddings|layer\.0")
    kept = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert any("layer.0" in name for name in kept)
    assert not any("layer.1" in name for name in kept)
    optimizer = make_optimizer(model, TrainConfig())
    for parameter in trainable(model):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name in kept:
            assert torch.equal(parameter, kept[name])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("[", "freeze '\\[' is no regular expression"),
        ("nothing", "freeze 'nothing' finds none of the weights"),
    ],
)
def test_a_pattern_that_cannot_be_meant(model, pattern, message):
    with pytest.raises(ValueError, match=message):
        freeze(model, pattern)


def test_a_frozen_model_is_refused(model):
    freeze(model, ".")
    with pytest.raises(ValueError, match="no weights to train"):
        trainable(model)
