from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asg_core.errors import RunFolderError
from asg_core.runs.folder import RunFolder, read_json_lines, write_json


def test_a_run_never_overwrites_another(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "x")
    folder.config.write_text("steps: 1\n")
    folder.close()
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(tmp_path / "x")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(tmp_path / "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.create(tmp_path / "x")


def test_impossible_parent_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "x")


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "x")
    folder.config.write_text("steps: 1\n")
    script = (
        "from asg_core.runs.folder import RunFolder; from pathlib import Path; "
        f"RunFolder.reopen(Path({str(folder.path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} is writing it" in done.stderr
    folder.close()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_torn_last_line_is_left_out_and_truncation_keeps_whole_steps(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "x")
    for step in (1, 2, 3):
        folder.append(folder.metrics, {"step": step})
    with folder.metrics.open("a") as out:
        out.write('{"step": 4, "ki')
    assert [r["step"] for r in read_json_lines(folder.metrics)] == [1, 2, 3]
    folder.truncate_metrics(2)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


def test_json_refuses_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
