"""Evaluate a retriever zero-shot in the monolingual, cross-lingual and multilingual pools.

    python -m hybridfast.evaluate --model runs/hybrid-1 --dataset cldr
    python -m hybridfast.evaluate --model intfloat/multilingual-e5-base \\
        --query_prefix "query: " --passage_prefix "passage: " \\
        --dataset xquad-r --data_dir data/xquad-r --output_dir results/e5-xquad-r

prints the table of the hybrid-batch paper (arXiv 2408.10536): mAP in the three pools, recall, and the rank
distance, which measures language bias (lower is better); writes it with a picture of all language pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hybridfast import cli
from hybridfast.encoder.loading import ModelSettings, setting
from hybridfast.evaluation import readers, results
from hybridfast.evaluation.encode import evaluate
from hybridfast.evaluation.table import table

__all__ = ["EvaluateConfig", "main"]


@dataclass
class EvaluateConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.evaluate``."""

    SECTIONS = ModelSettings.SECTIONS | {"dataset": "data and output"}

    model: str = field(
        metadata={"help": "SentenceTransformer or transformers encoder: a folder or a hub name. Required."}
    )
    dataset: str = setting(
        "cldr", "cldr (embedded), xquad-r, or a file or folder of rows (id, lang, query, passage)."
    )
    data_dir: str | None = setting(None, "Folder of xquad-r: ar.json ... zh.json.")
    candidates: Literal["sentence", "context"] = setting(
        "sentence", "xquad-r: encode the sentence alone, or sentence + context."
    )
    output_dir: str | None = setting(
        None, "New folder for the numbers and the picture. Default: the next free runs/MODEL-DATASET-1, ..."
    )
    eval_batch_size: int = setting(256, "Texts encoded at a time.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be >= 1, got {self.eval_batch_size}")


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    config = cli.parse(EvaluateConfig, "python -m hybridfast.evaluate", __doc__ or "", argv)
    name = Path(config.model).name
    with cli.usage_errors():
        output_dir = cli.check_output_folder(
            config.output_dir or cli.next_free(f"{name}-{Path(config.dataset).stem}")
        )
        eval_set = readers.load(config.dataset, config.data_dir, config.candidates)
        model = config.load()
        evaluation = evaluate(model, eval_set, batch_size=config.eval_batch_size)
    print(table({name: evaluation.summary()}))
    with cli.output_folder(output_dir) as output:
        try:
            results.write(output.folder, evaluation, {"config": asdict(config)})
        finally:  # the numbers outlive a picture that fails
            output.keep = (output.folder / "metrics.json").is_file()
    print(f"\nWrote {output.path}/metrics.json and {output.path}/language_pairs.png")


if __name__ == "__main__":
    main()
