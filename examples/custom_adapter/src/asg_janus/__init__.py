"""Janus as a backbone of asg-core. Nothing heavy is imported here."""

from __future__ import annotations
