"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 120
"""Columns of a table that goes into a file or a pipe."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_from: int | None = None) -> None:
    """Print cells as text; columns from ``numeric_from`` on are aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, heading in enumerate(headings):
        number = numeric_from is not None and index >= numeric_from
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*row)
    _Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, emoji=False, highlight=False).print(
        table
    )


def print_comparison(rows: Iterable[Mapping[str, Any]]) -> None:
    """Before and after in percent, difference in points with its 95 % interval, paired p-value."""
    print_table(
        ("section", "category", "n", "before %", "after %", "difference", "95 % interval", "p"),
        [
            (
                row["section"],
                row["category"],
                str(row["n"]),
                f"{100 * row['before']:.1f}",
                f"{100 * row['after']:.1f}",
                f"{100 * row['difference']:+.1f}",
                f"{100 * row['ci_low']:+.1f} to {100 * row['ci_high']:+.1f}",
                f"{row['p_value']:.4f}",
            )
            for row in rows
        ],
        numeric_from=2,
    )


def print_scores(rows: Iterable[Mapping[str, Any]]) -> None:
    """Scores in percent with their 95 % interval."""
    print_table(
        ("section", "category", "n", "score %", "95 % interval"),
        [
            (
                row["section"],
                row["category"],
                str(row["n"]),
                f"{100 * row['score']:.1f}",
                f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}",
            )
            for row in rows
        ],
        numeric_from=2,
    )
