"""The table's layout and the picture's file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from hybridfast import report
from hybridfast.metrics import Evaluation

NAN = float("nan")


def make_evaluation(languages: list[str], mean_average_precision: float = 0.25) -> Evaluation:
    size = len(languages)
    square, line = np.full((size, size), mean_average_precision), np.full(size, 0.125)
    return Evaluation(
        name="made up",
        languages=languages,
        pairs={"mAP": square, "R@1": square},
        multilingual={"mAP": line, "R@10": line},
        rank_distance=np.full(size, 30.04),
        median_rank=np.full((size, size), 2.5),
    )


def test_table() -> None:
    text = report.table(
        {
            "mono": make_evaluation(["de", "en"]).summary(),
            "hybrid": make_evaluation(["de", "en"]).summary() | {"mAP cross": NAN, "R@10 multi": None},
        }
    )
    assert text.splitlines() == [
        "|        | mAP mono | mAP cross | mAP multi | R@1 mono | R@1 cross | R@10 multi | rank distance |",
        "| ------ | -------: | --------: | --------: | -------: | --------: | ---------: | ------------: |",
        "| mono   |    0.250 |     0.250 |     0.125 |    0.250 |     0.250 |      0.125 |          30.0 |",
        "| hybrid |    0.250 |         - |     0.125 |    0.250 |     0.250 |          - |          30.0 |",
    ]


def test_table_keeps_a_bar_inside_its_cell() -> None:
    assert report.table({"a|b": {"R@1 mono": 1.0}}).splitlines()[2] == "| a\\|b |    1.000 |"


def test_several_seeds_are_mean_and_sample_deviation() -> None:
    seeds = [{"mAP mono": value, "rank distance": 10 * value} for value in (0.1, 0.2, 0.6)]
    single = {"mAP mono": 0.5, "rank distance": NAN}
    lines = report.table({"three": seeds, "one": [single]}).splitlines()
    assert lines[2] == "| three | 0.300 ± 0.265 |     3.0 ± 2.6 |"
    assert lines[3] == "| one   |         0.500 |             - |"


def test_bad_tables() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        report.table({})
    with pytest.raises(ValueError, match=r"share their columns, \['mAP mono'\], but 'b' has \['mAP'\]"):
        report.table({"a": {"mAP mono": 1.0}, "b": {"mAP": 1.0}})


@pytest.mark.parametrize("value", [0.0, 1.0, NAN])
@pytest.mark.parametrize(
    "languages", [["en"], ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"]]
)
def test_heat_map_is_a_whole_png_alone_in_its_folder(
    tmp_path: Path, languages: list[str], value: float
) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"an older picture")
    report.heat_map(make_evaluation(languages, value), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > height > 500
    assert list(tmp_path.iterdir()) == [path]


def test_heat_map_shows_the_values(tmp_path: Path) -> None:
    """Equal evaluations give equal files, another value another file."""
    for name, value in (("a", 0.25), ("b", 0.25), ("c", 0.75)):
        report.heat_map(make_evaluation(["de", "en"], value), tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_failed_heat_map_leaves_the_older_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"an older picture")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        report.heat_map(make_evaluation(["en"]), path)
    assert path.read_bytes() == b"an older picture"
    assert list(tmp_path.iterdir()) == [path]
