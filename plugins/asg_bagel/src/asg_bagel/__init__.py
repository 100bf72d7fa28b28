"""BAGEL-7B-MoT behind the roles of asg_core. Importing this package imports neither torch nor transformers."""

from __future__ import annotations

__version__ = "0.1.0"
