"""What a section may do, at the most."""

from __future__ import annotations

from collections import Counter

from devkit.pretended_cuda.workload import Section

SYNCS_PER = {"pass": 1, "step": 0, "scale": 1}
"""Host synchronisations per repetition of a loop: the ids of a decoding pass, the bits of a scale."""
SYNCS_PER_OPTIMISER_STEP = 8
FLOPS_WITHIN = 0.03
"""Of the plan, relative."""


def complaints(section: Section) -> list[str]:
    """The bars that ``section`` misses, in words; an empty list is a pass."""
    counts = section.counts
    found = [f"host and device meet at {line}" for line in counts.mixtures]
    found += [f"a GPU refuses, at {line}" for line in counts.refused]
    found += [f"the math kernel of attention: {call}" for call in counts.attention if call.startswith("math")]
    found += [f"a backward pass waits at {line}" for line in counts.backward_syncs]
    if section.per is not None:
        named = {"pass": "passes", "step": "steps", "scale": "scales"}[section.per]
        syncs, blocking = _in_loop(section, counts.syncs), _in_loop(section, counts.blocking)
        if sum(syncs.values()) > SYNCS_PER[section.per] * section.times:
            found.append(f"{section.times} {named} wait {sum(syncs.values())} times: {syncs}")
        if blocking:
            found.append(f"{section.times} {named} make copies that wait: {blocking}")
    for update, steps in section.updates:
        waits = update.syncs + update.blocking
        if waits.total() > SYNCS_PER_OPTIMISER_STEP * steps:
            found.append(f"an update of {steps} optimizer steps waits {waits.total()} times: {dict(waits)}")
    if section.planned_flops is not None:
        ratio = counts.flops.total() / section.planned_flops
        if abs(ratio - 1) > FLOPS_WITHIN:
            found.append(f"{counts.flops.total() / 1e12:.3f} TFLOP are {ratio:.3f} times the plan's")
    return found


def _in_loop(section: Section, lines: Counter[str]) -> dict[str, int]:
    return {line: count for line, count in lines.items() if count >= section.looped}
