"""A JSON file of ``gpu.py`` as a section of RESULTS.md: ``python benchmarks/gpu_table.py FILE TITLE [NOTE]``."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_report import markdown
from gpu_rows import Row
from results import write_section

KNOWN = {field.name for field in fields(Row)}


def section(file: Path, note: str) -> str:
    """What was measured where and with which versions, then the table."""
    data = json.loads(file.read_text(encoding="utf-8"))
    rows = {
        name: [Row(**{key: value for key, value in row.items() if key in KNOWN}) for row in found]
        for name, found in data["backbones"].items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    where = f"{data['date'][:10]}; {data['device']}; CUDA {data['cuda']}; {data['dtype']}; {versions}."
    raw = f"Raw rows: `benchmarks/gpu/{file.name}`."
    return "\n\n".join(filter(None, (note, f"{where} {raw}", markdown(rows))))


if __name__ == "__main__":
    write_section(sys.argv[2], section(Path(sys.argv[1]), " ".join(sys.argv[3:])))
