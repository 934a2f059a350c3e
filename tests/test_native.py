"""Runs the C++ tests under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
@pytest.mark.parametrize("script", ["run_sampler", "run_loss"])
def test_under_sanitizers(script: str) -> None:
    path = Path(__file__).parent / "native" / script
    done = subprocess.run([path], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
