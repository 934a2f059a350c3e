"""A model that two ranks hold in parts, against one process that holds it whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from training import processes

from hybridfast.data import cldr
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.encoder.gathering import is_sharded
from hybridfast.training import checkpoint, loop, sharding
from hybridfast.training.config import TrainConfig
from hybridfast.training.lora import add_lora
from hybridfast.training.ranks import Ranks
from hybridfast.training.validation import Validation, hold_out

FACTS = [row for row in cldr.training_rows()[:2_200] if row["lang"] in ("de", "en")]
ROWS = [
    row | {"negative_1": " ".join([other["passage"]] * (1 + number % 4))} if number % 3 else row
    for number, (row, other) in enumerate(zip(FACTS[:120], FACTS[130:], strict=False))
]
SMALL = {"tokens_per_chunk": 60, "negatives": 1}
CASES: dict[str, dict[str, Any]] = {
    # Some chunks are kept, others encoded again; with dropout.
    "chunks": SMALL | {"activation_memory": 5e-4, "max_grad_norm": 0.1, "ema_decay": 0.5},
    "again": SMALL | {"activation_memory": 0.0, "gradient_checkpointing": True, "layer_lr_decay": 0.5},
    "half": SMALL | {"bf16": True, "exchange": "ring"},
    "lora": {"lora_r": 2, "lora_dropout": 0.1, "freeze": "pooler"},
}


def run(case: str, folder: Path, tiny: str, these: Ranks) -> None:
    """One of the cases, on one of the ranks; the first leaves weights, figures and the log in the folder."""
    held_out_as = {"eval_steps": 2, "validation_split": 0.2, "metric_for_best_model": "mAP multi"}
    config = TrainConfig(
        model=tiny,
        shard="fsdp",
        batch_size=13,
        max_steps=4,
        logging_steps=1,
        save_steps=2,
        **held_out_as,
        **CASES[case],
    )
    corpus, held_out = hold_out(ParallelCorpus.from_rows(ROWS), config)
    torch.manual_seed(these.rank)  # rank 0's weights are what counts
    model = loading.load(tiny, device="cpu")
    add_lora(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    tokens = embedding.tokenize(model, corpus, cache_dir=folder / "cache", progress=False)
    assert held_out is not None
    validation = Validation(held_out, embedding.sides(model, tokens), 8)
    figures = loop.train(model, tokens, config, folder=folder / "run", validation=validation, ranks=these)
    assert is_sharded(model) is not these.alone
    left = sharding.whole(model.state_dict(), keep=True)
    held = sharding.bytes_held(model.parameters())
    torch.save({"weights": left, "figures": figures, "held": held}, folder / f"rank-{these.rank}.pt")


def run_all(cases: list[str], folder: str, tiny: str, environment: dict[str, str]) -> None:
    """The cases, one after the other, in a process that is a rank of several."""
    os.environ |= environment
    torch.set_num_threads(1)
    with Ranks.join("cpu") as these:
        for case in cases:
            run(case, Path(folder, case), tiny, these)


if __name__ == "__main__":
    import sys

    cases = sys.argv[3].split(",")
    for c in cases:
        Path(sys.argv[1], c).mkdir(parents=True, exist_ok=True)
    if "WORLD_SIZE" in os.environ:
        run_all(cases, sys.argv[1], sys.argv[2], {})
    else:
        for c in cases:
            run(c, Path(sys.argv[1], c), sys.argv[2], Ranks())
