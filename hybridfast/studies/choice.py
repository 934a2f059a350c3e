"""Which point of a grid a strategy is run with: the best on dev, whatever the tests would say.

Nothing here knows of a test: figures come from ``metrics.json`` of a training run, from what its trainer
validated on, and test sets are evaluated only after the choice, into other folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridfast.studies.plan import Entry, Point
from hybridfast.training.record import Record

__all__ = ["Tried", "choose", "dev_figures", "failure", "is_done", "tried", "value_of"]

FAILED = "failed.json"


@dataclass(frozen=True)
class Tried:
    """A point of a grid: its figures on dev, their mean that is chosen by, or why there is none."""

    point: Point
    figures: Mapping[str, float]
    value: float | None
    failure: str | None


def is_done(folder: Path) -> bool:
    """Whether a run has left all that it leaves."""
    record = Record.read(folder)
    return record is not None and bool(record.complete)


def failure(folder: Path) -> str | None:
    """Why a run has none."""
    try:
        return str(json.loads((folder / FAILED).read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None


def dev_figures(folder: Path) -> dict[str, float]:
    """What the trainer of a finished run found on its validation set, with the model that it left."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    # A run that was evaluated by its trainer was evaluated on what is no dev set.
    assert "evaluation" not in metrics, f"{folder} holds figures of a test set"
    assert metrics["config"]["eval_dataset"] == "none", f"{folder} was trained with a test set at hand"
    return {
        name: value for name, value in metrics["training"].get("validation", {}).items() if value is not None
    }


def value_of(figures: Mapping[str, float], select: Sequence[str]) -> float | None:
    """The mean of the figures that are chosen by, higher is better; None where one is missing."""
    if any(name not in figures for name in select):
        return None
    values = [-figures[name] if "distance" in name else figures[name] for name in select]
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None


def tried(entry: Entry, select: Sequence[str]) -> list[Tried] | None:
    """All points of a strategy's grid; None: not all are through."""
    found = []
    for point in entry.points:
        folder = entry.run_folder(point, entry.seeds[0])
        reason = failure(folder)
        if reason is None and not is_done(folder):
            return None
        figures = {} if reason is not None else dev_figures(folder)
        found.append(Tried(point, figures, value_of(figures, select), reason))
    return found


def choose(trials: Sequence[Tried]) -> Point | None:
    """The point of the highest value, the first of equals; None: none has a value."""
    known = [trial for trial in trials if trial.value is not None]
    if not known:
        return None
    return max(known, key=lambda trial: trial.value or 0.0).point
