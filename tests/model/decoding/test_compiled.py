"""Decoding by compiled passes of fixed shapes: the same samples as eagerly, whatever shape, role or call came before.

Most tests leave the passes uncompiled: rounding up, masking and reuse of memory are the same then. What the compiler
decides itself (which adapter, which weights) is tested with it.
"""

from __future__ import annotations

import os
import shutil
import weakref

import pytest
import torch

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.options import BackboneOptions
from asg_core.backbones.registry import find_manifest
from asg_core.config.schema import RunConfig
from asg_core.errors import ConfigError
from asg_core.models.decoding import CompiledDecode, PrefixCache, sample_text, token_logits
from asg_core.training.fsdp import shard_base
from asg_core.training.profiler import counted
from asg_core.training.setup import check_plan
from devkit import sizes

SAMPLED, GREEDY = TextSampling(12, 0.8), TextSampling(12, 0.0)
EACH = [SAMPLED, TextSampling(3, 0.0)] * 5
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler (g++, or CXX)"
)


def uncompiled(run, device):
    return run


def traced(run, device):
    """torch.compile without code generation: its tracing, guards and recompilation, in a second and not in ten."""
    return torch.compile(run, fullgraph=True, dynamic=False, backend="eager")


def assert_same(samples, others, atol=1e-5):
    assert [s.token_ids for s in samples] == [s.token_ids for s in others]
    assert [(s.text, s.finish_reason) for s in samples] == [(s.text, s.finish_reason) for s in others]
    for sample, other in zip(samples, others, strict=True):
        assert sample.logprobs == pytest.approx(other.logprobs, rel=atol, abs=atol)
        assert sample.entropies == pytest.approx(other.entropies, rel=atol, abs=atol)


def assert_replayed(rig, samples, role, atol=1e-5):
    """The captured log-probs and entropies are those of teacher forcing."""
    with torch.no_grad():
        scores = token_logits(rig.model, samples, rig.adapters, role)
    for sample, score in zip(samples, scores, strict=True):
        assert sample.logprobs == pytest.approx(score.logprobs.tolist(), rel=atol, abs=atol)
        assert sample.entropies == pytest.approx(score.entropies.tolist(), rel=atol, abs=atol)


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY, EACH], ids=["sampled", "greedy", "each its own"])
def test_samples_are_the_eager_ones_and_those_of_teacher_forcing(rig, requests_of, sampling, monkeypatch):
    monkeypatch.setattr(rig.model, "stop_token_ids", frozenset(range(0, 256, 9)))
    requests = requests_of(rig)
    compiled = CompiledDecode(rig.model, uncompiled)
    with rig.adapters.use(Role.SOLVER):
        samples = sample_text(rig.model, requests, sampling, compiled=compiled)
        assert_same(samples, sample_text(rig.model, requests, sampling))
    assert_replayed(rig, samples, Role.SOLVER)
    assert len({len(sample.token_ids) for sample in samples}) > 2


