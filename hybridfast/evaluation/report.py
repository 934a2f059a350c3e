"""An evaluation or a comparison as one page, ``report.html``, which needs no script and no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hybridfast.evaluation.charts import bars, curves, heat_map
from hybridfast.evaluation.comparison import Comparison, Estimate
from hybridfast.evaluation.measures import Floats
from hybridfast.evaluation.metrics import Evaluation, evaluate_ranked
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.table import figure_text
from hybridfast.evaluation.worst import Failure

__all__ = ["BIAS", "html", "page", "sections"]

_STYLE = Path(__file__).with_name("report.css")
# In all heat maps together, some 1.5 MB, and of all systems together, half a megabyte at most.
_HEAT_CELLS, _FAILURES = 120_000, 80
# Nor anything from elsewhere, whatever a text holds.
_NO_SCRIPT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

BIAS = (  # figure, what it says
    ("rank distance", "between a question's first and last gold among all passages; 0 is best"),
    ("rank distance / chance", "0: translations stand together; 1: placed at random"),
    (
        "own-language preference",
        "first places of the question's language over its share of passages; 1 is even",
    ),
    ("own language first", "share of questions whose first passage is in their language"),
    ("own-language gold first", "how often that gold is the first of a question's golds"),
    ("R@10 of other languages", "golds in other languages among the first 10; higher is better"),
    ("R@100 of other languages", "golds in other languages among the first 100; higher is better"),
    ("AWRF@100", "attention to each language against its share of golds; 1 is even"),
    ("list correlation@100", "of the lists that a question's translations get; 1: the same lists"),
)


def html(
    comparison: Comparison,
    systems: Mapping[str, Sequence[Ranked]],
    command: str = "",
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The page of a comparison of one system or several, as :func:`~.comparison.compare` takes them.

    Figures of runs that differ in their seed are averaged; the worst questions are those of the first run.
    Texts come from ``Ranked.failures``. `command` and `environment` stand at its end.
    """
    first = next(iter(systems.values()))[0]
    title = first.name if len(systems) == 1 else f"{first.name}: {len(systems)} systems"
    parts = [
        _head(title, first, comparison),
        *sections(comparison, systems),
        _failures(systems),
        _everything(comparison),
        _about(systems, comparison, command, environment or {}),
    ]
    return page(title, parts)


def sections(comparison: Comparison, systems: Mapping[str, Sequence[Ranked]]) -> list[str]:
    """The parts of the page that show figures: table, heat maps, ranks, bias, languages."""
    evaluations = {name: [evaluate_ranked(run) for run in runs] for name, runs in systems.items()}
    return [
        _summary(comparison),
        _heat_maps(evaluations),
        _rank_curves(systems),
        _bias(comparison, evaluations),
        _languages(evaluations),
    ]


