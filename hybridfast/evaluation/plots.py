"""Evaluations as pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hybridfast.evaluation.metrics import Evaluation
from hybridfast.evaluation.table import figure_text

__all__ = ["heat_map"]

_INK, _MUTED, _VOID = "#1f2933", "#7b8794", "#eef0f2"
_GOOD = LinearSegmentedColormap.from_list(
    "good", ["#fbfcf8", "#d5ebdc", "#9ad0c2", "#4fa8a8", "#1f7a8c", "#12486b", "#0b2545"]
)
_BAD = LinearSegmentedColormap.from_list(
    "bad", ["#fdfbf7", "#fbe3c8", "#f6b98a", "#ea8160", "#c94f4f", "#8a2b4a", "#4a1942"]
)


def heat_map(evaluation: Evaluation, path: str | Path) -> None:
    """Draw mAP by query and passage language and, beside it, how far a pool of all languages is biased.

    Left: one pool for each passage language, on a scale from 0 to 1; the framed diagonal is monolingual, the
    column apart is the pool of all languages. Right: the median rank in that pool of the golds in each
    language, on a logarithmic scale: an even row is an unbiased one; the column apart is the mean rank
    distance. Writes a PNG under a temporary name and renames it, so that no reader ever sees half a picture.
    """
    edge = max(0.46 * len(evaluation.languages), 2.4)  # of a panel, in inches
    figure = Figure(figsize=(2 * (edge + 1.8), edge + 2.0), dpi=150, layout="constrained")
    figure.suptitle(evaluation.name, color=_INK, fontsize=14, fontweight="bold")
    left, right = figure.subplots(1, 2)
    _matrix(
        left,
        evaluation.languages,
        evaluation.pairs["mAP"],
        evaluation.multilingual["mAP"],
        _GOOD,
        Normalize(0, 1),
        _share,
    )
    left.set_xticks(*_ticks(evaluation.languages, "all"))
    mono, cross, multi = (
        figure_text("mAP", value("mAP")) for value in (evaluation.mono, evaluation.cross, evaluation.multi)
    )
    _title(left, "mAP in each language's passages", f"mono {mono}   cross {cross}   all languages {multi}")

    ranks = np.append(evaluation.median_rank, evaluation.rank_distance)
    largest = max(10.0, np.max(ranks, where=~np.isnan(ranks), initial=1))
    _matrix(
        right,
        evaluation.languages,
        evaluation.median_rank,
        evaluation.rank_distance,
        _BAD,
        LogNorm(1, largest, clip=True),
        _rank,
    )
    right.set_xticks(*_ticks(evaluation.languages, "distance"))
    distance = figure_text("rank distance", evaluation.summary()["rank distance"])
    _title(right, "Median gold rank among all passages", f"mean rank distance {distance}")
    _write_png(figure, Path(path))


_GAP = 0.35  # between the matrix and the column apart, in cells


def _matrix(
    axes: Axes,
    languages: list[str],
    values_LL: NDArray[np.float64],
    apart_L: NDArray[np.float64],
    colours: Colormap,
    norm: Normalize,
    text: Callable[[float], str],
) -> None:
    """Coloured cells with their values, query languages downward, the diagonal framed, `apart_L` to the
    right.
    """
    size = len(languages)
    for left, cells in ((0.0, values_LL), (size + _GAP, apart_L[:, None])):
        for (row, column), value in np.ndenumerate(cells):
            known = not np.isnan(value)
            colour = colours(norm(value)) if known else to_rgba(_VOID)
            luminance = float(np.dot(colour[:3], (0.299, 0.587, 0.114)))
            axes.add_patch(
                Rectangle((left + column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5)
            )
            axes.text(
                left + column + 0.5,
                row + 0.5,
                text(value) if known else "–",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if luminance < 0.55 else _INK if known else _MUTED,
            )
    for place in range(size):
        axes.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor=_INK, linewidth=1.3))
    axes.set(xlim=(-0.02, size + _GAP + 1.02), ylim=(size + 0.02, -0.02), aspect="equal")
    axes.set_yticks(np.arange(size) + 0.5, languages)
    axes.set_xlabel("passage language", color=_MUTED)
    axes.set_ylabel("query language", color=_MUTED)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)


def _ticks(languages: list[str], apart: str) -> tuple[list[float], list[str]]:
    size = len(languages)
    return [*(place + 0.5 for place in range(size)), size + _GAP + 0.5], [*languages, apart]


def _title(axes: Axes, title: str, figures: str) -> None:
    axes.set_title(f"{title}\n", loc="left", color=_INK, fontsize=10.5, fontweight="bold")
    axes.annotate(
        figures,
        (0, 1),
        (0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        color=_INK,
        fontsize=9.5,
    )


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _rank(value: float) -> str:
    """At most four characters: 3.5, 120, 13k."""
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}" if value < 9999.5 else f"{value / 1000:.0f}k"


def _write_png(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
