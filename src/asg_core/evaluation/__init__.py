"""Held-out evaluation: records that every evaluation returns, and paired comparison of two of them."""

from asg_core.evaluation.items import EvalItem, EvaluationRequest

__all__ = ["EvalItem", "EvaluationRequest"]
