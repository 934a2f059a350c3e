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

from pathlib import Path

from hybridfast import cli
from hybridfast.evaluation.comparison import Comparison, compare
from hybridfast.evaluation.metrics import Evaluation
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.results import write_comparison
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import LossNotFinite, train
from hybridfast.training.project import Project, batch_type
from hybridfast.training.rehearsal import rehearse
from hybridfast.training.saving import save_model, save_results

__all__ = ["Project", "TrainConfig", "main", "train"]


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    config = cli.parse(TrainConfig, "python -m hybridfast.train", __doc__ or "", argv)
    with cli.usage_errors():
        name = "compare" if config.compare else batch_type(config.alpha)
        output_dir = cli.check_output_folder(config.output_dir or cli.next_free(name))
        project = Project(config)
        if config.dry_run:
            try:
                print(rehearse(project))
            except LossNotFinite as error:
                cli.fail(str(error))
            return
    systems: dict[str, list[Ranked]] = {}
    runs = list(project.runs())
    with cli.output_folder(output_dir) as output:
        if config.eval_before:
            with cli.usage_errors():
                untrained = project.evaluate(project.new_model(config.seed))
            _add(config, systems, "untrained", untrained, output.folder)
        for name, run in runs:
            title = name if config.num_seeds == 1 else f"{name}-seed{run.seed}"
            folder, there = output.folder, output.path
            if len(runs) > 1:
                folder, there = folder / title, there / title
            model = project.new_model(run.seed)
            try:
                training = train(model, project.tokens, run, name=title)
            except LossNotFinite as error:
                if error.step == 1:  # nothing was trained, in this run
                    cli.fail(f"{title}: {error}")
                save_model(folder, model, run)
                output.keep = True
                cli.fail(f"{title}: {error}; the model as it was before is in {there}")
            save_model(folder, model, run)
            output.keep = True  # what was trained outlives an evaluation that fails or is interrupted
            save_results(folder, run, training, None)
            try:
                evaluation = project.evaluate(model)
            except ValueError as error:
                cli.fail(f"{title}: {error}; the model is in {there}")
            _add(config, systems, name, evaluation, output.folder)
            save_results(folder, run, training, evaluation)
    if project.eval_set is not None:
        print(f"\n{project.eval_set.name}: higher is better but for the rank distance\n")
        print(_table(config, systems).table())
    _closing_words(config, output.path, several=len(runs) > 1)


def _add(
    config: TrainConfig,
    systems: dict[str, list[Ranked]],
    name: str,
    evaluation: Evaluation | None,
    folder: Path,
) -> None:
    """One more evaluation in the table, which is written anew: the next run may fail."""
    if evaluation and evaluation.ranked:
        systems.setdefault(name, []).append(evaluation.ranked)
        write_comparison(folder, _table(config, systems))


def _table(config: TrainConfig, systems: dict[str, list[Ranked]]) -> Comparison:
    baseline = config.baseline or ("mono" if "mono" in systems else next(iter(systems)))
    return compare(systems, baseline if baseline in systems and len(systems) > 1 else None)


def _closing_words(config: TrainConfig, output_dir: Path, *, several: bool) -> None:
    folder = f"{output_dir}/RUN" if several else str(output_dir)
    print(f"\nModel: {folder}  (sentence_transformers.SentenceTransformer loads it)")
    if config.eval_dataset != "none":
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
