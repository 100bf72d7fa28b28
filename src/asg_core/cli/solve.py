"""Answer a question under seven framings: the vote, its entropy and the Solver's token entropy."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from asg_core.backbones.interface import Role
from asg_core.cli.common import add_json, add_model_options, open_model, print_json
from asg_core.cli.tables import print_table
from asg_core.config.seeding import derive_seed
from asg_core.data.image_file import open_image
from asg_core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    add_model_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the answers and what they say together."""
    if not args.question.strip():
        raise ConfigError("the question is empty", "there is nothing to answer", 'e.g. asg solve IMAGE "What is this?"')
    image = open_image(args.image)
    model = open_model(args)
    from asg_core.method.understanding import solve_questions

    seed, role = partial(derive_seed, model.config.seed), model.role(Role.SOLVER)
    (found,) = solve_questions(model.backbone, [(image, args.question)], model.config, seed, role=role)
    vote, greedy = found.vote, found.greedy.text if found.greedy else None
    if args.json:
        print_json(
            {
                "question": args.question,
                "answers": [{"framing": a.framing, "text": a.sample.text, "label": a.label} for a in found.answers],
                "votes": vote.shares,
                "majority": vote.majority,
                "tied": vote.tied,
                "f": vote.majority_share,
                "margin": vote.margin,
                "h_sc": vote.entropy,
                "greedy": greedy,
                "ste": found.ste,
            }
        )
        return 0
    print_table(("framing", "answer", "label"), [(a.framing, a.sample.text.strip(), a.label) for a in found.answers])
    votes = ", ".join(f"{label or '(empty)'} {share:.2f}" for label, share in vote.shares.items())
    print(f"\nvote      {vote.majority or '(empty)'}{' (tied)' if vote.tied else ''}   [{votes}]")
    print(f"f, m      {vote.majority_share:.4f}, {vote.margin:.4f}")
    print(f"H_sc      {vote.entropy:.4f} nats")
    ste = "none" if found.ste is None else f"{found.ste:.4f} nats"
    print(f"STE       {ste}" + ("" if greedy is None else f"   (greedy answer: {greedy.strip()!r})"))
    return 0
