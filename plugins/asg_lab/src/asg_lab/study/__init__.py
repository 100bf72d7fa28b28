"""Studies: a grid of configurations and seeds, run in parallel processes, compared pairwise (``asg study``)."""

from asg_lab.study.analysis import StudyResult, analyse
from asg_lab.study.page import write_results
from asg_lab.study.results import stored_result
from asg_lab.study.runner import run_study
from asg_lab.study.suite import Suite, load_suite, shipped_suites

__all__ = [
    "StudyResult",
    "Suite",
    "analyse",
    "load_suite",
    "run_study",
    "shipped_suites",
    "stored_result",
    "write_results",
]
