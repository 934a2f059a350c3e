"""AdamW with a group of its own for what is stepped or decayed otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hybridfast.encoder.loading import is_static
from hybridfast.training.config import TrainConfig
from hybridfast.training.sparse import LazyAdamW

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["freeze", "make_optimizer", "trainable"]

# Of a table of token embeddings, which a batch touches in few rows; of encoders; of adapters, which want ten
# times as much (Schulman et al., LoRA Without Regret, 2025).
STATIC_RATE, RATE, LORA_RATE = 2e-2, 3e-5, 3e-4
PROJECTION_RATE = 1e-3  # at an encoder's rate, a random layer would stay what it is


def freeze(model: SentenceTransformer, pattern: str | None) -> None:
    """Weights whose names the pattern finds are not trained, such as ``embeddings|layer\\.[0-5]\\.``.

    Raises:
        ValueError: it is no regular expression, or finds nothing.
    """
    if pattern is None:
        return
    try:
        found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"freeze {pattern!r} is no regular expression: {error}") from None
    if not found:
        names = ", ".join(name for name, _ in list(model.named_parameters())[:3])
        raise ValueError(f"freeze {pattern!r} finds none of the weights: {names}, ...")
    for parameter in found:
        parameter.requires_grad_(False)


def trainable(model: SentenceTransformer) -> list[torch.nn.Parameter]:
    """The weights that training changes; a ValueError where there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the model has no weights to train: every one of them is frozen")
    return parameters


def make_optimizer(
    model: SentenceTransformer,
    config: TrainConfig,
    lazy: Sequence[torch.nn.Parameter] = (),
    beside: Sequence[torch.nn.Parameter] = (),
) -> LazyAdamW:
    """AdamW over the trainable weights; of `lazy` ones, over the rows that a step touched.

    Weights `beside` the model, of the projection to a teacher, are not kept, and so not decayed; they begin
    at random and have little time, hence a rate of their own.

    Biases and norms are not decayed: to pull a scale of 1 to 0 regularizes nothing (BERT and its successors).
    Embeddings have a rate of their own where the settings say so. With a decay of rates by layer, the last
    layer has the whole rate, the one before `layer_lr_decay` times as much, the embeddings the least.
    """
    default = STATIC_RATE if is_static(model) else RATE if config.lora_r is None else LORA_RATE
    rate = config.learning_rate or default
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False)
    }
    embeddings |= {id(p) for name, p in model.named_parameters() if "lora_embedding_" in name}  # PEFT's
    depth = max(
        (layer for name, _ in model.named_parameters() if (layer := _layer(name)) is not None), default=-1
    )
    lazily = {id(parameter) for parameter in lazy}
    groups: dict[tuple[float, float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = -1 if id(parameter) in embeddings else _layer(name)
        own_rate = rate * (1.0 if layer is None else config.layer_lr_decay ** (depth - layer))
        if id(parameter) in embeddings and config.embedding_learning_rate is not None:
            own_rate = config.embedding_learning_rate
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((own_rate, decay, id(parameter) in lazily), []).append(parameter)
    fused = next(iter(trainable(model))).device.type in ("cpu", "cuda")
    listed: list[dict[str, Any]] = [
        {"params": parameters, "lr": own_rate, "weight_decay": decay, "lazy": rows_alone}
        for (own_rate, decay, rows_alone), parameters in groups.items()
    ]
    if beside:
        own_rate = config.projection_learning_rate or max(rate, PROJECTION_RATE)
        listed.append({"params": [*beside], "lr": own_rate, "weight_decay": 0.0, "lazy": False})
    return LazyAdamW(listed, lr=rate, fused=fused)


def _layer(name: str) -> int | None:
    """The number of a weight's layer, as all transformers write it: ``...layer.3.attention...``."""
    found = re.search(r"(?:^|\.)(?:layers?|h|block|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else None
