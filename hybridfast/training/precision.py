"""How a run computes: autocast and its loss scale, TensorFloat-32, compiled encoders."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybridfast.training.config import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Precision"]

SLOWER = 1.1  # times float32, from which a product in half precision is worth a warning
BACKEND = "inductor"  # of torch.compile


class Precision:
    """What ``bf16``, ``fp16``, ``tf32`` and ``torch_compile`` ask for; as a block, it is in force inside.

    float16 holds no gradients below 6e-8, so that the loss is scaled up by what does not overflow
    (Micikevicius et al., 2018); a step whose gradients did is left out, and the scale halved.

    Raises:
        ValueError: the device has no such precision.
    """

    def __init__(self, model: SentenceTransformer, config: TrainConfig) -> None:
        self.model, self.device = model, model.device.type
        self.dtype = torch.float16 if config.fp16 else torch.bfloat16 if config.bf16 else None
        self.tf32, self.compiled = config.tf32, config.torch_compile
        self.skipped = 0  # steps that the scale left out
        if self.dtype is not None:
            self._check(self.dtype)
        self.scaler = torch.amp.GradScaler(self.device, enabled=config.fp16)
        self._undo = ExitStack()

    def _check(self, dtype: torch.dtype) -> None:
        name = "fp16" if dtype is torch.float16 else "bf16"
        square = torch.ones(2, 2, device=self.device)
        try:
            with warnings.catch_warnings(), torch.autocast(self.device, dtype):
                warnings.simplefilter("error")  # autocast warns of what it then does not do
                got = torch.mm(square, square).dtype
                torch.amp.GradScaler(self.device)
        except (RuntimeError, UserWarning) as error:
            raise ValueError(f"{name}: device {self.device!r} does not have it: {error}") from None
        if got is not dtype:
            raise ValueError(f"{name}: device {self.device!r} computes in {got}")
        if self.device == "cpu":
            _warn_if_slower(name, dtype)

    def __enter__(self) -> Precision:
        if self.tf32:
            self._undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")
        if self.compiled:
            for encoder in self._encoders():
                # Chunks differ in rows and places: compiled once for all shapes, not once for each. The
                # method, since sentence-transformers calls it by name, and for copies of a model.
                forward = torch.compile(type(encoder).forward, dynamic=True, backend=BACKEND)
                encoder.forward = MethodType(forward, encoder)
                self._undo.callback(delattr, encoder, "forward")
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def autocast(self) -> torch.autocast:
        """A block whose products are in the half precision, if there is one."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None)

    def backward(
        self, loss: Tensor, optimizer: torch.optim.Optimizer, reduce: Callable[[], None] = lambda: None
    ) -> None:
        """The loss's gradients, as large as without a scale; infinite ones where it overflowed.

        Args:
            reduce: what brings ranks' gradients together, scaled as they are: all see the same overflow.
        """
        self.scaler.scale(loss).backward()
        reduce()
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step, unless the scale overflowed; whether it did step."""
        if not self.scaler.is_enabled():
            optimizer.step()
            return True
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        stepped = self.scaler.get_scale() >= scale
        self.skipped += not stepped
        return stepped

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, and how many steps it has left out."""
        return {"scaler": self.scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]

    def trial(self) -> str | None:
        """What compiling gains, in a line, from a few passes of two shapes; None without ``torch_compile``.

        Raises:
            ValueError: the model cannot be compiled here.
        """
        if not self.compiled:
            return None
        if not self._encoders():
            raise ValueError(f"torch_compile: {type(self.model[0]).__name__} has no transformer to compile")
        batches = [self.model.preprocess([" ".join(["word"] * words)] * rows) for rows, words in _SHAPES]
        state = torch.get_rng_state()
        eager = self._seconds(batches)
        try:
            with self:
                compiled = self._seconds(batches)
        except Exception as error:  # of a compiler, a missing one, or code that it cannot follow
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"torch_compile: {type(error).__name__}: {reason}; leave it out") from error
        finally:
            torch.set_rng_state(state)
        gain = eager / compiled
        advice = "" if gain > 1 else "; it does not pay here, leave it out"
        return f"torch_compile: encoding and its gradients are {gain:.2f} times as fast{advice}"

    def _seconds(self, batches: list[Any]) -> float:
        """The least of three, after the passes that compile."""
        from sentence_transformers.util import batch_to_device

        times = []
        self.model.train()
        for _ in range(4):
            started = time.perf_counter()
            for batch in batches:
                with self.autocast():
                    features = batch_to_device(dict(batch), self.model.device)
                    embeddings = self.model(features, task="query")["sentence_embedding"]
                embeddings.float().sum().backward()
            if self.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
            self.model.zero_grad()
        return min(times[1:])

    def _encoders(self) -> list[Any]:
        from sentence_transformers.sentence_transformer.modules import Transformer

        return [module.auto_model for module in self.model.modules() if isinstance(module, Transformer)]


_SHAPES = ((8, 40), (16, 20), (5, 90))  # texts and words, of the trial


@cache  # measured and said once, in all runs
def _warn_if_slower(name: str, dtype: torch.dtype) -> None:
    ratio = _slower(dtype)
    if ratio > SLOWER:
        text = f"{name}: matrix products take {ratio:.1f} times as long as in float32 on this CPU"
        warnings.warn(text, stacklevel=4)


def _slower(dtype: torch.dtype) -> float:
    """A product's time in that type over its time in float32, of a layer's size."""
    seconds = [_least_time(_product(of)) for of in (dtype, torch.float32)]
    return seconds[0] / seconds[1]


def _product(dtype: torch.dtype) -> Callable[[], Tensor]:
    left, right = torch.ones(512, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    return lambda: torch.mm(left, right)


def _least_time(work: Callable[[], object]) -> float:
    times = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
