"""docs/write_an_adapter.md stays true: its commands are run, its excerpts compared with the files of this example.

In a ``console`` block a line that begins with ``$`` is run, and what it prints must be the lines below it; ``...``
stands for any number of lines. In a ``python`` block the first line names a file that holds the rest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1]
PAGE = EXAMPLE.parents[1] / "docs" / "write_an_adapter.md"
ALL_CHECKS = "asg check janus --weights tiny device=cpu"
"""Takes half a minute; test_conformance.py makes the same checks, so it is run before a release only."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if found == language]


def printed_as(expected: str) -> re.Pattern[str]:
    """Lines as a pattern in which a line of dots stands for any lines."""
    parts = [r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"[ ]*\n" for line in expected.splitlines()]
    return re.compile("".join(parts) + r"\Z")


@pytest.mark.parametrize("excerpt", blocks("python"), ids=lambda e: e.splitlines()[0])
def test_an_excerpt_is_in_the_file_that_it_names(excerpt: str):
    first, rest = excerpt.split("\n", 1)
    assert rest.strip()
    assert rest in (EXAMPLE / first.removeprefix("# ")).read_text(encoding="utf-8")


def test_the_commands_print_what_the_page_says(tmp_path: Path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks("console"):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            if command == ALL_CHECKS and os.environ.get("ASG_SOAK") != "1":
                continue
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 0, command
            assert printed_as(expected).match(done.stdout), f"{command}\n{done.stdout}"


def test_the_page_has_commands_and_excerpts():
    assert len(blocks("console")) >= 4
    assert len(blocks("python")) >= 6
