"""Shares, messages and launchers, whatever is trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asg_core.errors import ConfigError
from asg_core.training.distributed import Processes, start_accelerator

from .conftest import Launch


def test_gradients_are_summed_and_what_nobody_used_is_left_alone(launch: Launch) -> None:
    """By hand, three processes: the first brings no loss; 10 and 100 pull at "all", 3 at "last". No weight decay and no
    moment for "none", as in one process."""
    first, *others = (o["result"] for o in launch(3, "optimised"))
    assert others == [first, first]
    assert first["loss"] == 2 * 10 + 2 * 100 + 2 * 3
    assert first["norm"] == pytest.approx(math.sqrt(2 * 110**2 + 2 * 3**2), rel=1e-6)
    assert first["sums"] == [0 + 1 + 2, 3]
    assert first["state"] == {
        "all.step": 1.0,
        "all.exp_avg": pytest.approx([11.0, 11.0]),
        "last.step": 1.0,
        "last.exp_avg": pytest.approx([0.3, 0.3]),
    }
    assert first["weights"]["all"] == pytest.approx([1 - 0.1 * 0.5 - 0.1] * 2)
    assert first["weights"]["none"] == [1.0, 1.0]


def test_control_messages_arrive_as_they_were_sent(launch: Launch) -> None:
    found = [o["result"] for o in launch(3, "gathered")]
    assert [f["same"] for f in found] == [True] * 3
    assert [f["starts"] for f in found] == [[0, 0], [1, 0], [2, 10]]
    assert [(f["before"], f["stopping"]) for f in found] == [(False, True)] * 3


@given(total=st.integers(0, 200), count=st.integers(1, 40))
def test_shares_are_neighbours_that_cover_everything_evenly(total: int, count: int) -> None:
    shares = []
    for rank in range(count):
        processes = Processes()
        processes.rank, processes.count = rank, count
        shares.append(processes.share(total))
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(shares[0]) == math.ceil(total / count)


def test_a_named_device_cannot_be_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="device=cuda:1 does not fit 2 processes"):
        start_accelerator("cuda:1", (), tmp_path)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="no GPU for local process 1"):
        start_accelerator("cuda", (), tmp_path)


def test_what_a_launcher_says_about_precision_and_accumulation_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both would scale the loss."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = start_accelerator("cpu", (), tmp_path)
    weight = torch.nn.Parameter(torch.ones(1))
    accelerator.backward(3 * weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3.0


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="FSDP version 1"):
        start_accelerator("cpu", (), tmp_path)
