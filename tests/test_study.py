"""The command, from its file to the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from studies.conftest import read_study, write_study  # noqa: F401

from hybridfast import study


def test_it_says_how_much_there_is_to_do(write_study, tmp_path: Path, capsys) -> None:  # noqa: F811
    file = write_study(("cross: {alpha: 0}", "cross: {alpha: 0}\n  soup: {average: [mono, cross]}"))
    study.main([str(file), "--dry_run"])
    out = capsys.readouterr().out
    assert re.search(r"tiny: 6 runs of 12 steps, \d+ s each .*; 7 models tested, \d+ s each: \d+ min", out)
    assert "  mono: 3 runs: lr=0.01; lr=0.05; seeds 0, 1\n" in out
    assert "  soup: the mean of mono, cross; seeds 0, 1\n" in out
    assert not (tmp_path / "out").exists()


def test_the_report_has_the_answers(write_study, tmp_path: Path, capsys, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("hybridfast.evaluation.plots.heat_map", lambda *_: None)
    monkeypatch.setattr("hybridfast.training.curves.draw", lambda *_: None)
    file = write_study(
        ("cross: {alpha: 0}", "cross: {alpha: 0}\n  hybrid: {alpha: 0.5}"),
        ("[1e-2, 5e-2]", "[1e-9, 5e-2]"),
        ("max_steps: 12", "max_steps: 60\n  languages: [aa, bb]"),
        ("resamples: 2000", "resamples: 2000\nunseen_languages: [cc]"),
    )
    study.main([str(file)])
    out = tmp_path / "out"
    assert f"Wrote {out}/report.md" in capsys.readouterr().out
    report = (out / "report.md").read_text()
    content = json.loads((out / "report.json").read_text())["models"]["tiny"]
    # A rate of nothing leaves the untrained model, which any real one beats by far.
    for strategy, trials in content["grid"].items():
        assert [trial["chosen"] for trial in trials] == [False, True], strategy
        assert trials[1]["value"] > trials[0]["value"] + 0.1
    comparison = content["tests"]["test"]["comparisons"]["mono"]
    assert comparison["estimates"]["hybrid"]["mAP mono"]["seeds"] == 2
    assert comparison["differences"]["untrained"]["mAP mono"]["significant"]
    assert (
        comparison["estimates"]["hybrid"]["mAP mono"]["value"]
        > 0.9
        > 0.7
        > (comparison["estimates"]["untrained"]["mAP mono"]["value"])
    )
    for text in (
        "## tiny on test",
        "Differs significantly: * from mono, † from cross",
        "### Better than mono and cross in all three pools?",
        "| mono is better than cross in the monolingual pool |",
        "![By alpha](report/alpha-tiny-on-test.png)",
        "mono, seen",
        "## tiny: chosen on dev",
        "## tiny: cost",
    ):
        assert text in report
    assert "not complete" not in report
    assert (out / "report" / "alpha-tiny-on-test.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    for heading in ("Language pairs", "Language bias", "Claims of the paper", "tiny: cost"):
        assert f">{heading}</h" in page
    study.main([str(file), "--report"])
    assert (out / "report.md").read_text().split("## Made by")[0] == report.split("## Made by")[0]


def test_mistakes_are_one_line(write_study, tmp_path: Path, capsys) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        study.main([str(write_study(("alpha: 1}", "alpha: 3}")))])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/study.yaml:12: tiny mono: alpha must be in [0, 1], got 3.0\n"
    )
    with pytest.raises(SystemExit):
        study.main([str(write_study(("batch_size: 8", "batch_size: 99")))])
    assert "error: tiny mono: batch_size 99 cannot be filled" in capsys.readouterr().err


def test_interim_reports_take_little_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes 10 s comes at once, and then not before 200 s have passed."""
    now, written = [0.0], []

    def write() -> None:
        written.append(now[0])
        now[0] += 10

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    maybe = study._now_and_then(write)
    for seconds in (0, 1, 150, 60, 5, 300):
        now[0] += seconds
        maybe(None)
    assert written == [0, 221, 536]
