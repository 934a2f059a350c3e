"""How many runs a study has, and how long they take, from a few steps and texts of each model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybridfast.evaluation.encode import encode
from hybridfast.studies.plan import Entry, Study
from hybridfast.studies.runs import Worker
from hybridfast.training.loop import make_sampler, steps_of
from hybridfast.training.rehearsal import duration, seconds_a_step

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["estimate"]

FEW, TEXTS = 16, 256  # of each side of a test that are timed


def estimate(study: Study, worker: Worker) -> str:
    """Text: runs and time, by model."""
    lines, whole = [], 0.0
    for model in study.models:
        entries = study.of(model)
        trained = [entry for entry in entries if not entry.average]
        config = next(point.config for entry in trained for point in entry.points if point.config)
        project = worker.project(config)
        network = project.new_model(config.seed)
        tests = sum(
            _seconds_a_text(network, texts, config.eval_batch_size) * len(texts)
            for title in study.tests
            for texts in (worker.test_set(title).queries, worker.test_set(title).passages)
        )
        with make_sampler(project.tokens, config) as sampler:
            steps = steps_of(config, sampler)
        each = seconds_a_step(project, config)
        runs = sum(_runs(entry) for entry in trained)
        chosen = sum(len(entry.seeds) for entry in entries)
        seconds = runs * each * steps + (chosen + 1) * tests
        whole += seconds
        lines.append(
            f"{model}: {runs} runs of {steps:,} steps, {each * steps:.0f} s each ({each:.3g} s a step); "
            f"{chosen + 1} models tested, {tests:.0f} s each: {duration(seconds)}"
        )
        for entry in entries:
            grid = "; ".join(point.name for point in entry.points if point.name)
            what = f"the mean of {_shares(entry)}" if entry.average else f"{_runs(entry)} runs: {grid}"
            lines.append(f"  {entry.strategy}: {what}; seeds {', '.join(map(str, entry.seeds))}")
    lines.append(f"In all {duration(whole)} for one process; several share it")
    return "\n".join(lines)


def _seconds_a_text(model: SentenceTransformer, texts: Sequence[str], batch_size: int) -> float:
    """From some of the texts, less what a call takes for a few of them."""
    seconds = []
    for count in (FEW, FEW + TEXTS):
        some = list(texts[:: max(1, len(texts) // count)])[:count]
        start = time.perf_counter()
        encode(model, some, some[:1], batch_size=batch_size, progress=False)
        seconds.append(time.perf_counter() - start)
    return max(seconds[1] - seconds[0], 0.0) / TEXTS


def _shares(entry: Entry) -> str:
    alike = len({*entry.average.values()}) == 1
    return ", ".join(name if alike else f"{share:g} {name}" for name, share in entry.average.items())


def _runs(entry: Entry) -> int:
    return len(entry.points) + len(entry.seeds) - 1
