"""The work of a study, shared, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hybridfast.studies import runs
from hybridfast.studies.choice import FAILED, choose, tried
from hybridfast.studies.runs import Worker
from hybridfast.training import checkpoint


class Enough(Exception):
    """A worker has nothing more to do by itself."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take longer than these runs."""
    monkeypatch.setattr("hybridfast.evaluation.plots.heat_map", lambda *_: None)
    monkeypatch.setattr("hybridfast.training.curves.draw", lambda *_: None)


def logged_steps(folder: Path) -> list[int]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.usefixtures("quick")
def test_two_share_the_work_and_none_is_done_twice(read_study) -> None:
    """The second works while the first is in the middle of its first training run."""
    study = read_study(
        ("cross: {alpha: 0}", "cross: {alpha: 0}\n  soup: {average: {mono: 1, cross: 2, untrained: 1}}")
    )
    first, second = [], []

    def second_says(line: str) -> None:
        if line.startswith("Waits for"):
            second.append(line)
            raise Enough
        second.append(line)

    def first_says(line: str) -> None:
        first.append(line)
        if "lr=0.01 seed 0" in line and not second:
            with pytest.raises(Enough):
                Worker(study, second_says).work()

    done = []
    Worker(study, first_says).work(after=lambda entry: done.append(entry.strategy))
    *others, waits = second
    assert f"mono/lr=0.01,seed=0 (process {os.getpid()} on " in waits
    assert not set(first) & set(others)
    assert len(first + others) == len({*first, *others}) == 1 + 2 * (2 + 1 + 2) + (2 + 2)
    assert "tiny cross seed 1 on test" in others  # all of another strategy, whose grid was there
    assert done == ["cross", "mono"]  # and the soup, which was the last
    before = {path: path.stat().st_mtime_ns for path in study.output_dir.rglob("*") if path.is_file()}
    Worker(study, lambda line: pytest.fail(line)).work()  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in study.output_dir.rglob("*") if path.is_file()} == before
    # Tests are evaluated of chosen runs alone.
    for entry in study.entries:
        best = choose(tried(entry, study.select))
        for point in entry.points:
            assert (entry.run_folder(point, 0) / "tests").exists() == (point is best)
    # An average is that of the weights of all, of which each has its share.
    mono, cross, soup = (
        study.entry("tiny", name).run_folder(choose(tried(study.entry("tiny", name), study.select)), 1)
        for name in ("mono", "cross", "soup")
    )
    weights = [SentenceTransformer(str(run), device="cpu")[0].embedding.weight for run in (mono, cross, soup)]
    begun = Worker(study).project(study.entry("tiny", "mono").points[0].config).new_model(1)
    begun_weight = begun[0].embedding.weight
    torch.testing.assert_close((weights[0] + 2 * weights[1] + begun_weight) / 4, weights[2])
    dev = json.loads((soup / "metrics.json").read_text())["training"]["validation"]
    assert 0 < dev["mAP mono"] <= 1
    other = read_study(("cross: {alpha: 0}", "cross: {alpha: 0}\n  soup: {average: [mono, cross]}"))
    with pytest.raises(
        ValueError, match=r"soup.* holds the average \{'mono': 1.0, 'cross': 2.0, 'untrained': 1.0"
    ):
        Worker(other).check()


@pytest.mark.usefixtures("quick")
def test_a_run_is_what_the_trainer_makes_alone(read_study, tmp_path: Path) -> None:
    """Shared data and tokens change nothing."""
    from hybridfast import train

    study = read_study(("[1e-2, 5e-2]", "[5e-2]"), ("seeds: 2", "seeds: 1"))
    Worker(study, lambda line: None).work()
    entry = study.entry("tiny", "cross")  # the second, which reads nothing itself
    run = entry.run_folder(entry.points[0], 0)
    train.main([str(run / "train_config.yaml"), "--output_dir", str(tmp_path / "alone")])
    texts = ["Query: ka3", "Passage: mo7 mo"]
    mine, alone = (
        SentenceTransformer(str(path), device="cpu").encode(texts) for path in (run, tmp_path / "alone")
    )
    np.testing.assert_array_equal(mine, alone)


