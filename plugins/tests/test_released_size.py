"""The plugins' real code at released width on a pretended GPU: what waits, what mixes, what it costs.

Two layers of every kind; ``tox -e soak`` does the same at released depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from devkit.pretended_cuda import PretendedCuda
from devkit.pretended_cuda.bars import complaints
from devkit.pretended_cuda.workload import SECTIONS, Workload
from devkit.sizes import at_full_size


@pytest.fixture(scope="module", params=["bagel", "blip3o", "vargpt"])
def workload(request: pytest.FixtureRequest, pretended: Callable[[], PretendedCuda]) -> Iterator[Workload]:
    """A backbone on a device."""
    pytest.importorskip(f"asg_{request.param}", reason=f"asg-{request.param} is not installed")
    with pretended() as card:
        yield Workload(card, request.param, "slice")


ALWAYS = [section for section in SECTIONS if "8 images" not in section]


@pytest.mark.parametrize("section", at_full_size(ALWAYS, sorted({*SECTIONS} - {*ALWAYS})))
def test_a_section_keeps_within_its_bars(workload: Workload, section: str) -> None:
    seen = workload.run(section)
    assert seen.counts.launches > 100
    assert complaints(seen) == []
