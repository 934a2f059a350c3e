"""What a training run's settings may be, by themselves and together."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridfast.training.config import TrainConfig

__all__ = ["check"]

INF = float("inf")


def check(config: TrainConfig) -> None:
    """ValueError names the first setting that cannot be, its value, and what it may be."""
    for name, valid, rule in (
        ("alpha", 0 <= config.alpha <= 1, "in [0, 1]"),
        (
            "alpha_schedule",
            config.alpha_schedule is None
            or (config.alpha_schedule and all(0 <= alpha <= 1 for alpha in config.alpha_schedule)),
            "one or more numbers in [0, 1]",
        ),
        ("other_language_weight", 0 <= config.other_language_weight <= 1, "in [0, 1]"),
        ("consistency_weight", 0 <= config.consistency_weight < 1, "in [0, 1)"),
        ("alignment_weight", 0 <= config.alignment_weight < INF, ">= 0"),
        ("batch_size", config.batch_size >= 2, ">= 2"),
        ("negatives", config.negatives >= 0, ">= 0"),
        ("mine_steps", config.mine_steps is None or config.mine_steps >= 1, ">= 1"),
        ("temperature", config.temperature is None or 0 < config.temperature < INF, "> 0"),
        ("teacher", config.teacher != "", "a folder or a hub name"),
        (
            "projection_learning_rate",
            config.projection_learning_rate is None or 0 < config.projection_learning_rate < INF,
            "> 0",
        ),
        ("distillation_weight", 0 <= config.distillation_weight <= 1, "in [0, 1]"),
        ("learning_rate", config.learning_rate is None or 0 < config.learning_rate < INF, "> 0"),
        ("activation_memory", config.activation_memory is None or config.activation_memory >= 0, ">= 0"),
        ("tokens_per_chunk", config.tokens_per_chunk is None or config.tokens_per_chunk >= 1, ">= 1"),
        ("warmup_ratio", 0 <= config.warmup_ratio <= 1, "in [0, 1]"),
        (
            "embedding_learning_rate",
            config.embedding_learning_rate is None or 0 < config.embedding_learning_rate < INF,
            "> 0",
        ),
        ("lora_r", config.lora_r is None or config.lora_r >= 1, ">= 1"),
        ("lora_alpha", config.lora_alpha is None or 0 < config.lora_alpha < INF, "> 0"),
        ("lora_dropout", 0 <= config.lora_dropout < 1, "in [0, 1)"),
        ("ema_decay", 0 <= config.ema_decay < 1, "in [0, 1)"),
        ("average_weight", 0 <= config.average_weight < 1, "in [0, 1)"),
        ("matryoshka_dims", all(dim >= 1 for dim in config.matryoshka_dims or ()), ">= 1"),
        ("layer_lr_decay", 0 < config.layer_lr_decay <= 1, "in (0, 1]"),
        ("weight_decay", 0 <= config.weight_decay < INF, ">= 0"),
        ("max_grad_norm", config.max_grad_norm >= 0, ">= 0"),
        ("max_steps", config.max_steps >= 1, ">= 1"),
        (
            "num_train_epochs",
            config.num_train_epochs is None or 0 < config.num_train_epochs < 2**32,
            "in (0, 2**32)",
        ),
        ("dimension", config.dimension >= 1, ">= 1"),
        ("vocabulary_size", config.vocabulary_size >= 2, ">= 2"),
        ("eval_batch_size", config.eval_batch_size >= 1, ">= 1"),
        ("eval_steps", config.eval_steps is None or config.eval_steps >= 1, ">= 1"),
        ("validation_split", 0 <= config.validation_split < 1, "in [0, 1)"),
        (
            "early_stopping_patience",
            config.early_stopping_patience is None or config.early_stopping_patience >= 1,
            ">= 1",
        ),
        ("save_steps", config.save_steps is None or config.save_steps >= 1, ">= 1"),
        ("save_total_limit", config.save_total_limit is None or config.save_total_limit >= 1, ">= 1"),
        ("logging_steps", config.logging_steps >= 1, ">= 1"),
        (
            "baseline",
            config.baseline in (None, "untrained", "mono", "cross", "same", "hybrid"),
            "untrained, mono, cross, same or hybrid",
        ),
        ("num_seeds", config.num_seeds >= 1, ">= 1"),
        ("num_workers", config.num_workers >= 0, ">= 0"),
    ):
        if not valid:
            raise ValueError(f"{name} must be {rule}, got {getattr(config, name)}")
    from transformers import SchedulerType

    schedules = [schedule.value for schedule in SchedulerType]
    if config.lr_scheduler_type not in schedules:
        raise ValueError(
            f"lr_scheduler_type must be one of {', '.join(schedules)}, got {config.lr_scheduler_type!r}"
        )
    if config.average_weight and config.lora_r:
        raise ValueError(
            f"average_weight {config.average_weight} and lora_r {config.lora_r} exclude each other"
        )
    if config.average_with is not None and not config.average_weight:
        raise ValueError(f"average_with {config.average_with} needs average_weight, such as 0.5")
    if config.bf16 and config.fp16:
        raise ValueError("bf16 and fp16 exclude each other; leave one out")
    if config.shard == "fsdp":
        for name, why in (
            ("fp16", "take bf16"),
            ("torch_compile", "leave one out"),
            ("mine_steps", "mine before training, with hybridfast.mine"),
            ("teacher", "its layer would have to be spread apart"),
        ):
            if getattr(config, name):
                raise ValueError(f"shard fsdp and {name} exclude each other; {why}")
        if config.sparse_embeddings == "true":
            raise ValueError("shard fsdp and sparse_embeddings true exclude each other; leave one out")
        if config.model == "static":
            raise ValueError("shard fsdp: a static encoder has no layers to spread over ranks; leave it out")
    if not config.in_batch and not config.negatives:
        raise ValueError("in_batch False leaves no negative; set negatives to use the data's hard negatives")
    if config.mix == "rows" and config.cross != "mixed":
        raise ValueError(f"mix rows needs cross mixed, got {config.cross}")
    if config.other_language_weight < 1:
        for name, other in (
            ("bidirectional", config.bidirectional),
            ("positives group", config.positives == "group"),
            # What such a negative's language is, a batch does not say.
            (f"mine_scope {config.mine_scope}", config.mine_steps and config.mine_scope != "same"),
        ):
            if other:
                raise ValueError(
                    f"other_language_weight {config.other_language_weight} and {name} exclude each other"
                )
    if config.mine_steps:
        if not config.negatives:
            raise ValueError(f"mine_steps {config.mine_steps} needs negatives >= 1, got {config.negatives}")
        if config.languages:  # what is mined comes from all of the data
            raise ValueError("mine_steps and languages exclude each other; leave the others' rows out")
        _ = config.mining  # which checks its settings
    if config.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", config.license):
        raise ValueError(f"license must be as the hub names it, such as apache-2.0, got {config.license!r}")
    if config.early_stopping_patience and not config.metric_for_best_model:
        raise ValueError("early_stopping_patience needs metric_for_best_model, such as 'mAP multi'")
    for name in ("validation_split", "validation_dataset", "metric_for_best_model"):
        if getattr(config, name) and config.eval_steps is None:
            raise ValueError(f"{name} {getattr(config, name)} needs eval_steps")
    if config.resume_from_checkpoint == "auto" and config.output_dir is None:
        raise ValueError("resume_from_checkpoint auto needs output_dir, the folder to go on with")
    if config.resume_from_checkpoint not in (None, "auto") and (config.compare or config.num_seeds > 1):
        raise ValueError(
            f"resume_from_checkpoint {config.resume_from_checkpoint} is of one run; for several it takes auto"
        )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if config.batch_size < ranks:
        raise ValueError(
            f"batch_size must be at least 1 for each of {ranks} ranks, got {config.batch_size} for all"
        )
