"""Public tools for backbone authors: the parity runner."""

from asg_core.testing.parity import ParityCase, ParityReport, ParityRun, run_parity

__all__ = ["ParityCase", "ParityReport", "ParityRun", "run_parity"]
