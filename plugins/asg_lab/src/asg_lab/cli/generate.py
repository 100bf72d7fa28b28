"""``asg generate --prompts FILE --layout NAME``: draw a benchmark's prompts into the folder that its scorer reads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from asg_core.backbones.interface import ImageSampling, Role
from asg_core.cli.common import open_model, print_json, progress_bar
from asg_core.errors import ConfigError, OutOfMemory, did_you_mean
from asg_core.evaluation.digests import file_digest
from asg_core.evaluation.protocol import Items, make_protocol
from asg_core.runs.folder import write_atomically, writing_to
from asg_core.training.memory import is_out_of_memory
from asg_lab.layouts import LAYOUTS, Layout
from asg_lab.prompt_files import read_prompts
from asg_lab.sheets import claim_folder, draw_sheets


def run(args: argparse.Namespace) -> int:
    """Draw what is not drawn yet, and print how much there is."""
    layout = _layout(args)
    out = args.out or Path("drawn", layout.name)
    form, prompts = read_prompts(args.prompts)
    n = args.n or layout.usual
    layout.require(form, prompts, n)
    model = open_model(args)
    sheets = layout.sheets(prompts, n, model.config.seed, args.prompts.stem)
    sampling = ImageSampling("quality", model.config.generate.temperature)
    protocol = make_protocol(
        model.backbone,
        model.config,
        Items(args.prompts.name, file_digest(args.prompts, "*.txt"), len(prompts)),
        trained=model.trained,
        sampling={
            "layout": layout.name,
            "samples_per_prompt": n,
            "profile": sampling.profile,
            "temperature": sampling.temperature,
        },
        judge=None,
    )
    try:
        with writing_to(out), progress_bar("drawing") as progress:
            claim_folder(out, protocol)
            _write_texts(out, layout.texts(out, prompts, sheets))
            drawn = draw_sheets(
                model.backbone, model.role(Role.GENERATOR), sheets, out, sampling, args.batch_size, progress
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory while drawing {args.batch_size} images at a time",
            "they need more memory than the device has; what is drawn already is kept",
            "repeat the command with a lower --batch-size",
        ) from error
    if args.json:
        print_json({"out": str(out), "files": len(sheets), "drawn": drawn, "kept": len(sheets) - drawn})
    else:
        print(f"{out}: {len(sheets)} images for {layout.scorer}, {drawn} drawn now")
    return 0


def _layout(args: argparse.Namespace) -> Layout:
    """The layout that the arguments name. ConfigError if it is unknown or the other arguments do not go with it."""
    if args.prompts is None or args.layout is None:
        raise ConfigError(
            "a layout needs a prompt file, and a prompt file a layout",
            "--prompts and --layout go together",
            "e.g. asg generate --prompts evaluation_metadata.jsonl --layout geneval",
        )
    if args.layout not in LAYOUTS:
        raise ConfigError(
            f"there is no layout {args.layout!r}",
            f"--layout names {', '.join(LAYOUTS)}",
            did_you_mean(args.layout, LAYOUTS),
        )
    if args.prompt is not None:
        if "=" not in args.prompt:
            raise ConfigError("one prompt and --prompts were given", "it is one or the other", "leave one of them out")
        args.overrides.insert(0, args.prompt)  # argparse takes the first key=value word for PROMPT
    return LAYOUTS[args.layout]


def _write_texts(out: Path, texts: Mapping[Path, str]) -> None:
    """Write the small files of a layout that are not there yet or say something else."""
    for path, text in texts.items():
        file = out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_atomically(file, text)
