"""What a study has found by now, as Markdown."""

from __future__ import annotations

import os

from hybridfast.evaluation import ranked
from hybridfast.evaluation.comparison import compare
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.results import RANKS
from hybridfast.evaluation.table import layout
from hybridfast.studies.choice import choose, tried
from hybridfast.studies.plan import Study
from hybridfast.studies.runs import chosen_point, test_folder, untrained_folder

__all__ = ["systems_of", "write"]


def systems_of(study: Study, model: str, test: str) -> dict[str, list[Ranked]]:
    """The ranks of all strategies' chosen runs that have been tested, untrained first."""
    folders = {"untrained": [untrained_folder(study, model)]}
    for entry in study.of(model):
        if (point := chosen_point(entry, study)) is not None:
            folders[entry.strategy] = [entry.run_folder(point, seed) for seed in entry.seeds]
    systems = {}
    for name, runs in folders.items():
        files = [test_folder(run, test) / RANKS for run in runs]
        if found := [ranked.read(file) for file in files if file.exists()]:
            systems[name] = found
    return systems


def write(study: Study, command: str) -> str:
    """``report.md`` in the study's folder; where it is, in words."""
    parts = ["# Study\n", f"`{command}`\n"]
    for model in study.models:
        for test in study.tests:
            systems = systems_of(study, model, test)
            if not systems:
                continue
            parts.append(f"## {model} on {test}\n")
            for baseline in [name for name in study.baselines if name in systems] or [None]:
                one = compare(systems, baseline, resamples=study.resamples)
                parts.append(one.table() + "\n")
        rows = [["strategy", "point", *study.select, "mean", ""]]
        for entry in study.of(model):
            trials = tried(entry, study.select) or []
            best = choose(trials)
            for trial in trials:
                figures = [
                    f"{trial.figures[name]:.3f}" if name in trial.figures else "-" for name in study.select
                ]
                value = "-" if trial.value is None else f"{trial.value:.4f}"
                mark = "chosen" if trial.point is best else trial.failure or ""
                rows.append([entry.strategy, trial.point.name, *figures, value, mark])
        parts += [f"## {model}: chosen on dev\n", layout(rows) + "\n"]
    path = study.output_dir / "report.md"
    unfinished = path.with_name(f".report.md.{os.getpid()}")
    unfinished.write_text("\n".join(parts), encoding="utf-8")
    os.replace(unfinished, path)
    return f"Wrote {path}"
