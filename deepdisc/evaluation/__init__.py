"""Matching and scoring catalogues. Sees only catalogues, so that it can score any program's."""

from deepdisc.evaluation.evaluate import compare, evaluate
from deepdisc.evaluation.join import crossmatch

__all__ = ["compare", "crossmatch", "evaluate"]