def page(title: str, parts: Sequence[str]) -> str:
    """Parts, in HTML, as a page that needs no script and no network."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NO_SCRIPT}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _head(title: str, first: Ranked, comparison: Comparison) -> str:
    return (
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="muted">{len(first.query_ids):,} queries of {comparison.questions:,} questions, '
        f"{int(first.passages_L.sum()):,} passages, {len(first.languages)} languages</p>\n"
    )


def _lower_is_better(figure: str) -> bool:
    return figure.startswith("rank distance")


def _summary(comparison: Comparison) -> str:
    family = comparison.family
    best = {figure: _best(comparison, figure) for figure in family}
    rows = []
    for name, estimates in comparison.estimates.items():
        cells = []
        for figure in family:
            difference = comparison.differences.get(name, {}).get(figure)
            kind, mark = "", ""
            if difference is not None and difference.significant:
                kind = "better" if (difference.value < 0) == _lower_is_better(figure) else "worse"
                mark = "*"
            strong = " best" if name in best[figure] else ""
            cells.append(_cell(figure, estimates[figure], f"{kind}{strong}", mark))
        base = ' class="base"' if name == comparison.baseline else ""
        rows.append(f"<tr{base}><th>{escape(name)}</th>{''.join(cells)}</tr>\n")
    heads = "".join(f"<th>{escape(figure)}</th>" for figure in family)
    return (
        f'<h2>Figures</h2>\n<p class="muted">{escape(comparison.legend())}. Higher is better but for the '
        f'rank distance.</p>\n<div class="card"><table>\n<thead><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _best(comparison: Comparison, figure: str) -> set[str]:
    """The systems of the best value, if there are others."""
    values = {name: of[figure].value for name, of in comparison.estimates.items()}
    known = [value for value in values.values() if not math.isnan(value)]
    if len(known) < 2:
        return set()
    best = min(known) if _lower_is_better(figure) else max(known)
    return {name for name, value in values.items() if value == best}


def _cell(figure: str, estimate: Estimate, kind: str = "", mark: str = "") -> str:
    value, low, high = (figure_text(figure, x) for x in (estimate.value, estimate.low, estimate.high))
    if value == "-":
        return "<td>–</td>"
    spread = figure_text(figure, estimate.sd_seeds)
    small = f"[{low}, {high}]" if spread == "-" else f"± {spread} [{low}, {high}]"
    return f'<td><span class="{kind.strip()}">{value}{mark}</span><small>{small}</small></td>'


def _heat_maps(evaluations: Mapping[str, list[Evaluation]]) -> str:
    """mAP of all pairs, then median ranks, each on one scale for all systems."""
    first = next(iter(evaluations.values()))[0]
    size = len(first.languages)
    shown = max(1, _HEAT_CELLS // (2 * size * (size + 1)))
    names = [*evaluations][:shown]
    medians = {name: _mean(one.median_rank for one in evaluations[name]) for name in names}
    distances = {name: _mean(one.rank_distance for one in evaluations[name]) for name in names}
    known = np.concatenate([x.ravel() for x in (*medians.values(), *distances.values())])
    largest = max(10.0, float(known[np.isfinite(known)].max(initial=1.0)))

    def level(rank: float) -> float:
        return math.log(min(max(rank, 1.0), largest)) / math.log(largest)

    maps: dict[str, list[str]] = {"good": [], "bad": []}
    for name in names:
        ofs = evaluations[name]
        pairs, multi = _mean(x.pairs["mAP"] for x in ofs), _mean(x.multilingual["mAP"] for x in ofs)
        for kind, of_what, values, apart, label, scale, text in (
            ("good", "mAP", pairs, multi, "all", float, _share),
            ("bad", "median rank", medians[name], distances[name], "dist", level, _rank),
        ):
            picture = heat_map(first.languages, values, apart, label, scale, text, kind)
            maps[kind].append(f'<figure class="card"><h3>{escape(name)}: {of_what}</h3>{picture}</figure>')
    wide = f"--wide: {300 if size < 9 else 460}px"
    left_out = len(evaluations) - len(names)
    note = f'<p class="muted">Not drawn: {left_out} more.</p>' if left_out else ""
    intros = (
        "<p>mAP of questions in each row's language over the passages of each column's: the framed diagonal "
        "is monolingual, the rest cross-lingual, <b>all</b> the pool of all languages. "
        '<span class="muted">0 <span class="scale good"></span> 1</span></p>',
        "<p>Median rank of the golds in each column's language among <em>all</em> passages: an even row is "
        "an unbiased one; <b>dist</b> is the mean rank distance. "
        f'<span class="muted">1 <span class="scale bad"></span> {_rank(largest)}</span></p>',
    )
    if len(names) == 1:  # both side by side
        rows = [(intros[0] + intros[1], maps["good"] + maps["bad"])]
    else:
        rows = [*zip(intros, maps.values(), strict=True)]
    body = "".join(f'{intro}<div class="row heat" style="{wide}">{"".join(of)}</div>\n' for intro, of in rows)
    return f"<h2>Language pairs</h2>\n{note}{body}"


def _rank_curves(systems: Mapping[str, Sequence[Ranked]]) -> str:
    first = next(iter(systems.values()))[0]
    total = max(2, int(first.passages_L.sum()))
    at = np.unique(np.geomspace(1, total, 60).round())
    figures = []
    for title, own in (
        ("Golds in the question's language", True),
        ("Golds in other languages", False),
    ):
        lines = {}
        for name, runs in systems.items():
            shares = [_found_by(run, own, at) for run in runs]
            if not any(np.isnan(share).any() for share in shares):
                lines[name] = np.mean(shares, axis=0)
        if lines:
            figures.append(f'<figure class="card"><h3>{title}</h3>{curves(at, lines, [*systems])}</figure>')
    return (
        "<h2>Ranks</h2>\n<p>Share of the golds that stand at a rank or before it, among the passages of all "
        f'languages.{_keys(systems)}</p>\n<div class="row">{"".join(figures)}</div>\n'
    )


def _found_by(run: Ranked, own: bool, at: Floats) -> Floats:
    """(len(at),) shares of the golds, each query language weighing the same; NaN without any."""
    language_G = run.query_languages_Q[run.query_G]
    ranks_G = run.everywhere.ranks(run.ties)
    kept_G = (language_G == run.gold_languages_G) == own
    shares = []
    for language in range(len(run.languages)):
        ranks = np.sort(ranks_G[kept_G & (language_G == language)])
        if len(ranks):
            shares.append(np.searchsorted(ranks, at, side="right") / len(ranks))
    return np.mean(shares, axis=0) if shares else np.full(len(at), np.nan)


def _bias(comparison: Comparison, evaluations: Mapping[str, list[Evaluation]]) -> str:
    known = next(iter(comparison.estimates.values()))
    rows = [
        _bias_row(figure, meaning, [_cell(figure, of[figure]) for of in comparison.estimates.values()])
        for figure, meaning in BIAS
        if figure in known
    ]
    biases = [ofs[0].bias for ofs in evaluations.values()]
    chance = [f"<td>{figure_text('rank distance', bias['chance rank distance'])}</td>" for bias in biases]
    rows.insert(1, _bias_row("rank distance by chance", "what a system without any knowledge gets", chance))
    w = "Kendall's W"
    agreement = [f"<td>{figure_text(w, bias[w])}</td>" for bias in biases]
    rows.append(_bias_row(w, "0: no language is preferred; 1: always in one order", agreement))
    if "friedman_questions" in biases[0]:
        p = [f"<td>{_p_value(bias['friedman_questions']['p'])}</td>" for bias in biases]
        rows.append(_bias_row("p, Friedman", "of no preference, over questions", p))
    refused = biases[0]["PEER"].get("refused")
    peer = [
        "<td>–</td>" if refused else f"<td>{figure_text('PEER', bias['PEER']['mean'])}</td>"
        for bias in biases
    ]
    rows.append(_bias_row("PEER", refused or "probability of equal expected rank; 1: fair", peer))
    heads = "".join(f"<th>{escape(name)}</th>" for name in evaluations)
    return (
        "<h2>Language bias</h2>\n<p>In the pool of all languages: does a passage's language decide its "
        "rank?</p>\n"
        f'<div class="card"><table>\n<thead><tr><th></th>{heads}<th style="text-align:left">meaning</th></tr>'
        f"</thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _bias_row(figure: str, meaning: str, cells: Iterable[str]) -> str:
    return f'<tr><th>{escape(figure)}</th>{"".join(cells)}<td class="text">{escape(meaning)}</td></tr>\n'


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "&lt; 0.001"


def _languages(evaluations: Mapping[str, list[Evaluation]]) -> str:
    first = next(iter(evaluations.values()))[0]

    def cross(one: Evaluation) -> Floats:
        pairs = one.pairs["mAP"].copy()
        np.fill_diagonal(pairs, np.nan)
        return _row_means(pairs)

    panels: tuple[tuple[str, Callable[[Evaluation], Floats]], ...] = (
        ("mAP mono", lambda one: np.diagonal(one.pairs["mAP"])),
        ("mAP cross, mean over passage languages", cross),
        ("mAP multi", lambda one: one.multilingual["mAP"]),
    )
    figures = []
    for title, of in panels:
        values = {name: _mean(map(of, ofs)) for name, ofs in evaluations.items()}
        if any(np.isfinite(row).any() for row in values.values()):
            figures.append(f'<figure class="card"><h3>{title}</h3>{bars(first.languages, values)}</figure>')
    return (
        f"<h2>By the question's language</h2>\n<p>{_keys(evaluations)}</p>\n"
        f'<div class="row">{"".join(figures)}</div>\n'
    )


def _failures(systems: Mapping[str, Sequence[Ranked]]) -> str:
    parts = [
        "<h2>Worst questions</h2>\n<p>By average precision among the passages of all languages, a question "
        "once; with what stands above its golds where the evaluation knew the texts.</p>\n"
    ]
    for i, (name, runs) in enumerate(systems.items()):
        found = runs[0].worst_queries()[: max(2, _FAILURES // len(systems))]
        inside = "".join(map(_failure, found)) or "<p>All golds stand first.</p>"
        last = i == len(systems) - 1  # the newest system, or the only one
        parts.append(f"<details{' open' * last}><summary>{escape(name)}</summary>{inside}</details>\n")
    return "".join(parts)


def _failure(failure: Failure) -> str:
    golds = "".join(
        f'<span class="tag">{escape(language)} {_rank(rank)}</span>' for language, rank in failure.golds
    )
    rows = [f"<dt>ranks of golds</dt><dd>{golds}</dd>"]
    if failure.gold[1]:
        rows.append(f"<dt>gold</dt><dd>{_text(*failure.gold)}</dd>")
    for i, (language, text) in enumerate(failure.above):
        rows.append(f"<dt>{'' if i else 'ranked above'}</dt><dd>{_text(language, text)}</dd>")
    return (
        f'<div class="question"><span class="tag">{escape(failure.language)}</span>'
        f'<bdi class="asked" dir="auto" lang="{escape(failure.language)}">'
        f"{escape(failure.query or failure.query_id)}</bdi> "
        f"<small>{escape(failure.query_id)} · AP {failure.average_precision:.3f}</small>"
        f"<dl>{''.join(rows)}</dl></div>\n"
    )


def _text(language: str, text: str) -> str:
    language = escape(language)
    return f'<span class="tag">{language}</span><bdi dir="auto" lang="{language}">{escape(text)}</bdi>'


def _everything(comparison: Comparison) -> str:
    names = [*comparison.estimates]
    figures = [*comparison.estimates[names[0]]]
    rows = "".join(
        f"<tr><th>{escape(f)}</th>{''.join(_cell(f, comparison.estimates[name][f]) for name in names)}</tr>\n"
        for f in figures
    )
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        f"<h2>All figures</h2>\n<details><summary>{len(figures)} figures with 95 % intervals</summary>"
        f"<table>\n<thead><tr><th></th>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></details>\n"
    )


def _about(
    systems: Mapping[str, Sequence[Ranked]],
    comparison: Comparison,
    command: str,
    environment: Mapping[str, Any],
) -> str:
    rows = [(name.replace("_", " "), str(value)) for name, value in environment.items()]
    rows.append(("resamples, seed", f"{comparison.resamples:,}, {comparison.seed}"))
    rows.append(("ties", next(iter(systems.values()))[0].ties))
    for name, runs in systems.items():
        for run in runs:
            rows += [(f"Hash of {what}, {name}", value) for what, value in run.hashes.items()]
            rows.append((f"Hash of ranks, {name}", run.fingerprint))
    body = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>\n" for a, b in rows)
    asked = f"<pre>{escape(command)}</pre>" if command else ""
    table = f'<table class="about"><tbody>{body}</tbody></table>'
    return f'<h2>Made by</h2>\n<div class="card">{asked}{table}</div>\n'


def _keys(names: Iterable[str]) -> str:
    return "".join(
        f' <span class="key" style="background:var(--s{i % 8})"></span>{escape(name)}'
        for i, name in enumerate(names)
    )


def _mean(values: Iterable[Any]) -> Floats:
    """Over runs, which leave the same undefined."""
    return np.mean(np.stack([np.asarray(value, np.float64) for value in values]), axis=0)


def _row_means(values: Floats) -> Floats:
    known = ~np.isnan(values)
    sums = np.where(known, values, 0).sum(axis=1)
    return np.divide(sums, known.sum(axis=1), out=np.full(len(values), np.nan), where=known.any(axis=1))


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _rank(value: float) -> str:
    """3.5, 120, 13k; ∞ for one that was not retrieved."""
    if math.isinf(value):
        return "∞"
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}" if value < 9999.5 else f"{value / 1000:.0f}k"
