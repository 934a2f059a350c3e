"""One run into one folder: trained, or gone on with, and left with its settings, figures, curves and card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridfast.evaluation.comparison import Comparison
from hybridfast.training import card, checkpoint
from hybridfast.training.checkpoint import Checkpoints, State
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import LossNotFinite, train
from hybridfast.training.project import Project
from hybridfast.training.ranks import Ranks
from hybridfast.training.saving import finished, save_card, save_model, save_results, settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["NotSaved", "describe", "newest", "train_into"]


class NotSaved(OSError):
    """A model could not be written; checkpoints, if any, remain."""


def newest(folder: Path, ranks: Ranks) -> State | None:
    """Where a run that has begun in this folder goes on; rank 0 finds it, and all read it."""

    def found() -> State | None:
        if not folder.is_dir():
            return None
        checkpoints = Checkpoints(folder)
        checkpoints.clean()
        return checkpoints.newest()

    state = found() if ranks.is_first else None
    step = ranks.by_first(lambda: state and state["log"]["step"])
    if step is None or state is not None:
        return state
    return checkpoint.read(folder / f"checkpoint-{step}")


def train_into(
    folder: Path, title: str, run: TrainConfig, project: Project, resume: State | None = None
) -> tuple[SentenceTransformer, dict[str, Any]]:
    """Train a run's model, from a state where there is one, and save it; what :func:`train` returns, too.

    Every rank calls this; rank 0 writes.

    Raises:
        LossNotFinite: the model as it was before is in the folder, unless that is the untrained one.
        Interrupted: as :func:`train` says.
        NotSaved: see there.
    """
    model, first = project.new_model(run.seed), project.ranks.is_first
    if resume:
        print(f"{title}: goes on after step {resume['log']['step']:,}")
    try:
        training = train(
            model,
            project.tokens,
            run,
            name=title,
            folder=folder,
            validation=project.validation,
            resume=resume,
            ranks=project.ranks,
            teacher=project.teacher,
        )
    except LossNotFinite as error:
        model = project.whole(model, run.seed)
        if first and error.step > 1:
            save_model(folder, model, run)
        raise
    model = project.whole(model, run.seed)
    if not first:
        return finished(model, run), training
    try:
        save_model(folder, model, run)
    except Exception as error:  # what a full disk is to three libraries
        raise NotSaved(f"the model could not be saved: {error}") from error
    return model, training


def describe(
    folder: Path,
    title: str,
    run: TrainConfig,
    project: Project,
    model: SentenceTransformer,
    training: dict[str, Any],
    comparison: Comparison | None = None,
) -> None:
    """The card of a model beside it; without an evaluation, its figures and curves as well."""
    from hybridfast.training import curves  # and with it matplotlib, for which a command's --help would wait

    if comparison is None:
        save_results(folder, run, training, None)
        curves.draw(folder / "log.jsonl", folder / "curves.png")
    evaluated_on = project.eval_set.name if project.eval_set else None
    text = card.text(title, model, run, settings(run), project.corpus, training, comparison, evaluated_on)
    save_card(folder, text)
