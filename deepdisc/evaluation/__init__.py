"""Matching and scoring catalogues. Sees only catalogues, so that it can score any program's."""

from deepdisc.evaluation.evaluate import compare, evaluate
from deepdisc.evaluation.fields import compare_fields, read_fields
from deepdisc.evaluation.join import crossmatch

__all__ = ["compare", "compare_fields", "crossmatch", "evaluate", "read_fields"]
