"""Bring generated parts of the docs up to date: `python docs/refresh.py` (`--check` only compares; exit 1 if stale)."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYMBOL = re.compile(r"`(asg_core(?:\.\w+)+)`(?: \([^)]*:\d+\))?")


def located(match: re.Match[str]) -> str:
    """The dotted name with the file and line where it is defined."""
    module, _, name = match[1].rpartition(".")
    target = inspect.unwrap(getattr(import_module(module), name))
    file = Path(inspect.getsourcefile(target) or "").resolve()
    inside = file.parts[len(file.parts) - file.parts[::-1].index("asg_core") :]
    return f"`{match[1]}` (src/asg_core/{'/'.join(inside)}:{inspect.getsourcelines(target)[1]})"


def refreshed(text: str) -> str:
    """``text`` with the file and line of every `asg_core.x.y` symbol."""
    return SYMBOL.sub(located, text)


if __name__ == "__main__":
    page = ROOT / "docs" / "paper_map.md"
    old = page.read_text(encoding="utf-8")
    new = refreshed(old)
    if "--check" in sys.argv:
        sys.exit(int(old != new))
    page.write_text(new, encoding="utf-8")
