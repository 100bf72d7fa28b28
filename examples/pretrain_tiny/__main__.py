"""``python examples/pretrain_tiny``: see README.md."""

import sys

from pretrain_tiny.cli import main

sys.exit(main(sys.argv[1:]))
