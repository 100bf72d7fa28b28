"""The text roles, the shared space and the adapters of the tiny backbone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.backbones.manifest import LoadRequest
from asg_core.errors import CapabilityError, WeightsError
from asg_core.method.prompts import CAPTION_PROMPT, QUESTION_PROMPT, SPEC_PROMPT, parse_question, parse_spec
from asg_core.tiny.backbone import TinyBackbone, load
from asg_core.tiny.captions import caption
from asg_core.tiny.world import Scene, photograph, sample_scene


def _pictures(count: int, seed: int = 0) -> tuple[list[Scene], list[Image.Image]]:
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    return scenes, [photograph(scene, noise) for scene in scenes]


def test_most_questions_pass_the_gate_and_they_are_diverse(tiny: TinyBackbone) -> None:
    _, pictures = _pictures(30)
    requests = [TextRequest(QUESTION_PROMPT, picture, i) for i, picture in enumerate(pictures * 2)]
    questions = [parse_question(sample.text) for sample in tiny.ask(requests, TextSampling(16))]
    kept = [question for question in questions if isinstance(question, str)]
    assert len(kept) >= 0.9 * len(questions)
    assert len(set(kept)) >= 0.4 * len(kept)


def test_most_specs_parse_with_two_questions_or_more(tiny: TinyBackbone) -> None:
    _, pictures = _pictures(30)
    samples = tiny.ask([TextRequest(SPEC_PROMPT, p, i) for i, p in enumerate(pictures)], TextSampling(64))
    specs = [parse_spec(sample.text) for sample in samples]
    assert sum(len(getattr(parsed, "questions", ())) >= 2 for parsed in specs) >= 0.85 * len(specs)


def test_the_model_sees(tiny: TinyBackbone) -> None:
    """Its greedy captions name the right number of things in most pictures."""
    scenes, pictures = _pictures(30)
    samples = tiny.solve([TextRequest(CAPTION_PROMPT, p, 0) for p in pictures], TextSampling(24, 0.0), role=None)
    shapes = [{thing.shape for thing in scene.things} for scene in scenes]
    named = [{s for s in ("circle", "square", "triangle", "cross") if s[:5] in x.text} for x in samples]
    assert sum(a == b for a, b in zip(shapes, named, strict=True)) >= 20


def test_captions_are_nearest_to_their_own_picture_and_the_embedding_follows_the_picture(tiny: TinyBackbone) -> None:
    scenes, pictures = _pictures(24, seed=1)
    rng = random.Random(1)
    texts = [caption(scene, rng, ("color",)) for scene in scenes]
    vectors = tiny.embed([*pictures, *texts])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(48), rtol=1e-4, atol=1e-4)
    scores = vectors[:24] @ vectors[24:].T
    own = scores.diag()
    others = (scores.sum(1) - own) / 23
    assert float((own - others).mean()) > 0.3
    assert int((scores.argmax(1) == torch.arange(24)).sum()) >= 12
    assert float((vectors[:23] - vectors[1:24]).abs().amax(1).min()) > 1e-2


def test_embeddings_do_not_depend_on_the_batch_or_on_the_adapters() -> None:
    backbone = load(LoadRequest())
    _, pictures = _pictures(3)
    before = backbone.embed([*pictures, "a red circle", "two crosses and a small blue square"])
    with torch.no_grad():
        for role in Role:
            for parameter in backbone.trainable(role).values():
                parameter += 0.1
    after = backbone.embed(["two crosses and a small blue square", pictures[0]])
    torch.testing.assert_close(after, before[[4, 0]], rtol=1e-4, atol=1e-5)
    assert backbone.embed([]).shape == (0, 64)


def test_new_adapters_are_the_base_and_a_changed_one_changes_its_role_alone() -> None:
    backbone = load(LoadRequest())
    _, pictures = _pictures(4)
    requests = [TextRequest(CAPTION_PROMPT, picture, i) for i, picture in enumerate(pictures)]

    def texts(role: Role | None) -> list[tuple[float, ...]]:
        return [sample.logprobs for sample in backbone.solve(requests, TextSampling(12), role=role)]

    def drawn() -> list[list[float]]:
        samples = backbone.generate([ImageRequest("a red circle", 0)], ImageSampling())
        return [sample.token_logprobs.tolist() for sample in samples if sample.token_logprobs is not None]

    base, picture = texts(None), drawn()
    assert texts(Role.SOLVER) == base == texts(Role.PROPOSER)
    with torch.no_grad():
        for parameter in backbone.trainable(Role.SOLVER).values():
            parameter += 0.1
    assert texts(Role.SOLVER) != base
    assert texts(Role.PROPOSER) == base == texts(None)
    assert drawn() == picture


def test_text_gradients_reach_their_own_role_alone() -> None:
    backbone = load(LoadRequest())
    _, pictures = _pictures(2)
    samples = backbone.solve([TextRequest("how many objects are there?", p, 0) for p in pictures], TextSampling(4))
    scored = backbone.token_logits(samples, Role.SOLVER, base=True)
    torch.autograd.backward(torch.cat([item.logprobs for item in scored]).sum())
    assert any(float(p.grad.abs().sum()) > 0 for p in backbone.trainable(Role.SOLVER).values() if p.grad is not None)
    for role in (Role.PROPOSER, Role.GENERATOR):
        assert all(p.grad is None for p in backbone.trainable(role).values())


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (1, 1), (255, 0, 0)),
        Image.new("L", (640, 3)),
        Image.new("RGBA", (50, 70), (0, 255, 0, 0)),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (333, 500, 3), dtype=np.uint8)),
    ],
    ids=["1x1", "grey", "alpha", "noise"],
)
def test_arbitrary_pictures_are_looked_at(tiny: TinyBackbone, picture: Image.Image) -> None:
    sample = tiny.solve([TextRequest(CAPTION_PROMPT, picture, 0)], TextSampling(8))[0]
    assert sample.text
    assert np.isfinite(sample.entropies).all()
    assert torch.isfinite(tiny.embed([picture])).all()


def test_roles_are_saved_and_loaded(tmp_path: Path) -> None:
    one, other = load(LoadRequest(seed=1)), load(LoadRequest(seed=2))
    with torch.no_grad():
        for parameter in one.trainable(Role.PROPOSER).values():
            parameter += 0.1
    one.save_role(Role.PROPOSER, tmp_path)
    other.load_role(Role.PROPOSER, tmp_path)
    for name, parameter in one.trainable(Role.PROPOSER).items():
        assert torch.equal(parameter, other.trainable(Role.PROPOSER)[name])


def test_what_is_wrong_with_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"base\.safetensors"):
        load(LoadRequest(weights=tmp_path))
    (tmp_path / "base.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="cannot read"):
        load(LoadRequest(weights=tmp_path))
    with pytest.raises(CapabilityError, match="checkpointing"):
        load(LoadRequest(gradient_checkpointing=True))


def test_half_precision_base_keeps_float32_adapters() -> None:
    backbone = load(LoadRequest(dtype="bfloat16"))
    assert {p.dtype for role in Role for p in backbone.trainable(role).values()} == {torch.float32}
    _, pictures = _pictures(1)
    assert backbone.solve([TextRequest("is there a circle?", pictures[0], 0)], TextSampling(4))[0].token_ids
    sample = backbone.generate([ImageRequest("a circle", 0)], ImageSampling())[0]
    assert backbone.generation_loss([sample], [0]).loss.dtype == torch.float32
