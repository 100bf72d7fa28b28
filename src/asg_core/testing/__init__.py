"""Public tools for backbone authors: conformance, counts and parity."""

from asg_core.testing.conformance import BackboneConformance, Report, check_backbone
from asg_core.testing.costs import BackboneCosts
from asg_core.testing.parity import ParityCase, ParityReport, ParityRun, run_parity

__all__ = [
    "BackboneConformance",
    "BackboneCosts",
    "ParityCase",
    "ParityReport",
    "ParityRun",
    "Report",
    "check_backbone",
    "run_parity",
]
