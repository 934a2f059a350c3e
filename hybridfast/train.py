"""Train one multilingual dual encoder with hybrid batches, and evaluate it zero-shot.

    python -m hybridfast.train                       # embedded corpus, static encoder, a minute on a laptop
    python -m hybridfast.train --compare             # mono, cross and hybrid batches side by side
    python -m hybridfast.train --model FacebookAI/xlm-roberta-base --data pairs.jsonl \\
        --batch_size 100 --max_steps 5000 --bf16 --eval_dataset xquad-r --eval_data_dir data/xquad-r
    python -m hybridfast.train settings.yaml --seed 1

Each batch is monolingual with probability alpha and cross-lingual otherwise (arXiv 2408.10536). The output
folder is a SentenceTransformer: load it with SentenceTransformer(path).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hybridfast import cli
from hybridfast.evaluation import ranked
from hybridfast.evaluation.comparison import Comparison, compare
from hybridfast.evaluation.metrics import evaluate_ranked
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.results import RANKS, write_comparison
from hybridfast.training import checkpoint
from hybridfast.training.checkpoint import Checkpoints, State
from hybridfast.training.config import TrainConfig
from hybridfast.training.interrupts import Interrupted
from hybridfast.training.log import check_trackers
from hybridfast.training.loop import LossNotFinite, train
from hybridfast.training.project import Project, batch_type, runs_of
from hybridfast.training.ranks import Ranks
from hybridfast.training.record import Record, check_same, identity, is_fresh
from hybridfast.training.rehearsal import rehearse
from hybridfast.training.running import NotSaved, describe, newest, train_into
from hybridfast.training.saving import (
    check_hub,
    push,
    save_results,
)

if TYPE_CHECKING:
    pass

__all__ = ["Project", "TrainConfig", "main", "train"]


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    argv = sys.argv[1:] if argv is None else argv
    config = cli.parse(TrainConfig, "python -m hybridfast.train", __doc__ or "", argv)
    with cli.usage_errors():
        ranks = Ranks.join(config.device)
    with ranks, ranks.one_voice():
        _run(config, argv, ranks)


def _run(config: TrainConfig, argv: list[str], ranks: Ranks) -> None:
    """All that the command does, on every rank. What is written, and said, is rank 0's."""
    command = shlex.join(["python", "-m", "hybridfast.train", *argv])
    runs = {_title(config, name, run): (name, run) for name, run in runs_of(config)}
    with cli.usage_errors():
        check_trackers(config.report_to or [])
        check_hub(config)
        output_dir, record = ranks.by_first(lambda: _place(config))
        if record and set(runs) <= set(record.complete):
            print(f"{output_dir} is complete: nothing is left to do")
            return
        with ranks.one_first():
            project = Project(config, ranks)
        if config.dry_run:
            try:
                print(rehearse(project))
            except LossNotFinite as error:
                cli.fail(str(error))
            return
        this = Record.of(config, project.tokens)
        if record:
            record.check(this, output_dir)
        record = record or this
        given = _given_checkpoint(config, project)
        _ = project.teacher  # made or found before anything is written
    lasting = config.save_steps is not None or config.resume_from_checkpoint is not None
    systems: dict[str, list[Ranked]] = {}
    stopped: str | None = None
    with ExitStack() as stack:
        opened = cli.lasting_folder if lasting else cli.output_folder
        output = ranks.by_first(lambda: stack.enter_context(opened(output_dir)))
        if lasting and ranks.is_first:
            record.write(output.folder)
        if config.eval_before:
            _add(config, systems, "untrained", _untrained(project, output.folder), output.folder, command)
        before = evaluate_ranked(systems["untrained"][0]) if ranks.is_first and systems else None
        for title, (name, run) in runs.items():
            folder, there = output.folder, output.path
            if len(runs) > 1:
                folder, there = folder / title, there / title
            if title in record.complete:
                if ranks.is_first:
                    _add(config, systems, name, _ranks(folder), output.folder, command)
                continue
            with _no_half_run(folder, lasting, ranks):
                state = given if given or not lasting else newest(folder, ranks)
                if state and ranks.is_first:
                    _bring_the_best(state, config, folder)
                try:
                    model, training = train_into(folder, title, run, project, state)
                except LossNotFinite as error:
                    if not ranks.is_first:
                        raise SystemExit(2) from None  # rank 0 says it
                    if error.step == 1:  # nothing was trained, in this run
                        cli.fail(f"{title}: {error}")
                    output.keep = True
                    cli.fail(f"{title}: {error}; the model as it was before is in {there}")
                except Interrupted as error:
                    if not error.saved:
                        cli.fail(f"{title}: {error}, and it could not be saved; see the warning")
                    stopped = f"{title}: {error}"
                    output.keep = True
                    if ranks.is_first:
                        record.write(output.folder)
                    break
                except NotSaved as error:
                    if not lasting:
                        raise
                    cli.fail(f"{title}: {error}; the last checkpoint remains")
                if not ranks.is_first:
                    project.evaluate(model)  # its part
                    continue
            output.keep = True  # what was trained outlives an evaluation that fails or is interrupted
            describe(folder, title, run, project, model, training)
            try:
                evaluation = project.evaluate(model)
            except ValueError as error:
                cli.fail(f"{title}: {error}; the model is in {there}")
            _add(config, systems, name, evaluation.ranked if evaluation else None, output.folder, command)
            save_results(folder, run, training, evaluation, before)
            if evaluation:
                own = {row: systems[row][-1:] for row in ("untrained", name) if row in systems}
                against = "untrained" if len(own) > 1 else None
                if own:
                    describe(folder, title, run, project, model, training, compare(own, against))
            if config.push_to_hub:
                repository = config.hub_model_id or output_dir.absolute().name
                if len(runs) > 1:
                    repository = f"{repository}-{title}"
                try:
                    print(f"Hub: {push(folder, repository, private=config.hub_private_repo)}")
                except (OSError, ValueError) as error:
                    cli.fail(f"{title}: the hub did not take it: {error}; the model is in {there}")
            record.complete.append(title)
            if lasting:
                record.write(output.folder)
            if config.save_steps is None:
                Checkpoints(folder).remove_all()
        if not stopped and ranks.is_first:
            record.write(output.folder)
    ranks.wait()
    if stopped:
        _leave(stopped, argv, config, output.path, ranks.world)
    if project.eval_set is not None and ranks.is_first:
        print(f"\n{project.eval_set.name}: higher is better but for the rank distance\n")
        print(_table(config, systems).table())
    _closing_words(config, output.path, several=len(runs) > 1)


