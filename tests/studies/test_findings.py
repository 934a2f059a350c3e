"""Verdicts on claims, from comparisons whose answers are known."""

from __future__ import annotations

import pytest

from hybridfast.evaluation.comparison import Comparison, Difference, Estimate
from hybridfast.studies.findings import CANNOT_TELL, DOES_NOT, HOLDS, POOLS, Roles, claims, wins

FIGURES = (*POOLS, "rank distance")
ROLES = Roles({"cross": 0.0, "h4": 0.4, "h5": 0.5, "mono": 1.0})
VALUES = {  # by FIGURES
    "mono": (0.80, 0.60, 0.50, 400.0),
    "h4": (0.799, 0.699, 0.599, 300.0),
    "h5": (0.80, 0.70, 0.60, 300.0),
    "cross": (0.75, 0.70, 0.58, 290.0),
}


def comparison(baseline: str, sure: bool = True) -> Comparison:
    """Differences above .001 (of distances, 5) are significant, or none is."""

    def difference(name: str, place: int) -> Difference:
        value = VALUES[name][place] - VALUES[baseline][place]
        half = 5.0 if place == 3 else 0.002
        p = 0.0001 if sure and abs(value) > half else 0.5
        return Difference(value, value - half, value + half, p, p)

    estimates = {
        name: {
            f: Estimate(value, value, value, 0.0, 0.0, 3) for f, value in zip(FIGURES, values, strict=True)
        }
        for name, values in VALUES.items()
    }
    differences = {
        name: {f: difference(name, i) for i, f in enumerate(FIGURES)} for name in VALUES if name != baseline
    }
    return Comparison(baseline, 100, 100, 0, FIGURES, estimates, differences)


def test_who_is_who() -> None:
    assert (ROLES.mono, ROLES.cross, ROLES.hybrid) == ("mono", "cross", "h5")
    assert Roles({"a": 1.0}).hybrid is None


def test_verdicts() -> None:
    found = {one.text: one for one in claims({name: comparison(name) for name in VALUES}, ROLES)}
    verdicts = {text: one.verdict for text, one in found.items()}
    assert verdicts == {
        "hybrid is at least as good as mono in the monolingual pool, within 0.01 of mAP": HOLDS,  # equal
        "hybrid is at least as good as cross in the cross-lingual pool, within 0.01 of mAP": HOLDS,
        "hybrid is better than both in the multilingual pool": HOLDS,
        "hybrid's rank distance is lower than that of both": DOES_NOT,  # than cross's, it is higher
        "cross is better than mono in the cross-lingual pool": HOLDS,
        "cross is better than mono in the multilingual pool": HOLDS,
        "mono is better than cross in the monolingual pool": HOLDS,
        "alpha between 0.4 and 0.6 is better than outside, mAP mono": CANNOT_TELL,
        "alpha between 0.4 and 0.6 is better than outside, mAP cross": CANNOT_TELL,
        "alpha between 0.4 and 0.6 is better than outside, mAP multi": HOLDS,
        "between 0.4 and 0.6 alpha makes no difference, within 0.01 of mAP": HOLDS,
    }
    figures = found["hybrid is better than both in the multilingual pool"].figures
    assert "h5 0.600, mono 0.500, difference 0.100 [0.098, 0.102], p 0.0001" in figures


def test_worse_by_more_than_the_margin_is_not_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALUES, "h5", (VALUES["mono"][0] - 0.05, *VALUES["h5"][1:]))
    found = {one.text: one.verdict for one in claims({"mono": comparison("mono")}, ROLES)}
    assert found["hybrid is at least as good as mono in the monolingual pool, within 0.01 of mAP"] == DOES_NOT


def test_no_sign_without_significance() -> None:
    found = claims({name: comparison(name, sure=False) for name in VALUES}, ROLES)
    within = [one for one in found if "within" in one.text]  # intervals of their own decide
    assert len(within) == 3
    assert {one.verdict for one in found if one not in within} == {CANNOT_TELL}


def test_claims_of_strategies_that_are_missing_are_left_out() -> None:
    assert not claims({"mono": comparison("mono")}, Roles({"h5": 0.5}))


def test_the_question_that_users_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = {name: comparison(name) for name in ("mono", "cross")}
    assert (
        wins(comparisons, ["cross"], "mono")
        == "no: worse in mAP cross (-0.100 to cross), mAP multi (-0.080 to cross)"
    )
    assert wins(comparisons, ["mono", "cross"], "h5") == (
        "no: not significantly better in mAP mono (+0.000 to mono), mAP cross (+0.000 to cross)"
    )
    monkeypatch.setitem(VALUES, "h5", (0.81, 0.71, 0.60, 300.0))
    comparisons = {name: comparison(name) for name in ("mono", "cross")}
    assert wins(comparisons, ["mono", "cross"], "h5") == "yes, better than mono and cross in all three pools"
