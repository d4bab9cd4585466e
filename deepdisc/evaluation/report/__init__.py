"""What `evaluate` and `compare` write for people to read: report.html and its figures."""

from deepdisc.evaluation.report.page import write_report
from deepdisc.evaluation.report.provenance import with_provenance

__all__ = ["with_provenance", "write_report"]
