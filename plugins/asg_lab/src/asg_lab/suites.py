"""Held-out suites that any backbone with text can be scored on, beside the one that its own plugin brings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True)
class HeldOutSuite:
    """A suite: ``module:function(EvaluationRequest) -> list[EvalItem]``, and the package that its data come from."""

    target: str
    package: str


SUITES = {"easy_vqa": HeldOutSuite("asg_lab.easy_vqa:evaluate", "easy-vqa")}
"""By the name that ``asg eval --suite`` takes."""


def under_suite(protocol: dict[str, Any], suite: HeldOutSuite) -> dict[str, Any]:
    """The protocol of an evaluation by the backbone's own suite, as one by ``suite``: source, judge, data version."""
    try:
        data: str | None = version(suite.package)
    except PackageNotFoundError:
        data = None
    return {
        **protocol,
        "items": {**protocol["items"], "source": suite.target},
        "sampling": {"suite": suite.target},
        "judge": suite.target,
        "versions": {**protocol["versions"], suite.package: data},
    }
