"""Where the host waits for the device, and who makes it: counted by line on the device that is not there."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asg_core.backbones import devices
from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.backbones.loading import load_backbone
from asg_core.method.prompts import QUESTION_PROMPT
from asg_core.testing.fake_device import NAME, FakeDeviceTensor, fake_device, obstacle

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))

PLUGINS = Path(__file__).resolve().parents[1]
NEW_TOKENS = 5
SHORT, LONG = 3, 5
"""Denoising steps of the two drawings that are compared."""
SCALES = 7
"""Of VARGPT's smallest image."""
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
DATA_DEPENDENT = (
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal"),
    "repeat_interleave",
)


class Waits(TorchDispatchMode):
    """Counts reads from the far device and copies to it that are waited for, each by the project's line."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = op.overloadpacket.__name__
        if name not in (*COPIES, *INDEXING, *DATA_DEPENDENT):
            return op(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        far = [isinstance(tensor, FakeDeviceTensor) for tensor in tensors]
        target = kwargs.get("device")
        if name in COPIES and not tensors[0].numel():
            pass  # nothing to copy
        elif name == "_to_copy" and target is not None and far[0] != (torch.device(target).type == NAME):
            if far[0]:
                self.reads[line()] += 1
            elif not kwargs.get("non_blocking"):
                self.writes[line()] += 1
        elif name == "copy_" and far[0] != far[1]:
            (self.writes if far[0] else self.reads)[line()] += 1
        elif any(far) and name in DATA_DEPENDENT and kwargs.get("output_size") is None:
            self.reads[line()] += 1
        elif any(far) and name in INDEXING:
            indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)]
            if any(index.dtype == torch.bool for index in indices):
                self.reads[line()] += 1
            if far[0] and not all(isinstance(index, FakeDeviceTensor) for index in indices):
                self.writes[line()] += 1
        return op(*args, **kwargs)

    def of(self, work: Callable[[], object]) -> dict[str, dict[str, int]]:
        """Reads and writes of ``work``."""
        self.reads.clear()
        self.writes.clear()
        work()
        return {"reads": dict(self.reads), "writes": dict(self.writes)}


def line() -> str:
    """The innermost line of the project that is running now."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if "/asg_" in file and "/tests/" not in file and "/asg_core/testing/" not in file:
            return f"{file.rpartition('/asg_')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    raise AssertionError("no line of the project is running")


