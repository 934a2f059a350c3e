"""What an evaluation or a training run writes: the figures, what they depend on, and the picture."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridfast._core import build_info
from hybridfast.evaluation import ranked, report
from hybridfast.evaluation.comparison import Comparison, compare
from hybridfast.evaluation.metrics import Evaluation
from hybridfast.evaluation.ranked import Ranked

__all__ = ["environment", "read_runs", "write", "write_comparison", "write_json", "write_text"]

RANKS = "ranks.parquet"


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


def write(
    folder: Path, evaluation: Evaluation | None, details: dict[str, Any], before: Evaluation | None = None
) -> None:
    """``metrics.json`` and, with an evaluation, its ranks (Parquet) and a picture, into a folder.

    Args:
        before: what the picture shows above it.
    """
    from hybridfast.evaluation import plots  # and with it matplotlib, for which a command's --help would wait

    metrics = {**details, "environment": environment()}
    if evaluation:
        metrics["evaluation"] = evaluation.to_dict()
        if evaluation.ranked is not None:
            ranked.write(folder / RANKS, evaluation.ranked)
            sure = compare({evaluation.name: evaluation.ranked})
            metrics["evaluation"]["figures"] = sure.to_dict()["estimates"][evaluation.name]
            metrics["evaluation"]["questions"] = sure.questions
    write_json(folder / "metrics.json", metrics)
    if evaluation:  # after the figures, which a picture that fails must not cost
        plots.heat_map(evaluation, folder / "language_pairs.png", before)


def write_comparison(
    folder: Path, comparison: Comparison, systems: Mapping[str, Sequence[Ranked]], command: str = ""
) -> None:
    """``results.md``, the table, ``comparison.json``, every figure and difference, and ``report.html``, a
    page of all of it that ends with the `command`.
    """
    write_json(folder / "comparison.json", comparison.to_dict())
    write_text(folder / "results.md", comparison.table() + "\n")
    write_text(folder / "report.html", report.html(comparison, systems, command, environment()))


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> dict[str, list[Ranked]]:
    """The ranks in folders that an evaluation or a training run has written, by the folder's name.

    A folder of such folders stands for all of them. Those whose names differ in ``-seed1``, ``-seed2``, ...
    alone are runs of one system.

    Raises FileNotFoundError where there are no ranks, ValueError for a damaged file or a folder given twice.
    """
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        found = [path / RANKS] if (path / RANKS).is_file() else sorted(path.glob(f"*/{RANKS}"))
        if not found:
            raise FileNotFoundError(f"{path} holds no {RANKS}, nor does a folder in it")
        for file in found:
            if file.resolve() in files:
                raise ValueError(f"{file.parent} is given twice")
            files[file.resolve()] = None
    folders = [file.parent for file in files]
    names = Counter(folder.name for folder in folders)
    systems: dict[str, list[Ranked]] = {}
    for folder in folders:
        name = f"{folder.parent.name}/{folder.name}" if names[folder.name] > 1 else folder.name
        systems.setdefault(re.sub(r"-seed\d+$", "", name), []).append(ranked.read(folder / RANKS))
    return systems


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Under another name first, then renamed; null for NaN and infinity."""
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Under another name first, then renamed."""
    unfinished = path.with_name(f".{path.name}")
    # JSON lets half a character (a lone surrogate) into texts, UTF-8 does not.
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    os.replace(unfinished, path)


def _finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
