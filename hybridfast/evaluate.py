"""Evaluate a retriever zero-shot in the monolingual, cross-lingual and multilingual pools.

    python -m hybridfast.evaluate --model runs/hybrid-1 --dataset cldr
    python -m hybridfast.evaluate --model intfloat/multilingual-e5-base \\
        --query_prefix "query: " --passage_prefix "passage: " \\
        --dataset xquad-r --data_dir data/xquad-r --output_dir results/e5-xquad-r

    python -m hybridfast.evaluate --run bm25.trec --qrels qrels.txt --passage_languages ids.tsv --language en

    python -m hybridfast.evaluate --model A B C --baseline A --dataset cldr       # side by side
    python -m hybridfast.evaluate --compare runs/A-cldr-1 runs/compare-1          # later, without encoding

    torchrun --nproc_per_node 8 -m hybridfast.evaluate --model A --dataset miracl # each process a part

prints the table of the hybrid-batch paper (arXiv 2408.10536): mAP in the three pools, recall, and the rank
distance, which measures language bias (lower is better), each with its interval; writes it with the ranks of
every query, all other measures, and a picture of all language pairs.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hybridfast import cli
from hybridfast.encoder.loading import ModelSettings, setting
from hybridfast.encoder.shards import weights_hash
from hybridfast.evaluation import readers, results, search, trec
from hybridfast.evaluation.comparison import Comparison, compare
from hybridfast.evaluation.encode import embed
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import LIST_DEPTH, Evaluation, evaluate_counts, evaluate_embeddings
from hybridfast.evaluation.ranked import Ranked
from hybridfast.training.ranks import Ranks

__all__ = ["EvaluateConfig", "main"]


@dataclass
class EvaluateConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.evaluate``."""

    SECTIONS = ModelSettings.SECTIONS | {"dataset": "data and output"}

    model: list[str] = field(  # type: ignore[assignment]
        default_factory=list,
        metadata={
            "help": "SentenceTransformer or transformers encoder: a folder or a hub name. Several are "
            "compared. Needed without run and compare."
        },
    )
    dataset: str = setting(
        "cldr",
        "cldr (embedded), xquad-r, mlqa-r, miracl, beir, a folder with BEIR's files, or a file or folder of "
        "rows (id, lang, query, passage).",
    )
    data_dir: str | None = setting(
        None, "Folder of xquad-r, mlqa-r, miracl or beir. Default: the hub; for beir it may be a name there."
    )
    languages: list[str] | None = setting(
        None, "Queries and passages of these languages alone, such as ar de en. Default: all."
    )
    language: str | None = setting(None, "Language of beir's texts, rows or ids that have none of their own.")
    split: str | None = setting(None, "Which judgments. Default: dev of miracl, test of beir.")
    candidates: Literal["sentence", "context"] = setting(
        "sentence", "xquad-r, mlqa-r: encode the sentence alone, or XTREME's sentence + context."
    )
    title_separator: str = setting(
        " ", "miracl, beir: between a passage's title and text; \\n is a line break. pyserini's is \\n\\n."
    )
    run: str | None = setting(
        None, "Evaluate this run in TREC's format instead of a model, over the dataset or qrels."
    )
    qrels: str | None = setting(None, "Judgments in TREC's format for the run, instead of a dataset.")
    passage_languages: str | None = setting(
        None, "Lines 'id language' for qrels: the passages of the pool. Others are in --language."
    )
    query_languages: str | None = setting(None, "Lines 'id language' for qrels' queries, likewise.")
    compare: list[str] | None = setting(
        None, "Compare these folders of earlier evaluations or training runs, from the ranks stored in them."
    )
    baseline: str | None = setting(
        None,
        "Of several, the one that differences are taken from, by its name in the table. Default: the first.",
    )
    resamples: int = setting(10_000, "Of questions, for the intervals and tests of the table.")
    index: Literal["exact", "hnsw", "ivf"] = setting(
        "exact", "exact: all passages are ranked. Or an approximate index of faiss, which finds run_depth."
    )
    run_depth: int = setting(1000, "Passages a query in a run that is written or comes from an index.")
    write_run: bool = setting(False, "Write run.trec and qrels.trec into the output folder too.")
    output_dir: str | None = setting(
        None, "New folder for the numbers and the picture. Default: the next free runs/MODEL-DATASET-1, ..."
    )
    eval_batch_size: int = setting(256, "Texts encoded at a time.")
    embeddings_dir: str | None = setting(
        None,
        "Keep embeddings here, on disk: what is there is not made again, and memory does not grow with them.",
    )
    embeddings_dtype: Literal["float32", "float16"] = setting("float32", "Of embeddings in embeddings_dir.")

    def __post_init__(self) -> None:
        if isinstance(self.model, str):  # one of several
            super().__post_init__()
            return
        for model in self.model:
            replace(self, model=model)  # type: ignore[arg-type]
        for name in ("eval_batch_size", "run_depth", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if sum(map(bool, (self.model, self.run, self.compare))) != 1:
            given = f"model {' '.join(self.model)}, run {self.run}, compare {' '.join(self.compare or [])}"
            raise ValueError(f"give one of model, run and compare, got {given}")
        if self.run is None and self.qrels is not None:
            raise ValueError("qrels hold no texts to encode: they need run; for a model give a dataset")
        if self.run is not None and (self.index != "exact" or self.write_run):
            raise ValueError("index and write_run need a model; a run is written already")
        if self.embeddings_dir is None and self.embeddings_dtype != "float32":
            raise ValueError(f"embeddings_dtype {self.embeddings_dtype} needs embeddings_dir")


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    argv = sys.argv[1:] if argv is None else argv
    words = shlex.join(["python", "-m", "hybridfast.evaluate", *argv])
    config = cli.parse(EvaluateConfig, "python -m hybridfast.evaluate", __doc__ or "", argv)
    with cli.usage_errors():
        ranks = Ranks.join(config.device)
    with ranks, ranks.one_voice():
        _run(config, words, ranks)


def _run(config: EvaluateConfig, words: str, ranks: Ranks) -> None:
    """All that the command does, on every rank: each embeds and ranks a part, and the first one writes."""
    with cli.usage_errors():
        output_dir = ranks.by_first(
            lambda: cli.check_output_folder(config.output_dir or cli.next_free(_title(config)))
        )
        if config.compare:
            if ranks.is_first:
                _compare_runs(config, config.compare, output_dir, words)
            return
        with ranks.one_first():
            eval_set = _read(config)
        names = [Path(config.run).stem] if config.run else _names(config.model)
        if config.baseline is not None and config.baseline not in names:
            raise ValueError(f"baseline must be one of {', '.join(names)}, got {config.baseline!r}")
    systems: dict[str, list[Ranked]] = {}
    with ExitStack() as stack:
        output = ranks.by_first(lambda: stack.enter_context(cli.output_folder(output_dir)))
        for name, model in zip(names, config.model or [""], strict=True):
            one = config if config.run else replace(config, model=model)  # type: ignore[arg-type]
            with cli.usage_errors():
                if config.run:
                    evaluation, run, details = _of_run(one, eval_set)
                else:
                    evaluation, run, details = _of_model(one, eval_set, ranks)
            if not ranks.is_first:
                continue
            for note in details["notes"] if not systems else ():
                print(note)
            folder = output.folder / name if len(names) > 1 else output.folder
            folder.mkdir(exist_ok=True)
            if evaluation.ranked is not None:
                if "weights" in details:
                    evaluation.ranked.hashes["weights"] = details["weights"]
                systems[name] = [evaluation.ranked]
            try:
                results.write(folder, evaluation, {"config": asdict(one), **details})
                if config.write_run and run is not None:
                    trec.write_run(folder / "run.trec", run, eval_set, name)
                    trec.write_qrels(folder / "qrels.trec", eval_set)
            finally:  # the numbers outlive a picture that fails
                output.keep |= (folder / "metrics.json").is_file()
        if ranks.is_first:
            with cli.usage_errors():
                results.write_comparison(output.folder, _compare(config, systems), systems, words)
    ranks.wait()
    there = f"{output.path}/MODEL" if len(names) > 1 else str(output.path)
    print(f"\nWrote {output.path}/report.html; {there}/metrics.json, ranks.parquet and language_pairs.png")
    if config.write_run:
        print(f"Wrote {there}/run.trec and {there}/qrels.trec")


def _compare_runs(config: EvaluateConfig, folders: list[str], output_dir: Path, words: str) -> None:
    systems = results.read_runs(folders)
    comparison = _compare(config, systems)
    with cli.output_folder(output_dir) as output:
        results.write_comparison(output.folder, comparison, systems, words)
    print(f"\nWrote {output.path}/report.html, comparison.json and results.md")


def _title(config: EvaluateConfig) -> str:
    """Of the folder, where none is given."""
    if config.compare:
        return "comparison"
    names = [Path(config.run).stem] if config.run else _names(config.model)
    return f"{'-'.join(names)}-{Path(config.qrels or config.dataset).stem}"


def _names(models: list[str]) -> list[str]:
    """The last part of each path or hub name, or all of it where two are alike.

    Raises ValueError for a model given twice.
    """
    names = [Path(model).name for model in models]
    if len(set(names)) < len(names):
        names = [model.strip("/").replace("/", "--") for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"model must name each model once, got {' '.join(models)}")
    return names


def _compare(config: EvaluateConfig, systems: dict[str, list[Ranked]]) -> Comparison:
    """The table, printed; of differences from the baseline where there are several."""
    baseline = config.baseline or (next(iter(systems)) if len(systems) > 1 else None)
    comparison = compare(systems, baseline, resamples=config.resamples)
    print(comparison.table())
    return comparison


def _read(config: EvaluateConfig) -> EvalSet:
    if config.run and config.qrels:
        tables = (config.passage_languages, config.query_languages)
        return trec.eval_set_of(config.qrels, config.run, *tables, config.language)
    return readers.load(
        config.dataset,
        config.data_dir,
        config.candidates,
        languages=config.languages,
        language=config.language,
        split=config.split,
        title_separator=config.title_separator.replace("\\n", "\n"),
    )


Result = tuple[Evaluation, trec.Run | None, dict[str, Any]]


def _of_run(config: EvaluateConfig, eval_set: EvalSet) -> Result:
    run = trec.read_run(config.run or "", eval_set)
    return _measured(eval_set, run), run, {"notes": [*eval_set.notes, *run.notes]}


def _measured(eval_set: EvalSet, run: trec.Run) -> Evaluation:
    lists = trec.top_lists_of(run, eval_set, LIST_DEPTH)
    return evaluate_counts(eval_set, trec.run_counts(run, eval_set), "trec", lists)


def _of_model(config: EvaluateConfig, eval_set: EvalSet, ranks: Ranks) -> Result:
    """Of all passages, or of those that an index finds; with the best of them if they are to be written."""
    model = config.load()
    queries, passages = embed(
        model,
        eval_set,
        batch_size=config.eval_batch_size,
        folder=config.embeddings_dir,
        dtype=config.embeddings_dtype,
        progress=ranks.is_first,
        shared=True,
    )
    details: dict[str, Any] = {"notes": eval_set.notes, "weights": weights_hash(model)}
    run = None
    if config.write_run or config.index != "exact":  # one rank's work: all do the same
        exact = search.top_k(
            queries, passages, config.run_depth, trec.id_order(eval_set), progress=ranks.is_first
        )
        run = trec.run_of(eval_set, *exact)
    if config.index == "exact":
        return evaluate_embeddings(eval_set, queries, passages, shared=True), run, details
    found = search.index_top_k(queries, passages, config.run_depth, config.index)
    recall = search.recall_of_exact(found[0], exact[0])
    print(f"{config.index}: recall@{exact[0].shape[1]} against exact search {recall:.4f}")
    details["index"] = {"kind": config.index, "depth": exact[0].shape[1], "recall_of_exact": recall}
    run = trec.run_of(eval_set, *found)
    return _measured(eval_set, run), run, details


if __name__ == "__main__":
    main()
