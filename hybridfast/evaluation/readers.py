"""Evaluation sets by their names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridfast.data.columns import language_tag
from hybridfast.evaluation import beir, cldr, lareqa, miracl, rows
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["NAMES", "load"]

NAMES = ("cldr", *lareqa.DATASETS, "miracl", "beir")


def load(
    dataset: str,
    data_dir: str | None = None,
    candidates: str = "sentence",
    *,
    languages: Sequence[str] | None = None,
    language: str | None = None,
    split: str | None = None,
    title_separator: str = " ",
) -> EvalSet:
    """Read an evaluation set by its name on the command line.

    Args:
        dataset: cldr, xquad-r, mlqa-r, miracl, beir, or a file or folder: BEIR's if it has those files, else
            rows.
        data_dir: the folder of one named; None is the hub for all but beir, whose name there it may be.
        candidates: of xquad-r and mlqa-r, see :func:`hybridfast.evaluation.lareqa.load`.
        languages: queries and passages of these alone.
        language: of beir's texts, or rows, that name none.
        split: of miracl (default dev) and beir (default test).
        title_separator: between title and text, of miracl and beir.

    Raises:
        ValueError, OSError: unknown name, no folder given, or bad data, named by file and line.
    """
    languages = [language_tag(tag) for tag in languages] if languages else None
    if dataset == "cldr":
        eval_set = cldr.eval_set()
    elif dataset in lareqa.DATASETS:
        return lareqa.load(data_dir, candidates, dataset, languages)
    elif dataset == "miracl":
        return miracl.load(data_dir, languages, split or "dev", title_separator)
    elif dataset == "beir" and data_dir is None:
        raise ValueError("dataset beir needs data_dir: a folder with corpus.jsonl, or a hub name")
    elif dataset == "beir" or beir.is_beir(Path(dataset)):
        folder = data_dir if dataset == "beir" and data_dir else dataset
        eval_set = beir.load(folder, split or "test", language, title_separator)
    elif Path(dataset).exists():
        eval_set = rows.load(dataset, language)
    else:
        raise ValueError(f"dataset must be {', '.join(NAMES)} or an existing file or folder, got {dataset!r}")
    return eval_set if languages is None else eval_set.of_languages(languages)
