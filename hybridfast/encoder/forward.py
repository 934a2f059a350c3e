"""A model's pass over a chunk of texts: entered for it, and again where checkpointing runs a part anew."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from hybridfast.encoder.attention import packed
from hybridfast.encoder.dropout import Dropout
from hybridfast.encoder.texts import Texts

__all__ = ["Forward", "keep_checkpointing"]

_here = threading.local()


class Forward:
    """While entered, the model has these texts: its attention, if they are packed, and its dropout."""

    def __init__(self, model: torch.nn.Module, texts: Texts, dropout: Dropout | None) -> None:
        self.model, self.texts, self.dropout = model, texts, dropout
        self.asked: list[str] = []  # layers that had the native attention

    def __enter__(self) -> Forward:
        self._stack, self._outer = ExitStack(), getattr(_here, "forward", None)
        if self.texts.packed:
            self.asked = self._stack.enter_context(packed(self.model, self.texts, self.dropout))
        if self.dropout is not None:
            self._stack.enter_context(self.dropout)
        _here.forward = self
        return self

    def __exit__(self, *exception: Any) -> None:
        _here.forward = self._outer
        self._stack.close()


def keep_checkpointing(model: torch.nn.Module) -> None:
    """Where transformers' gradient checkpointing is on, layers that run again see what they saw."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            again = partial(checkpoint, use_reentrant=False, context_fn=recomputation)
            module._gradient_checkpointing_func = again  # type: ignore[assignment]


def recomputation() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For ``torch.utils.checkpoint``'s ``context_fn``: a part that is run again sees what it saw at first."""
    forward = getattr(_here, "forward", None)
    return nullcontext(), nullcontext() if forward is None else _Again(forward)


class _Again:
    """A pass from the dropout on with which a part of the model began."""

    def __init__(self, forward: Forward) -> None:
        self.forward = Forward(forward.model, forward.texts, forward.dropout)
        self.site = 0 if forward.dropout is None else forward.dropout.site

    def __enter__(self) -> None:
        if self.forward.dropout is not None:
            self.forward.dropout.site = self.site
        self.forward.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.forward.__exit__(*exception)