@needs_compiler
@pytest.mark.skipif(not sizes.FULL, reason="generates code for a minute: tox -e soak")
def test_compiled_passes_are_exact_for_every_role_and_after_an_update(build_rig, requests_of):
    rig = build_rig("qwen")
    compiled = CompiledDecode(rig.model)
    requests = requests_of(rig)
    for role in (Role.SOLVER, Role.PROPOSER, Role.SOLVER, None):
        with rig.adapters.use(role):
            samples = sample_text(rig.model, requests, SAMPLED, compiled=compiled)
            assert_same(samples, sample_text(rig.model, requests, SAMPLED))
        assert_replayed(rig, samples, role)
    scale_up(rig, Role.SOLVER)
    with rig.adapters.use(Role.SOLVER):
        assert_same(
            sample_text(rig.model, requests, GREEDY, compiled=compiled), sample_text(rig.model, requests, GREEDY)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_replayed_graphs_are_exact_for_every_role_and_after_an_update(build_rig, requests_of, kind):
    rig = build_rig(kind)
    rig.full.to("cuda")
    compiled = CompiledDecode(rig.model)
    requests = requests_of(rig)
    for role in (Role.SOLVER, Role.PROPOSER, Role.SOLVER, None, Role.SOLVER):
        for asked in (requests, requests[:3], requests):
            with rig.adapters.use(role):
                samples = sample_text(rig.model, asked, SAMPLED, compiled=compiled)
                assert_same(samples, sample_text(rig.model, asked, SAMPLED), atol=2e-5)
            assert_replayed(rig, samples, role, atol=2e-5)
        scale_up(rig, Role.SOLVER, 1.1)


def scale_up(rig, role, factor=2.0):
    with torch.no_grad():
        for weight in rig.adapters.parameters(role).values():
            weight.mul_(factor)


def test_the_active_adapter_and_its_newest_weights_decide(build_rig):
    rig = build_rig("llama")
    compiled = CompiledDecode(rig.model, traced)
    requests = [TextRequest(text, None, seed) for seed, text in enumerate(["Why?", "What is to be seen?"])]

    def run(role):
        with rig.adapters.use(role):
            samples = sample_text(rig.model, requests, SAMPLED, compiled=compiled)
            assert_same(samples, sample_text(rig.model, requests, SAMPLED))
        return [sample.logprobs for sample in samples]

    first, other, base, again = (run(role) for role in (Role.SOLVER, Role.PROPOSER, None, Role.SOLVER))
    assert first == again
    assert len({str(numbers) for numbers in (first, other, base)}) == 3
    scale_up(rig, Role.SOLVER)
    assert run(Role.SOLVER) != first
    assert run(Role.PROPOSER) == other


def test_a_batch_equals_its_singles(rig, requests_of):
    requests = requests_of(rig)
    compiled = CompiledDecode(rig.model, uncompiled)
    together = sample_text(rig.model, requests, SAMPLED, compiled=compiled)
    for request, sample in zip(requests, together, strict=True):
        assert_same(sample_text(rig.model, [request], SAMPLED, compiled=compiled), [sample])


@pytest.mark.parametrize("count", [1, 2, 36, 37, 38, 150])
def test_there_is_room_for_every_token(rig_llama, count, monkeypatch):
    """Header, longest prompt and tail are 28 positions: 36 tokens fill the first slots, 37 need the next."""
    rig = rig_llama
    monkeypatch.setattr(rig.model, "stop_token_ids", frozenset())
    requests = [TextRequest("x" * 20, None, 2), TextRequest("Why?", None, 3)]
    compiled = CompiledDecode(rig.model, uncompiled)
    samples = sample_text(rig.model, requests, TextSampling(count), compiled=compiled)
    assert {len(sample.token_ids) for sample in samples} == {count}
    assert_same(samples, sample_text(rig.model, requests, TextSampling(count)))


def test_what_an_earlier_call_left_has_no_influence(rig_llama):
    """Not even NaN, which an attention weight of zero does not undo."""
    rig = rig_llama
    requests = [TextRequest(text, None, seed) for seed, text in enumerate(["Why?", "Who is it?", "What is this?"])]
    compiled = CompiledDecode(rig.model, uncompiled)
    expected = sample_text(rig.model, requests, SAMPLED, compiled=compiled)
    for memory in compiled._memory:
        memory.fill_(torch.nan)
    assert_same(sample_text(rig.model, requests, SAMPLED, compiled=compiled), expected)


def test_unused_places_are_masked(rig_llama, monkeypatch):
    rig = rig_llama
    requests = [TextRequest(text, None, seed) for seed, text in enumerate(["Why?", "Who is it?", "What is this?"])]
    compiled = CompiledDecode(rig.model, uncompiled)
    fill = compiled.fill

    def cluttered(*arguments):
        slots = fill(*arguments)
        for buffer in slots._states:
            buffer[:, :, int(slots._cursor) :] = 1e3
            buffer[len(requests) :] = 1e3
        return slots

    monkeypatch.setattr(compiled, "fill", cluttered)
    samples = sample_text(rig.model, requests, SAMPLED, compiled=compiled)
    assert_same(samples, sample_text(rig.model, requests, SAMPLED))


def test_calls_of_about_one_size_share_a_program_and_all_sizes_share_memory(rig_llama):
    rig = rig_llama
    programs = []

    def counting(run, device):
        programs.append(1)
        return run

    compiled = CompiledDecode(rig.model, counting)

    def run(rows, length, text="Why?"):
        requests = [TextRequest(text, None, seed) for seed in range(rows)]
        samples = sample_text(rig.model, requests, TextSampling(length), compiled=compiled)
        assert_same(samples, sample_text(rig.model, requests, TextSampling(length)))
        return len(programs), sum(memory.numel() for memory in compiled._memory)

    small = run(3, 20)
    assert run(4, 18, "Where?") == small
    larger = run(5, 90)
    assert larger[0] == 2
    assert larger[1] > small[1]
    assert run(4, 20) == (3, larger[1])
    assert run(8, 90) == (3, larger[1])
    compiled.release()
    assert compiled._memory == []
    assert run(3, 20) == (4, small[1])


def test_memory_that_is_given_back_is_free(rig_llama):
    """A compiled pass points to its buffers, and what was compiled hangs in reference cycles."""
    compiled = CompiledDecode(rig_llama.model, traced)
    sample_text(rig_llama.model, [TextRequest("Why?", None, 1)], TextSampling(4), compiled=compiled)
    held = [weakref.ref(buffer) for buffer in compiled._memory]
    assert held
    assert all(buffer() is not None for buffer in held)
    compiled.release()
    assert all(buffer() is None for buffer in held)


def test_kept_prefixes_stay_whole(rig_qwen, make_picture):
    rig = rig_qwen
    kept, compiled = PrefixCache(rig.adapters.version), CompiledDecode(rig.model, uncompiled)
    requests = [TextRequest("Why?", make_picture(seed), seed) for seed in (1, 2)]
    first = sample_text(rig.model, requests, SAMPLED, prefixes=kept, compiled=compiled)
    assert_same(sample_text(rig.model, requests, SAMPLED, prefixes=kept, compiled=compiled), first)
    assert_same(sample_text(rig.model, requests, SAMPLED, prefixes=kept), first)


def failing_backend(graph, inputs):
    raise RuntimeError("no compiler was found")


def breaking_graph(rig):
    forward = rig.model.forward

    def run(*arguments):
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break()
        return forward(*arguments)

    return run


@pytest.mark.parametrize("trouble", ["the backend fails", "the graph breaks"])
def test_what_cannot_be_compiled_is_a_typed_error_that_names_the_switch(rig_llama, trouble, monkeypatch):
    rig = rig_llama
    backend = failing_backend if trouble == "the backend fails" else "eager"
    if trouble == "the graph breaks":
        monkeypatch.setattr(rig.model, "forward", breaking_graph(rig))
    compiled = CompiledDecode(rig.model, lambda run, _: torch.compile(run, fullgraph=True, backend=backend))
    with pytest.raises(ConfigError, match="compile_decode=true cannot be used here") as raised:
        sample_text(rig.model, [TextRequest("Why?", None, 1)], SAMPLED, compiled=compiled)
    assert "compile_decode=false" in raised.value.fix


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_the_switch_is_an_option_and_off_by_default(name):
    assert BackboneOptions().compile_decode is False
    assert load_backbone(name, device="cpu").compiled is None
    assert load_backbone(name, device="cpu", options={"compile_decode": True}).compiled is not None


def test_the_switched_on_backbone_decodes_by_compiled_passes():
    eager = load_backbone("tiny", device="cpu")
    switched = load_backbone("tiny", device="cpu", options={"compile_decode": True})
    switched.compiled._compiler = traced
    requests = [TextRequest("how many red squares", None, seed) for seed in range(5)]
    assert_same(switched.solve(requests, SAMPLED), eager.solve(requests, SAMPLED))
    assert_same(switched.ask(requests, SAMPLED), eager.ask(requests, SAMPLED))
    assert len(switched.compiled._slots) == 1


def test_what_a_compiled_pass_would_get_wrong_is_refused():
    """Costs are counted by hooks, which it does not call; FSDP drops weights that it still points to."""
    backbone = load_backbone("tiny", device="cpu", options={"compile_decode": True})
    with pytest.raises(ConfigError, match="compiled"), counted(backbone):
        pass
    with pytest.raises(ConfigError, match="FSDP"):
        shard_base(backbone, torch.device("cpu"), 1)
    both = RunConfig(profile=True, backbone_options={"compile_decode": True})
    with pytest.raises(ConfigError, match="profile=true"):
        check_plan(both, find_manifest("tiny"))
    check_plan(both.model_copy(update={"profile": False}), find_manifest("tiny"))
