"""How good a retriever is in every pool of languages: data sets, encoding, exact ranks, measures, tables.

    from hybridfast import evaluation

    eval_set = evaluation.load("xquad-r", "data/xquad-r")
    found = evaluation.evaluate("runs/hybrid-1", eval_set)
    found.summary(), found.bias, found.to_pandas()

The names here are the public ones; they are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridfast.evaluation.comparison import Comparison, compare
    from hybridfast.evaluation.evalset import EvalSet
    from hybridfast.evaluation.library import evaluate
    from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
    from hybridfast.evaluation.ranked import Ranked
    from hybridfast.evaluation.ranks import gold_ranks
    from hybridfast.evaluation.readers import load

__all__ = [
    "Comparison",
    "EvalSet",
    "Evaluation",
    "Ranked",
    "compare",
    "evaluate",
    "evaluate_embeddings",
    "gold_ranks",
    "load",
]

_MODULES = {
    "Comparison": "comparison",
    "EvalSet": "evalset",
    "Evaluation": "metrics",
    "Ranked": "ranked",
    "compare": "comparison",
    "evaluate": "library",
    "evaluate_embeddings": "metrics",
    "gold_ranks": "ranks",
    "load": "readers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
