"""Show versions, devices, plugins and disk space. Exit code 1 if something will not work."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from asg_core import __version__
from asg_core.backbones.registry import list_plugins
from asg_core.backbones.requirements import required_versions, unmet_requirements
from asg_core.cli.common import add_json, print_json
from asg_core.cli.plugins import as_data

GIB = 1024**3
LOW_DISK_BYTES = 2 * GIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what a bug report needs and nothing private: no environment, no paths outside the current folder.

    Returns 1 if a required package or every backbone is missing, or the disk is nearly full.
    """
    problems = unmet_requirements()
    plugins = [as_data(record) for record in list_plugins()]
    if not any(plugin["backbones"] for plugin in plugins):
        problems.append("no backbone can be used")
    disk = shutil.disk_usage(Path.cwd())
    if disk.free < LOW_DISK_BYTES:
        problems.append(f"only {disk.free / GIB:.1f} GiB of disk space are free here")
    versions = {"python": platform.python_version(), "asg-core": __version__, **required_versions()}
    report = {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "devices": _devices() if versions.get("torch") else [],
        "disk_free_bytes": disk.free,
        "plugins": plugins,
        "problems": problems,
    }
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 1 if problems else 0


def _devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [{"device": "cpu", "threads": torch.get_num_threads()}]
    if torch.backends.mps.is_available():
        found.append({"device": "mps"})
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append({"device": f"cuda:{index}", "name": properties.name, "memory_bytes": properties.total_memory})
    return found


def _print(report: dict[str, Any]) -> None:
    from asg_core.cli.tables import print_table  # so that --json needs no rich

    print_table(("package", "version"), [(name, found or "missing") for name, found in report["versions"].items()])
    free = report["disk_free_bytes"] / GIB
    print(f"\n{report['platform']}, {report['cpu_cores']} CPU cores, {free:.1f} GiB free here")
    for device in report["devices"]:
        memory = f", {device['memory_bytes'] / GIB:.0f} GiB" if "memory_bytes" in device else ""
        print(f"device {device['device']} {device.get('name', '')}{memory}".rstrip())
    print()
    print_table(
        ("plugin", "state", "provides, or reason"),
        [(p["name"], p["state"], p["reason"] or ", ".join(_provided(p))) for p in report["plugins"]],
    )
    print()
    print("\n".join(f"problem: {problem}" for problem in report["problems"]) or "no problem found")


def _provided(plugin: dict[str, Any]) -> list[str]:
    return [m["name"] for m in plugin["backbones"]] + [e["command"] for e in plugin["extensions"]]
