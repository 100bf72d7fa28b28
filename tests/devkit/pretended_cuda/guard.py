"""Builds ``guard.cpp`` once per version of it and of torch, and switches it on and off in this process."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("guard.cpp")
_COMPILERS = ("c++", "g++", "clang++")


def obstacle() -> str | None:
    """Why there can be no pretended device here; None if there can."""
    if torch.version.cuda is not None:
        return "this build of torch has CUDA of its own"
    if _compiler() is None:
        return f"the pretended device needs a C++ compiler, and none of {', '.join(_COMPILERS)} is installed"
    return None


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, torch believes that there is one CUDA device.

    Raises:
        RuntimeError: there is an :func:`obstacle`, or the guard cannot be compiled.
    """
    library = _library()
    _kernels()
    library.pretend(True)
    try:
        yield
    finally:
        library.pretend(False)


@cache
def _kernels() -> torch.library.Library:
    """Kernels that CUDA has and a CPU build knows nothing of: without them torch takes the operation apart, which makes
    tensors that a GPU does not. Nobody calls them: the device sees the operation first."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu_backward", lambda *_: None, "CUDA")
    return library


@cache
def _library() -> ctypes.CDLL:
    if (why := obstacle()) is not None:
        raise RuntimeError(why)
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    built = _folder() / f"guard-{key}.so"
    if not built.exists():
        _build(built)
    return ctypes.CDLL(str(built))


def _folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "asg-pretended-cuda"


def _build(target: Path) -> None:
    """Compile into ``target``; two processes at once do not meet."""
    root = Path(torch.__file__).parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        words = [str(_compiler()), "-O1", "-std=c++20", "-shared", "-fPIC", str(SOURCE), "-o", str(made)]
        words += [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}\n{done.stderr[-2000:]}")
        made.replace(target)