def _title(config: TrainConfig, name: str, run: TrainConfig) -> str:
    return name if config.num_seeds == 1 else f"{name}-seed{run.seed}"


def _place(config: TrainConfig) -> tuple[Path, Record | None]:
    """The output folder, and what it says of the runs in it; ValueError where they are of other settings."""
    name = "compare" if config.compare else batch_type(config)
    path = Path(config.output_dir or cli.next_free(name))
    if config.resume_from_checkpoint == "auto":
        if record := Record.read(path):
            record.check(Record.of(config), path)
            return path, record
        is_fresh(path)
    return cli.check_output_folder(path), None


def _given_checkpoint(config: TrainConfig, project: Project) -> State | None:
    """The one that is asked for by its path."""
    path = config.resume_from_checkpoint
    if path in (None, "auto"):
        return None
    state = checkpoint.read(Path(path))
    check_same(state["run"], identity(config, project.tokens), f"resume_from_checkpoint {path}")
    return state


def _bring_the_best(state: State, config: TrainConfig, folder: Path) -> None:
    """The best checkpoint into the run's folder, where it goes on from another one's."""
    if (step := state["best"]["step"]) is None or config.resume_from_checkpoint in (None, "auto"):
        return
    best = Path(str(config.resume_from_checkpoint)).absolute().with_name(f"checkpoint-{step}")
    with cli.usage_errors():
        checkpoint.write(folder / best.name, checkpoint.read(best))


@contextmanager
def _no_half_run(folder: Path, lasting: bool, ranks: Ranks) -> Iterator[None]:
    """A run that ends without model or checkpoint leaves no folder, unless it may be gone on with."""
    try:
        yield
    except BaseException:
        if ranks.is_first and not lasting and not (folder / "modules.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _leave(stopped: str, argv: list[str], config: TrainConfig, output_dir: Path, world: int) -> NoReturn:
    """Say how to go on, and end well."""
    start = ["python"] if world == 1 else ["torchrun", "..."]
    words = [*start, "-m", "hybridfast.train", *argv]
    if config.output_dir != str(output_dir):
        words += ["--output_dir", str(output_dir)]
    if config.resume_from_checkpoint != "auto":
        words += ["--resume_from_checkpoint", "auto"]
    print(f"{stopped}; to go on: {shlex.join(words)}")
    raise SystemExit(0)


def _untrained(project: Project, folder: Path) -> Ranked | None:
    """The ranks of the untrained model, found in the output folder or left there."""
    if (found := project.ranks.by_first(lambda: _ranks(folder / "untrained"))) is not None:
        return found
    with cli.usage_errors():
        evaluation = project.evaluate(project.new_model(project.config.seed))
    if evaluation is None or evaluation.ranked is None:
        return None
    (folder / "untrained").mkdir(exist_ok=True)
    ranked.write(folder / "untrained" / RANKS, evaluation.ranked)
    return evaluation.ranked


def _ranks(folder: Path) -> Ranked | None:
    """Those of an evaluation whose folder this is."""
    path = folder / RANKS
    return ranked.read(path) if path.exists() else None


def _add(
    config: TrainConfig,
    systems: dict[str, list[Ranked]],
    name: str,
    found: Ranked | None,
    folder: Path,
    command: str,
) -> None:
    """One more evaluation in the table, which is written anew: the next run may fail."""
    if found:
        systems.setdefault(name, []).append(found)
        write_comparison(folder, _table(config, systems), systems, command)


def _table(config: TrainConfig, systems: dict[str, list[Ranked]]) -> Comparison:
    baseline = config.baseline or ("mono" if "mono" in systems else next(iter(systems)))
    return compare(systems, baseline if baseline in systems and len(systems) > 1 else None)


def _closing_words(config: TrainConfig, output_dir: Path, *, several: bool) -> None:
    folder = f"{output_dir}/RUN" if several else str(output_dir)
    print(f"\nModel: {folder}  (sentence_transformers.SentenceTransformer loads it)")
    if config.eval_dataset != "none":
        print(f"Page of all figures: {output_dir}/report.html")
        print(f"Numbers: {folder}/metrics.json   Picture of all language pairs: {folder}/language_pairs.png")
    print(f"Settings: {folder}/train_config.yaml  (python -m hybridfast.train FILE repeats the run)")
    print("Try next:")
    if config.eval_dataset == "none":
        print(
            f"  python -m hybridfast.evaluate --model {folder} --dataset held_out.jsonl   rows as in training"
        )
    if not config.compare:
        print("  python -m hybridfast.train --compare            mono, cross and hybrid batches side by side")
    if config.data == "cldr":
        print("  python -m hybridfast.train --data pairs.jsonl   your own rows: id, lang, query, passage")
    print("  python -m hybridfast.train --help               every setting")


if __name__ == "__main__":
    main()
