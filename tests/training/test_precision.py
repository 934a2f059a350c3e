"""Half precision, its loss scale, and compiled encoders."""

from __future__ import annotations

import warnings

import pytest
import torch

from hybridfast.encoder import loading
from hybridfast.training import objective, precision
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import LossNotFinite, train
from hybridfast.training.precision import Precision


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_half_precision_learns_as_float32_does(tiny_xlm_r, tokens, half):
    losses = []
    for settings in ({}, {half: True}):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        told = train(model, tokens, TrainConfig(batch_size=8, max_steps=6, learning_rate=1e-3, **settings))
        assert all(p.dtype is torch.float32 for p in model.parameters())
        losses.append(told["loss"])
    assert told.get("skipped_steps", 0) == 0
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_step_whose_scale_overflows_is_left_out(model, tokens, monkeypatch):
    """An infinite gradient in the second step: weights, rate and average stay; then it goes on."""
    seen: list[tuple[float, torch.Tensor]] = []
    steps = Precision.step

    def spoilt(self, optimizer):
        if len(seen) == 1:
            # Where unscale_ notes what it found, on the CPU as on a GPU.
            self.scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"][
                torch.device("cpu")
            ].fill_(1.0)
        done = steps(self, optimizer)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        seen.append((self.scaler.get_scale(), done, optimizer.param_groups[0]["lr"], weights))
        return done

    monkeypatch.setattr(Precision, "step", spoilt)
    config = TrainConfig(batch_size=8, max_steps=4, warmup_ratio=0.0, fp16=True, lr_scheduler_type="constant")
    assert train(model, tokens, config)["skipped_steps"] == 1
    assert [done for _, done, *_ in seen] == [True, False, True, True]
    assert seen[1][0] == seen[0][0] / 2
    weights = [weights for *_, weights in seen]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_gradients_beyond_the_scale_are_no_bad_loss(model, tokens, monkeypatch):
    """With a scale that overflows float32 at first; a loss that is not finite is told from it."""
    plain = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda *a, **options: plain(*a, **options, init_scale=2.0**127, backoff_factor=2.0**-60),
    )
    config = TrainConfig(batch_size=8, max_steps=4, fp16=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with warnings.catch_warnings():
        assert 1 <= train(model, tokens, config)["skipped_steps"] < 4
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
    monkeypatch.setattr(objective, "info_nce", lambda queries, *_, **__: queries.sum() * float("nan"))
    with pytest.raises(LossNotFinite, match="the loss is nan at step 1"):
        train(model, tokens, config)


def test_what_the_device_does_not_have_is_refused(model, monkeypatch):
    def unsupported(*_: object) -> None:
        raise RuntimeError("no such type")

    monkeypatch.setattr(torch, "mm", unsupported)
    with pytest.raises(ValueError, match="fp16: device 'cpu' does not have it: no such type"):
        Precision(model, TrainConfig(fp16=True))
    with pytest.raises(ValueError, match="bf16 and fp16 exclude each other"):
        TrainConfig(fp16=True, bf16=True)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("times", "warned"), [(2.06, True), (1.05, False), (0.5, False)])
def test_a_slow_half_precision_is_said_once(model, monkeypatch, times, warned):
    monkeypatch.setattr(precision, "_least_time", lambda work: times if work().dtype.itemsize == 2 else 1.0)
    precision._warn_if_slower.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            Precision(model, TrainConfig(bf16=True))
    precision._warn_if_slower.cache_clear()
    expected = ["bf16: matrix products take 2.1 times as long as in float32 on this CPU"] if warned else []
    assert [str(warning.message) for warning in caught] == expected


def test_the_ratio_is_measured():
    assert precision._slower(torch.float64) > 1.2  # twice the bytes, half the numbers an instruction


def test_tf32_is_torchs_setting_and_restored(model):
    before = torch.get_float32_matmul_precision()
    with Precision(model, TrainConfig(tf32=True)):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.filterwarnings("default")  # of torch.compile
def test_a_compiled_encoder_trains_the_same(tiny_xlm_r, tokens, monkeypatch):
    """By a backend that runs what was traced, so that it takes seconds."""
    monkeypatch.setattr(precision, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        config = TrainConfig(batch_size=8, max_steps=3, tokens_per_chunk=60, torch_compile=compiled)
        torch.manual_seed(1)
        told = Precision(model, config).trial()
        assert (told or "").startswith("torch_compile: encoding and its gradients are ") is compiled
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train(model, tokens, config)
        assert "forward" not in vars(model[0].auto_model)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) is compiled
        found.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_does_not_compile_is_refused(model, monkeypatch):
    monkeypatch.setattr(precision, "BACKEND", "no such backend")
    with pytest.raises(ValueError, match=r"torch_compile: .*leave it out"):
        Precision(model, TrainConfig(torch_compile=True)).trial()
