"""Who is there: rows, groups and sources by language, common groups of two languages, what fills a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridfast.data.corpus import ParallelCorpus

__all__ = ["batches", "coverage", "splits"]

CHUNK = 65_536  # groups or rows looked at together; below 2**24, so that their counts in float32 are exact


def splits(corpus: ParallelCorpus) -> dict[str, int]:
    """Rows of each split."""
    counts = dict.fromkeys(("train", "dev", "test"), 0)
    for batch in corpus.table.to_batches(max_chunksize=CHUNK):
        for split in batch.column("split").value_counts():
            counts[split["values"].as_py()] += split["counts"].as_py()
    return counts


def coverage(corpus: ParallelCorpus) -> dict[str, Any]:
    """Rows, groups and items; by language and source; how many languages a group has; pairs of languages.

    A row is a group in a language, so a language's rows are the groups that it has.
    """
    languages, sources = corpus.languages, corpus.sources
    pair_LL, number_N = _common(corpus.version_GL)
    row_SL = np.bincount(
        corpus.source_V.astype(np.int64) * len(languages) + corpus.language_V,
        minlength=len(sources) * len(languages),
    ).reshape(len(sources), len(languages))
    group_S = np.bincount(corpus.source_G, minlength=len(sources))
    smallest = min(_pairs(languages, pair_LL), key=lambda pair: pair["groups"], default=None)
    return {
        "rows": len(corpus),
        "groups": len(corpus.groups),
        "items": len(corpus.items),
        "languages": {
            language: {"rows": int(rows), "share_of_groups": int(rows) / len(corpus.groups)}
            for language, rows in zip(languages, np.diag(pair_LL), strict=True)
        },
        "missing_rows": len(corpus.groups) * len(languages) - len(corpus),
        "groups_by_number_of_languages": {str(n): int(number_N[n]) for n in range(1, len(languages) + 1)},
        "sources": {
            source: {
                "rows": int(row_L.sum()),
                "groups": int(groups),
                "languages": {name: int(rows) for name, rows in zip(languages, row_L, strict=True)},
            }
            for source, row_L, groups in zip(sources, row_SL, group_S, strict=True)
        },
        "pairs": {
            one: dict(zip(languages, row.tolist(), strict=True))
            for one, row in zip(languages, pair_LL, strict=True)
        },
        "smallest_pair": smallest,
    }


def _common(version_GL: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups that two languages have in common (L, L), and groups in exactly n languages (L + 1,)."""
    languages = version_GL.shape[1]
    pair_LL = np.zeros((languages, languages), np.int64)
    number_N = np.zeros(languages + 1, np.int64)
    for begin in range(0, len(version_GL), CHUNK):
        there_CL = version_GL[begin : begin + CHUNK] >= 0
        number_N += np.bincount(there_CL.sum(axis=1), minlength=languages + 1)
        ones_CL = there_CL.astype(np.float32)
        pair_LL += (ones_CL.T @ ones_CL).astype(np.int64)
    return pair_LL, number_N


def _pairs(languages: list[str], pair_LL: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [
        {"languages": [languages[i], languages[j]], "groups": int(pair_LL[i, j])}
        for i, j in zip(*np.triu_indices(len(languages), k=1), strict=True)
    ]


def batches(found: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """What :class:`hybridfast.data.sampler.HybridSampler` refuses or leaves out at this batch size.

    A batch holds a group at most once, so it needs as many groups of its kind as it has pairs. Monolingual
    batches are drawn in every language: one that cannot fill its own is an error. Cross-lingual ones are of
    the groups in two or more languages; of pairs of languages (``--cross paired``), those that cannot fill
    one are left out; ``--cross same`` takes any group.

    Args:
        found: what :func:`coverage` found.
    """
    rows = {language: of["rows"] for language, of in found["languages"].items()}
    several = sum(n for number, n in found["groups_by_number_of_languages"].items() if number != "1")
    languages = list(rows)
    pairs = _pairs(languages, np.array([[found["pairs"][i][j] for j in languages] for i in languages]))
    groups_of_pairs = [pair["groups"] for pair in pairs]

    def needed(groups: int) -> dict[str, Any]:
        return {"groups": groups, "fills": groups >= batch_size}

    return {
        "batch_size": batch_size,
        "mono": {
            "fills": min(rows.values()) >= batch_size,
            "too_small": {language: n for language, n in rows.items() if n < batch_size},
            "largest_batch_size": min(rows.values()),
        },
        "cross_mixed": needed(several),
        "cross_paired": {
            "fills": max(groups_of_pairs, default=0) >= batch_size,
            "left_out": [pair for pair in pairs if pair["groups"] < batch_size],
            "largest_batch_size_of_all_pairs": min(groups_of_pairs, default=0),
        },
        "cross_same": needed(found["groups"]),
    }
