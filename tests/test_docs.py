"""The docs stay true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_paper_map_names_the_right_file_and_line() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "refresh.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr or "stale: run python docs/refresh.py"


def test_every_metric_key_is_documented() -> None:
    from asg_core.monitor import generation_metrics, understanding_metrics

    page = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
    assert [key for key in {**understanding_metrics([]), **generation_metrics([])} if f"`{key}`" not in page] == []


def test_every_alarm_is_documented() -> None:
    import inspect
    import re

    from asg_core import monitor

    names = re.findall(r'self\._(?:above|below)\("([a-z-]+)"', inspect.getsource(monitor))
    page = (ROOT / "docs" / "alarms.md").read_text(encoding="utf-8")
    assert len(names) == 5
    assert [name for name in names if f"`{name}`" not in page] == []
