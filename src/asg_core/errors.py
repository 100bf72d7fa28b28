"""Typed errors. Every error a user can meet says what happened, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class AsgError(Exception):
    """Base of all errors that asg_core raises on purpose.

    Args:
        what: what happened, one sentence, with the offending value.
        why: the cause.
        fix: what the reader can do now.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  fix: {self.fix}"


class ConfigError(AsgError):
    """A configuration value is unknown, malformed or out of range."""

    exit_code = 2


class ImageError(AsgError):
    """An image file or a folder of images cannot be used."""

    exit_code = 3


class PluginError(AsgError):
    """A backbone plugin is missing, broken or incompatible."""

    exit_code = 4


class CapabilityError(AsgError):
    """A backbone was asked for something that its capabilities say it cannot do."""

    exit_code = 4


class WeightsError(AsgError):
    """A file of weights is missing, truncated, or does not fit the model."""

    exit_code = 5


class CheckpointError(AsgError):
    """A checkpoint of a run is damaged, incomplete, or from another run."""

    exit_code = 5


class RunFolderError(AsgError):
    """The output folder cannot be used."""

    exit_code = 6


class TrainingStopped(AsgError):
    """Training stopped on purpose because going on would harm the model (alarm, repeated non-finite values)."""

    exit_code = 7


class OutOfMemory(AsgError):
    """A step needs more memory than the device has."""

    exit_code = 7


class ProcessError(AsgError):
    """Another process of the same run has ended, or no longer agrees with this one."""

    exit_code = 8


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is most likely a misspelling of, itself if it is known; None if none is near."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known name, or lists all of them when none is near.

    >>> did_you_mean("tinny", ["tiny", "bagel"])
    "Did you mean 'tiny'?"
    """
    names = sorted(known)
    if near := nearest(name, names):
        return f"Did you mean {near!r}?"
    return f"Known: {', '.join(names)}." if names else "None is known."
