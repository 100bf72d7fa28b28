"""What ``gpu.py`` writes: header, markdown table and JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from packaging.version import Version

from asg_core.errors import ConfigError
from asg_core.planning.duration import Accelerator, find_accelerator
from gpu_rows import Row

PACKAGES = ("asg-core", "torch", "transformers", "diffusers", "peft", "accelerate")
PACKED_QUERIES = Version("5.23")
"""First transformers whose attention takes grouped query heads together instead of copying keys and values."""


def accelerator_of(device: torch.device, name: str | None) -> Accelerator | None:
    """Rates of the device, by ``name`` or by what CUDA reports; None if they are not known."""
    if name is not None:
        return find_accelerator(name)
    try:
        return find_accelerator(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    except ConfigError:
        return None


def device_name(device: torch.device) -> str:
    """As CUDA reports it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def header(device: torch.device, scale: str, dtype: str, seconds: float) -> dict[str, object]:
    """Date, versions, device and circumstances of a run. What runs from a folder has no version."""
    found = {package: _installed(package) for package in PACKAGES}
    head: dict[str, object] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {package: number for package, number in found.items() if number is not None},
        "cuda": torch.version.cuda,
        "device": device_name(device),
        "scale": scale,
        "dtype": dtype,
        "seconds": round(seconds, 1),
    }
    transformers = found["transformers"]
    if transformers is not None and Version(transformers) < PACKED_QUERIES:
        head["warning"] = f"transformers {transformers} copies keys and values for every query head; use 5.23 or later"
    return head


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def markdown(results: Mapping[str, Sequence[Row]]) -> str:
    """One table for all backbones."""
    lines = [
        "| backbone | section | what | value | limit | bound | of the roofline | peak GiB | planned GiB | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for row in rows:
            value = row.status if row.value is None else f"{row.value:.4g} {row.unit}"
            if row.value is not None and row.status in ("failed", "missed"):
                value = f"{row.status.upper()} {value}"
            share = "" if row.roofline_share is None else f"{row.roofline_share:.0%}"
            limit, bound, peak, planned = (
                "" if n is None else f"{n:.3g}" for n in (row.limit, row.bound, row.peak_gib, row.planned_gib)
            )
            cells = [name, row.section, row.name, value, limit, bound, share, peak, planned, row.note]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def write_json(file: Path, head: Mapping[str, object], results: Mapping[str, Sequence[Row]]) -> None:
    """Header and all rows. Numbers that JSON does not have (NaN, infinity) become null."""

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not abs(value) < float("inf") else value

    rows = {
        name: [
            {**{k: plain(v) for k, v in asdict(row).items()}, "roofline_share": plain(row.roofline_share)}
            for row in found
        ]
        for name, found in results.items()
    }
    file.write_text(json.dumps({**head, "backbones": rows}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
