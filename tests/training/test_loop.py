"""The loop's own choices. That a run learns, and what it leaves, is in test_train.py."""

from __future__ import annotations

import pytest
import torch

from hybridfast import info_nce
from hybridfast.encoder import loading
from hybridfast.training import objective
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import train


def test_matryoshka_is_the_mean_loss_of_the_prefixes(model, tokens, monkeypatch):
    seen = []

    def noted(queries, passages, *arguments, **options):
        loss = info_nce(queries, passages, *arguments, **options)
        seen.append((queries.shape[1], passages.shape[1], loss.item()))
        return loss

    monkeypatch.setattr(objective, "info_nce", noted)
    config = TrainConfig(batch_size=8, max_steps=1, matryoshka_dims=[32, 16, 4])
    loss = train(model, tokens, config)["loss"]
    assert [sizes[:2] for sizes in seen] == [(32, 32), (16, 16), (4, 4)]
    assert loss == pytest.approx(sum(value for *_, value in seen) / 3)


@pytest.mark.filterwarnings("default")
def test_gradient_checkpointing_gives_the_same_weights(tiny_xlm_r, tokens):
    trained = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        if checkpointing:
            model.gradient_checkpointing_enable()
        train(model, tokens, TrainConfig(batch_size=8, max_steps=3))
        trained.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other)
