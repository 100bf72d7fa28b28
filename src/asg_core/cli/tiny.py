"""``asg tiny``: commands of the embedded backbone, which parses its own arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def add_parser(verbs: Any) -> None:
    """List the verb in ``asg --help``; :func:`delegate` handles its arguments."""
    verbs.add_parser("tiny", help="commands of the embedded model, e.g. asg tiny pretrain", add_help=False)


def delegate(words: Sequence[str]) -> int:
    """Hand everything after ``asg tiny`` to the embedded backbone's own command line; returns its exit code."""
    from asg_core.tiny.cli import main

    return int(main(list(words)) or 0)
