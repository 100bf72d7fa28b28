"""The command line: ``asg VERB``. One module per verb; nothing heavy is imported before a verb runs."""

from asg_core.cli.main import main

__all__ = ["main"]
