"""The work of a study, job by job, shared with whichever other processes do the same."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hybridfast.encoder import embedding, loading
from hybridfast.encoder.shards import weights_hash
from hybridfast.evaluation import readers, results
from hybridfast.evaluation.encode import evaluate
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.studies.choice import FAILED, choose, failure, is_done, tried
from hybridfast.studies.claims import Claim
from hybridfast.studies.plan import UNTRAINED, Entry, Point, Study
from hybridfast.training.checkpoint import Checkpoints
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import LossNotFinite
from hybridfast.training.project import READING, Project, batch_type
from hybridfast.training.record import Record
from hybridfast.training.running import describe, newest, train_into
from hybridfast.training.saving import save_results
from hybridfast.training.validation import Validation, check_metric, figures_of

__all__ = ["Worker", "chosen_point", "test_folder", "untrained_folder"]

POLL = 2.0  # seconds between looks at what others do


def test_folder(run: Path, test: str) -> Path:
    return run / "tests" / test


def untrained_folder(study: Study, model: str) -> Path:
    return study.output_dir / model / UNTRAINED


def chosen_point(entry: Entry, study: Study) -> Point | None:
    """With which point the seeds run; None: not yet known, or none."""
    trials = tried(entry, study.select)
    return None if trials is None else choose(trials)


@dataclass(frozen=True)
class Job:
    """Something that one process does, in a folder."""

    title: str
    folder: Path
    work: Callable[[], None]
    entry: Entry | None = None


class Worker:
    """One process at work on a study.

    Args:
        say: gets lines for people.
    """

    def __init__(self, study: Study, say: Callable[[str], None] = print) -> None:
        self.study, self.say = study, say
        self.projects: dict[tuple[Any, ...], Project] = {}
        self.sets: dict[str, EvalSet] = {}
        self.blocked: list[tuple[Entry, Path]] = []  # whose work waits for which folder

    # --- what there is to do ------------------------------------------------------------------------------

    def check(self) -> None:
        """ValueError where a folder holds runs of other settings than the study's."""
        for entry in self.study.entries:
            for point in entry.points:
                for seed in entry.seeds if point.config else ():
                    folder = entry.run_folder(point, seed)
                    if record := Record.read(folder):
                        record.check(Record.of(entry.config(point, seed)), folder)
                if entry.average:
                    for seed in entry.seeds:
                        _check_average(entry.run_folder(point, seed), entry)
        for title in self.study.tests:
            self.test_set(title)

    def jobs(self) -> Iterator[Job]:
        """What can be done now, in order; fills ``blocked`` with the folders that more depends on."""
        self.blocked = []
        for model in self.study.models:
            entries = self.study.of(model)
            if entries:
                yield from self._untrained(model, entries)
            for entry in entries:
                yield from self._of_average(entry) if entry.average else self._of_entry(entry)

    def _untrained(self, model: str, entries: list[Entry]) -> Iterator[Job]:
        run = untrained_folder(self.study, model)
        config = next(point.config for entry in entries for point in entry.points if point.config)
        for test in self.study.tests:
            if not _has_ended(folder := test_folder(run, test)):
                yield Job(
                    f"{model} untrained on {test}",
                    folder,
                    partial(self._evaluate_untrained, config, folder, test),
                )

    def _of_entry(self, entry: Entry) -> Iterator[Job]:
        first = entry.seeds[0]
        for point in entry.points:
            yield from self._train(entry, point, first)
        trials = tried(entry, self.study.select)
        if trials is None:
            folders = [entry.run_folder(point, first) for point in entry.points]
            self.blocked += [(entry, folder) for folder in folders if not _has_ended(folder)]
            return
        best = choose(trials)
        for seed in entry.seeds if best else ():  # where all have failed, the report says so
            assert best is not None
            yield from self._train(entry, best, seed)
            yield from self._tests(entry, best, seed)

    def _train(self, entry: Entry, point: Point, seed: int) -> Iterator[Job]:
        if not _is_through(entry, point, seed):
            folder = entry.run_folder(point, seed)
            title = " ".join(filter(None, [entry.title, point.name, f"seed {seed}"]))
            yield Job(title, folder, partial(self._run, entry, point, seed, title), entry)

    def _tests(self, entry: Entry, point: Point, seed: int) -> Iterator[Job]:
        run = entry.run_folder(point, seed)
        if not _is_through(entry, point, seed):
            self.blocked.append((entry, run))
            return
        for test in self.study.tests if failure(run) is None else ():
            if not _has_ended(folder := test_folder(run, test)):
                yield Job(
                    f"{entry.title} seed {seed} on {test}",
                    folder,
                    partial(self._evaluate, run, folder, test),
                    entry,
                )

    def _of_average(self, entry: Entry) -> Iterator[Job]:
        (point,) = entry.points
        for place, seed in enumerate(entry.seeds):
            parts = []
            trained = [name for name in entry.average if name != UNTRAINED]
            for name in trained:
                other = self.study.entry(entry.model, name)
                trials = tried(other, self.study.select)
                if trials is None:
                    self.blocked.append((entry, other.folder))
                    return
                best = choose(trials)
                its_seed = other.seeds[place] if place < len(other.seeds) else None
                if best is None or its_seed is None:
                    return
                run = other.run_folder(best, its_seed)
                if not _is_through(other, best, its_seed):
                    self.blocked.append((entry, run))
                    break
                parts.append((other, best, its_seed))
            if len(parts) < len(trained):
                continue
            folder = entry.run_folder(point, seed)
            if not _is_through(entry, point, seed):
                title = f"{entry.title} seed {seed}"
                yield Job(title, folder, partial(self._average, entry, folder, parts), entry)
            yield from self._tests(entry, point, seed)

    # --- doing it -----------------------------------------------------------------------------------------

    def work(self, after: Callable[[Entry], object] = lambda entry: None) -> None:
        """Until nothing is left that this process can do; `after` gets each strategy that is, but the last.

        Raises Interrupted, with a checkpoint of the run that was on its way.
        """
        waited: list[Path] = []
        open_entries = {entry.title: entry for entry in self.study.entries}
        while True:
            did = False
            for job in self.jobs():
                claim = Claim.take(job.folder)
                if claim is None:
                    continue
                with claim:
                    if not _has_ended(job.folder):  # another may have done it meanwhile
                        self.say(job.title)
                        job.work()
                did = True
                break
            if did:
                waited = []
                left = {job.entry.title for job in self.jobs() if job.entry}
                left |= {entry.title for entry, _ in self.blocked}
                for title in [title for title in open_entries if title not in left]:
                    entry = open_entries.pop(title)
                    if open_entries:
                        after(entry)
                continue
            if not self.blocked:
                return
            if waited != (folders := [*dict.fromkeys(folder for _, folder in self.blocked)]):
                waited = folders
                held = {folder: Claim.holder(folder) for folder in waited}
                at_work = [f"{folder} ({holder})" for folder, holder in held.items() if holder]
                self.say(f"Waits for {', '.join(at_work) or 'what others do'}")
            time.sleep(POLL)

    def prepare(self) -> None:
        """ValueError where the data cannot be read, or cannot fill some strategy's batches."""
        for entry in self.study.entries:
            point = entry.points[0]
            if point.config and not all(_is_through(entry, one, entry.seeds[0]) for one in entry.points):
                try:
                    self.project(point.config)
                except ValueError as error:
                    raise ValueError(f"{entry.title}: {error}") from error

    def project(self, config: TrainConfig) -> Project:
        """The project of a run; data and tokens are read once for all that agree in them."""
        key = tuple(repr(getattr(config, name)) for name in READING)
        if like := self.projects.get(key):
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the corpus was said
                return Project(config, like=like)
        project = Project(config)
        self._check_languages(project)
        assert project.validation is not None
        dev = project.validation.eval_set
        for name in self.study.select:
            check_metric(dev, name, "select")
        for title in self.study.tests:
            if self.test_set(title).fingerprint == dev.fingerprint:
                raise ValueError(f"the test {title} is what runs are chosen by: {dev.name}")
        self.projects[key] = project
        return project

    def _check_languages(self, project: Project) -> None:
        """Unseen languages are not trained on, nor chosen by."""
        unseen = {*self.study.unseen_languages}
        trained = project.config.languages or project.corpus.languages
        if found := sorted(unseen & {*trained}):
            seen = [language for language in trained if language not in unseen]
            raise ValueError(
                f"unseen_languages {' '.join(found)} are in the training data; add to settings: "
                f"languages: [{', '.join(seen)}]"
            )
        assert project.validation is not None
        dev = project.validation.eval_set
        if unseen & {*dev.languages}:
            seen = [language for language in dev.languages if language not in unseen]
            sides = embedding.sides(project.new_model(project.config.seed), project.tokens)
            project.validation = Validation(dev.of_languages(seen), sides, project.config.batch_size)

    def test_set(self, title: str) -> EvalSet:
        if title not in self.sets:
            name, folder = self.study.tests[title]
            self.sets[title] = readers.load(name, folder)
        return self.sets[title]

    def _run(self, entry: Entry, point: Point, seed: int, title: str) -> None:
        folder = entry.run_folder(point, seed)
        config = replace(entry.config(point, seed), output_dir=str(folder))
        project = self.project(config)
        record = Record.of(config, project.tokens)
        if there := Record.read(folder):
            there.check(record, folder)
        record.write(folder)
        try:
            model, training = train_into(folder, title, config, project, newest(folder, project.ranks))
        except LossNotFinite as error:
            self.say(f"{title}: {error}")
            _fail(folder, str(error))
            return
        describe(folder, f"{batch_type(config)}-seed{seed}", config, project, model, training)
        record.complete.append(title)
        record.write(folder)
        Checkpoints(folder).remove_all()

    def _average(self, entry: Entry, folder: Path, parts: list[tuple[Entry, Point, int]]) -> None:
        """The weighted mean of the weights of several runs, with its figures on the dev set of the first."""
        (first, point, seed), *_ = parts
        config = first.config(point, seed)
        project = self.project(config)
        sources = [other.run_folder(best, its_seed) for other, best, its_seed in parts]
        failures = [f"{source}: {reason}" for source in sources if (reason := failure(source)) is not None]
        if failures:
            _fail(folder, "; ".join(failures))
            return
        models = [loading.load(str(source.absolute()), device=config.device) for source in sources]
        shares = [entry.average[other.strategy] for other, _, _ in parts]
        if UNTRAINED in entry.average:  # as the first run began
            models.append(project.new_model(seed))
            shares.append(entry.average[UNTRAINED])
        model, states = models[0], [one.state_dict() for one in models]
        for name, tensor in states[0].items():
            others = [state[name] for state in states if name in state and state[name].shape == tensor.shape]
            if len(others) < len(states):
                _fail(folder, f"the weights {name} of {', '.join(map(str, sources))} are of different shapes")
                return
            if tensor.is_floating_point():
                sums = [share * weight.double() for share, weight in zip(shares, others, strict=True)]
                tensor.copy_(sum(sums) / sum(shares))
        model.save(str(folder), create_model_card=False)
        assert project.validation is not None
        dev = evaluate(model, project.validation.eval_set, batch_size=config.eval_batch_size)
        averaged: dict[str, Any] = {
            "averaged": dict(entry.average),
            "runs": [str(source) for source in sources],
            "validation": figures_of(dev),
        }
        save_results(folder, config, averaged, None)
        record = Record.of(config, project.tokens)
        record.complete.append("average")
        record.write(folder)

    def _evaluate(self, run: Path, folder: Path, test: str) -> None:
        assert is_done(run)  # chosen, and trained to its end
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        model = loading.load(str(run.absolute()), device=metrics["config"]["device"])
        self._test(model, folder, test, int(metrics["config"]["eval_batch_size"]), {"model": str(run)})

    def _evaluate_untrained(self, config: TrainConfig, folder: Path, test: str) -> None:
        model = self.project(config).new_model(config.seed)
        self._test(model, folder, test, config.eval_batch_size, {"model": config.model})

    def _test(self, model: Any, folder: Path, test: str, batch_size: int, details: dict[str, Any]) -> None:
        start = time.perf_counter()
        try:
            evaluation = evaluate(model, self.test_set(test), batch_size=batch_size)
        except ValueError as error:  # an embedding is not finite
            _fail(folder, str(error))
            return
        details["seconds"] = time.perf_counter() - start
        if evaluation.ranked is not None:
            evaluation.ranked.hashes["weights"] = weights_hash(model)
        results.write(folder, evaluation, details)


def _check_average(folder: Path, entry: Entry) -> None:
    """ValueError where a folder holds the mean of something else."""
    if (file := folder / "metrics.json").exists():
        there = json.loads(file.read_text(encoding="utf-8"))["training"]["averaged"]
        if there != entry.average:
            raise ValueError(f"{folder} holds the average {there}, not {dict(entry.average)}; remove it")


def _is_through(entry: Entry, point: Point, seed: int) -> bool:
    return _has_ended(entry.run_folder(point, seed))


def _has_ended(folder: Path) -> bool:
    """Whether there is nothing to do in a folder, of a run or of a test."""
    if (folder / FAILED).exists():
        return True
    return (folder / "metrics.json").exists() if folder.parent.name == "tests" else is_done(folder)


def _fail(folder: Path, reason: str) -> None:
    unfinished = folder / f".{FAILED}"
    unfinished.write_text(json.dumps({"reason": reason}) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / FAILED)
