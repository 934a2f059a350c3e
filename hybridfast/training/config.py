"""Every setting of a training run, checked when it is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from hybridfast.encoder.loading import ModelSettings, setting

__all__ = ["TrainConfig"]

INF = float("inf")


@dataclass
class TrainConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.train``; saved with the model as ``train_config.yaml``."""

    model: str = setting(
        "static",
        "static: a tokenizer and mean of token embeddings from scratch. Or any SentenceTransformer or "
        "transformers encoder: a folder or a hub name; it encodes both sides.",
    )
    query_prefix: str | None = setting(
        None,
        "Put before every query, in training and in the saved model. None: the model's own prompt; 'Query: ' "
        "for a model that has none for either side.",
    )
    passage_prefix: str | None = setting(
        None,
        "Put before every passage. None: the model's own prompt; 'Passage: ' for a model that has none for "
        "either side.",
    )
    data: str = setting(
        "cldr",
        "cldr: the embedded corpus. Or JSON lines, CSV, Parquet, a folder of them, or a hub name, with "
        "columns id, lang, query, passage[, negative_1 ..][, source].",
    )
    data_config: str | None = setting(None, "Configuration of a hub data set.")
    data_split: str = setting("train", "Split of a hub data set.")
    language: str | None = setting(None, "Language of all rows, for data without a lang column.")
    languages: list[str] | None = setting(None, "Train on these languages only, such as ar de en. None: all.")
    output_dir: str | None = setting(
        None, "New folder for the model. None: the next free runs/NAME-1, -2, ..."
    )

    alpha: float = setting(0.5, "Probability that a batch is monolingual; 0: always cross-lingual, 1: never.")
    cross: Literal["mixed", "paired"] = setting(
        "mixed",
        "Cross-lingual batches: languages vary inside the batch (the paper's), or one pair per batch.",
    )
    batch_size: int = setting(512, "Pairs in a batch; no parallel item twice.")
    dedup: Literal["group", "text"] = setting(
        "text", "Never negatives of each other: passages of one item, or equal passages too."
    )
    negatives: int = setting(0, "Hard negatives per pair, where the data has them.")
    in_batch: bool = setting(
        True, "Other queries' positives are negatives too. False: hard negatives alone, the paper's Eq. 1."
    )
    bidirectional: bool = setting(False, "Add the passage-to-query direction to the loss.")
    temperature: float | None = setting(
        None, "Similarities are divided by it. None: 0.05 for cosines, 1 for inner products."
    )

    tokens_per_chunk: int | None = setting(
        None,
        "Places, padding counted, that go through the encoder at once: texts of like length together. None: "
        "2048 on a CPU, 32768 on a GPU.",
    )
    learning_rate: float | None = setting(None, "None: 2e-2 for a static encoder, 3e-5 for others.")
    lr_scheduler_type: str = setting("linear", "As transformers names them: linear, cosine, constant, ...")
    warmup_ratio: float = setting(0.1, "Share of the steps in which the learning rate rises.")
    weight_decay: float = setting(0.01, "Of AdamW.")
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm; 0: never.")
    max_steps: int = setting(1200, "Optimizer steps, one batch each.")
    num_train_epochs: float | None = setting(None, "Epochs instead of max_steps.")
    bf16: bool = setting(False, "Run the encoder and the similarity in bfloat16 (autocast).")

    save_dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Of the saved weights, which are evaluated as saved; training is in float32."
    )
    dimension: int = setting(256, "Of a new static encoder.")
    vocabulary_size: int = setting(12_000, "Of a new static encoder's tokenizer.")

    eval_dataset: str = setting(
        "auto", "auto: cldr if trained on it, else none. Or none, cldr, xquad-r, or a file or folder of rows."
    )
    eval_data_dir: str | None = setting(None, "Folder of xquad-r.")
    eval_batch_size: int = setting(256, "Texts encoded at a time.")
    eval_before: bool = setting(True, "Evaluate the untrained model too.")

    compare: bool = setting(
        False, "Train mono (alpha 1), cross (alpha 0) and hybrid with the same steps and seeds."
    )
    seed: int = setting(0, "Of the batches, the new weights and dropout.")
    num_seeds: int = setting(1, "Train with seed, seed + 1, ... and report mean and standard deviation.")
    num_workers: int = setting(2, "Native threads that build batches ahead.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid, rule in (
            ("alpha", 0 <= self.alpha <= 1, "in [0, 1]"),
            ("batch_size", self.batch_size >= 2, ">= 2"),
            ("negatives", self.negatives >= 0, ">= 0"),
            ("temperature", self.temperature is None or 0 < self.temperature < INF, "> 0"),
            ("learning_rate", self.learning_rate is None or 0 < self.learning_rate < INF, "> 0"),
            ("tokens_per_chunk", self.tokens_per_chunk is None or self.tokens_per_chunk >= 1, ">= 1"),
            ("warmup_ratio", 0 <= self.warmup_ratio <= 1, "in [0, 1]"),
            ("weight_decay", 0 <= self.weight_decay < INF, ">= 0"),
            ("max_grad_norm", self.max_grad_norm >= 0, ">= 0"),
            ("max_steps", self.max_steps >= 1, ">= 1"),
            (
                "num_train_epochs",
                self.num_train_epochs is None or 0 < self.num_train_epochs < 2**32,
                "in (0, 2**32)",
            ),
            ("dimension", self.dimension >= 1, ">= 1"),
            ("vocabulary_size", self.vocabulary_size >= 2, ">= 2"),
            ("eval_batch_size", self.eval_batch_size >= 1, ">= 1"),
            ("num_seeds", self.num_seeds >= 1, ">= 1"),
            ("num_workers", self.num_workers >= 0, ">= 0"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")
        from transformers import SchedulerType

        schedules = [schedule.value for schedule in SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise ValueError(
                f"lr_scheduler_type must be one of {', '.join(schedules)}, got {self.lr_scheduler_type!r}"
            )
        if not self.in_batch and not self.negatives:
            raise ValueError(
                "in_batch False leaves no negative; set negatives to use the data's hard negatives"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by torchrun
            raise ValueError(f"training runs in one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}")
        if self.eval_dataset == "auto":  # settled here: the saved settings say what was evaluated
            self.eval_dataset = "cldr" if self.data == "cldr" else "none"