def picture(seed: int, width: int = 88, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def loaded(name: str, device: str) -> Backbone:
    """The recorded checkpoint; "quality" draws in SHORT steps and "rollout" in LONG ones, where there are steps."""
    if name in ("tiny", "tiny_flow"):
        options: dict[str, Any] = {} if name == "tiny" else {"quality_steps": SHORT, "rollout_steps": LONG}
        return load_backbone(name, device=device, dtype="float32", options=options)
    folder = "ckpt" if name == "vargpt" else "checkpoint"
    options = {
        "bagel": {"vision_shortest": 28}
        | {profile: {"num_timesteps": n + 1} for profile, n in (("quality", SHORT), ("rollout", LONG))},
        "blip3o": {"eva_head_width": 16}
        | {
            profile: {"flow_steps": n, "decoder_steps": n, "height": 32, "width": 32}
            for profile, n in (("quality", SHORT), ("rollout", LONG))
        },
        "vargpt": {profile: {"resolution": "0.06M"} for profile in ("quality", "rollout")},
    }[name]
    weights = PLUGINS / f"asg_{name}/tests/fixtures/golden" / folder
    return load_backbone(name, weights=weights, device=device, dtype="float32", options=options)


def measure(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By backbone and job, reads and writes by line."""
    with (
        mock.patch.object(devices, "_STAGING", frozenset({NAME})),
        fake_device() as device,
        Waits() as waits,
        mock.patch.object(FakeDeviceTensor, "tolist", lambda tensor: tensor.cpu().tolist()),
    ):
        return {name: _measured(loaded(name, device), waits) for name in names}


def _measured(backbone: Backbone, waits: Waits) -> dict[str, Any]:
    shown = [picture(1), picture(2, 60, 88), picture(3)]
    requests = [TextRequest(QUESTION_PROMPT, one, seed) for seed, one in enumerate([*shown, shown[0], None])]
    found: dict[str, Any] = {}

    def answer() -> None:
        found["samples"] = backbone.solve(requests, TextSampling(NEW_TOKENS))

    def score() -> None:
        scores = backbone.token_logits(found["samples"], Role.SOLVER, base=True)
        torch.cat([one.logprobs for one in scores]).sum().backward()

    prompts = [ImageRequest(text, seed) for seed, text in enumerate(["a kite", "a red and green kite", "a kite"])]

    def draw(profile: Any) -> Callable[[], None]:
        def once() -> None:
            found["drawn"] = backbone.generate(prompts, ImageSampling(profile))

        return once

    def learn() -> None:
        learned = backbone.generation_loss(found["drawn"], [0, 1, 2])
        (learned.loss.sum() + learned.penalty.sum()).backward()

    backbone.generate(prompts, ImageSampling("quality"))  # tables that are made once
    backbone.embed([picture(9)])
    jobs: Mapping[str, Callable[[], object]] = {
        "solve": answer,
        "score": score,
        "short": draw("quality"),
        "long": draw("rollout"),
        "learn": learn,
        "embed": lambda: backbone.embed([picture(7), picture(8, 60, 60), "a kite"]),
    }
    counted: dict[str, Any] = {job: waits.of(work) for job, work in jobs.items()}
    counted["passes"] = max(len(sample.token_ids) for sample in found["samples"])
    return counted


NAMES = ("tiny", "tiny_flow", "bagel", "blip3o", "vargpt")


@cache
def measured() -> dict[str, dict[str, Any]]:
    """:func:`measure` of every backbone that is installed."""
    names = [name for name in NAMES if name.startswith("tiny") or find_spec(f"asg_{name}")]
    # not a fork of this process, whose autograd may know the pretended device and then refuses to run in forks
    done = subprocess.run([sys.executable, __file__, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def counts(name: str) -> dict[str, Any]:
    """By job, reads and writes by line."""
    if name not in measured():
        pytest.skip(f"asg-{name} is not installed")
    return measured()[name]


BACKBONES = pytest.mark.parametrize("name", NAMES)


def total(reads: Mapping[str, int], *places: str) -> int:
    return sum(n for place, n in reads.items() if not places or any(part in place for part in places))


@BACKBONES
def test_no_copy_to_the_device_is_waited_for(name: str) -> None:
    jobs: Sequence[str] = ("solve", "score", "short", "long", "learn", "embed")
    assert {job: counts(name)[job]["writes"] for job in jobs} == {job: {} for job in jobs}


@BACKBONES
def test_answers_are_fetched_once_a_pass_and_the_vision_tower_fetches_nothing(name: str) -> None:
    """One read a pass: what was drawn, with its log-prob and entropy."""
    reads = counts(name)["solve"]["reads"]
    assert total(reads) == total(reads, "decoding/sampling.py") == counts(name)["passes"], reads


@BACKBONES
def test_scoring_and_learning_fetch_nothing(name: str) -> None:
    assert counts(name)["score"]["reads"] == {}
    assert counts(name)["learn"]["reads"] == {}


@pytest.mark.parametrize(("name", "pictures"), [("tiny_flow", 1), ("bagel", 3), ("blip3o", 1)])
def test_a_denoising_step_fetches_nothing(name: str, pictures: int) -> None:
    """At the end pictures are, one by one where memory asks for it, and the latents of all."""
    for job in ("short", "long"):
        reads = counts(name)[job]["reads"]
        assert total(reads) == pictures + 1, reads


def test_a_scale_fetches_once() -> None:
    """Beside that, each picture and what is stored of all."""
    reads = counts("vargpt")["long"]["reads"]
    assert total(reads, "sampling.py") == SCALES
    assert total(reads) == SCALES + 3 + 2, reads


@BACKBONES
def test_embedding_fetches_at_most_the_result(name: str) -> None:
    assert total(counts(name)["embed"]["reads"]) <= 2, counts(name)["embed"]["reads"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1:])))
