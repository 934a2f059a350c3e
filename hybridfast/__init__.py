"""Hybrid batch training and language-bias evaluation for multilingual dense retrieval."""

import pkgutil

# In a checkout, `python -m hybridfast.train` finds these sources before the installed package, where the
# compiled module is: look for it there too.
__path__ = pkgutil.extend_path(__path__, __name__)

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
