"""Hybrid batch training and language-bias evaluation for multilingual dense retrieval."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

# In a checkout, `python -m hybridfast.train` finds these sources before the installed package, where the
# compiled module is: look for it there too.
__path__ = pkgutil.extend_path(__path__, __name__)

from hybridfast._core import __version__, build_info

if TYPE_CHECKING:
    from hybridfast.data.corpus import ParallelCorpus
    from hybridfast.data.sampler import Batch, HybridSampler
    from hybridfast.data.tokens import TokenizedCorpus
    from hybridfast.evaluation.evalset import EvalSet
    from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
    from hybridfast.evaluation.ranks import gold_ranks
    from hybridfast.infonce.loss import InfoNCE, info_nce

__all__ = [
    "Batch",
    "EvalSet",
    "Evaluation",
    "HybridSampler",
    "InfoNCE",
    "ParallelCorpus",
    "TokenizedCorpus",
    "__version__",
    "build_info",
    "evaluate_embeddings",
    "gold_ranks",
    "info_nce",
]

# Imported when first asked for: torch and pyarrow take a second, which `build_info` and `--help` need not.
_ROOMS = {
    "Batch": "data.sampler",
    "EvalSet": "evaluation.evalset",
    "Evaluation": "evaluation.metrics",
    "HybridSampler": "data.sampler",
    "InfoNCE": "infonce.loss",
    "ParallelCorpus": "data.corpus",
    "TokenizedCorpus": "data.tokens",
    "evaluate_embeddings": "evaluation.metrics",
    "gold_ranks": "evaluation.ranks",
    "info_nce": "infonce.loss",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value  # the next time it is found without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
