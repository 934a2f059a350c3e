"""What a study has found by now, as Markdown, as a page and as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hybridfast.evaluation import plots, ranked, report
from hybridfast.evaluation.comparison import SUMMARY, Comparison, compare
from hybridfast.evaluation.metrics import evaluate_ranked
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.results import RANKS, environment, write_json, write_text
from hybridfast.evaluation.table import figure_text, layout
from hybridfast.studies.choice import choose, failure, is_done, tried
from hybridfast.studies.claims import Claim as Claimed
from hybridfast.studies.findings import POOLS, Roles, claims, wins
from hybridfast.studies.plan import Entry, Study
from hybridfast.studies.runs import chosen_point, test_folder, untrained_folder

__all__ = ["systems_of", "write"]

CURVE = (*POOLS, "rank distance")
SENTENCE = 80  # characters
Rows = list[list[str]]


@dataclass(frozen=True)
class Part:
    """A heading with what stands below it, for both kinds of page."""

    heading: str
    level: int = 2
    lines: tuple[str, ...] = ()
    rows: Rows | None = None
    picture: Path | None = None
    html: str = ""  # more of it, for the page alone


def systems_of(study: Study, model: str, test: str) -> dict[str, list[Ranked]]:
    """The ranks of all strategies' chosen runs that have been tested, untrained first."""
    folders = {"untrained": [untrained_folder(study, model)]}
    for entry in study.of(model):
        if (point := chosen_point(entry, study)) is not None:
            folders[entry.strategy] = [entry.run_folder(point, seed) for seed in entry.seeds]
    systems = {}
    for name, runs in folders.items():
        files = [test_folder(run, test) / RANKS for run in runs]
        # A run's figures come last; ranks without them are being written, or of a killed process.
        if found := [ranked.read(file) for file in files if file.with_name("metrics.json").exists()]:
            systems[name] = found
    return systems


def write(study: Study, command: str) -> str:
    """``report.md``, ``report.html`` and ``report.json`` in the study's folder; where they are, in words."""
    claimed = Claimed.take(study.output_dir / "report")  # has pictures, and is not written by two at once
    if claimed is None:
        return f"{study.output_dir}/report.md is being written by another process"
    with claimed:
        parts: list[Part] = []
        content: dict[str, Any] = {"command": command, "environment": environment(), "models": {}}
        for model in study.models:
            of_model: dict[str, Any] = {"tests": {}}
            for test in study.tests:
                systems = systems_of(study, model, test)
                if len(systems) > 1:
                    of_test, its_parts = _of_test(study, model, test, systems)
                    of_model["tests"][test] = of_test
                    parts += its_parts
            parts += _of_dev(study, model, of_model)
            content["models"][model] = of_model
        about = ", ".join(f"{name} {value}" for name, value in environment().items())
        parts.append(Part("Made by", lines=(f"`{command}`", about)))
        write_json(study.output_dir / "report.json", content)
        write_text(study.output_dir / "report.md", _markdown(study, parts))
        write_text(study.output_dir / "report.html", _page(parts))
    return f"Wrote {study.output_dir}/report.md, report.html and report.json"


# --- parts -------------------------------------------------------------------------------------------------


def _of_test(
    study: Study, model: str, test: str, systems: Mapping[str, list[Ranked]]
) -> tuple[dict[str, Any], list[Part]]:
    """The table, claims, curve and languages of one model on one test."""
    where = f"{model} on {test}"
    alphas = {entry.strategy: entry.alpha for entry in study.of(model) if entry.strategy in systems}
    roles = Roles({name: alpha for name, alpha in alphas.items() if alpha is not None})
    baselines = [name for name in study.baselines if name in systems]
    needed = dict.fromkeys([*baselines, *filter(None, (roles.mono, roles.cross, roles.hybrid))])
    others = [figure for figure, _ in report.BIAS]
    comparisons = {
        name: compare(systems, name, resamples=study.resamples, others=others)
        for name in needed or [next(iter(systems))]
    }
    shown = comparisons[baselines[0]] if baselines else next(iter(comparisons.values()))
    found = claims(comparisons, roles)
    answers = {
        name: wins(comparisons, baselines, name) for name in alphas if name not in baselines and baselines
    }
    better = f"Better than {' and '.join(baselines)} in all three pools?"
    parts = [
        Part(where, lines=(_legend(shown, baselines),), rows=_table(comparisons, shown, baselines)),
        Part(better, 3, rows=[["strategy", "answer"], *([*pair] for pair in answers.items())]),
        Part(
            "Claims of the paper",
            3,
            lines=("Decided by the tests of significance, not by the sign of a difference.",),
            rows=[["claim", "verdict", "figures"], *([one.text, one.verdict, one.figures] for one in found)],
        ),
    ]
    if len(roles.alphas) > 2:
        parts.append(Part("By alpha", 3, picture=_curve(study, where, shown, roles.alphas)))
    if rows := _unseen(study, model, systems):
        seen = "Trained on or not: languages of queries and passages; mAP, mean ± deviation over seeds."
        parts.append(Part("Seen and unseen languages", 3, lines=(seen,), rows=rows))
    parts.append(Part("Pictures", 3, html="".join(report.sections(shown, systems))))
    content = {
        "comparisons": {name: one.to_dict() for name, one in comparisons.items()},
        "better_than_baselines": answers,
        "claims": [asdict(one) for one in found],
    }
    return content, [part for part in parts if part.rows is None or len(part.rows) > 1]


