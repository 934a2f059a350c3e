"""Evaluation data sets, each read into one :class:`EvalSet`, and the embedded CLDR corpus."""

from hybridfast.datasets.evalset import EvalSet

__all__ = ["EvalSet"]
