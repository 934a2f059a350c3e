"""Which kernels run: the override, and that code for one instruction set cannot leak into the others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridfast import _core

SUPPORTED = _core.build_info()["simd_supported"]
PRINT_LEVEL = "from hybridfast import _core; print(_core.build_info()['simd'])"


def run(level, code):
    environment = {**os.environ, "HYBRIDFAST_SIMD": level}
    return subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)


# Loads the extension alone: importing the package costs seconds of torch for every level.
LOAD = f"""
import importlib.util, numpy as np
spec = importlib.util.spec_from_file_location("_core", {_core.__file__!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
"""
LOSSES = (
    LOAD
    + """
rng = np.random.default_rng(0)
q, p = (rng.standard_normal((n, 45), dtype=np.float32) for n in (53, 131))
losses, dq, dp = np.empty(53, np.float32), np.empty_like(q), np.empty_like(p)
dt, *stats = core.info_nce(q, p, 0.05, np.arange(53), None, None, 0.1, True, True, False, True, False, losses,
                   np.full(53, 0.5, np.float32), dq, dp, 0.0, 2)
print(core.build_info()["simd"], losses.sum(), np.abs(dq).sum(), np.abs(dp).sum(), dt)
"""
)


@pytest.mark.parametrize("level", SUPPORTED)
def test_every_level_gives_the_same_losses(level):
    name, *values = run(level, LOSSES).stdout.split()
    assert name == level
    expected = run(SUPPORTED[0], LOSSES).stdout.split()[1:]
    assert [float(value) for value in values] == pytest.approx([float(value) for value in expected], rel=3e-6)


def test_unknown_level_names_the_supported_ones():
    result = run("sse9", LOAD + "core.build_info()")
    assert result.returncode != 0
    assert f"HYBRIDFAST_SIMD must be one of {', '.join(SUPPORTED)} on this CPU, got 'sse9'" in result.stderr


def objects():
    root = Path(__file__).resolve().parent.parent / "build"
    return sorted(root.glob("**/simd/tile_*.o"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.skipif(not objects(), reason="needs the object files of a build in build/")
def test_kernel_objects_define_no_weak_symbols():
    """A weak symbol compiled for AVX-512 may be the copy that the linker keeps for every CPU."""
    for path in objects():
        listing = subprocess.run(
            ["nm", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        kinds = {line.split()[-1]: line.split()[-2] for line in listing.splitlines()}
        assert not [name for name, kind in kinds.items() if kind in "WwVvu"], path.name
        assert any(name.endswith("_kernelsE") for name in kinds), path.name
