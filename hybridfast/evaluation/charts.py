"""Three kinds of picture as inline SVG, whose colours are those of the page around it, light or dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["bars", "curves", "heat_map"]

Floats = NDArray[np.float64]
_LEVELS = 16  # of a heat map's colours
_WRITTEN = 24  # languages up to which every cell carries its value


def heat_map(
    languages: Sequence[str],
    values_LL: Floats,
    apart_L: Floats,
    apart: str,
    scale: Callable[[float], float],
    text: Callable[[float], str],
    kind: str,
) -> str:
    """Cells by row and column with `apart_L` to the right, coloured by `scale` (0 to 1) in the page's `kind`.

    Cells of one colour are one path, so that a hundred languages take a hundred kilobytes.
    """
    size = len(languages)
    gap = 0.3 * max(1.0, size / _WRITTEN)
    wide = max(1.0, size / _WRITTEN)  # of the column apart
    paths: dict[int, list[str]] = {}
    texts = []
    for (row, column), value in np.ndenumerate(np.column_stack([values_LL, apart_L])):
        last = column == size
        x, width = (size + gap, wide) if last else (float(column), 1.0)
        level = -1 if np.isnan(value) else round(scale(float(value)) * (_LEVELS - 1))
        paths.setdefault(level, []).append(f"M{x:g} {row}h{width:g}v1h-{width:g}z")
        if size <= _WRITTEN:
            on = ' class="on"' if level > 0.55 * _LEVELS else ""
            shown = "–" if level < 0 else text(float(value))
            texts.append(f'<text x="{x + width / 2:g}" y="{row + 0.62:g}"{on}>{shown}</text>')
    filled = "".join(f'<path {_fill(level, kind)} d="{"".join(d)}"/>' for level, d in sorted(paths.items()))
    stairs = "M0 0" + "h1v1" * size + "".join("h-1v-1" for _ in range(size))
    step = -(-size // 60)
    font = 0.4 * step
    margin = font * 0.62 * max(map(len, languages), default=2) + 0.3
    heads = [
        f'<text x="{-0.25 * step}" y="{i + 0.5 + font / 3:g}" text-anchor="end">{escape(languages[i])}</text>'
        f'<text transform="translate({i + 0.5 + font / 3:g} {-0.2 * step:g}) rotate(-90)" '
        f'text-anchor="start">{escape(languages[i])}</text>'
        for i in range(0, size, step)
    ]
    heads.append(
        f'<text transform="translate({size + gap + wide / 2 + font / 3:g} {-0.2 * step:g}) rotate(-90)" '
        f'text-anchor="start">{escape(apart)}</text>'
    )
    top = max(margin, font * 0.62 * len(apart) + 0.3 * step)
    box = f"{-margin:g} {-top:g} {margin + size + gap + wide + 0.1:g} {top + size + 0.1:g}"
    most = 44 * (margin + size + gap + wide)  # pixels: few languages make no huge cells
    return (
        f'<svg viewBox="{box}" style="max-width:{most:.0f}px" role="img" aria-label="heat map">{filled}'
        f'<path class="diagonal" d="{stairs}"/><g font-size="{font:g}">{"".join(heads)}</g>'
        f'<g font-size=".34" text-anchor="middle">{"".join(texts)}</g></svg>'
    )


def _fill(level: int, kind: str) -> str:
    if level < 0:
        return 'class="void"'
    share = 100 * level / (_LEVELS - 1)
    return f'style="fill:color-mix(in oklab,var(--{kind}) {share:.0f}%,var(--low))"'


def curves(at: Floats, lines: Mapping[str, Floats], names: Sequence[str]) -> str:
    """Shares (0 to 1) over `at` (1 and above) on a logarithmic axis; `names` give each line its colour."""
    width, height, left, bottom = 480.0, 240.0, 34.0, 34.0
    span = max(float(np.log10(at[-1])), 1e-9)

    def x(value: float) -> float:
        return left + (width - left - 12) * float(np.log10(value)) / span

    def y(share: float) -> float:
        return 8 + (height - bottom - 8) * (1 - share)

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path class="grid" d="M{left} {y(share):.1f}H{width - 12}"/>')
        parts.append(
            f'<text class="muted" x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:g}</text>'
        )
    for power in range(int(span + 1e-9) + 1):
        parts.append(f'<path class="grid" d="M{x(10**power):.1f} 8V{height - bottom}"/>')
        label = f"{10**power:,}"
        parts.append(
            f'<text class="muted" x="{x(10**power):.1f}" y="{height - 16}" text-anchor="middle">'
            f"{label}</text>"
        )
    parts.append(f'<text class="muted" x="{width - 12}" y="{height - 2}" text-anchor="end">rank</text>')
    for name, shares in lines.items():
        i = list(names).index(name)
        points = " ".join(f"{x(r):.1f},{y(s):.1f}" for r, s in zip(at, shares, strict=True))
        dash = f' stroke-dasharray="{2 + 3 * (i // 8)} 3"' if i >= 8 else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="var(--s{i % 8})" stroke-width="2"{dash}>'
            f"<title>{escape(name)}</title></polyline>"
        )
    return _svg(parts, width, height, "curves", 11)


def bars(languages: Sequence[str], values: Mapping[str, Floats]) -> str:
    """A group of bars a language, from 0 to 1, each with its value."""
    thick, gap, width = 11.0 if len(values) > 1 else 14.0, 7.0, 360.0
    left = 12 + 7.0 * max(map(len, languages), default=2)
    right = width - 34
    group = thick * len(values) + gap
    parts = [
        f'<path class="grid" d="M{left + (right - left) * share:.1f} 0V{group * len(languages):.1f}"/>'
        for share in (0, 0.5, 1)
    ]
    for row, language in enumerate(languages):
        middle = row * group + (group - gap) / 2 + gap / 2
        parts.append(f'<text x="{left - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(language)}</text>')
        for i, (name, of) in enumerate(values.items()):
            value, top = float(of[row]), row * group + gap / 2 + i * thick
            if np.isnan(value):
                continue
            long = max(1.0, (right - left) * value)
            parts.append(
                f'<rect x="{left}" y="{top:.1f}" width="{long:.1f}" height="{thick - 1.5:g}" rx="1.5" '
                f'fill="var(--s{i % 8})"><title>{escape(name)}</title></rect>'
                f'<text class="muted" x="{left + long + 4:.1f}" y="{top + thick - 3:.1f}" font-size="9.5">'
                f"{value:.3f}</text>"
            )
    return _svg(parts, width, group * len(languages), "bars", 12)


def _svg(parts: list[str], width: float, height: float, label: str, font: int) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" font-size="{font}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )
