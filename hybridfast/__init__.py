"""Hybrid batch training and language-bias evaluation for multilingual dense retrieval."""

from hybridfast._core import build_info
from hybridfast.corpus import ParallelCorpus, TokenizedCorpus
from hybridfast.loss import InfoNCE, info_nce
from hybridfast.ranks import gold_ranks
from hybridfast.sampler import Batch, HybridSampler

__version__: str = build_info()["version"]
__all__ = [
    "Batch",
    "HybridSampler",
    "InfoNCE",
    "ParallelCorpus",
    "TokenizedCorpus",
    "__version__",
    "build_info",
    "gold_ranks",
    "info_nce",
]