@pytest.mark.usefixtures("quick")
def test_a_killed_process_is_gone_on_with(write_study, read_study, tmp_path: Path) -> None:
    changes = (("[1e-2, 5e-2]", "[5e-2]"), ("seeds: 2", "seeds: 1"), ("max_steps: 12", "max_steps: 200"),
               ("  cross: {alpha: 0}\n", ""), ("baselines: [mono, cross]", "baselines: [mono]"),
               ("batch_size: 8", "batch_size: 8\n  logging_steps: 1"))  # fmt: skip
    study = read_study(*changes)
    run = study.entry("tiny", "mono").run_folder(study.entry("tiny", "mono").points[0], 0)
    command = [sys.executable, "-m", "hybridfast.study", str(tmp_path / "study.yaml")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not [*run.glob("checkpoint-*")] and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (run / "metrics.json").exists()
    newest = max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
    assert checkpoint.read(run / f"checkpoint-{newest}")["log"]["step"] == newest
    said: list[str] = []
    Worker(study, said.append).work()
    assert logged_steps(run) == [*range(1, 201)]
    assert not [*run.glob("checkpoint-*")]
    assert not [*run.glob(".claim-*")]
    assert sum("mono" in line and " on " not in line for line in said) == 1


@pytest.mark.usefixtures("quick")
def test_what_diverges_is_not_chosen_and_ends_nothing(read_study) -> None:
    study = read_study(
        ("[1e-2, 5e-2]", "[1e30, 5e-2]"),
        ("seeds: 2", "seeds: 1"),
        ("cross: {alpha: 0}", "cross: {alpha: 0}\n  wild: {alpha: 0.5, learning_rate: 1e30, warmup_ratio: 0}"
         "\n  soup: {average: [mono, wild]}"),
        ("num_workers: 0", "num_workers: 0\n  warmup_ratio: 0"),
    )  # fmt: skip
    said: list[str] = []
    Worker(study, said.append).work()
    mono, wild = study.entry("tiny", "mono"), study.entry("tiny", "wild")
    trials = tried(mono, study.select)
    assert "the loss is" in trials[0].failure
    assert choose(trials) is mono.points[1]
    assert choose(tried(wild, study.select)) is None
    assert (wild.run_folder(wild.points[0], 0) / FAILED).exists()
    assert "tiny cross seed 0 on test" in said
    assert not any("soup" in line for line in said)


def test_settings_that_were_others_are_refused(read_study) -> None:
    study = read_study(("[1e-2, 5e-2]", "[5e-2]"), ("seeds: 2", "seeds: 1"))
    entry = study.entry("tiny", "mono")
    folder = entry.run_folder(entry.points[0], 0)
    folder.mkdir(parents=True)
    runs.Record.of(entry.points[0].config).write(folder)
    Worker(study).check()
    with pytest.raises(ValueError, match=r"seed=0 is of a run that differs: max_steps was 12, is 13"):
        Worker(read_study(("[1e-2, 5e-2]", "[5e-2]"), ("max_steps: 12", "max_steps: 13"))).check()


def test_unseen_languages_must_not_be_trained_on(read_study) -> None:
    unseen = ("resamples: 2000", "unseen_languages: [cc]")
    with pytest.raises(ValueError, match=r"unseen_languages cc .* add to settings: languages: \[aa, bb\]"):
        Worker(read_study(unseen)).prepare()
    worker = Worker(read_study(unseen, ("batch_size: 8", "batch_size: 8\n  languages: [aa, bb]")))
    worker.prepare()
    (project,) = worker.projects.values()
    assert project.validation.eval_set.languages == ["aa", "bb"]  # nor is anything chosen by them
