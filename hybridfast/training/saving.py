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

__all__ = ["check_hub", "finished", "push", "save_card", "save_model", "save_results", "settings"]


def finished(model: SentenceTransformer, config: TrainConfig) -> SentenceTransformer:
    """The model as it is saved: its adapters merged where the settings say so, in its new dtype."""
    if config.lora_merge:
        merge(model)
    return model.to(dtype=getattr(torch, config.save_dtype))


def save_model(folder: Path, model: SentenceTransformer, config: TrainConfig) -> None:
    """The model, :func:`finished`, and its settings, all of it in ``folder`` or none."""
    model = finished(model, config)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
        whole = Path(unfinished, "model")
        model.save(str(whole), create_model_card=False)  # card.py makes it
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
    folder: Path,
    config: TrainConfig,
    training: dict[str, Any],
    evaluation: Evaluation | None,
    before: Evaluation | None = None,
) -> None:
    """``metrics.json`` and, with an evaluation, its picture, below that of before the training."""
    results.write(folder, evaluation, {"config": settings(config), "training": training}, before)


def save_card(folder: Path, text: str) -> None:
    """``README.md``, beside the model."""
    unfinished = folder / ".README.md"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, folder / "README.md")


def check_hub(config: TrainConfig) -> None:
    """ValueError where the hub will not take what a run leaves."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    if config.push_to_hub and get_token() is None:
        raise ValueError("push_to_hub needs a token of the hub: run 'hf auth login' or set HF_TOKEN")
    if config.push_to_hub and config.hub_model_id is not None:
        validate_repo_id(config.hub_model_id)


def push(folder: Path, name: str, *, private: bool) -> str:
    """Put what a run leaves on the Hugging Face hub, but for checkpoints; its address there.

    Raises:
        OSError: the hub cannot be reached, or refuses it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    repository = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository.repo_id,
        folder_path=folder,
        commit_message="Model trained by hybridfast",
        ignore_patterns=["checkpoint-*/*", ".*", "run.json", "tensorboard/*", "wandb*"],
    )
    return str(repository)


def settings(config: TrainConfig) -> dict[str, Any]:
    """What repeats this one run."""
    # Without the folder, which is taken: a repetition gets a new one.
    own = {**asdict(config), "output_dir": None, "compare": False, "dry_run": False, "num_seeds": 1}
    own |= {"resume_from_checkpoint": None, "push_to_hub": False}
    # JSON in a string, as the flag takes it: a settings file holds no mappings.
    return own | {"model_kwargs": json.dumps(own["model_kwargs"]) if own["model_kwargs"] else None}
