"""Writes the skeleton of a backbone plugin (``asg new adapter``)."""

from asg_core.scaffold.adapter import write_adapter

__all__ = ["write_adapter"]
