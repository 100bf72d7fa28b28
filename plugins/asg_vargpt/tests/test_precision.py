"""Bits are signs of the VAE's output, so its convolutions are never TF32, whatever the rest of the process wants."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.modeling_vae import exact_convolutions

CONVOLUTIONS = torch.backends.cudnn.conv


@pytest.fixture(params=["tf32", "ieee"])
def setting(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the process has set, put back afterwards."""
    before = CONVOLUTIONS.fp32_precision
    CONVOLUTIONS.fp32_precision = request.param
    yield request.param
    CONVOLUTIONS.fp32_precision = before


def test_both_halves_of_the_vae_run_exactly_and_nothing_else_does(awake: VargptBackbone, setting: str) -> None:
    vae = awake.model.vae
    seen: list[str] = []
    convolutions = [module for module in vae.modules() if isinstance(module, torch.nn.Conv2d)]
    handles = [c.register_forward_hook(lambda *_: seen.append(CONVOLUTIONS.fp32_precision)) for c in convolutions]
    with torch.no_grad():
        vae.decode(vae.encode(torch.zeros(1, 3, 32, 32)))
    for handle in handles:
        handle.remove()
    assert len(seen) == len(convolutions) > 0
    assert set(seen) == {"ieee"}
    assert CONVOLUTIONS.fp32_precision == setting


def test_the_setting_comes_back_after_an_error(awake: VargptBackbone, setting: str) -> None:
    with pytest.raises(RuntimeError):
        awake.model.vae.encode(torch.zeros(1, 4, 32, 32))
    assert CONVOLUTIONS.fp32_precision == setting


def test_threads_that_overlap_all_run_exactly_and_the_last_one_out_restores(setting: str) -> None:
    entered, first_left = Barrier(2), Barrier(2)
    seen: list[str] = []

    def first() -> None:
        with exact_convolutions():
            entered.wait(10)
        first_left.wait(10)

    def second() -> None:
        with exact_convolutions():
            entered.wait(10)
            first_left.wait(10)
            seen.append(CONVOLUTIONS.fp32_precision)

    threads = [Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == ["ieee"]
    assert CONVOLUTIONS.fp32_precision == setting


def test_a_process_that_uses_the_older_switch_finds_it_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            with exact_convolutions():
                pass
            assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cudnn.allow_tf32 = before
