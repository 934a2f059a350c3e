"""The choice of a grid's point: by dev, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridfast.studies.choice import FAILED, choose, dev_figures, tried, value_of
from hybridfast.training.record import Record


def leave(folder: Path, config, dev: dict[str, float | None], **more) -> None:
    """What a finished run leaves, as far as a choice may read it."""
    folder.mkdir(parents=True)
    metrics = {"config": {"eval_dataset": "none"}, "training": {"validation": dev}, **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    record = Record.of(config)
    record.complete.append("run")
    record.write(folder)


def test_the_best_mean_on_dev_wins_and_tests_are_not_looked_at(read_study) -> None:
    study = read_study(("[1e-2, 5e-2]", "[1e-3, 1e-2, 5e-2, 1e-1]"))
    entry = study.entry("tiny", "mono")
    folders = [entry.run_folder(point, 0) for point in entry.points]
    for folder, point, value in zip(folders[:3], entry.points, (0.2, 0.4, None), strict=False):
        leave(folder, point.config, {"mAP mono": value, "mAP cross": 0.3, "mAP multi": 0.1})
    assert tried(entry, study.select) is None  # one is missing
    folders[3].mkdir()
    (folders[3] / FAILED).write_text(json.dumps({"reason": "the loss is nan at step 3"}))
    for folder, test in zip(folders, (0.9, 0.1, 0.9, 0.9), strict=True):  # a test would choose otherwise
        (folder / "tests" / "test").mkdir(parents=True)
        text = json.dumps(
            {"evaluation": {"summary": {"mAP mono": test, "mAP cross": test, "mAP multi": test}}}
        )
        (folder / "tests" / "test" / "metrics.json").write_text(text)
    trials = tried(entry, study.select)
    assert [trial.value and round(trial.value, 6) for trial in trials] == [0.2, round(0.8 / 3, 6), None, None]
    assert [trial.failure for trial in trials] == [None, None, None, "the loss is nan at step 3"]
    assert choose(trials) is entry.points[1]
    assert choose(trials[2:]) is None


def test_figures_of_a_test_are_refused(read_study) -> None:
    study = read_study()
    entry = study.entry("tiny", "mono")
    folder = entry.run_folder(entry.points[0], 0)
    leave(folder, entry.points[0].config, {"mAP mono": 0.5}, evaluation={"summary": {"mAP mono": 0.9}})
    with pytest.raises(AssertionError, match="holds figures of a test set"):
        dev_figures(folder)


def test_distances_count_downwards() -> None:
    assert value_of({"rank distance": 4.0, "mAP mono": 0.5}, ["rank distance", "mAP mono"]) == -1.75
    assert value_of({"mAP mono": float("nan")}, ["mAP mono"]) is None
