"""What a run leaves behind: the model, its settings, its figures."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from hybridfast.evaluation import results
from hybridfast.evaluation.metrics import Evaluation
from hybridfast.training.config import TrainConfig
from hybridfast.training.lora import merge

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["save_model", "save_results"]


def save_model(folder: Path, model: SentenceTransformer, config: TrainConfig) -> None:
    """The model and its settings, all of it in ``folder`` or none.

    The model stays as it was saved: with its adapters merged where the settings say so, in its new dtype.
    """
    if config.lora_merge:
        merge(model)
    model.to(dtype=getattr(torch, config.save_dtype))
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
        whole = Path(unfinished, "model")
        model.save(str(whole))
        (whole / "train_config.yaml").write_text(
            yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        if not folder.exists():
            os.replace(whole, folder)
            return
        for file in whole.iterdir():
            if (old := folder / file.name).is_dir():  # a module's, from a run that ended before it was done
                shutil.rmtree(old)
            os.replace(file, old)


def save_results(
    folder: Path, config: TrainConfig, training: dict[str, float], evaluation: Evaluation | None
) -> None:
    """``metrics.json`` and, with an evaluation, its picture, beside the model."""
    results.write(folder, evaluation, {"config": settings(config), "training": training})


def settings(config: TrainConfig) -> dict[str, Any]:
    """What repeats this one run."""
    # Without the folder, which is taken: a repetition gets a new one.
    own = {**asdict(config), "output_dir": None, "compare": False, "dry_run": False, "num_seeds": 1}
    own |= {"resume_from_checkpoint": None, "push_to_hub": False}
    # JSON in a string, as the flag takes it: a settings file holds no mappings.
    return own | {"model_kwargs": json.dumps(own["model_kwargs"]) if own["model_kwargs"] else None}
