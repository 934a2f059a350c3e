"""The masks of a GPU are those of the native kernel.

Where TRITON_INTERPRET=1 (tests/conftest.py) they are made on the CPU; with TRITON_INTERPRET=0, on a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybridfast import _core
from hybridfast.infonce import backends

triton_dropout = pytest.importorskip("hybridfast.encoder.triton_dropout", reason="needs the package triton")

if not (backends.TRITON_INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
DEVICE = "cpu" if backends.TRITON_INTERPRETED else "cuda"


@pytest.mark.parametrize("columns", [20, 384, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [False, True])
def test_masks_are_those_of_the_native_kernel(columns: int, dtype: torch.dtype, pairs: bool) -> None:
    rows = np.array([0, 7, 2**33 + 5])
    heads, first = (np.array([1, 2, 12]), np.array([-40, 96, 5])) if pairs else (None, None)
    values = torch.randn(3, columns).to(dtype)
    for number in (1, 2**64 - 3):
        key = (number, 6554, 1.25)
        places = (None if a is None else torch.from_numpy(a).to(DEVICE) for a in (rows, heads, first))
        got = triton_dropout.dropout(values.to(DEVICE), key, *places).cpu()
        wanted = np.empty((3, columns), np.float32)
        _core.dropout(values.float().numpy(), rows, heads, first, key, wanted, 1)
        assert got.dtype == dtype
        rounding = 0 if dtype == torch.float32 else 2**-7  # the interpreter cuts bits off
        torch.testing.assert_close(got.float(), torch.from_numpy(wanted), rtol=rounding, atol=0)
    none = torch.from_numpy(rows[:0])
    assert triton_dropout.dropout(values[:0], key, none, None, None).shape == (0, columns)
