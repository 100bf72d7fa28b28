"""Adapters: disjoint, switchable without a trace, saved exactly; and the embedding that cycle consistency uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asg_bagel.backbone import BagelBackbone
from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import ConfigError, WeightsError

from bagel_fixtures import digests, picture, stir


def outputs(backbone: BagelBackbone, role: Role) -> tuple[object, ...]:
    request = TextRequest("what is the cat?", PICTURE, 3)
    (text,) = backbone.solve([request], TextSampling(4), role)
    (drawn,) = backbone.generate([ImageRequest("a cat", 1)], ImageSampling(), role)
    return text.token_ids, text.logprobs, drawn.trajectory["latent"].numpy().tobytes()


PICTURE = picture(4)


def test_text_roles_sit_on_the_understanding_expert_and_the_generator_on_its_own(backbone: BagelBackbone) -> None:
    names = {role: set(backbone.trainable(role)) for role in Role}
    layers = backbone.model.config.llm.num_hidden_layers
    assert names[Role.PROPOSER] == names[Role.SOLVER]
    assert all("moe_gen" not in name for name in names[Role.SOLVER])
    assert all("moe_gen" in name for name in names[Role.GENERATOR])
    assert {len(of_role) for of_role in names.values()} == {layers * 7 * 2}
    parameters = [id(p) for role in Role for p in backbone.trainable(role).values()]
    assert len(set(parameters)) == len(parameters)
    assert all(p.dtype == torch.float32 for role in Role for p in backbone.trainable(role).values())


def test_switching_there_and_back_restores_every_output_bit_for_bit(backbone: BagelBackbone) -> None:
    first = {role: outputs(backbone, role) for role in Role}
    again = {role: outputs(backbone, role) for role in reversed(Role)}
    assert first == again
    assert first[Role.PROPOSER][1] != first[Role.SOLVER][1]


def test_fresh_adapters_are_exactly_the_base(load: Callable[..., BagelBackbone]) -> None:
    backbone = load()
    request = TextRequest("what is the cat?", PICTURE, 3)
    texts = [backbone.solve([request], TextSampling(4), role)[0].logprobs for role in (None, *Role)]
    assert len(set(texts)) == 1


@pytest.mark.parametrize("role", list(Role))
def test_an_optimizer_step_on_one_role_leaves_everything_else_bit_identical(
    backbone: BagelBackbone, role: Role
) -> None:
    before = digests(backbone.model)
    own = {id(p) for p in backbone.trainable(role).values()}
    mine = {name for name, p in backbone.model.named_parameters() if id(p) in own}
    optimizer = torch.optim.AdamW(backbone.trainable(role).values(), lr=1e-3)
    if role is Role.GENERATOR:
        backbone.generation_loss(
            backbone.generate([ImageRequest("a cat", 1)], ImageSampling()), [1]
        ).loss.sum().backward()
    else:
        samples = backbone.solve([TextRequest("what is the cat?", PICTURE, 3)], TextSampling(4), role)
        backbone.token_logits(samples, role)[0].logprobs.sum().backward()
    optimizer.step()
    after = digests(backbone.model)
    assert {name for name in before if before[name] != after[name]} == mine


def test_a_role_is_saved_and_loaded_exactly(
    backbone: BagelBackbone, load: Callable[..., BagelBackbone], tmp_path: Path
) -> None:
    for role in Role:
        backbone.save_role(role, tmp_path / role.value)
    other = load()
    for role in Role:
        other.load_role(role, tmp_path / role.value)
        for name, parameter in backbone.trainable(role).items():
            assert torch.equal(other.trainable(role)[name], parameter)
    with pytest.raises(WeightsError):
        other.load_role(Role.SOLVER, tmp_path / Role.GENERATOR.value)


def test_embeddings_are_unit_vectors_of_the_base_that_follow_the_image(backbone: BagelBackbone) -> None:
    items = [picture(1), picture(2), "the red cat", "a hat", picture(1)]
    vectors = backbone.embed(items)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(5))
    assert torch.equal(vectors[0], vectors[4])
    assert float((vectors[0] - vectors[1]).norm()) > 1e-2
    assert float((vectors[2] - vectors[3]).norm()) > 1e-2
    for item, vector in zip(items, vectors, strict=True):
        torch.testing.assert_close(backbone.embed([item])[0], vector, atol=1e-5, rtol=0)
    stir(backbone, Role.SOLVER, 9)
    with backbone.adapters.use(Role.SOLVER):
        torch.testing.assert_close(backbone.embed(items), vectors, atol=1e-5, rtol=0)
    assert backbone.embed([]).shape == (0, vectors.shape[1])


def test_a_vision_size_beyond_the_position_table_is_refused(load: Callable[..., BagelBackbone]) -> None:
    with pytest.raises(ConfigError, match="vision_longest=1000"):
        load(vision_longest=1000)


def test_a_smaller_vision_size_means_fewer_tokens(load: Callable[..., BagelBackbone]) -> None:
    image = picture(1, 140, 140)
    assert [len(load(vision_longest=size).builder.see([image])[0]) for size in (140, 56)] == [100, 16]