def _legend(shown: Comparison, baselines: Sequence[str]) -> str:
    spread = "Mean ± standard deviation over seeds [95 % interval over questions and seeds]"
    marks = ", ".join(f"{_mark(i)} from {name}" for i, name in enumerate(baselines))
    return (
        f"{spread}; {shown.questions:,} questions, {shown.resamples:,} resamples. Higher is better but for "
        f"the rank distance. Differs significantly: {marks or 'no baseline'} (sign-flip test over "
        "questions, Holm's correction, and an interval without 0)."
    )


def _mark(place: int) -> str:
    return "*†‡§"[place] if place < 4 else f"({place + 1})"


def _table(comparisons: Mapping[str, Comparison], shown: Comparison, baselines: Sequence[str]) -> Rows:
    rows = [["strategy", "seeds", *SUMMARY]]
    for name, estimates in shown.estimates.items():
        cells = []
        for figure in SUMMARY:
            one = estimates[figure]
            value, spread, low, high = (
                figure_text(figure, x) for x in (one.value, one.sd_seeds, one.low, one.high)
            )
            marks = "".join(
                _mark(i)
                for i, baseline in enumerate(baselines)
                if name != baseline and comparisons[baseline].differences[name][figure].significant
            )
            cells.append(f"{value}{'' if spread == '-' else f' ± {spread}'}{marks} [{low}, {high}]")
        rows.append([name, str(estimates[SUMMARY[0]].seeds), *cells])
    return rows


def _curve(study: Study, where: str, shown: Comparison, alphas: Mapping[str, float]) -> Path:
    names = sorted(alphas, key=lambda name: alphas[name])
    panels = {
        figure: [(one.value, one.low, one.high) for one in (shown.estimates[name][figure] for name in names)]
        for figure in CURVE
    }
    path = study.output_dir / "report" / f"alpha-{where.replace(' ', '-')}.png"
    plots.bands(path, where, "alpha", [alphas[name] for name in names], panels)
    return path


def _unseen(study: Study, model: str, systems: Mapping[str, list[Ranked]]) -> Rows:
    """mAP by whether languages were trained on; no rows where all were."""
    languages = next(iter(systems.values()))[0].languages
    trained = next(
        (p.config.languages for entry in study.of(model) for p in entry.points if p.config is not None), None
    )
    unseen = [x not in trained if trained else x in study.unseen_languages for x in languages]
    new_L = np.array(unseen)
    if not study.unseen_languages or not new_L.any() or new_L.all():
        return []
    same = np.eye(len(languages), dtype=bool)
    some_new = new_L[:, None] | new_L[None, :]
    heads = [
        "mono, seen",
        "mono, unseen",
        "cross, both seen",
        "cross, one unseen",
        "multi, seen",
        "multi, unseen",
    ]
    rows = [["strategy", *heads]]
    for name, runs in systems.items():
        values = []
        for run in runs:
            one = evaluate_ranked(run)
            pairs, multi = one.pairs["mAP"], one.multilingual["mAP"]
            cells = [pairs[same & ~some_new], pairs[same & some_new], pairs[~same & ~some_new]]
            cells += [pairs[~same & some_new], multi[~new_L], multi[new_L]]
            values.append([float(np.nanmean(of)) if np.isfinite(of).any() else float("nan") for of in cells])
        rows.append([name, *(figure_text("mAP", *column) for column in zip(*values, strict=True))])
    return rows


