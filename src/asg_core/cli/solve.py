"""Answer a question under seven framings: the vote, its entropy and the Solver's token entropy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from asg_core.cli.common import add_json, add_model_options, open_model, print_json
from asg_core.runs.opening import OpenedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    add_model_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the answers and what they say together."""
    from asg_core.errors import ConfigError

    if not args.question.strip():
        raise ConfigError("the question is empty", "there is nothing to answer", 'e.g. asg solve IMAGE "What is this?"')
    from asg_core.data.image_file import open_image

    image = open_image(args.image)
    result = _solve(open_model(args), image, args.question)
    if args.json:
        print_json(result)
        return 0
    from asg_core.cli.tables import print_table

    print_table(
        ("framing", "answer", "label"), [(a["framing"], a["text"].strip(), a["label"]) for a in result["answers"]]
    )
    votes = ", ".join(f"{label or '(empty)'} {share:.2f}" for label, share in result["votes"].items())
    print(f"\nvote      {result['majority'] or '(empty)'}{' (tied)' if result['tied'] else ''}   [{votes}]")
    print(f"f, m      {result['f']:.4f}, {result['margin']:.4f}")
    print(f"H_sc      {result['h_sc']:.4f} nats")
    ste = "none" if result["ste"] is None else f"{result['ste']:.4f} nats"
    greedy = "" if result["greedy"] is None else f"   (greedy answer: {result['greedy'].strip()!r})"
    print(f"STE       {ste}{greedy}")
    return 0


def _solve(model: OpenedModel, image: Any, question: str) -> dict[str, Any]:
    from functools import partial

    from asg_core.backbones.interface import Role
    from asg_core.config.seeding import derive_seed
    from asg_core.method.understanding import solve_questions

    config = model.config
    seed, role = partial(derive_seed, config.seed), model.role(Role.SOLVER)
    (found,) = solve_questions(model.backbone, [(image, question)], config, seed, role=role)
    return {
        "question": question,
        "answers": [{"framing": a.framing, "text": a.sample.text, "label": a.label} for a in found.answers],
        "votes": found.vote.shares,
        "majority": found.vote.majority,
        "tied": found.vote.tied,
        "f": found.vote.majority_share,
        "margin": found.vote.margin,
        "h_sc": found.vote.entropy,
        "greedy": found.greedy.text if found.greedy else None,
        "ste": found.ste,
    }
