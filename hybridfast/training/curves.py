"""A run's log as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

__all__ = ["draw"]

POINTS = 2_000  # of a curve; of more lines, every second, third, ... is drawn
Lines = list[dict[str, float]]


def draw(log: Path, path: Path) -> None:
    """Loss, validation, learning rate, gradient norm, speed and shares of time over the steps of log.jsonl.

    Writes a PNG under a temporary name and renames it.
    """
    with open(log, encoding="utf-8") as file:
        lines: Lines = [json.loads(line) for line in file]
    trained = [line for line in lines if "loss" in line]
    trained = trained[:: 1 + len(trained) // POINTS]
    validated = [line for line in lines if "loss" not in line]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    ((loss, validation, phases), (rate, norm, speed)) = figure.subplots(2, 3, sharex=True)
    losses = [name for line in trained for name in line if name == "loss" or name.startswith("loss/")]
    _curves(loss, "loss", trained, dict.fromkeys(losses))
    shown = [f"validation/mAP {pool}" for pool in ("mono", "cross", "multi")]
    _curves(validation, "validation", validated, shown, marker="o")
    _curves(rate, "learning rate", trained, ["learning_rate"])
    _curves(norm, "gradient norm", trained, ["grad_norm"])
    _curves(speed, "pairs per second", trained, ["pairs_per_second"])
    speed.yaxis.set_major_formatter(EngFormatter())
    phases.set_title("shares of time", fontsize=10)
    spent = dict.fromkeys(
        name for line in trained for name in line if name.startswith("time/") and line[name]
    )
    names = [*spent]  # what a run never does has no place in the legend
    if trained:
        shares = [[line.get(name, 0.0) for line in trained] for name in names]
        steps = [line["step"] for line in trained]
        phases.stackplot(steps, shares, labels=[name.removeprefix("time/") for name in names])
        phases.legend(fontsize=7, loc="center right")
        phases.set_ylim(0, 1)
    phases.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (rate, norm, speed):
        axes.set_xlabel("step")
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, dpi=120, format="png")
    os.replace(unfinished, path)


def _curves(axes: Axes, title: str, lines: Lines, names: Iterable[str], marker: str | None = None) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    labels = 0
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker=marker, markersize=3)
            labels += 1
    if labels > 1:
        axes.legend(fontsize=7)
    if not labels:
        axes.text(0.5, 0.5, "none in this run", transform=axes.transAxes, ha="center", color="gray")
        axes.set_yticks([])
