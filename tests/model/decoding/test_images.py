"""Vision features live as long as the image object and are computed once."""

from __future__ import annotations

import gc

import torch

from asg_core.models.decoding import ImageFeatureCache


def test_each_image_object_is_encoded_once_in_one_batch(make_picture):
    calls = []

    def encode(images):
        calls.append(list(images))
        return [torch.full((2,), float(len(calls)))] * len(images)

    cache = ImageFeatureCache()
    one, other, twin = make_picture(1), make_picture(2), make_picture(1)
    assert [f[0].item() for f in cache.lookup([one, other, one], encode)] == [1, 1, 1]
    assert [f[0].item() for f in cache.lookup([other, twin, one], encode)] == [1, 2, 1]
    assert [len(batch) for batch in calls] == [2, 1]
    assert calls[1][0] is twin
    assert cache.lookup([], encode) == []


def test_an_entry_goes_with_its_image_and_clear_forgets_all(make_picture):
    cache = ImageFeatureCache()
    images = [make_picture(n) for n in range(3)]
    cache.lookup(images, lambda missing: ["x"] * len(missing))
    assert len(cache) == 3
    images.pop()
    gc.collect()
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0
    assert cache.lookup(images, lambda missing: ["y"] * len(missing)) == ["y", "y"]


def test_features_carry_no_graph_and_serve_a_later_training_pass(make_picture):
    weight = torch.nn.Parameter(torch.ones(2))
    cache = ImageFeatureCache()
    image = make_picture(1)
    with torch.inference_mode():
        (feature,) = cache.lookup([image], lambda missing: [weight * 3])
    assert not feature.requires_grad
    (feature * weight).sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0]
