"""A study of a few seconds: made-up languages, a static encoder of eight dimensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hybridfast import cli
from hybridfast.studies import plan
from hybridfast.studies.plan import Study
from hybridfast.training.config import TrainConfig

STUDY = """\
output_dir: {folder}/out
models: {{tiny: static}}
tests: {{{folder}/test.jsonl: null}}
settings:
  data: {folder}/rows.jsonl
  batch_size: 8
  max_steps: 12
  dimension: 8
  vocabulary_size: 200
  num_workers: 0
strategies:
  mono: {{alpha: 1}}
  cross: {{alpha: 0}}
grid: {{learning_rate: [1e-2, 5e-2]}}
seeds: 2
baselines: [mono, cross]
resamples: 2000
"""


def write_rows(path: Path, groups: range, split: str) -> None:
    """Number words in three languages, so that a model has something to align."""
    with open(path, "a") as file:
        for group in groups:
            for lang, stem in (("aa", "ka"), ("bb", "mo"), ("cc", "ti")):
                row = {
                    "id": group,
                    "lang": lang,
                    "query": f"{stem}{group}",
                    "passage": f"{stem}{group} {stem}",
                }
                file.write(json.dumps(row | {"split": split}) + "\n")


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes the study above, its data and a file with texts replaced in it."""
    write_rows(tmp_path / "rows.jsonl", range(30), "train")
    write_rows(tmp_path / "rows.jsonl", range(30, 40), "dev")
    write_rows(tmp_path / "test.jsonl", range(25), "train")

    def write(*replacements: tuple[str, str]) -> Path:
        text = STUDY.format(folder=tmp_path)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "study.yaml").write_text(text)
        return tmp_path / "study.yaml"

    return write


@pytest.fixture
def read_study(write_study: Callable[..., Path]) -> Callable[..., Study]:
    return lambda *replacements: plan.read(write_study(*replacements), partial(cli.from_flags, TrainConfig))
