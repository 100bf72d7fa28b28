"""Does a mistake get past the quick tests? ``python tests/devkit/mutants.py [--only N ...] [--jobs 2]``.

Each mutant is one line of a copy of the package changed; the tests most likely to notice run first, and if they pass,
all of tests/unit and tests/model. Exits with 1 if a mutant survives, or if tests fail on a copy that nothing changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mutant_list import MUTANTS, Mutant

TESTS = Path(__file__).resolve().parents[1]
QUICK = ("unit", "model")
LIMIT = 1200
"""Seconds for one run of tests; one that takes longer hangs, which is noticed too."""
UNCHANGED = Mutant("__init__.py", "", "", "", ())


def package() -> Path:
    """The folder of the asg_core that tests import."""
    spec = find_spec("asg_core")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def apply(mutant: Mutant, copied: Path) -> None:
    """Change one line below ``copied``. ValueError if the old fragment is not there exactly once."""
    file = copied / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times, not once")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def failure(mutant: Mutant, tests: Sequence[str]) -> str:
    """The first of ``tests`` that fails on the mutant, "" if none does. RuntimeError if they cannot be run at all."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "asg_core"
        shutil.copytree(package(), copied, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant.old:
            apply(mutant, copied)
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
        ]
        try:
            ended = subprocess.run(
                [*command, *(str(TESTS / name) for name in tests)],
                env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
                cwd=TESTS.parent,
                capture_output=True,
                text=True,
                check=False,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return "none ended in time"
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"{mutant}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return "".join(re.findall(r"^(?:FAILED|ERROR) tests/([^\s\[]+)", ended.stdout, re.MULTILINE)[:1])


def judged(mutant: Mutant, quickly: bool = False) -> str:
    """The test that kills a mutant; "survived", or "broken" where the list does not fit the source any more."""
    try:
        return failure(mutant, mutant.tests) or ("" if quickly else failure(mutant, QUICK)) or "survived"
    except (ValueError, RuntimeError) as error:
        return f"broken: {error}"


def main(words: Sequence[str] | None = None) -> int:
    """Judge the chosen mutants; exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of mutants; by default all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at the same time")
    parser.add_argument(
        "--likely", action="store_true", help="do not run all quick tests on those that pass the likely"
    )
    given = parser.parse_args(words)
    chosen = [(n, mutant) for n, mutant in enumerate(MUTANTS, start=1) if not given.only or n in given.only]
    likely = sorted({test for _, mutant in chosen for test in mutant.tests})
    if broken := failure(UNCHANGED, likely):
        print(f"on a copy that nothing changed fails {broken}")
        return 1
    start, left = time.monotonic(), 0
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = pool.map(partial(judged, quickly=given.likely), [mutant for _, mutant in chosen])
        for (n, mutant), outcome in zip(chosen, outcomes, strict=True):
            left += outcome.startswith(("survived", "broken"))
            print(f"| {n} | {mutant.file} | {mutant.harm} | {outcome} |", flush=True)
    print(f"{len(chosen) - left} of {len(chosen)} killed in {time.monotonic() - start:.0f} s")
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
