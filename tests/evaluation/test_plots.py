"""The picture's file."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from hybridfast.evaluation import plots, results
from hybridfast.evaluation.metrics import Evaluation

NAN = float("nan")


def make_evaluation(languages: list[str], mean_average_precision: float = 0.25) -> Evaluation:
    size = len(languages)
    square, line = np.full((size, size), mean_average_precision), np.full(size, 0.125)
    return Evaluation(
        name="made up",
        languages=languages,
        pairs={"mAP": square, "R@1": square, "R@10": square},
        multilingual={"mAP": line, "R@1": line, "R@10": line},
        rank_distance=np.full(size, 30.04),
        median_rank=np.full((size, size), 2.5),
    )


@pytest.mark.parametrize("value", [0.0, 1.0, NAN])
@pytest.mark.parametrize(
    "languages", [["en"], ["ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh"]]
)
def test_heat_map_is_a_whole_png_alone_in_its_folder(
    tmp_path: Path, languages: list[str], value: float
) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"an older picture")
    plots.heat_map(make_evaluation(languages, value), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > height > 500
    assert list(tmp_path.iterdir()) == [path]


def test_heat_map_shows_the_values(tmp_path: Path) -> None:
    """Equal evaluations give equal files, another value another file."""
    for name, value in (("a", 0.25), ("b", 0.25), ("c", 0.75)):
        plots.heat_map(make_evaluation(["de", "en"], value), tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_before_and_after_are_one_picture(tmp_path: Path) -> None:
    """With the same scales: an evaluation above itself is not what stands above another one."""
    low, high = (make_evaluation(["de", "en"], value) for value in (0.25, 0.75))
    sizes = []
    for name, before in (("alone", None), ("other", low), ("same", high)):
        plots.heat_map(high, tmp_path / name, before)
        sizes.append(struct.unpack(">II", (tmp_path / name).read_bytes()[16:24]))
    assert sizes[0][0] == sizes[1][0] == sizes[2][0]
    assert sizes[1][1] == sizes[2][1] > 1.5 * sizes[0][1]
    assert (tmp_path / "other").read_bytes() != (tmp_path / "same").read_bytes()


def test_failed_heat_map_leaves_the_older_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"an older picture")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        plots.heat_map(make_evaluation(["en"]), path)
    assert path.read_bytes() == b"an older picture"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [25, 200])
def test_a_heat_map_of_many_languages_is_bounded(tmp_path: Path, size: int) -> None:
    evaluation = make_evaluation([f"l{i:03d}" for i in range(size)])
    evaluation.pairs["mAP"][3, 4:] = NAN
    begin = time.process_time()
    plots.heat_map(evaluation, tmp_path / "map.png")
    assert time.process_time() - begin < 5
    width, height = struct.unpack(">II", (tmp_path / "map.png").read_bytes()[16:24])
    assert width * height < 8_000_000  # 32 MB while it is drawn


def test_many_languages_show_their_values_too(tmp_path: Path) -> None:
    evaluation = make_evaluation([f"l{i:03d}" for i in range(60)])
    plots.heat_map(evaluation, tmp_path / "a")
    evaluation.pairs["mAP"][59, 0] = 0.75
    plots.heat_map(evaluation, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_a_failed_picture_leaves_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(plots, "heat_map", refuse)
    with pytest.raises(MemoryError):
        results.write(tmp_path, make_evaluation(["de", "en"]), {"config": {}})
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert written["evaluation"]["summary"]["mAP mono"] == 0.25
