"""Which kernels run: what is measured, the override; and no code for one instruction set is in others."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hybridfast import _core

SUPPORTED = _core.build_info()["simd_supported"]
ROOT = Path(__file__).resolve().parent.parent


def run(level, code, *arguments):
    """`level` "": none is forced."""
    environment = {**os.environ, "HYBRIDFAST_SIMD": level}
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# Loads the extension alone: importing the package costs seconds of torch for every level.
LOAD = f"""
import importlib.util, json, sys, threading, numpy as np
spec = importlib.util.spec_from_file_location("_core", {_core.__file__!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
"""
LOSSES = (
    LOAD
    + """
rng = np.random.default_rng(0)
q, p = (rng.standard_normal((n, 45), dtype=np.float32) for n in (53, 131))
found = {}
for bfloat16 in (False, True):
    for bidirectional in (False, True):
        losses, dq, dp = np.empty(53, np.float32), np.empty_like(q), np.empty_like(p)
        dt, *_ = core.info_nce(q, p, 0.05, np.arange(53), None, None, 0.1, True, True, False, bidirectional,
                               bfloat16, losses, np.full(53, 0.5, np.float32), dq, dp, 0.0, 2)
        for name, value in zip(("losses", "dq", "dp"), (losses, dq, dp)):
            found[f"{name} {bfloat16} {bidirectional}"] = value
np.savez(sys.argv[1], **found)
print(core.build_info()["simd"])
"""
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Without special instructions and without rounding to bfloat16."""
    path = tmp_path_factory.mktemp("baseline") / "losses.npz"
    assert run("baseline", LOSSES, path).stdout.split() == ["baseline"]
    return np.load(path)


@pytest.mark.parametrize("level", [*SUPPORTED, ""])
def test_every_level_gives_the_same_losses_and_gradients(level, plain, tmp_path):
    """A factor rounded to bfloat16 is off by 2^-9 at most; one that is not rounded passes as well."""
    (used,) = run(level, LOSSES, tmp_path / "losses.npz").stdout.split()
    assert used == (level or used)
    for name, value in np.load(tmp_path / "losses.npz").items():
        kind, bfloat16, bidirectional = name.split()
        wanted = plain[f"{kind} False {bidirectional}"].astype(np.float64)
        error = np.linalg.norm(value - wanted) / np.linalg.norm(wanted)
        assert error < (5e-3 if bfloat16 == "True" else 3e-6), name


@pytest.mark.parametrize(
    ("rates", "lead", "chosen"),
    [
        ([90.0], 1.25, 0),
        ([82.0, 160.0], 1.25, 1),  # Zen 4: pairs of bfloat16 at twice the rate
        ([313.0, 160.0], 1.25, 0),  # Emerald Rapids: at half of it
        ([100.0, 124.9], 1.25, 0),
        ([100.0, 125.0], 1.25, 1),
        ([100.0, 60.0, 900.0], 1.25, 2),  # the last against the one chosen so far
        ([100.0, 200.0, 240.0], 1.25, 1),
        ([20.0, 80.0, 78.0], 0.8, 2),  # float32: as fast, and wider
        ([20.0, 100.0, 79.0], 0.8, 1),
    ],
)
def test_a_level_is_taken_by_what_was_measured(rates, lead, chosen):
    assert _core.take_over(rates, lead) == chosen


AT_ONCE = (
    LOAD
    + """
infos = []
threads = [threading.Thread(target=lambda: infos.append(core.build_info())) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(infos))
"""
)


def test_what_was_measured_decides_once_for_all_threads():
    info, *others = json.loads(run("", AT_ONCE).stdout)
    assert others == [info] * 3
    float32, bfloat16 = info["simd_gflops"]["float32"], info["simd_gflops"]["bfloat16"]
    plain_levels = [level for level in SUPPORTED if level in ("baseline", "avx2", "avx512")]
    pairs = [level for level in SUPPORTED if level not in plain_levels]
    for rates, levels, lead, chosen in (
        (float32, plain_levels, 1 / 1.25, info["simd"]),
        (bfloat16, [info["simd"], *pairs], 1.25, info["simd_bfloat16"]),
    ):
        assert list(rates) == (levels if len(levels) > 1 else [])
        assert all(rate > 0 for rate in rates.values())
        assert chosen == levels[_core.take_over(list(rates.values()), lead) if rates else 0]


@pytest.mark.parametrize("level", SUPPORTED)
def test_a_forced_level_is_not_measured(level):
    info = json.loads(run(level, LOAD + "print(json.dumps(core.build_info()))").stdout)
    assert (info["simd"], info["simd_bfloat16"]) == (level, level)
    assert info["simd_gflops"] == {"float32": {}, "bfloat16": {}}


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="needs an x86 CPU")
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
def test_amx_by_a_model_of_its_instructions(tmp_path):
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    model = ["-include", ROOT / "tests/native/amx_on_cpu/instructions.h"]
    sources = ["-I", ROOT / "csrc", ROOT / "tests/native/amx.cpp", "-o", tmp_path / "amx"]
    subprocess.run([compiler, *flags, *model, *sources], check=True)
    done = subprocess.run([tmp_path / "amx"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.parametrize("level", ["sse9", *sorted({"avx2", "amx_bf16"}.difference(SUPPORTED))])
def test_unknown_level_names_the_supported_ones(level):
    result = run(level, LOAD + "core.build_info()")
    assert result.returncode != 0
    assert (
        f"HYBRIDFAST_SIMD must be one of {', '.join(SUPPORTED)} on this CPU, got '{level}'" in result.stderr
    )


def objects():
    return sorted((ROOT / "build").glob("**/simd/tile_*.o"))


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
