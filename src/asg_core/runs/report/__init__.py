"""The report of a run: one HTML file that needs nothing but a browser."""

from asg_core.runs.report.render import render_report

__all__ = ["render_report"]
