"""Evaluate a retriever zero-shot in the monolingual, cross-lingual and multilingual pools.

    python -m hybridfast.evaluate --model runs/hybrid-1 --dataset cldr
    python -m hybridfast.evaluate --model intfloat/multilingual-e5-base \\
        --query_prefix "query: " --passage_prefix "passage: " \\
        --dataset xquad-r --data_dir data/xquad-r --output_dir results/e5-xquad-r

prints the table of the hybrid-batch paper (arXiv 2408.10536): mAP in the three pools, recall, and the rank
distance, which measures language bias (lower is better); writes it with a picture of all language pairs.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from hybridfast import __version__, _core, cli, report
from hybridfast import model as encoders
from hybridfast.datasets import EvalSet
from hybridfast.metrics import Evaluation, evaluate_embeddings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["EvaluateConfig", "environment", "evaluate", "load_eval_set", "main"]


@dataclass
class EvaluateConfig:
    """Every setting of ``python -m hybridfast.evaluate``."""

    model: str = field(
        metadata={"help": "SentenceTransformer or transformers encoder: a folder or a hub name."}
    )
    dataset: str = field(
        default="cldr",
        metadata={
            "help": "cldr (embedded), xquad-r, or a file or folder of rows (id, lang, query, passage)."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the data set (xquad-r)."})
    candidates: Literal["sentence", "context"] = field(
        default="sentence", metadata={"help": "xquad-r: encode the sentence alone, or sentence + context."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "New folder for the numbers and the picture. None: next free runs/MODEL-DATASET-1, ..."
        },
    )
    query_prefix: str | None = field(
        default=None, metadata={"help": "Put before queries. None: the model's own prompt."}
    )
    passage_prefix: str | None = field(
        default=None, metadata={"help": "Put before passages. None: the model's own prompt."}
    )
    eval_batch_size: int = field(default=256, metadata={"help": "Texts encoded at a time."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, ... None: a GPU where there is one."}
    )

    def __post_init__(self) -> None:
        if self.eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be >= 1, got {self.eval_batch_size}")
        cli.check_device(self.device)


def load_eval_set(dataset: str, data_dir: str | None = None, candidates: str = "sentence") -> EvalSet:
    """Read an evaluation set by its name on the command line.

    Raises:
        ValueError, FileNotFoundError: unknown name, no folder given, or bad data, named by file.
    """
    if dataset == "cldr":
        from hybridfast.datasets import cldr

        return cldr.eval_set()
    if dataset == "xquad-r":
        from hybridfast.datasets import xquad_r

        if data_dir is None:
            raise ValueError("dataset xquad-r needs data_dir, the folder of ar.json ... zh.json")
        return xquad_r.load(data_dir, candidates)
    if Path(dataset).exists():
        from hybridfast.datasets import rows

        return rows.load(dataset)
    raise ValueError(f"dataset must be cldr, xquad-r or an existing file or folder, got {dataset!r}")


def evaluate(
    model: SentenceTransformer, eval_set: EvalSet, *, batch_size: int = 256, progress: bool = True
) -> Evaluation:
    """Encode an evaluation set, each side under the model's own prompt, and rank it by cosine."""
    queries, passages = encoders.encode(
        model, eval_set.queries, eval_set.passages, batch_size=batch_size, progress=progress
    )
    return evaluate_embeddings(eval_set, normalize(queries, dim=-1), normalize(passages, dim=-1))


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on: versions, processor, threads."""
    import sentence_transformers
    import transformers

    return {
        "hybridfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": _core.build_info()["simd"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def write_results(folder: Path, evaluation: Evaluation | None, details: dict[str, Any]) -> None:
    """``metrics.json`` and, with an evaluation, ``language_pairs.png`` into an existing folder."""
    metrics = {**details, "environment": environment()}
    if evaluation:
        metrics["evaluation"] = evaluation.to_dict()
        report.heat_map(evaluation, folder / "language_pairs.png")
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    config = cli.parse(EvaluateConfig, "python -m hybridfast.evaluate", __doc__ or "", argv)
    name = Path(config.model).name
    with cli.usage_errors():
        output_dir = cli.check_output_folder(
            config.output_dir or cli.next_free(f"{name}-{Path(config.dataset).stem}")
        )
        eval_set = load_eval_set(config.dataset, config.data_dir, config.candidates)
        model = encoders.load(config.model, device=config.device)
    encoders.set_prompts(model, config.query_prefix, config.passage_prefix)
    evaluation = evaluate(model, eval_set, batch_size=config.eval_batch_size)
    print(report.table({name: evaluation.summary()}))
    with cli.output_folder(output_dir) as folder:
        write_results(folder, evaluation, {"config": asdict(config)})
    print(f"\nWrote {output_dir}/metrics.json and {output_dir}/language_pairs.png")


if __name__ == "__main__":
    main()
