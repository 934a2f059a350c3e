"""What mining leaves behind: rows with their negatives, and how all of them score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.mining.mine import Mined

__all__ = ["FORMATS", "draw_histogram", "histogram", "write_rows"]

FORMATS = (".jsonl", ".parquet")
CHUNK = 16_384  # rows written at a time
COLUMNS = ["id", "lang", "query", "passage", "source", "split"]
_INK, _POSITIVE, _NEGATIVE = "#1f2933", "#1f7a8c", "#c94f4f"


def write_rows(path: Path, corpus: ParallelCorpus, mined: Mined) -> None:
    """The corpus's rows with columns ``negative_1, negative_2, ...`` in place of the negatives they had.

    A row with fewer negatives has none of the later columns (null in Parquet).

    Args:
        path: a new file; its suffix, one of `FORMATS`, decides the format.
    """
    names = [f"negative_{k + 1}" for k in range(mined.negative_VK.shape[1])]
    schema = pa.schema([(name, pa.string()) for name in COLUMNS + names])
    passages = corpus.table.column("passage")
    parquet = pq.ParquetWriter(path, schema) if path.suffix == ".parquet" else None
    with parquet or open(path, "w", encoding="utf-8") as file:
        for begin in range(0, len(corpus), CHUNK):
            rows = corpus.table.select(COLUMNS).slice(begin, CHUNK)
            negative_BK = mined.negative_VK[begin : begin + CHUNK]
            # One by one: a take of many would join all passages, which may exceed what one array holds.
            texts = {row: passages[row].as_py() for row in np.unique(negative_BK).tolist() if row >= 0}
            for name, negative_B in zip(names, negative_BK.T, strict=True):
                column = [texts.get(row) for row in negative_B.tolist()]
                rows = rows.append_column(name, pa.array(column, pa.string()))
            if parquet:
                parquet.write_table(rows.cast(schema))
                continue
            for row in rows.to_pylist():
                kept = {name: value for name, value in row.items() if value is not None}
                file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def histogram(mined: Mined, bins: int = 16) -> str:
    """Counts, quantiles and a histogram of the scores of positives and negatives, as text."""
    positive, negative = _scores(mined)
    found_V = (mined.negative_VK >= 0).sum(axis=1)
    difference = (mined.positive_V[:, None] - mined.score_VK)[mined.negative_VK >= 0]
    columns = {"positive": positive, "negative": negative, "difference": difference}
    lines = [f"{'score':<8}" + "".join(f"{name:>13}" for name in columns)]
    lines.append(f"{'count':<8}" + "".join(f"{len(values):>13,}" for values in columns.values()))
    lines.append(f"{'mean':<8}" + "".join(f"{values.mean():>13.4f}" for values in columns.values()))
    lines.append(f"{'std':<8}" + "".join(f"{values.std():>13.4f}" for values in columns.values()))
    for share in (0, 5, 25, 50, 75, 95, 100):
        name = {0: "min", 50: "median", 100: "max"}.get(share, f"{share} %")
        quantiles = (np.percentile(values, share) for values in columns.values())
        lines.append(f"{name:<8}" + "".join(f"{value:>13.4f}" for value in quantiles))
    edges = _edges(positive, negative, bins)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (positive, negative)]
    top = max(share.max() for share in shares)
    lines += ["", f"{'from':>8}  {'positives':<30}{'negatives':<30}"]
    for edge, *both in zip(edges[:-1], *shares, strict=True):
        bars = (f"{'#' * round(22 * share / top):<22} {100 * share:4.1f} % " for share in both)
        lines.append(f"{edge:>8.3f}  " + " ".join(bars).rstrip())
    few = int((found_V < mined.negative_VK.shape[1]).sum())
    lines += [
        "",
        f"{few:,} of {len(found_V):,} rows have fewer than {mined.negative_VK.shape[1]} negatives, ",
    ]
    lines[-1] += f"{int((found_V == 0).sum()):,} have none"
    return "\n".join(lines)


def draw_histogram(mined: Mined, title: str, path: Path) -> None:
    """The same as a picture (PNG)."""
    positive, negative = _scores(mined)
    edges = _edges(positive, negative, 60)
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")  # not by pyplot, which wants a display
    axes = figure.subplots()
    for values, color, name in ((positive, _POSITIVE, "positives"), (negative, _NEGATIVE, "negatives")):
        weights = np.full(len(values), 100 / len(values))
        label = f"{name}: {len(values):,}, median {np.median(values):.3f}"
        axes.hist(values, edges.tolist(), weights=weights, color=color, alpha=0.65, label=label)
    axes.set_title(title, color=_INK, loc="left")
    axes.set_xlabel("score", color=_INK)
    axes.set_ylabel("% of them", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


def _scores(mined: Mined) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return mined.positive_V, mined.score_VK[mined.negative_VK >= 0]


def _edges(positive: NDArray[np.float32], negative: NDArray[np.float32], bins: int) -> NDArray[np.float64]:
    low, high = (float(f([f(positive), f(negative)])) for f in (np.min, np.max))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)
