"""The table's layout."""

from __future__ import annotations

import pytest

from hybridfast.evaluation.table import table

NAN = float("nan")
SUMMARY = {
    "mAP mono": 0.25,
    "mAP cross": 0.25,
    "mAP multi": 0.125,
    "R@1 mono": 0.25,
    "R@1 cross": 0.25,
    "R@10 multi": 0.125,
    "rank distance": 30.04,
}


def test_table() -> None:
    text = table(
        {
            "mono": SUMMARY,
            "hybrid": SUMMARY | {"mAP cross": NAN, "R@10 multi": None},
        }
    )
    assert text.splitlines() == [
        "|        | mAP mono | mAP cross | mAP multi | R@1 mono | R@1 cross | R@10 multi | rank distance |",
        "| ------ | -------: | --------: | --------: | -------: | --------: | ---------: | ------------: |",
        "| mono   |    0.250 |     0.250 |     0.125 |    0.250 |     0.250 |      0.125 |          30.0 |",
        "| hybrid |    0.250 |         - |     0.125 |    0.250 |     0.250 |          - |          30.0 |",
    ]


def test_table_keeps_a_bar_inside_its_cell() -> None:
    assert table({"a|b": {"R@1 mono": 1.0}}).splitlines()[2] == "| a\\|b |    1.000 |"


def test_several_seeds_are_mean_and_sample_deviation() -> None:
    seeds = [{"mAP mono": value, "rank distance": 10 * value} for value in (0.1, 0.2, 0.6)]
    single = {"mAP mono": 0.5, "rank distance": NAN}
    lines = table({"three": seeds, "one": [single]}).splitlines()
    assert lines[2] == "| three | 0.300 ± 0.265 |     3.0 ± 2.6 |"
    assert lines[3] == "| one   |         0.500 |             - |"


def test_bad_tables() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        table({})
    with pytest.raises(ValueError, match=r"share their columns, \['mAP mono'\], but 'b' has \['mAP'\]"):
        table({"a": {"mAP mono": 1.0}, "b": {"mAP": 1.0}})
