"""Evaluation sets by their names on the command line."""

from __future__ import annotations

from pathlib import Path

from hybridfast.evaluation import cldr, lareqa, rows
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["load"]


def load(dataset: str, data_dir: str | None = None, candidates: str = "sentence") -> EvalSet:
    """Read an evaluation set by its name on the command line.

    Raises:
        ValueError, FileNotFoundError: unknown name, no folder given, or bad data, named by file.
    """
    if dataset == "cldr":
        return cldr.eval_set()
    if dataset == "xquad-r":
        if data_dir is None:
            raise ValueError("dataset xquad-r needs data_dir, the folder of ar.json ... zh.json")
        return lareqa.load(data_dir, candidates)
    if Path(dataset).exists():
        return rows.load(dataset)
    raise ValueError(f"dataset must be cldr, xquad-r or an existing file or folder, got {dataset!r}")
