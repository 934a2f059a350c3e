"""Evaluations as pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hybridfast.evaluation.metrics import Evaluation
from hybridfast.evaluation.table import figure_text

__all__ = ["bands", "heat_map"]

_INK, _MUTED, _VOID = "#1f2933", "#7b8794", "#eef0f2"
_GOOD = LinearSegmentedColormap.from_list(
    "good", ["#fbfcf8", "#d5ebdc", "#9ad0c2", "#4fa8a8", "#1f7a8c", "#12486b", "#0b2545"]
)
_BAD = LinearSegmentedColormap.from_list(
    "bad", ["#fdfbf7", "#fbe3c8", "#f6b98a", "#ea8160", "#c94f4f", "#8a2b4a", "#4a1942"]
)


Band = tuple[float, float, float]  # value, low, high
_WRITTEN = 24  # languages up to which every cell carries its value


def heat_map(evaluation: Evaluation, path: str | Path, before: Evaluation | None = None) -> None:
    """Draw mAP by query and passage language and, beside it, how far a pool of all languages is biased.

    Left: one pool for each passage language, on a scale from 0 to 1; the framed diagonal is monolingual, the
    column apart is the pool of all languages. Right: the median rank in that pool of the golds in each
    language, on a logarithmic scale: an even row is an unbiased one; the column apart is the mean rank
    distance. Beyond 24 languages the cells shrink, and a colour bar stands in for the values. Writes a PNG
    under a temporary name and renames it, so that no reader ever sees half a picture.

    Args:
        before: the same set with another model, such as the untrained one: drawn above, with the same scales.
    """
    shown = [("", evaluation)] if before is None else [("before: ", before), ("after: ", evaluation)]
    size = len(evaluation.languages)
    edge = max(0.46 * min(size, _WRITTEN), 2.4)  # of a panel, in inches
    # Not by pyplot, which looks for a display and keeps every figure.
    inches = (2 * (edge + 1.8), len(shown) * (edge + 1.5) + 0.5)
    figure = Figure(figsize=inches, dpi=150, layout="constrained")
    large = 1.5 if size > _WRITTEN else 1.0  # headings, to be read before one zooms in
    figure.suptitle(evaluation.name, color=_INK, fontsize=14 * large, fontweight="bold")
    ranks = [np.append(one.median_rank, one.rank_distance) for _, one in shown]
    largest = max(
        10.0, np.max(ranks, where=np.isfinite(ranks), initial=1)
    )  # a logarithmic scale needs a width
    panels = figure.subplots(len(shown), 2, squeeze=False)
    for (when, one), (left, right) in zip(shown, panels, strict=True):
        mono, cross, multi = (figure_text("mAP", value("mAP")) for value in (one.mono, one.cross, one.multi))
        figures = f"{when}mono {mono}   cross {cross}   all languages {multi}"
        _title(left, "mAP in each language's passages", figures, large)
        pairs_LL, multi_L = one.pairs["mAP"], one.multilingual["mAP"]
        _matrix(left, one.languages, pairs_LL, multi_L, "all", _GOOD, Normalize(0, 1), _share)
        distance = figure_text("rank distance", one.summary()["rank distance"])
        figures = f"{when}mean rank distance {distance}"
        _title(right, "Median gold rank among all passages", figures, large)
        scale = LogNorm(1, largest, clip=True)
        _matrix(right, one.languages, one.median_rank, one.rank_distance, "distance", _BAD, scale, _rank)
    _write_png(figure, Path(path))


def bands(
    path: str | Path, title: str, label: str, at: Sequence[float], panels: Mapping[str, Sequence[Band]]
) -> None:
    """Draw figures over one setting, a panel each: the values as a line, their intervals as a band.

    Args:
        label: of the setting.
        at: its values, rising.
        panels: by figure, (value, low, high) at each of them.
    """
    figure = Figure(figsize=(3.3 * len(panels), 3.2), dpi=150, layout="constrained")
    figure.suptitle(title, color=_INK, fontsize=13, fontweight="bold")
    for axes, (name, values) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        value, low, high = np.array(values, np.float64).T
        axes.fill_between(at, low, high, color="#4fa8a8", alpha=0.3, linewidth=0)
        axes.plot(at, value, color="#12486b", marker="o", markersize=4)
        axes.set_title(name, loc="left", color=_INK, fontsize=10.5, fontweight="bold")
        axes.set_xlabel(label, color=_MUTED)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_VOID)
    _write_png(figure, Path(path))


def _matrix(
    axes: Axes,
    languages: list[str],
    values_LL: NDArray[np.float64],
    apart_L: NDArray[np.float64],
    apart: str,
    colours: Colormap,
    norm: Normalize,
    text: Callable[[float], str],
) -> None:
    """Coloured cells, query languages downward, the diagonal framed, `apart_L` to the right."""
    size = len(languages)
    width = max(1.0, size / _WRITTEN)  # of the column apart, in cells
    begin = size + 0.35 * width
    draw = _written if size <= _WRITTEN else _painted
    draw(axes, values_LL, 0, 1, colours, norm, text)
    draw(axes, apart_L[:, None], begin, width, colours, norm, text)
    stairs = np.repeat(np.arange(size + 1), 2)  # the diagonal's frame: one line above it, one below
    for x, y in ((stairs[1:], stairs[:-1]), (stairs[:-1], stairs[1:])):
        axes.plot(x, y, color=_INK, linewidth=1.3 / width**0.5, clip_on=False)
    margin = 0.02 * width
    axes.set(xlim=(-margin, begin + width + margin), ylim=(size + margin, -margin), aspect="equal")

    step = -(-size // (4 * _WRITTEN))  # what fits at the smallest legible size
    shown = range(0, size, step)
    places, names = [place + 0.5 for place in shown], [languages[place] for place in shown]
    font = 10 if size <= _WRITTEN else min(12, 640 / len(places))
    upright = size > _WRITTEN or max(map(len, languages)) > 4
    axes.set_yticks(places, names, fontsize=font)
    axes.set_xticks(
        [*places, begin + width / 2], [*names, apart], fontsize=font, rotation=90 if upright else 0
    )
    axes.set_xlabel("passage language", color=_MUTED, fontsize=15 if size > _WRITTEN else 10)
    axes.set_ylabel("query language", color=_MUTED, fontsize=15 if size > _WRITTEN else 10)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)


def _written(
    axes: Axes,
    cells: NDArray[np.float64],
    left: float,
    _: float,
    colours: Colormap,
    norm: Normalize,
    text: Callable[[float], str],
) -> None:
    """Every cell with its value."""
    for (row, column), value in np.ndenumerate(cells):
        known = not np.isnan(value)
        colour = colours(norm(value)) if known else to_rgba(_VOID)
        luminance = float(np.dot(colour[:3], (0.299, 0.587, 0.114)))  # as ITU-R BT.601 weighs them
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


def _painted(
    axes: Axes,
    cells: NDArray[np.float64],
    left: float,
    width: float,
    colours: Colormap,
    norm: Normalize,
    text: Callable[[float], str],
) -> None:
    """One image of all cells, and for a matrix the bar that says what its colours mean."""
    rows, columns = cells.shape
    mesh = axes.pcolormesh(
        left + width * np.arange(columns + 1),
        np.arange(rows + 1),
        np.ma.masked_invalid(cells),
        cmap=colours.with_extremes(bad=_VOID),
        norm=norm,
        edgecolors="white",
        linewidth=0.5 * (rows <= 2 * _WRITTEN),
    )
    if columns > 1:
        bar = axes.figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.5, aspect=45, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=3, colors=_INK, labelsize=12)
        bar.ax.xaxis.set_major_formatter(lambda value, _: text(value))


def _title(axes: Axes, title: str, figures: str, large: float) -> None:
    axes.set_title(f"{title}\n", loc="left", color=_INK, fontsize=10.5 * large, fontweight="bold")
    axes.annotate(
        figures,
        (0, 1),
        (0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        color=_INK,
        fontsize=9.5 * large,
    )


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _rank(value: float) -> str:
    """At most four characters: 3.5, 120, 13k; ∞ for one that a run did not retrieve."""
    if np.isinf(value):
        return "∞"
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
