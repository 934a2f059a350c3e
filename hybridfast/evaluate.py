"""Evaluate a retriever zero-shot in the monolingual, cross-lingual and multilingual pools.

    python -m hybridfast.evaluate --model runs/hybrid-1 --dataset cldr
    python -m hybridfast.evaluate --model intfloat/multilingual-e5-base \\
        --query_prefix "query: " --passage_prefix "passage: " \\
        --dataset xquad-r --data_dir data/xquad-r --output_dir results/e5-xquad-r

    python -m hybridfast.evaluate --run bm25.trec --qrels qrels.txt --passage_languages ids.tsv --language en

prints the table of the hybrid-batch paper (arXiv 2408.10536): mAP in the three pools, recall, and the rank
distance, which measures language bias (lower is better); writes it with a picture of all language pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hybridfast import cli
from hybridfast.encoder.loading import ModelSettings, setting
from hybridfast.evaluation import readers, results, search, trec
from hybridfast.evaluation.encode import embed
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import LIST_DEPTH, Evaluation, evaluate_counts, evaluate_embeddings
from hybridfast.evaluation.table import table

__all__ = ["EvaluateConfig", "main"]


@dataclass
class EvaluateConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.evaluate``."""

    SECTIONS = ModelSettings.SECTIONS | {"dataset": "data and output"}

    model: str = setting(
        "none", "SentenceTransformer or transformers encoder: a folder or a hub name. Needed without run."
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
    index: Literal["exact", "hnsw", "ivf"] = setting(
        "exact", "exact: all passages are ranked. Or an approximate index of faiss, which finds run_depth."
    )
    run_depth: int = setting(1000, "Passages a query in a run that is written or comes from an index.")
    write_run: bool = setting(False, "Write run.trec and qrels.trec into the output folder too.")
    output_dir: str | None = setting(
        None, "New folder for the numbers and the picture. Default: the next free runs/MODEL-DATASET-1, ..."
    )
    eval_batch_size: int = setting(256, "Texts encoded at a time.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eval_batch_size", "run_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if (self.model == "none") == (self.run is None):
            raise ValueError(f"give either model or run, got model {self.model} and run {self.run}")
        if self.run is None and self.qrels is not None:
            raise ValueError("qrels hold no texts to encode: they need run; for a model give a dataset")
        if self.run is not None and (self.index != "exact" or self.write_run):
            raise ValueError("index and write_run need a model; a run is written already")


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    config = cli.parse(EvaluateConfig, "python -m hybridfast.evaluate", __doc__ or "", argv)
    name = Path(config.run).stem if config.run else Path(config.model).name
    with cli.usage_errors():
        output_dir = cli.check_output_folder(
            config.output_dir or cli.next_free(f"{name}-{Path(config.qrels or config.dataset).stem}")
        )
        eval_set = _read(config)
        evaluation, run, details = _of_run(config, eval_set) if config.run else _of_model(config, eval_set)
    for note in details["notes"]:
        print(note)
    print(table({name: evaluation.summary()}))
    with cli.output_folder(output_dir) as output:
        try:
            results.write(output.folder, evaluation, {"config": asdict(config), **details})
            if config.write_run and run is not None:
                trec.write_run(output.folder / "run.trec", run, eval_set, name)
                trec.write_qrels(output.folder / "qrels.trec", eval_set)
        finally:  # the numbers outlive a picture that fails
            output.keep = (output.folder / "metrics.json").is_file()
    print(f"\nWrote {output.path}/metrics.json and {output.path}/language_pairs.png")
    if config.write_run:
        print(f"Wrote {output.path}/run.trec and {output.path}/qrels.trec")


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


def _of_model(config: EvaluateConfig, eval_set: EvalSet) -> Result:
    """Of all passages, or of those that an index finds; with the best of them if they are to be written."""
    queries, passages = embed(config.load(), eval_set, batch_size=config.eval_batch_size)
    details: dict[str, Any] = {"notes": eval_set.notes}
    run = None
    if config.write_run or config.index != "exact":
        exact = search.top_k(queries, passages, config.run_depth, trec.id_order(eval_set), progress=True)
        run = trec.run_of(eval_set, *exact)
    if config.index == "exact":
        return evaluate_embeddings(eval_set, queries, passages), run, details
    found = search.index_top_k(queries, passages, config.run_depth, config.index)
    recall = search.recall_of_exact(found[0], exact[0])
    print(f"{config.index}: recall@{exact[0].shape[1]} against exact search {recall:.4f}")
    details["index"] = {"kind": config.index, "depth": exact[0].shape[1], "recall_of_exact": recall}
    run = trec.run_of(eval_set, *found)
    return _measured(eval_set, run), run, details


if __name__ == "__main__":
    main()
