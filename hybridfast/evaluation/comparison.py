"""Several systems on one data set: every figure with its interval, every difference with its significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.significance import (
    Floats,
    Sample,
    bootstrap,
    holm,
    interval,
    mixed,
    sign_flip_test,
)
from hybridfast.evaluation.table import figure_text, layout

__all__ = ["SUMMARY", "Comparison", "Difference", "Estimate", "compare"]

SUMMARY = (  # the columns of the paper's tables
    "mAP mono",
    "mAP cross",
    "mAP multi",
    "R@1 mono",
    "R@1 cross",
    "R@10 multi",
    "rank distance",
)
_LEVEL = 0.05


@dataclass(frozen=True)
class Estimate:
    """A figure, the mean of its `seeds` runs, with a 95 % interval of questions and seeds together.

    `se_questions` is the bootstrap's standard error, runs held fixed; `sd_seeds` the sample standard
    deviation of the runs on all questions, NaN for one run.
    """

    value: float
    low: float
    high: float
    se_questions: float
    sd_seeds: float
    seeds: int


@dataclass(frozen=True)
class Difference:
    """A figure less the baseline's, over the queries where both are defined, with its 95 % interval.

    `p` is that of the sign-flip test over questions; `p_holm` is adjusted for all comparisons of the table,
    NaN for figures outside it.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether Holm's p is below 0.05 and the interval, which also knows of seeds, excludes 0."""
        return self.p_holm < _LEVEL and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """By system and figure: `estimates`, and `differences` of all systems but the baseline from it."""

    baseline: str | None
    questions: int
    resamples: int
    seed: int
    family: tuple[str, ...]  # the figures of the table
    estimates: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]

    def table(self) -> str:
        """Markdown: a row a system; each figure with its interval, * where it differs from the baseline."""
        rows = [["", *self.family]]
        for name, estimates in self.estimates.items():
            differences = self.differences.get(name, {})
            rows.append([name, *(_cell(f, estimates[f], differences.get(f)) for f in self.family)])
        return f"{layout(rows)}\n\n{self.legend()}"

    def legend(self) -> str:
        """What intervals and marks of the table mean."""
        many = max((e.seeds for of in self.estimates.values() for e in of.values()), default=1) > 1
        spread = "± standard deviation over seeds, " if many else ""
        unit = "questions and seeds" if many else "questions"
        legend = (
            f"{spread}[95 % interval over {unit}]; {self.questions:,} questions, {self.resamples:,} resamples"
        )
        if not self.differences:
            return legend
        comparisons = len(self.differences) * len(self.family)
        return (
            f"{legend}; * differs from {self.baseline}: sign-flip test over questions, p < {_LEVEL} after "
            f"Holm's correction for {comparisons} comparisons"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with NaN where undefined."""
        return {
            "baseline": self.baseline,
            "questions": self.questions,
            "resamples": self.resamples,
            "seed": self.seed,
            "family": list(self.family),
            "estimates": {
                name: {f: asdict(one) for f, one in of.items()} for name, of in self.estimates.items()
            },
            "differences": {
                name: {f: asdict(one) | {"significant": one.significant} for f, one in of.items()}
                for name, of in self.differences.items()
            },
        }


def compare(
    systems: Mapping[str, Ranked | Sequence[Ranked]],
    baseline: str | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    family: Sequence[str] = SUMMARY,
    others: Sequence[str] | None = None,
) -> Comparison:
    """Every figure of every system with its interval, and what differs from `baseline`.

    `systems` maps a name to its ranks, or to those of several runs that differ in their seed. Intervals come
    from a bootstrap over questions, the same draws for all systems, and over runs where there are several;
    p-values from a sign-flip test over questions (:mod:`hybridfast.evaluation.significance`). `family` are
    the figures of the table, whose comparisons share Holm's correction; `others` are estimated too, all there
    are by default. Equal arguments give equal results.

    Raises:
        ValueError: no system, an unknown baseline or figure, or systems that were not asked the same.
    """
    runs = {name: [of] if isinstance(of, Ranked) else [*of] for name, of in systems.items()}
    if not all(runs.values()) or not runs:
        raise ValueError("systems must hold at least one, with at least one run each")
    if baseline is not None and baseline not in runs:
        raise ValueError(f"baseline must be one of {', '.join(runs)}, got {baseline!r}")
    first = next(iter(runs.values()))[0]
    for name, of in runs.items():
        for run in of:
            try:
                first.same_questions_as(run)
            except ValueError as error:
                raise ValueError(f"{next(iter(runs))} and {name} cannot be compared: {error}") from None
    every = [run for of in runs.values() for run in of]
    figures = [name for name in first.figures if all(name in run.figures for run in every)]
    unknown = [name for name in family if name not in figures]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}; there are {', '.join(figures)}")
    if others is not None:
        figures = [name for name in figures if name in family or name in others]
    pile = _Pile(first.clusters)
    estimates_at = {(name, f): [pile.add(run, f) for run in of] for name, of in runs.items() for f in figures}
    pairs_at = {
        (name, f): _paired(pile, of, runs[baseline], f)
        for name, of in runs.items()
        if baseline is not None and name != baseline
        for f in figures
    }
    draws_BF = bootstrap(pile.samples, resamples, seed)

    def mean_draws(at: list[int], which: int) -> Floats:
        return mixed(draws_BF[:, at].T, [seed, which])

    places = {name: place for place, name in enumerate(runs)}
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in runs}
    for (name, f), at in estimates_at.items():
        values = np.array([pile.samples[i].value for i in at])
        low, high = interval(mean_draws(at, places[name]))
        estimates[name][f] = Estimate(
            float(values.mean()),
            low,
            high,
            float(draws_BF[:, at].mean(axis=1).std(ddof=1)) if resamples > 1 else float("nan"),
            float(values.std(ddof=1)) if len(at) > 1 else float("nan"),
            len(at),
        )
    differences: dict[str, dict[str, Difference]] = {}
    if pairs_at:
        parts_CF = np.stack(
            [pile.contributions(ours) - pile.contributions(theirs) for ours, theirs in pairs_at.values()],
            axis=1,
        )
        defined_F = ~np.isnan([pile.samples[ours[0]].value for ours, _ in pairs_at.values()])
        p_F = np.where(defined_F, sign_flip_test(parts_CF, resamples, seed), np.nan)
        listed = np.array([f in family for _, f in pairs_at])
        holm_F = np.full(len(p_F), np.nan)
        holm_F[listed] = holm(p_F[listed])
        for i, ((name, f), (ours, theirs)) in enumerate(pairs_at.items()):
            draws = mean_draws(ours, places[name]) - mean_draws(theirs, places[str(baseline)])
            value = float(parts_CF[:, i].sum()) if defined_F[i] else float("nan")
            differences.setdefault(name, {})[f] = Difference(
                value, *interval(draws), float(p_F[i]), float(holm_F[i])
            )
    return Comparison(baseline, first.clusters, resamples, seed, tuple(family), estimates, differences)


class _Pile:
    """Samples to be drawn together, each but once."""

    def __init__(self, clusters: int) -> None:
        self.clusters = clusters
        self.samples: list[Sample] = []
        self._at: dict[tuple[int, str, bytes], int] = {}

    def add(self, run: Ranked, figure: str, known_V: NDArray[np.bool_] | None = None) -> int:
        """Where the sample of a run's figure is, over the values that `known_V` leaves."""
        values = run.figures[figure]
        own_V = ~np.isnan(values.values_V)
        known_V = own_V if known_V is None else own_V & known_V
        key = (id(run), figure, known_V.tobytes())
        if key not in self._at:
            self._at[key] = len(self.samples)
            self.samples.append(values.sample(self.clusters, known_V))
        return self._at[key]

    def contributions(self, at: list[int]) -> Floats:
        """(C,) of each cluster to the mean of these samples' figures."""
        return np.mean([self.samples[i].contributions() for i in at], axis=0)


def _paired(
    pile: _Pile, ours: list[Ranked], theirs: list[Ranked], figure: str
) -> tuple[list[int], list[int]]:
    """The samples of both sides over the values that all their runs know."""
    known_V = np.all([~np.isnan(run.figures[figure].values_V) for run in (*ours, *theirs)], axis=0)
    first, second = ([pile.add(run, figure, known_V) for run in side] for side in (ours, theirs))
    return first, second


def _cell(figure: str, estimate: Estimate, difference: Difference | None) -> str:
    value, spread, low, high = (
        figure_text(figure, number)
        for number in (estimate.value, estimate.sd_seeds, estimate.low, estimate.high)
    )
    if value == "-":
        return value
    mark = "*" if difference is not None and difference.significant else ""
    return f"{value}{'' if spread == '-' else f' ± {spread}'}{mark} [{low}, {high}]"
