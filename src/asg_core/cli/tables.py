"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 120
"""Columns of a table that goes into a file or a pipe."""


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_from: int | None = None) -> None:
    """Print cells as text; columns from ``numeric_from`` on are aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, heading in enumerate(headings):
        number = numeric_from is not None and index >= numeric_from
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")


def print_comparison(rows: Iterable[Mapping[str, Any]]) -> None:
    """Before and after in percent, difference in points with its 95 % interval, paired p-value."""
    print_table(
        ("section", "category", "n", "before %", "after %", "difference", "95 % interval", "p"),
        [
            (
                *_group(row),
                *_percent(row, "before", "after"),
                *_percent(row, "difference", sign="+"),
                " to ".join(_percent(row, "ci_low", "ci_high", sign="+")),
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
        [(*_group(row), *_percent(row, "score"), " to ".join(_percent(row, "ci_low", "ci_high"))) for row in rows],
        numeric_from=2,
    )


def _group(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["section"], row["category"], str(row["n"])


def _percent(row: Mapping[str, Any], *keys: str, sign: str = "") -> list[str]:
    return [f"{100 * row[key]:{sign}.1f}" for key in keys]
