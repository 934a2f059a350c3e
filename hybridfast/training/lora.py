"""Low-rank adapters (Hu et al., 2022), which PEFT puts into an encoder: they are trained, and it is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hybridfast.training.config import TrainConfig

__all__ = ["add_lora", "merge"]


def add_lora(model: SentenceTransformer, config: TrainConfig) -> str | None:
    """Adapters for a model's transformers, as ``lora_r`` and the other settings say; nothing without it.

    Weights of the transformers are frozen; modules beside them, such as a Dense after pooling, are not. An
    adapter that the model came with becomes part of its weights first, since it would be left untrained.

    Returns:
        what was chosen, in a line; None without ``lora_r``.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the model has no transformer, or none of its layers has such a name; or nothing could be
            saved that adapters are loaded onto.
    """
    adapted = merge(model)
    if config.lora_r is None:
        return None
    if adapted and not config.lora_merge:
        raise ValueError(
            "lora_merge False: the model has an adapter, whose weights a second one would not be saved with"
        )
    encoders = _encoders(model)
    if not encoders:
        raise ValueError(
            f"lora_r {config.lora_r}: {type(model[0]).__name__} has no linear layers to adapt; leave it out"
        )
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError(f"lora_r {config.lora_r} takes PEFT: pip install peft") from None
    alpha = 2.0 * config.lora_r if config.lora_alpha is None else config.lora_alpha
    chosen, before = set(), sum(parameter.numel() for parameter in model.parameters())
    for encoder in encoders:
        targets = config.lora_target_modules or _targets(encoder)
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides by it
            lora_dropout=config.lora_dropout,
            target_modules=targets,
        )
        base = _base(encoder, config.lora_merge)
        try:
            encoder.add_adapter(lora)
        except ValueError as error:
            raise ValueError(f"lora_target_modules {targets}: {error}") from None
        lora.base_model_name_or_path = base
        chosen |= {name.rpartition(".")[2] for name, _ in _layers(encoder)}
    added = sum(parameter.numel() for parameter in model.parameters()) - before
    return (
        f"LoRA: rank {config.lora_r}, alpha {alpha:g}, in {', '.join(sorted(chosen))}: "
        f"{added:,} weights beside {before:,}"
    )


def merge(model: SentenceTransformer) -> bool:
    """Add what adapters have learned to the weights they are for; whether there was anything to add."""
    encoders = [encoder for encoder in _encoders(model) if getattr(encoder, "_hf_peft_config_loaded", False)]
    for encoder in encoders:
        for name, layer in _layers(encoder):
            layer.merge(safe_merge=True)  # a ValueError where the sum is not finite
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, layer.get_base_layer())
        encoder.delete_adapter([*encoder.peft_config])
        for parameter in encoder.parameters():
            parameter.requires_grad_(True)
    return bool(encoders)


def _base(encoder: Any, merged: bool) -> str:
    """Where adapters that are saved alone find their base, from wherever they are loaded."""
    base: str = encoder.name_or_path
    if not os.path.isdir(base):
        return base
    if not merged and not os.path.exists(os.path.join(base, "config.json")):
        raise ValueError(f"lora_merge False: {base} holds no transformer of its own, to load adapters onto")
    return os.path.abspath(base)


def _encoders(model: SentenceTransformer) -> list[Any]:
    """A model's transformers: one, or one for each side."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    return [module.auto_model for module in model.modules() if isinstance(module, Transformer)]


def _layers(encoder: Any) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in encoder.named_modules() if isinstance(layer, BaseTunerLayer)]


def _targets(encoder: Any) -> list[str] | str:
    """What PEFT adapts in such an architecture; where it knows none, every linear layer."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    known = KNOWN.get(encoder.config.model_type)
    if known is None:
        return "all-linear"
    return known if isinstance(known, str) else [*known]
