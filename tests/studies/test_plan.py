"""A study's file, and what is said of mistakes in it."""

from __future__ import annotations

import pytest

from hybridfast.studies.plan import Study


def test_settings_stand_above_each_other(read_study) -> None:
    study: Study = read_study(
        ("resamples: 2000", "model_settings: {other: {batch_size: 4, seeds: [3, 5], learning_rate: 1e-3, "
         "dimension: null, strategies: [soup, hybrid, mono, cross]}}\nresamples: 2000"),
        ("{tiny: static}", "{tiny: static, other: static}"),
        ("cross: {alpha: 0}", "cross: {alpha: 0}\n  hybrid: {alpha: 0.5, temperature: 0.1, "
         "learning_rate: [1e-4, 2e-4]}\n  soup: {average: [mono, cross]}"),
        ("[1e-2, 5e-2]", "[1e-2, 5e-2], temperature: [0.05, 0.07]"),
    )  # fmt: skip
    mono, hybrid = study.entry("tiny", "mono"), study.entry("tiny", "hybrid")
    assert [point.name for point in mono.points] == [
        f"lr={rate},temperature={t}" for rate in (0.01, 0.05) for t in (0.05, 0.07)
    ]
    assert [point.name for point in hybrid.points] == [
        "lr=0.0001,temperature=0.1",
        "lr=0.0002,temperature=0.1",
    ]
    config = hybrid.points[1].config
    assert (config.alpha, config.temperature, config.learning_rate, config.batch_size) == (0.5, 0.1, 2e-4, 8)
    assert (config.eval_steps, config.save_steps, config.eval_dataset) == (12, 1, "none")
    assert (mono.alpha, hybrid.alpha) == (1.0, None)
    assert mono.run_folder(mono.points[0], 1).parts[-3:] == (
        "tiny",
        "mono",
        "lr=0.01,temperature=0.05,seed=1",
    )
    other = study.entry("other", "mono")
    assert other.seeds == (3, 5)
    assert [point.name for point in other.points] == [
        "lr=0.001,temperature=0.05",
        "lr=0.001,temperature=0.07",
    ]
    assert (other.points[0].config.batch_size, other.points[0].config.dimension) == (4, 256)
    soup = study.entry("other", "soup")
    assert soup.average == {"mono": 1, "cross": 1}
    assert [entry.strategy for entry in study.of("other")] == ["soup", "hybrid", "mono", "cross"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("alpha: 0}", "alpha: 2}", r"study.yaml:13: tiny cross: alpha must be in \[0, 1\], got 2"),
        ("alpha: 0}", "alfa: 0}", r"study.yaml:13: tiny cross: .*--alfa=0"),
        ("alpha: 0}", "average: [mono, hybrid]}", r"study.yaml:13: tiny cross: average of 'hybrid', which"),
        ("alpha: 0}", "average: [untrained]}", r"study.yaml:13: tiny cross: average of no strategy"),
        ("alpha: 0}", "average: {mono: 0}}", r"study.yaml:13: cross: the share of mono must be .* got '0'"),
        ("alpha: 0}", "alpha: 0, seed: 1}", r"study.yaml:13: tiny cross: seed is set by the study"),
        ("batch_size: 8", "batch_size: many", r"study.yaml:6: tiny mono: .*invalid int value: 'many'"),
        ("seeds: 2", "seeds: 0", r"study.yaml:15: seeds must be a whole number >= 1, got '0'"),
        ("[mono, cross]", "[mono, crosss]", r"study.yaml:16: baselines must be of mono, cross, got 'crosss'"),
        ("seeds: 2", "sed: 2", r"study.yaml:15: unknown setting 'sed'"),
        ("  cross: {", "  a/b: {", r"study.yaml:13: a name must be of letters, .*, got 'a/b'"),
        ("  cross: {", "  untrained: {", r"study.yaml:13: untrained is always in the table"),
        ("models: {tiny: static}", "models: {}", r"study.yaml: models must name one at least"),
        ("seeds: 2", "model_settings: {x: {}}", r"study.yaml:15: model_settings of 'x', which is not among"),
        ("[1e-2, 5e-2]", "[]", r"study.yaml:14: grid: learning_rate must list one value at least"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_file_and_line(read_study, old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_study((old, new))


def test_what_is_tested_on_chooses_nothing(read_study, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"what chooses must not be what is tested"):
        read_study(("batch_size: 8", f"batch_size: 8\n  validation_dataset: {tmp_path}/test.jsonl"))
