"""``asg ask``: questions of the Proposer about an image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from asg_core.cli.common import add_json, add_model_options, add_overrides, at_least_one, open_model, print_json


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "ask",
        help="questions about an image",
        description="Sample questions about an image from the base model, or with --run from the run's Proposer.",
        allow_abbrev=False,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("--n", type=at_least_one, metavar="N", help="how many (default: ask.questions_per_image)")
    add_model_options(parser)
    add_json(parser)
    add_overrides(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Print one question per line; completions that are no question say why."""
    from asg_core.backbones.interface import Role, TextRequest, TextSampling
    from asg_core.config.seeding import derive_seed
    from asg_core.data.image_file import open_image
    from asg_core.method.prompts import QUESTION_PROMPT, GateFailure, parse_question

    image = open_image(args.image)
    model = open_model(args)
    settings, seed = model.config.ask, model.config.seed
    requests = [
        TextRequest(QUESTION_PROMPT, image, derive_seed(seed, "ask", i))
        for i in range(args.n or settings.questions_per_image)
    ]
    sampling = TextSampling(settings.max_new_tokens, settings.temperature)
    rows: list[dict[str, str | None]] = []
    for sample in model.backbone.ask(requests, sampling, model.role(Role.PROPOSER)):
        parsed = parse_question(sample.text) if sample.finish_reason == "stop" else GateFailure("did not end")
        failed = isinstance(parsed, GateFailure)
        rows.append(
            {
                "question": None if failed else str(parsed),
                "gate": parsed.reason if isinstance(parsed, GateFailure) else None,
                "completion": sample.text,
            }
        )
    if args.json:
        print_json(rows)
    else:
        for row in rows:
            print(row["question"] or f"[no question: {row['gate']}] {row['completion']!r}")
    return 0
