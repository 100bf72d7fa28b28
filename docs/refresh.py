"""Bring generated parts of the docs up to date: `python docs/refresh.py` (`--check` only compares; exit 1 if stale)."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = "<!-- checks: made by docs/refresh.py -->"
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


def with_checks(text: str) -> str:
    """``text`` up to the marker, and behind it the table of all conformance checks."""
    from asg_core.testing.conformance import CHECKS

    rows = "".join(f"| `{c.id}` | {c.meaning} | {c.remedy} | {c.since} |\n" for c in CHECKS.values())
    head = text[: text.index(MARKER) + len(MARKER)]
    return f"{head}\n\n| check | promise | where to look when it fails | since |\n|---|---|---|---|\n{rows}"


def points(row: Mapping[str, Any]) -> str:
    """Difference of a comparison row with its interval, in points."""
    return f"{100 * row['difference']:+.1f} ({100 * row['ci_low']:+.1f} to {100 * row['ci_high']:+.1f})"


def reaches_zero(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a comparison row holds 0."""
    return bool(row["ci_low"] <= 0 <= row["ci_high"])


def gains(results: Mapping[str, Any]) -> list[str]:
    """What `asg study gains` found: the reference arm, the other arms, what the reference arm makes worse, and what it
    does not improve."""
    reference = results["suite"]["reference"]
    after = [row for row in results["rows"] if row["against"] == "before"]
    full = [row for row in after if row["arm"] == reference]
    lines = [f"| {reference} | before | after | difference (95 %) | seeds' range |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['section']} | {100 * row['before']:.1f} | {100 * row['after']:.1f} | {points(row)} "
        f"| {100 * min(row['by_seed']):+.1f} to {100 * max(row['by_seed']):+.1f} |"
        for row in full
        if row["category"] == "all"
    ]
    sections = [row["section"] for row in full if row["category"] == "all"]
    controls = [arm for arm in results["suite"]["arms"] if arm != reference and any(r["arm"] == arm for r in after)]
    if controls:
        lines += ["", f"| control | {' | '.join(sections)} |", "|---" * (1 + len(sections)) + "|"]
    for arm in controls:
        cells = [points(row) for row in after if row["arm"] == arm and row["category"] == "all"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for title, chosen in (
        (f"Made worse by {reference}:", lambda r: r["ci_high"] < 0),
        (f"Not improved by {reference}, because the interval of the difference reaches 0:", reaches_zero),
    ):
        found = {section: [r for r in full if r["section"] == section and chosen(r)] for section in sections}
        listed = {section: ", ".join(f"{r['category']} {points(r)}" for r in rows) for section, rows in found.items()}
        lines += ["", title, "", *(f"* {section}: {text}" for section, text in listed.items() if text)]
        if not any(listed.values()):
            lines.append("* nothing")
    lines.append("")
    seconds = [taken for taken in results["seconds"].values() if taken > 0]
    versions = ", ".join(f"{name} {' and '.join(found)}" for name, found in results["versions"].items())
    took = f"the steps of a run took {min(seconds):.0f} to {max(seconds):.0f} s"
    lines.append(f"Seeds {', '.join(map(str, results['suite']['seeds']))}; {took}; {versions}.")
    if results["missing"]:
        lines.append(f"Runs that are missing: {', '.join(results['missing'])}.")
    return lines


def ablations(results: Mapping[str, Any]) -> list[str]:
    """What `asg study ablations` found: the arms that differ from the reference arm, and those that do not."""
    reference = results["suite"]["reference"]
    rows = [r for r in results["rows"] if r["against"] == reference and r["category"] == "all"]
    sections = list(dict.fromkeys(row["section"] for row in rows))
    lines = [f"| change | {' | '.join(sections)} |", "|---" * (1 + len(sections)) + "|"]
    same = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        if all(map(reaches_zero, of_arm)):
            same.append(arm)
            continue
        cells = [points(row) if reaches_zero(row) else f"**{points(row)}**" for row in of_arm]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    seeds = sorted({row["seeds"] for row in rows})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return [
        *lines,
        "",
        f"No difference seen (every interval reaches 0): {', '.join(same) or 'none'}. Seeds per change: {count}.",
        *([f"Runs that are missing: {', '.join(results['missing'])}."] if results["missing"] else []),
    ]


def signals(results: Mapping[str, Any]) -> list[str]:
    """What `asg study signals` found on held-out questions."""
    lines = ["| model | signal for a wrong majority | questions | wrong | AUROC (95 %) |", "|---|---|---|---|---|"]
    for table in results["held_out"]:
        for signal, which, e in table["aurocs"]:
            span = "too few" if e["low"] is None else f"{e['low']:.3f} to {e['high']:.3f}"
            value = "" if e["value"] is None else f"{e['value']:.3f} ({span})"
            lines.append(f"| {table['model']} | {signal}, {which} | {e['n']} | {e['positives']} | {value} |")
    return lines


BLOCKS: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "gains": ("benchmarks/gains/results.json", gains),
    "ablations": ("benchmarks/ablations/results.json", ablations),
    "signals": ("benchmarks/signals/signals.json", signals),
}
"""Blocks of the README between `<!-- study: NAME -->` and `<!-- end -->`: from which results, and how."""


def with_studies(text: str) -> str:
    """``text`` with every block whose results are there; the others stay as they are."""
    for name, (file, made) in BLOCKS.items():
        if (ROOT / file).is_file():
            lines = made(json.loads((ROOT / file).read_text(encoding="utf-8")))
            start = text.index(marker := f"<!-- study: {name} -->") + len(marker)
            text = "\n".join([text[:start], *lines, text[text.index("<!-- end -->", start) :]])
    return text


PAGES = {
    "docs/paper_map.md": refreshed,
    "docs/conformance.md": with_checks,
    "README.md": with_studies,
}


if __name__ == "__main__":
    stale = False
    for name, renewed in PAGES.items():
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = renewed(old)
        stale = stale or old != new
        if "--check" not in sys.argv:
            page.write_text(new, encoding="utf-8")
    sys.exit(int(stale and "--check" in sys.argv))
