"""Hybrid batch training and language-bias evaluation for multilingual dense retrieval."""

from hybridfast._core import build_info
from hybridfast.loss import InfoNCE, info_nce

__version__: str = build_info()["version"]
__all__ = ["InfoNCE", "__version__", "build_info", "info_nce"]
