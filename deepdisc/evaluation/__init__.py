"""Scoring catalogues against the truth. Sees only catalogues, so that it can score any program's."""

from deepdisc.evaluation.comparison import compare
from deepdisc.evaluation.evaluate import evaluate

__all__ = ["compare", "evaluate"]
