"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: $HYBRIDFAST_DATA, or ../shared/data next to the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HYBRIDFAST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set HYBRIDFAST_DATA")
    return folder
