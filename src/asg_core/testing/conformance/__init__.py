"""Conformance kit: what every backbone must do, as named checks.

* :func:`check_backbone` runs them and returns a :class:`Report`,
* :class:`BackboneConformance` is a pytest class to inherit from,
* ``asg check NAME --weights DIR`` runs them from the command line.

Importing this package registers all checks in :data:`CHECKS`.
"""

from __future__ import annotations

from asg_core.testing.conformance import (  # noqa: F401 - importing a group registers its checks
    contract,
    device,
    drawing,
    embedding,
    hygiene,
    imports,
    roles,
    scoring,
    state,
    text,
)
from asg_core.testing.conformance.check import CHECKS, Check
from asg_core.testing.conformance.mixin import BackboneConformance
from asg_core.testing.conformance.runner import Outcome, Report, check_backbone
from asg_core.testing.conformance.subject import BackboneFactory
from asg_core.testing.conformance.violations import NotApplicable, Violation

__all__ = [
    "CHECKS",
    "BackboneConformance",
    "BackboneFactory",
    "Check",
    "NotApplicable",
    "Outcome",
    "Report",
    "Violation",
    "check_backbone",
]
