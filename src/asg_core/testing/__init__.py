"""Public tools for backbone authors: the conformance kit and the parity runner."""

from asg_core.testing.conformance import BackboneConformance, Report, check_backbone
from asg_core.testing.parity import ParityCase, ParityReport, ParityRun, run_parity

__all__ = [
    "BackboneConformance",
    "ParityCase",
    "ParityReport",
    "ParityRun",
    "Report",
    "check_backbone",
    "run_parity",
]
