"""RESULTS.md: each benchmark owns the sections that it writes."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).parent / "RESULTS.md"
HEADER = (
    "# Measured costs\n\nWritten by the scripts named in each section. Bars were set before anything was measured.\n"
)


def write_section(title: str, body: str) -> None:
    """Put ``body`` below ``## title``, in place of what was there, or at the end."""
    text = FILE.read_text(encoding="utf-8") if FILE.is_file() else HEADER
    section = f"## {title}\n\n{body.strip()}\n"
    found = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    known = found.search(text)
    text = found.sub(lambda _: f"{section}\n", text) if known else f"{text.rstrip()}\n\n{section}"
    FILE.write_text(text.rstrip() + "\n", encoding="utf-8")


def machine() -> str:
    """Date, versions and machine, in words."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("asg-core", "torch", "transformers", "peft"))
    return (
        f"{date.today()}; {versions}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} cores"
    )
