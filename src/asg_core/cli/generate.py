"""``asg generate``: draw images for a prompt."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from asg_core.cli.common import add_json, add_model_options, add_overrides, at_least_one, open_model, print_json


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "generate",
        help="draw images for a prompt",
        description="Draw images with the base model, or with --run with the run's Generator; prints the files' paths.",
        allow_abbrev=False,
    )
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--n", type=at_least_one, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder for the PNG files (default: the current one)"
    )
    add_model_options(parser)
    add_json(parser)
    add_overrides(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Draw, write PNG files named after prompt and seed, and print one path per line."""
    from asg_core.errors import ConfigError, RunFolderError

    if not args.prompt.strip():
        raise ConfigError("the prompt is empty", "there is nothing to draw", 'e.g. asg generate "a red circle"')
    from asg_core.roles import ImageRequest, ImageSampling, Role
    from asg_core.seeds import derive_seed

    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"--out {args.out} cannot be used", error.strerror or str(error), "choose a folder that you may write"
        ) from None
    model = open_model(args)
    seed = model.config.seed
    requests = [ImageRequest(args.prompt, derive_seed(seed, "generate", i)) for i in range(args.n)]
    sampling = ImageSampling("quality", model.config.generate.temperature)
    rows = []
    for i, sample in enumerate(model.backbone.generate(requests, sampling, model.role(Role.GENERATOR))):
        file = args.out / f"{file_stem(args.prompt)}-{seed}-{i}.png"
        try:
            sample.image.save(file)
        except OSError as error:
            raise RunFolderError(
                f"{file} cannot be written", error.strerror or str(error), "choose another folder with --out"
            ) from None
        rows.append({"file": str(file), "prompt": args.prompt, "seed": sample.request.seed})
        if not args.json:
            print(file)
    if args.json:
        print_json(rows)
    return 0


def file_stem(prompt: str) -> str:
    """A short file name from a prompt: lower-case ASCII words joined by "-"."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.casefold()))[:60].strip("-") or "image"