def _of_dev(study: Study, model: str, content: dict[str, Any]) -> list[Part]:
    """The choice on dev, cost, and what has failed or is not through."""
    choice: Rows = [["strategy", "point", *study.select, "mean", ""]]
    cost: Rows = [["strategy", "runs", "seconds a run", "pairs/s", "seconds in all"]]
    told: Rows = [["run", "state"]]
    content["grid"] = {}
    for entry in study.of(model):
        trials = tried(entry, study.select)
        best = choose(trials) if trials else None
        content["grid"][entry.strategy] = []
        for trial in trials or ():
            figures = [figure_text(name, trial.figures.get(name)) for name in study.select]
            value = "-" if trial.value is None else f"{trial.value:.4f}"
            mark = "chosen" if trial.point is best else "failed" if trial.failure else ""
            if not entry.average:
                choice.append([entry.strategy, trial.point.name, *figures, value, mark])
            content["grid"][entry.strategy].append(
                {
                    "point": dict(trial.point.settings),
                    "dev": dict(trial.figures),
                    "value": trial.value,
                    "failure": trial.failure,
                    "chosen": trial.point is best,
                }
            )
        runs = [entry.run_folder(point, entry.seeds[0]) for point in entry.points]
        runs += [entry.run_folder(best, seed) for seed in entry.seeds[1:]] if best else []
        for run in runs:
            if (reason := failure(run)) is not None:
                told.append([str(run.relative_to(study.output_dir)), f"failed: {reason}"])
            elif not is_done(run):
                told.append([str(run.relative_to(study.output_dir)), "not complete"])
            for test in study.tests:
                if (reason := failure(test_folder(run, test))) is not None:
                    told.append([f"{run.relative_to(study.output_dir)} on {test}", f"failed: {reason}"])
        if row := _cost(entry, runs):
            cost.append(row)
    parts = [
        Part(
            f"{model}: chosen on dev",
            lines=("Of each strategy's grid, run with the first seed, the point with the best mean.",),
            rows=choice,
        ),
        Part(f"{model}: cost", lines=("Of training alone, on the machine of each run.",), rows=cost),
        Part(f"{model}: failed or not complete", rows=told),
    ]
    return [part for part in parts if part.rows is not None and len(part.rows) > 1]


def _cost(entry: Entry, runs: Sequence[Path]) -> list[str]:
    training = [
        json.loads((run / "metrics.json").read_text(encoding="utf-8"))["training"]
        for run in runs
        if is_done(run)
    ]
    training = [of for of in training if "seconds" in of]
    if not training:
        return []
    seconds = [of["seconds"] for of in training]
    rate = np.mean([of["pairs_per_second"] for of in training])
    return [entry.strategy, str(len(runs)), f"{np.mean(seconds):.1f}", f"{rate:,.0f}", f"{sum(seconds):.0f}"]


# --- pages -------------------------------------------------------------------------------------------------


def _markdown(study: Study, parts: Sequence[Part]) -> str:
    blocks = ["# Study"]
    for part in parts:
        if part.html and not part.rows:
            continue  # the page alone has it
        blocks += [f"{'#' * part.level} {part.heading}", *part.lines]
        if part.rows:
            blocks.append(_table_of(part.rows))
        if part.picture:
            blocks.append(f"![{part.heading}]({part.picture.relative_to(study.output_dir)})")
    return "\n\n".join(blocks) + "\n"


def _page(parts: Sequence[Part]) -> str:
    blocks = ["<h1>Study</h1>\n"]
    for part in parts:
        blocks.append(f"<h{part.level}>{escape(part.heading)}</h{part.level}>\n")
        blocks += [f'<p class="muted">{escape(line)}</p>\n' for line in part.lines]
        if part.rows:
            kind = ' class="text"' if _has_sentences(part.rows) else ""
            heads = "".join(f"<th{kind}>{escape(cell)}</th>" for cell in part.rows[0])
            body = "".join(_row(row, kind) for row in part.rows[1:])
            table = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>"
            blocks.append(f'<div class="card">{table}</div>\n')
        if part.picture:
            data = base64.b64encode(part.picture.read_bytes()).decode()
            source = f'style="max-width:100%" src="data:image/png;base64,{data}"'
            blocks.append(f'<div class="card"><img alt="{escape(part.heading)}" {source}></div>\n')
        blocks.append(part.html)
    return report.page("Study", blocks)


def _row(row: Sequence[str], kind: str) -> str:
    cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])
    return f"<tr><th>{escape(row[0])}</th>{cells}</tr>\n"


def _has_sentences(rows: Rows) -> bool:
    return max(len(cell) for row in rows for cell in row) >= SENTENCE


def _table_of(rows: Rows) -> str:
    """Markdown; columns are aligned unless they hold sentences."""
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    if not _has_sentences(rows):
        return layout(rows)
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
