"""Sample questions about an image from the base model, or with --run from the run's Proposer."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from asg_core.backbones.interface import Role
from asg_core.cli.common import add_json, add_model_options, at_least_one, open_model, print_json
from asg_core.config.seeding import derive_seed
from asg_core.data.image_file import open_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("--n", type=at_least_one, metavar="N", help="how many (default: ask.questions_per_image)")
    add_model_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print one question per line; completions that are no question say why."""
    from asg_core.method.understanding import ask_questions

    image = open_image(args.image)
    model = open_model(args)
    settings, seed = model.config.ask, partial(derive_seed, model.config.seed)
    if args.n:
        settings = settings.model_copy(update={"questions_per_image": args.n})
    (questions,) = ask_questions(model.backbone, [image], settings, seed, role=model.role(Role.PROPOSER))
    if args.json:
        print_json([{"question": q.text, "gate": q.gate, "completion": q.completion.text} for q in questions])
    else:
        for q in questions:
            print(q.text or f"[no question: {q.gate}] {q.completion.text!r}")
    return 0
