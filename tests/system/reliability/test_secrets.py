"""No secret of the environment gets into anything that is written or shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CANARY = "canary-8f1c2d3e"
HOME = "home-of-canary-77ab"

SCRIPT = """
import sys
from asg_core.cli import main
codes = [main(words.split("|")) for words in sys.argv[1:]]
print("codes", codes)
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run and all that its commands printed, in an environment full of secrets."""
    base = tmp_path_factory.mktemp("secrets")
    home = base / HOME
    home.mkdir()
    (home / ".netrc").write_text(f"password {CANARY}")
    work = base / "work"
    work.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "HF_TOKEN": f"hf_{CANARY}",
        "WANDB_API_KEY": CANARY,
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "MY_PASSWORD": CANARY,
        "ASG_CANARY": CANARY,
        "USER": CANARY,
        "LOGNAME": CANARY,
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(work),
        "MPLCONFIGDIR": str(base / "mpl"),
    }
    commands = [
        "train|out=run|steps=2|evaluate=false|images_per_step=1|schedule.ratio=[1,1]|checkpoint_every_steps=1|lora.rank=2",
        "doctor",
        "doctor|--json",
        "plugins|--json",
        "config",
        "report|run",
        "train|resume=run|steps=2",
        "train|images=${oc.env:HF_TOKEN}",
        "train|out=${oc.env:ASG_CANARY}",
        "train|steps=$ASG_CANARY",
        "train|images=~/nothing",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *commands],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "codes [0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 3]" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]
    return work, done.stdout + done.stderr


def test_no_secret_reaches_a_checkpoint_log_report_or_any_other_file(traces: tuple[Path, str]) -> None:
    files = [p for p in traces[0].rglob("*") if p.is_file()]
    assert {"report.html", "manifest.json", "state.json", "metrics.jsonl", "config.yaml"} <= {p.name for p in files}
    for secret in (CANARY, HOME):
        assert [p for p in files if secret.encode() in p.read_bytes() or secret in p.name] == []


def test_no_secret_is_printed_by_training_doctor_or_errors(traces: tuple[Path, str]) -> None:
    assert "no problem found" in traces[1] or "disk space" in traces[1]
    assert CANARY not in traces[1]
    assert HOME not in traces[1]
