"""docs/reliability.md names tests that exist, and enough is fuzzed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "reliability.md"


def names_of(file: Path) -> set[str]:
    return {n.name for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


def test_every_promise_names_a_test_that_exists() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.search(r"`test_\w+\.py::", line)]
    assert len(rows) >= 20
    for row in rows:
        promise, test, broken = (cell.strip() for cell in row.strip("|").split("|"))
        found = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", test)
        assert found, row
        assert found[2] in names_of(HERE / found[1]), row
        assert promise, row
        assert broken, row


def test_at_least_ten_thousand_inputs_are_fuzzed_before_a_release() -> None:
    """At full size, in ``tox -e soak``; by default a fifth of them are."""
    files = sorted(HERE.glob("test_*.py"))
    counts = [int(n) for file in files for n in re.findall(r"^@fuzz\((\d+)\)", file.read_text(encoding="utf-8"), re.M)]
    assert sum(counts) >= 10_000
