"""What a run leaves behind: the model, its settings, its figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from hybridfast.evaluation import results
from hybridfast.evaluation.metrics import Evaluation
from hybridfast.training.config import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["save"]


def save(
    folder: Path,
    model: SentenceTransformer,
    config: TrainConfig,
    training: dict[str, float],
    evaluation: Evaluation | None,
) -> None:
    model.save(str(folder))
    settings = {**asdict(config), "output_dir": None, "compare": False, "num_seeds": 1}
    (folder / "train_config.yaml").write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    details = {"config": settings, "training": training}
    results.write(folder, evaluation, details)
