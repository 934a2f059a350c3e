"""What a study's figures say: which claims hold, and which strategy is better than both baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridfast.evaluation.comparison import Comparison, Difference
from hybridfast.evaluation.table import figure_text

__all__ = ["CANNOT_TELL", "DOES_NOT", "HOLDS", "POOLS", "Claim", "Roles", "claims", "wins"]

HOLDS, DOES_NOT, CANNOT_TELL = "holds here", "does not hold here", "cannot tell"
POOLS = ("mAP mono", "mAP cross", "mAP multi")
STABLE = 0.01  # of mAP: intervals of differences within it count as none
POOL_NAMES = {"mono": "monolingual", "cross": "cross-lingual"}
MIDDLE = (0.4, 0.6)  # the alphas that the paper finds best and alike


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, what becomes of it here, and the figures that say so."""

    text: str
    verdict: str
    figures: str


@dataclass(frozen=True)
class Roles:
    """Which strategies the paper's sentences are about, of those that alpha alone makes; alphas by name."""

    alphas: Mapping[str, float]

    def at(self, alpha: float) -> str | None:
        return next((name for name, value in self.alphas.items() if value == alpha), None)

    @property
    def mono(self) -> str | None:
        return self.at(1.0)

    @property
    def cross(self) -> str | None:
        return self.at(0.0)

    @property
    def hybrid(self) -> str | None:
        """The one nearest to alpha 0.5, of both kinds of batches."""
        between = [name for name, alpha in self.alphas.items() if 0 < alpha < 1]
        return min(between, key=lambda name: abs(self.alphas[name] - 0.5), default=None)


def sign(figure: str, difference: Difference) -> int:
    """1: significantly better than the baseline, -1: significantly worse, 0: neither."""
    if not difference.significant:
        return 0
    lower_is_better = "distance" in figure
    return 1 if (difference.value < 0) == lower_is_better else -1


def claims(comparisons: Mapping[str, Comparison], roles: Roles) -> list[Claim]:
    """The paper's sentences, as far as their strategies are among the compared.

    A verdict needs significance, both over questions after Holm's correction and over seeds: without it, a
    difference of either sign is no verdict. "At least as good" holds where the interval of the difference
    stays above a margin.

    Args:
        comparisons: by baseline.
    """
    mono, cross, hybrid = roles.mono, roles.cross, roles.hybrid
    found = []

    def claim(text: str, *parts: tuple[str | None, str | None, str], margin: float | None = None) -> None:
        known = [(a, b, figure) for a, b, figure in parts if a and b and _is_known(comparisons, a, b)]
        if len(known) < len(parts):
            return
        differences = [(a, b, figure, comparisons[b].differences[a][figure]) for a, b, figure in known]
        signs = [sign(figure, difference) for _, _, figure, difference in differences]
        if margin is not None:  # as good is who is not worse by more than that, with 95 % confidence
            signs = [1 if d.low > -margin else s for s, (*_, d) in zip(signs, differences, strict=True)]
        figures = "; ".join(_figures(comparisons[b], a, figure, d) for a, b, figure, d in differences)
        found.append(Claim(text, _verdict(signs), figures))

    for other, pool in ((mono, "mono"), (cross, "cross")):
        claim(
            f"hybrid is at least as good as {pool} in the {POOL_NAMES[pool]} pool, within {STABLE} of mAP",
            (hybrid, other, f"mAP {pool}"),
            margin=STABLE,
        )
    claim(
        "hybrid is better than both in the multilingual pool",
        (hybrid, mono, "mAP multi"),
        (hybrid, cross, "mAP multi"),
    )
    claim(
        "hybrid's rank distance is lower than that of both",
        (hybrid, mono, "rank distance"),
        (hybrid, cross, "rank distance"),
    )
    claim("cross is better than mono in the cross-lingual pool", (cross, mono, "mAP cross"))
    claim("cross is better than mono in the multilingual pool", (cross, mono, "mAP multi"))
    claim("mono is better than cross in the monolingual pool", (mono, cross, "mAP mono"))
    return found + _of_the_middle(comparisons, roles)


def _is_known(comparisons: Mapping[str, Comparison], name: str, baseline: str) -> bool:
    return baseline in comparisons and name in comparisons[baseline].differences


def _verdict(signs: Sequence[int]) -> str:
    if min(signs) < 0:
        return DOES_NOT
    return HOLDS if min(signs) > 0 else CANNOT_TELL


def _of_the_middle(comparisons: Mapping[str, Comparison], roles: Roles) -> list[Claim]:
    """Whether alphas near 0.5 are best, by pool, and whether they are alike."""
    hybrid = roles.hybrid
    if hybrid is None or hybrid not in comparisons or not MIDDLE[0] <= roles.alphas[hybrid] <= MIDDLE[1]:
        return []
    one = comparisons[hybrid]
    others = [name for name in roles.alphas if name in one.differences]
    outside = [name for name in others if not MIDDLE[0] <= roles.alphas[name] <= MIDDLE[1]]
    inside = [name for name in others if name not in outside]
    found = []
    for figure in POOLS if outside else ():
        signs = [-sign(figure, one.differences[name][figure]) for name in outside]
        nearest = max(outside, key=lambda name: one.estimates[name][figure].value)
        found.append(
            Claim(
                f"alpha between {MIDDLE[0]} and {MIDDLE[1]} is better than outside, {figure}",
                _verdict(signs),
                "the best outside: " + _figures(one, nearest, figure, one.differences[nearest][figure]),
            )
        )
    if inside:
        every = [(name, figure, one.differences[name][figure]) for name in inside for figure in POOLS]
        verdict = CANNOT_TELL
        if all(d.low > -STABLE and d.high < STABLE for *_, d in every):
            verdict = HOLDS
        elif any(d.low > STABLE or d.high < -STABLE for *_, d in every):
            verdict = DOES_NOT
        found.append(
            Claim(
                f"between {MIDDLE[0]} and {MIDDLE[1]} alpha makes no difference, within {STABLE} of mAP",
                verdict,
                "; ".join(_figures(one, *those) for those in every),
            )
        )
    return found


def _figures(comparison: Comparison, name: str, figure: str, difference: Difference) -> str:
    baseline = str(comparison.baseline)
    first, second = (figure_text(figure, comparison.estimates[of][figure].value) for of in (name, baseline))
    value, low, high = (
        figure_text(figure, number) for number in (difference.value, difference.low, difference.high)
    )
    return (
        f"{figure}: {name} {first}, {baseline} {second}, difference {value} [{low}, {high}], "
        f"p {difference.p:.4f}, after Holm {difference.p_holm:.4f}"
    )


def wins(comparisons: Mapping[str, Comparison], baselines: Sequence[str], name: str) -> str:
    """Whether a strategy is better than every baseline in all three pools, and where it is not."""
    short: dict[int, list[str]] = {-1: [], 0: []}
    for baseline in baselines:
        for figure in POOLS:
            difference = comparisons[baseline].differences[name][figure]
            if (which := sign(figure, difference)) < 1:
                value = figure_text(figure, abs(difference.value))
                short[which].append(f"{figure} ({'-' if difference.value < 0 else '+'}{value} to {baseline})")
    if not short[-1] and not short[0]:
        return f"yes, better than {' and '.join(baselines)} in all three pools"
    words = [("worse in", short[-1]), ("not significantly better in", short[0])]
    return "no: " + "; ".join(f"{word} {', '.join(of)}" for word, of in words if of)
