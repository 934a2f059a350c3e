"""The GPU benchmark, rehearsed on the CPU at a size that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_rehearsal_on_the_cpu(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    output = tmp_path / "gpu.md"
    done = subprocess.run(
        [sys.executable, script, "--device", "cpu", "--no-build", "--output", output],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in output.read_text().splitlines() if line.startswith("| 70 | ")]
    timed = {(directions, what, who) for _, _, directions, what, who, *_ in rows}
    for directions in ("one", "both"):
        for what in ("forward", "forward + backward"):
            assert {who for d, w, who in timed if (d, w) == (directions, what)} >= {
                "hybridfast triton", "hybridfast torch", "eager", "compiled",
            }  # fmt: skip
    assert ("one", "forward + backward", "torch loop") in timed
    assert {("1", "gold_ranks"), ("11", "product, sort, bisect in torch")} <= {
        (golds, who) for _, _, golds, who, *_ in rows
    }
