"""What became of each tensor of a file of weights, for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepdisc.training import distributed


@dataclass
class LoadReport:
    """What became of each tensor of the model and of the file; `notes` say what to look at."""

    matched: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    other_bands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the model is the file's, and the file has no others."""
        return not (self.adapted or self.mismatched or self.missing or self.unexpected or self.other_bands)

    def summary(self) -> str:
        """One line with the counts and the first names of what does not fit."""
        text = f"{len(self.matched)} tensors match, {len(self.adapted)} adapted"
        for kind in ("mismatched", "missing", "unexpected"):
            names = getattr(self, kind)
            if names:
                text += f", {len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        return text

    def table(self, source: str) -> Table:
        """The same for printing, with up to eight names of each kind."""
        table = Table("", "tensors", title=f"weights from {escape(source)}")
        table.add_column("which", overflow="fold")
        meaning = {
            "matched": "matched",
            "adapted": "adapted",
            "mismatched": "another shape: fresh",
            "other_bands": "of other bands: fresh",
            "missing": "not in the file: fresh",
            "unexpected": "not in the model: ignored",
            "left_out": "not needed: left out",
        }
        for kind, text in meaning.items():
            names = getattr(self, kind)
            listed = [] if kind == "matched" else names
            more = [f"... and {len(names) - 8} more"] if len(listed) > 8 else []
            if names or kind == "matched":
                table.add_row(text, str(len(names)), escape("\n".join(listed[:8] + more)))
        return table

    def print(self, source: str) -> None:
        """Table (one line where all match) and notes to the standard error output, once for all processes."""
        if distributed.is_main():
            console = Console(stderr=True)
            if self.is_complete:
                text = f"{len(self.matched)} tensors match: {source}"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            else:
                console.print(self.table(source))
            for note in self.notes:
                console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def listed(bands: Sequence[str]) -> str:
    """Names of bands, as they are written on the command line."""
    return ",".join(map(str, bands))
