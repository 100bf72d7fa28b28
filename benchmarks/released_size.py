"""What ``tox -e soak`` counted, as a section of RESULTS.md: ``python benchmarks/released_size.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from results import machine, write_section

FILE = Path(__file__).with_name("released_size.json")
TEXT = """`tox -e soak` (`{file}`), {machine}.

Counted on tensors that pretend to be on a GPU, all layers of each released model, bfloat16, 448 x 448 images; a step
has 3 questions of 7 short answers each. Kernels are operations that torch would launch; bytes are what they name, each
counted alone; "planned" is what `asg plan` says of the FLOPs. Decoding is 4 passes over 8 rows; drawing is the profile
"quality", with the pixels.
"""
COLUMNS = ("", "section", "kernels", "TFLOP", "of the planned", "GB", "syncs", "blocking copies", "peak GiB")


def table(counted: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row a section."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name, sections in counted.items():
        for section, seen in sections.items():
            flops, planned = sum(seen["flops"].values()), seen["planned_flops"]
            cells = (
                name,
                section,
                f"{seen['launches']:,}",
                f"{flops / 1e12:,.{0 if flops > 1e14 else 2}f}",
                f"{flops / planned:.3f}" if planned else "",
                f"{seen['bytes'] / 1e9:,.0f}",
                str(sum(seen["syncs"].values())),
                str(sum(seen["blocking"].values())),
                f"{seen['peak_bytes'] / 2**30:.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    text = TEXT.format(file=f"benchmarks/{FILE.name}", machine=machine())
    write_section("Counted at released size", text + "\n" + table(json.loads(FILE.read_text(encoding="utf-8"))))
