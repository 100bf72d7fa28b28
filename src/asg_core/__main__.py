"""``python -m asg_core``, the same as ``asg``."""

from __future__ import annotations

from asg_core.cli import main

raise SystemExit(main())
