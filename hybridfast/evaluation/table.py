"""Evaluations as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["figure_text", "layout", "table"]

Summary = Mapping[str, float | None]


def table(summaries: Mapping[str, Summary | Sequence[Summary]]) -> str:
    """The paper's layout, aligned text that is valid Markdown: a row a model, a column a figure.

    `summaries` maps each row's name to what :meth:`Evaluation.summary` returns, or to the "summary" of a
    stored ``to_dict()``; or to several of them, from several seeds, shown as mean ± sample standard
    deviation. Ranks are given to one decimal, shares to three; "-" is for undefined values.
    """
    if not summaries:
        raise ValueError("summaries must hold at least one row")
    rows = {name: [seeds] if isinstance(seeds, Mapping) else [*seeds] for name, seeds in summaries.items()}
    columns = list(next(iter(rows.values()))[0])
    cells = [["", *columns]]
    for name, seeds in rows.items():
        for summary in seeds:
            if list(summary) != columns:
                raise ValueError(
                    f"summaries must share their columns, {columns}, but {name!r} has {list(summary)}"
                )
        figures = [figure_text(column, *(summary[column] for summary in seeds)) for column in columns]
        cells.append([name, *figures])
    return layout(cells)


def layout(cells: Sequence[Sequence[str]]) -> str:
    """Rows of texts, the first of them headings, as aligned text that is valid Markdown."""
    rows = [[row[0].replace("|", "\\|"), *row[1:]] for row in cells]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        for row in rows
    ]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure_text(column: str, *seeds: float | None) -> str:
    """A figure of that column, or the mean of several seeds' and their sample standard deviation."""
    known = [value for value in seeds if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    digits = 1 if column.endswith(("rank", "rank distance")) else 3
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"
