"""Hybrid batch training and language-bias evaluation for multilingual dense retrieval."""

from hybridfast import _core
from hybridfast.sampler import Batch, HybridSampler

__version__: str = _core.build_info()["version"]
__all__ = ["Batch", "HybridSampler", "__version__"]
