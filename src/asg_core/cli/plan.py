"""Count from headers and configuration what asg train with the same words would need.

Nothing is measured: memory is an upper bound on what is counted, time a lower bound.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from asg_core.cli.common import add_json, add_overrides, load_config, print_json
from asg_core.cli.tables import print_table
from asg_core.config.schema import RunConfig
from asg_core.errors import ConfigError
from asg_core.planning.duration import Accelerator, find_accelerator, generation_phases, understanding_phases
from asg_core.planning.memory import generation_memory, images_that_fit, understanding_memory
from asg_core.planning.shape import ModelShape, model_shape
from asg_core.training.schedule import kinds

GIB = 2**30

EXAMPLES = """\
examples:
  asg plan backbone=bagel weights=BAGEL                          will it fit an H100, and how long is a step?
  asg plan my.yaml --device-name a100 --memory-gib 40            another device
  asg plan my.yaml gradient_checkpointing=true --image 448x448   other settings, smaller images
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, file=True)
    parser.add_argument("--device-name", default="h100", metavar="NAME", help="h100 (default), h200, a100, ...")
    parser.add_argument("--memory-gib", type=float, metavar="X", help="memory of the device (default: its own)")
    parser.add_argument("--image", default="1024x1024", metavar="WxH", help="size of your images, pixels (1024x1024)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON of benchmarks/gpu.py, to compare with")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; 0 even if nothing fits, because that is an answer."""
    size = _size(args.image)
    device = find_accelerator(args.device_name)
    memory = device.memory if args.memory_gib is None else int(args.memory_gib * GIB)
    if memory <= 0:
        raise ConfigError(f"--memory-gib {args.memory_gib} cannot be used", "it must be > 0", "e.g. --memory-gib 40")
    config = load_config(args.overrides)
    plan = _plan(model_shape(config), config, size, device, memory)
    plan["measured"] = _measured(args.results, config.backbone, device)
    if args.json:
        print_json(plan)
    else:
        _print(plan)
    return 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ConfigError(f"--image {text} is not a size", "it is WIDTHxHEIGHT in pixels", "e.g. --image 1024x768")
    return int(width), int(height)


def _plan(
    shape: ModelShape, config: RunConfig, size: tuple[int, int], device: Accelerator, memory: int
) -> dict[str, Any]:
    planned, steps = kinds(config.steps, config.schedule), []
    for kind, images, memory_of, phases_of in (
        ("understanding", config.images_per_step, understanding_memory, understanding_phases),
        ("generation", config.generate.prompts_per_step, generation_memory, generation_phases),
    ):
        if kind not in planned or (kind == "generation" and shape.drawing is None):
            continue
        needs = memory_of(shape, config, size, images)
        step = {
            "kind": kind,
            "images": images,
            "bytes": {**vars(needs), "peak": needs.peak},
            "fits": needs.peak <= memory,
            "images_that_fit": images_that_fit(partial(memory_of, shape, config, size), memory),
            "phases": [
                {**vars(p), "seconds": p.seconds(device), "seconds_captured": p.seconds(device, launches=False)}
                for p in phases_of(shape, config, size, images)
            ],
        }
        steps.append(step)
    return {
        "backbone": config.backbone,
        "device": device.name,
        "memory_bytes": memory,
        "image": list(size),
        "image_tokens": shape.see(*size).tokens,
        "parts": [vars(part) for part in shape.parts],
        "parameters": shape.parameters,
        "weight_bytes": shape.weight_bytes,
        "adapters": {role.value: count for role, count in shape.adapters.items()},
        "kv_bytes_per_token": shape.trunk.kv_bytes,
        "steps": steps,
    }


def _measured(results: Path | None, backbone: str, device: Accelerator) -> list[dict[str, Any]]:
    """Steps of ``backbone`` on ``device`` in a results file of benchmarks/gpu.py."""
    if results is None:
        return []
    try:
        data = json.loads(results.read_text(encoding="utf-8"))
        if not device.is_called(str(data["device"])):
            return []
        rows = data["backbones"].get(backbone, [])
        return [row for row in rows if row["section"].endswith("step") and row["unit"] == "s"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--results {results} cannot be used", repr(error), "give a file that benchmarks/gpu.py --json wrote"
        ) from error


def _print(plan: dict[str, Any]) -> None:
    parts = [(p["name"], f"{p['parameters']:,}", _gib(p["bytes"])) for p in plan["parts"]]
    parts.append(("frozen base", f"{plan['parameters']:,}", _gib(plan["weight_bytes"])))
    parts += [(f"{role} adapter", f"{count:,}", _gib(4 * count)) for role, count in plan["adapters"].items()]
    print_table((plan["backbone"], "parameters", "GiB"), parts, numeric_from=1)
    width, height = plan["image"]
    cache = plan["kv_bytes_per_token"] / 1024
    print(f"\nan image of {width}x{height} pixels is {plan['image_tokens']} tokens; {cache:.3g} KiB of cache a token")
    for step in plan["steps"]:
        _print_step(step, plan)
    if not plan["measured"]:
        print(f"\nno measurement for {plan['device']}; benchmarks/gpu.py --json FILE makes one for --results FILE")
    else:
        print()
        print_table(
            ("measured", "seconds"),
            [(f"{row['section']}, {row['name']}", f"{row['value']:.2f}") for row in plan["measured"]],
            numeric_from=1,
        )


def _print_step(step: dict[str, Any], plan: dict[str, Any]) -> None:
    what = "images" if step["kind"] == "understanding" else "prompts"
    memory = plan["memory_bytes"]
    print(f"\n{step['kind']} step, {step['images']} {what}: memory")
    print_table(("what", "GiB"), [(name, _gib(value)) for name, value in step["bytes"].items()], numeric_from=1)
    verdict = "fits" if step["fits"] else "DOES NOT FIT"
    print(f"{verdict} {memory / GIB:.0f} GiB; at most {step['images_that_fit']} {what} a step fit")
    print(f"\n{step['kind']} step, {step['images']} {what}: time on {plan['device']}, at least")
    summed = ("calls", "flops", "read", "seconds", "seconds_captured")
    total = {"name": "step", **{key: sum(p[key] for p in step["phases"]) for key in summed}}
    rows = [
        (
            p["name"],
            str(p["calls"]),
            f"{p['flops'] / 1e12:.3g}",
            f"{p['read'] / 1e9:.0f}",
            f"{p['seconds']:.2f}",
            f"{p['seconds_captured']:.2f}",
        )
        for p in [*step["phases"], total]
    ]
    print_table(("phase", "calls", "TFLOP", "GB read", "s", "s captured"), rows, numeric_from=1)


def _gib(count: int) -> str:
    return f"{count / GIB:.3g}"
