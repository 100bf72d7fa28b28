"""The prefix tree: padding in the middle is invisible, attention patterns and positions are those of the segments."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.errors import PluginError
from asg_core.models.decoding import Segment, join_segments, prefix_tree, sample_text, token_logits


def test_what_padding_holds_is_invisible(rig, requests_of, monkeypatch):
    requests = requests_of(rig)
    with rig.adapters.use(Role.SOLVER):
        clean = sample_text(rig.model, requests, TextSampling(6))
    monkeypatch.setattr(prefix_tree, "pad_sequence", partial(pad_sequence, padding_value=7))
    with rig.adapters.use(Role.SOLVER):
        dirty = sample_text(rig.model, requests, TextSampling(6))
    scores = token_logits(rig.model, dirty, rig.adapters, Role.SOLVER)
    for a, b, score in zip(clean, dirty, scores, strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)
        assert a.logprobs == pytest.approx(score.logprobs.tolist(), abs=2e-5)


def test_every_query_sees_something(rig, requests_of, monkeypatch):
    """A query without a key is NaN in some attention kernels, and a NaN value poisons rows even where it is masked."""
    forward = rig.model.forward
    masks = []
    monkeypatch.setattr(rig.model, "forward", lambda e, mask, *rest: masks.append(mask) or forward(e, mask, *rest))
    samples = sample_text(rig.model, requests_of(rig), TextSampling(6))
    token_logits(rig.model, samples, rig.adapters, None)
    assert all(mask.any(-1).all() for mask in masks)
    assert not all(mask.flatten(0, 1)[:, -1].all() for mask in masks)  # there was padding


class Planted:
    """A model whose prefixes are given segments; the rest is the rig's."""

    def __init__(self, rig, segments):
        self.rig, self.segments = rig, segments

    def __getattr__(self, name):
        return getattr(self.rig.model, name)

    def prefixes(self, images):
        return [self.segments[int(image is not None)] for image in images]


def expected_hidden(rig, segments):
    """Last hidden state of one row that is written out: no cache, no padding, one explicit mask."""
    length = sum(len(s.embeds) for s in segments)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    positions, start, counter = [], 0, 0
    for s in segments:
        if not s.causal:
            mask[start : start + len(s.embeds), start : start + len(s.embeds)] = True
        positions.append(s.positions + counter)
        start, counter = start + len(s.embeds), counter + s.advance
    embeds = torch.cat([s.embeds for s in segments])[None]
    return rig.model.forward(embeds, mask[None, None], torch.cat(positions, 1)[:, None], DynamicCache())[0, -1]


@pytest.mark.parametrize("causal", [False, True])
def test_segments_attend_and_advance_as_they_say(rig_llama, make_picture, causal):
    rig = rig_llama
    stream = torch.Generator().manual_seed(0)
    block = Segment(torch.randn(6, 32, generator=stream), torch.tensor([[0, 0, 1, 1, 2, 2]]), 3, causal)
    text = rig.model.text_segment("<user>Hello you", special=True)
    requests = [TextRequest(p, i, 0) for p in ("Why?", "Wherever") for i in (None, make_picture(1))]
    with torch.no_grad():
        rows, node_of = prefix_tree.prefill(Planted(rig, [text, block]), requests)
        for row, request in zip(node_of, requests, strict=True):
            segments = [block if request.image else text, rig.model.prompt(request.prompt)]
            torch.testing.assert_close(rows.last[row], expected_hidden(rig, segments), rtol=0, atol=1e-5)
            assert int(rows.counter[row]) == sum(s.advance for s in segments)
    other = Segment(block.embeds, block.positions, block.advance, not causal)
    assert (expected_hidden(rig, [other]) - expected_hidden(rig, [block])).abs().max() > 1e-3


def test_prefixes_may_be_empty(rig_llama, make_picture):
    rig = rig_llama
    nothing = rig.model.text_segment("", special=True)
    text = rig.model.text_segment("<user>Hello", special=True)
    for segments in ([nothing, text], [nothing, nothing]):
        requests = [TextRequest("Why?", None, 1), TextRequest("Who", make_picture(1), 2)]
        model = Planted(rig, segments)
        for sample in sample_text(model, requests, TextSampling(4)):
            alone = sample_text(model, [sample.request], TextSampling(4))[0]
            assert alone.token_ids == sample.token_ids
            assert alone.logprobs == pytest.approx(sample.logprobs, abs=2e-5)


def test_an_empty_prompt_is_refused(rig_llama, monkeypatch):
    monkeypatch.setattr(rig_llama.model, "tail", "")
    with pytest.raises(PluginError, match="no position for the prompt ''"):
        sample_text(rig_llama.model, [TextRequest("", None, 1)], TextSampling(4))


@pytest.mark.parametrize("kind", ["sliding", "static", "filled"])
def test_caches_that_cannot_branch_are_refused(rig_llama, monkeypatch, kind):
    if kind == "sliding":
        cache = DynamicCache()
        cache.layers = [DynamicSlidingWindowLayer(4)]
    elif kind == "static":
        cache = StaticCache(config=rig_llama.full.config, max_cache_len=8)
    else:
        cache = DynamicCache()
        cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    monkeypatch.setattr(rig_llama.model, "new_cache", lambda: cache)
    with pytest.raises(PluginError, match="new_cache"):
        sample_text(rig_llama.model, [TextRequest("Why?", None, 1)], TextSampling(4))


def test_caches_with_known_layers_work_too(rig_llama, monkeypatch):
    request = TextRequest("Why?", None, 1)
    expected = sample_text(rig_llama.model, [request], TextSampling(4))[0]
    monkeypatch.setattr(rig_llama.model, "new_cache", lambda: DynamicCache(config=rig_llama.full.config))
    assert sample_text(rig_llama.model, [request], TextSampling(4))[0].logprobs == expected.logprobs


def test_joined_segments_follow_each_other():
    one = Segment(torch.zeros(2, 4), torch.tensor([[0, 1]]), 2)
    image = Segment(torch.ones(3, 4), torch.tensor([[0, 0, 1]]), 2)
    joined = join_segments([one, image, one])
    assert joined.positions.tolist() == [[0, 1, 2, 2, 3, 4, 5]]
    assert (joined.advance, joined.causal, joined.embeds.shape) == (6, True, (7, 4))
    with pytest.raises(ValueError, match="causal"):
        join_segments([one, Segment(one.embeds, one.positions, 2, causal=False)])
