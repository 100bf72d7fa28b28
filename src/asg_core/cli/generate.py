"""Draw images with the base model, or with --run with the run's Generator; prints the files' paths."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.backbones.registry import load_extension
from asg_core.cli.common import add_json, add_model_options, at_least_one, open_model, print_json
from asg_core.config.seeding import derive_seed
from asg_core.errors import ConfigError
from asg_core.runs.folder import writing_to

EXAMPLES = """\
examples:
  asg generate "a red circle" --n 4
  asg generate --prompts evaluation_metadata.jsonl --layout geneval --out drawn/base
  asg generate --prompts evaluation_metadata.jsonl --layout geneval --out drawn/trained --run runs/first
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", nargs="?")
    parser.add_argument("--n", type=at_least_one, metavar="N", help="images of a prompt (default: 1, or the layout's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: here, or drawn/LAYOUT)")
    bench = parser.add_argument_group("benchmarks (asg-lab; docs/benchmarks.md)")
    bench.add_argument("--prompts", type=Path, metavar="FILE", help="prompt file, or folder of texts, of a benchmark")
    bench.add_argument(
        "--layout",
        metavar="NAME",
        help="whose scorer shall read the folder: geneval, dpg, wise or lmms; started again, it goes on",
    )
    bench.add_argument("--batch-size", type=at_least_one, default=8, metavar="B", help="images at a time (default: 8)")
    add_model_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Draw one prompt's images, or a layout, and print what was written."""
    if args.prompts is None and args.layout is None:
        return _one_prompt(args)
    return int(load_extension("option", "generate --layout")(args))


def _one_prompt(args: argparse.Namespace) -> int:
    """Draw, write PNG files named after prompt and seed, and print one path per line."""
    if args.prompt is None or not args.prompt.strip():
        raise ConfigError("the prompt is empty", "there is nothing to draw", 'e.g. asg generate "a red circle"')
    out = args.out or Path()
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    model = open_model(args)
    seed = model.config.seed
    requests = [ImageRequest(args.prompt, derive_seed(seed, "generate", i)) for i in range(args.n or 1)]
    sampling = ImageSampling("quality", model.config.generate.temperature)
    stem = "-".join(re.findall(r"[a-z0-9]+", args.prompt.casefold()))[:60].strip("-") or "image"
    rows = []
    for i, sample in enumerate(model.backbone.generate(requests, sampling, model.role(Role.GENERATOR))):
        file = out / f"{stem}-{seed}-{i}.png"
        with writing_to(file):
            sample.image.save(file)
        rows.append({"file": str(file), "prompt": args.prompt, "seed": sample.request.seed})
        if not args.json:
            print(file)
    if args.json:
        print_json(rows)
    return 0
