"""Hybrid batch training and language-bias evaluation for multilingual dense retrieval."""

from hybridfast import _core
from hybridfast.ranks import gold_ranks

__version__: str = _core.build_info()["version"]
__all__ = ["__version__", "gold_ranks"]
