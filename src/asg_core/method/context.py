"""What a step needs to know besides model and images: settings, step number, seeds, and its part of the whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from asg_core.config.schema import RunConfig
from asg_core.config.seeding import derive_seed

Item = TypeVar("Item")


class Gather:
    """Joins the shares of a step that several processes work on, which must all make the same calls. This one is of a
    single process, whose share is the whole step."""

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of all processes in the order of the step's images; own items are the objects given."""
        return list(items)

    def before(self, count: int) -> int:
        """Return the sum of ``count`` over the shares before this process's."""
        return 0


@dataclass(frozen=True)
class StepContext:
    """One step of a run.

    Attributes:
        config: settings of the run.
        number: 1-based number of the step; with the run's seed it fixes every random draw.
        gather: joins the shares of several processes.
        offset: place of this process's first image among the step's images.
        groups_at_once: groups (Generator: candidates) per backward pass; 0: ``optimizer.micro_batch``.
    """

    config: RunConfig
    number: int
    gather: Gather = field(default_factory=Gather)
    offset: int = 0
    groups_at_once: int = 0

    def seed(self, *path: int | str) -> int:
        """Return the seed of ``path`` in this step, e.g. ("solve", question, framing)."""
        return derive_seed(self.config.seed, self.number, *path)
