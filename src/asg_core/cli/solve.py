"""``asg solve``: one question under the framings, the vote, its entropy, and the Solver's token entropy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from asg_core.cli.common import OpenedModel, add_json, add_model_options, add_overrides, open_model, print_json


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "solve",
        help="answer a question about an image under seven framings",
        description="Answer a question under seven framings: the vote, its entropy and the Solver's token entropy.",
        allow_abbrev=False,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    add_model_options(parser)
    add_json(parser)
    add_overrides(parser)
    parser.set_defaults(handler=run)


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
    print(f"STE       {ste}   (greedy answer: {result['greedy'].strip()!r})")
    return 0


def _solve(model: OpenedModel, image: Any, question: str) -> dict[str, Any]:
    from asg_core.backbones.interface import Role, TextRequest, TextSampling
    from asg_core.config.seeding import derive_seed
    from asg_core.method.answers import canonical_label, vote
    from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, frame
    from asg_core.method.token_entropy import solver_token_entropy

    config, role = model.config, model.role(Role.SOLVER)
    framings = FRAMINGS[: config.solve.framings]
    requests = [
        TextRequest(frame(question, framing), image, derive_seed(config.seed, "solve", i))
        for i, framing in enumerate(framings)
    ]
    requests.append(TextRequest(frame(question, CANONICAL_FRAMING), image, derive_seed(config.seed, "ste")))
    sampled, greedily = (TextSampling(config.solve.max_new_tokens, t) for t in (config.solve.temperature, 0.0))
    *samples, greedy = model.backbone.solve(requests, [*[sampled] * len(framings), greedily], role)
    labels = [canonical_label(sample.text, question) for sample in samples]
    result = vote(labels, derive_seed(config.seed, "vote"))
    return {
        "question": question,
        "answers": [
            {"framing": framing, "text": sample.text, "label": label}
            for framing, sample, label in zip(framings, samples, labels, strict=True)
        ],
        "votes": result.shares,
        "majority": result.majority,
        "tied": result.tied,
        "f": result.majority_share,
        "margin": result.margin,
        "h_sc": result.entropy,
        "greedy": greedy.text,
        "ste": solver_token_entropy(greedy, config.ste.tokens, config.ste.reduce),
    }
