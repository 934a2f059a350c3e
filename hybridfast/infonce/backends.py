"""Which backends there are, and what keeps each from serving a problem."""

from __future__ import annotations

import importlib.util
import os

import torch

BACKENDS = ("auto", "cpu", "triton", "cuda", "torch")
TRITON = importlib.util.find_spec("triton") is not None
CUDA = importlib.util.find_spec("hybridfast._cuda") is not None
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def triton_gap(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels do not serve such tensors, in words; None when they do."""
    if not TRITON:
        return "needs the package triton, which torch's CUDA builds bring along"
    if dtype == torch.float64:
        return "does not cover float64"
    if device.type != "cuda" and not (device.type == "cpu" and TRITON_INTERPRETED):
        return f"needs tensors on a GPU, got {device} (for tests, TRITON_INTERPRET=1 runs it on CPUs)"
    return None


def cuda_gap(device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype) -> str | None:
    """Why the CUDA C++ kernels do not serve such tensors, in words; None when they do."""
    if not CUDA:
        return "was built without CUDA; set HYBRIDFAST_CUDA=ON"
    if dtype == torch.float64:
        return "does not cover float64"
    if compute_dtype not in (torch.bfloat16, torch.float16):
        return f"covers products of bfloat16 and float16, got {str(compute_dtype).removeprefix('torch.')}"
    if device.type != "cuda":
        return f"needs tensors on a GPU, got {device}"
    return None


def block_backend(
    backend: str, device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype | None
) -> str:
    """Whose kernels work on blocks of this device, of such inputs and products.

    A ValueError where a backend is named that cannot.
    """
    # The native CPU code takes a problem as a whole (`ops._run`); it has no kernels over blocks.
    if backend == "cpu" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    compute_dtype = compute_dtype or dtype
    triton = triton_gap(device, torch.promote_types(dtype, compute_dtype))
    if backend == "auto":
        return "torch" if triton else "triton"
    gap = {"triton": triton, "cuda": cuda_gap(device, dtype, compute_dtype)}.get(backend)
    if gap:
        raise ValueError(f"backend={backend!r} {gap}; use backend='auto' or 'torch'")
    return backend
