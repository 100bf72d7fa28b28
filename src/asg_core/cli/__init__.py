"""The command line: ``asg VERB``. One module per verb, imported when it is called; nothing heavy before it runs."""

from asg_core.cli.main import main as main
