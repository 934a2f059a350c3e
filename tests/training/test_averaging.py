"""What is saved: the last weights, means over the steps, and those with another model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hybridfast.encoder import loading
from hybridfast.training.averaging import Average, check_other
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import train
from hybridfast.training.optimizer import freeze


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_of_the_steps(decay):
    """By hand: the mean at first, then each step's share is 1 - decay."""
    weight = torch.nn.Parameter(torch.zeros(3))
    average, wanted = Average([weight], decay), torch.zeros(3)
    for step in range(1, 30):
        with torch.no_grad():
            weight.copy_(torch.tensor([step, -step, step**2]))
        share = max(1 / step, 1 - decay)
        wanted += share * (weight.detach() - wanted)
        average.add()
    average.take_over()
    torch.testing.assert_close(weight.detach(), wanted)


def test_without_a_decay_the_last_weights_stay():
    weight = torch.nn.Parameter(torch.ones(3))
    average = Average([weight], 0.0)
    average.add()
    average.take_over()
    assert torch.equal(weight, torch.ones(3))
    assert average.means == []


def test_averaged_weights_are_what_is_left(tiny_xlm_r, tokens):
    left = []
    for decay in (0.0, 0.9):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        train(model, tokens, TrainConfig(batch_size=8, max_steps=4, learning_rate=1e-2, ema_decay=decay))
        left.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert not torch.equal(*left)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_weights_before_training_keep_their_share(tiny_xlm_r, tokens, decay):
    left = []
    for share in (0.0, 0.25):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        first = [parameter.detach().clone() for parameter in model.parameters()]
        settings = TrainConfig(
            batch_size=8, max_steps=3, learning_rate=1e-2, ema_decay=decay, average_weight=share
        )
        train(model, tokens, settings)
        left.append([parameter.detach() for parameter in model.parameters()])
    for before, trained, mean in zip(first, *left, strict=True):
        torch.testing.assert_close(mean, 0.75 * trained + 0.25 * before)


@pytest.fixture
def other(tiny_xlm_r, tmp_path):
    """A model of the same shapes with other weights."""
    model = loading.load(str(tiny_xlm_r), device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    model.save(str(tmp_path / "other"), create_model_card=False)
    return model, tmp_path / "other"


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_mean_with_another_model(tiny_xlm_r, tokens, other, decay):
    left = []
    settings = TrainConfig(batch_size=8, max_steps=3, learning_rate=1e-2, ema_decay=decay)
    for config in (settings, replace(settings, average_with=str(other[1]), average_weight=0.5)):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        train(model, tokens, config)
        left.append([parameter.detach() for parameter in model.parameters()])
    for theirs, trained, mean in zip(other[0].parameters(), *left, strict=True):
        torch.testing.assert_close(mean, 0.5 * trained + 0.5 * theirs)


def test_another_model_that_does_not_fit_is_refused(tiny_xlm_r, other, tmp_path):
    model = loading.load(str(tiny_xlm_r), device="cpu")
    config = TrainConfig(average_with=str(other[1]), average_weight=0.5)
    check_other(model, config)
    freeze(model, "word_embeddings")
    with pytest.raises(ValueError, match=r"other: the weights \S+word_embeddings.weight, which are not"):
        check_other(model, config)
    narrow = loading.load(str(tiny_xlm_r), device="cpu")
    table = narrow[0].auto_model.embeddings.word_embeddings
    table.weight = torch.nn.Parameter(table.weight[:-1].clone())
    with pytest.raises(
        ValueError, match=r"the weights \S+word_embeddings.weight, \(\d+, 32\) here, are of sh"
    ):
        check_other(narrow, config)
    renamed = loading.load(str(tiny_xlm_r), device="cpu")
    renamed.tokenizer.add_tokens(["Fuchs"])
    with pytest.raises(ValueError, match="other: its tokenizer is another"):
        check_other(renamed, config)
    with pytest.raises(FileNotFoundError, match=r"average_with .*nowhere: no such model folder"):
        check_other(model, replace(config, average_with=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average_weight": 1.0}, r"average_weight must be in \[0, 1\), got 1.0"),
        ({"average_with": "runs/mono"}, "average_with runs/mono needs average_weight, such as 0.5"),
        ({"average_weight": 0.5, "lora_r": 4}, "average_weight 0.5 and lora_r 4 exclude each other"),
    ],
)
def test_settings_that_make_no_mean(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
