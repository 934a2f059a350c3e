"""What an evaluation or a training run writes: the figures, what they depend on, and the picture."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridfast._core import build_info
from hybridfast.evaluation import plots
from hybridfast.evaluation.metrics import Evaluation

__all__ = ["environment", "write"]


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on: versions, processor, threads."""
    import sentence_transformers
    import transformers

    return {
        "hybridfast": build_info()["version"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": build_info()["simd"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def write(folder: Path, evaluation: Evaluation | None, details: dict[str, Any]) -> None:
    """``metrics.json`` and, with an evaluation, ``language_pairs.png`` into an existing folder."""
    metrics = {**details, "environment": environment()}
    if evaluation:
        metrics["evaluation"] = evaluation.to_dict()
    text = json.dumps(_finite(metrics), indent=1, ensure_ascii=False, allow_nan=False)
    unfinished = folder / ".metrics.json"
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, folder / "metrics.json")
    if evaluation:  # after the figures, which a picture that fails must not cost
        plots.heat_map(evaluation, folder / "language_pairs.png")


def _finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
