"""Adapters: gradients reach each of them and nothing else; switching, isolation, saving. And the embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_janus.backbone import JanusBackbone
from peft import PeftModel
from PIL import Image
from transformers import JanusForConditionalGeneration

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import WeightsError
from asg_core.models.decoding import CompiledDecode

Load = Callable[..., JanusBackbone]
Picture = Callable[..., Image.Image]
Wake = Callable[[JanusBackbone, Role], None]


def loss_of(backbone: JanusBackbone, role: Role, image: Image.Image) -> torch.Tensor:
    if role is Role.GENERATOR:
        drawn = backbone.generate([ImageRequest("a red cat", seed) for seed in range(2)], ImageSampling())
        scored = backbone.generation_loss(drawn, [0, 0])
        return (scored.loss + scored.penalty).sum()
    samples = backbone.ask([TextRequest("Why?", image, seed) for seed in range(2)], TextSampling(8), role)
    return -torch.cat([score.logprobs for score in backbone.token_logits(samples, role)]).sum()


def fingerprint(backbone: JanusBackbone, role: Role | None, image: Image.Image) -> tuple[object, ...]:
    (text,) = backbone.solve([TextRequest("Why?", image, 0)], TextSampling(6), role)
    (drawn,) = backbone.generate([ImageRequest("a red cat", 0)], ImageSampling(), role)
    return text.logprobs, drawn.token_logprobs.numpy().tobytes(), drawn.image.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_tensor_of_the_role_and_nothing_else_gets_gradient(
    load: Load, wake: Wake, picture: Picture, role: Role, checkpointing: bool
) -> None:
    backbone = load(checkpointing=checkpointing)
    wake(backbone, role)
    loss_of(backbone, role, picture(0)).backward()
    own = backbone.trainable(role)
    assert len(own) == 2 * 7 * 2
    for name, parameter in own.items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    others = {id(p) for p in own.values()}
    assert [n for n, p in backbone.text.model.named_parameters() if id(p) not in others and p.grad is not None] == []


@pytest.mark.parametrize("role", [Role.SOLVER, Role.GENERATOR])
def test_recomputing_activations_runs_layers_again_and_gives_the_same_gradients(
    load: Load, wake: Wake, picture: Picture, role: Role
) -> None:
    gradients, again = [], []
    for checkpointing in (False, True):
        backbone = load(checkpointing=checkpointing)
        wake(backbone, role)
        loss = loss_of(backbone, role, picture(0))
        calls: list[None] = []
        backbone.text.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        loss.backward()
        gradients.append([p.grad for p in backbone.trainable(role).values()])
        again.append(len(calls))
    assert again[0] == 0 < again[1]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("role", list(Role))
def test_a_step_on_one_role_leaves_the_base_and_the_others_bit_identical(
    load: Load, wake: Wake, picture: Picture, role: Role
) -> None:
    backbone = load()
    for other in Role:
        wake(backbone, other)
    before = {name: tensor.clone() for name, tensor in backbone.text.model.state_dict().items()}
    optimizer = torch.optim.AdamW(backbone.trainable(role).values(), lr=1e-2)
    loss_of(backbone, role, picture(0)).backward()
    optimizer.step()
    moved = {name for name, tensor in backbone.text.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(moved) == len(backbone.trainable(role))
    assert all(f".{role.value}." in name for name in moved)


def test_switching_back_restores_outputs_bit_for_bit(awake: JanusBackbone, picture: Picture) -> None:
    image = picture(0)
    first = {role: fingerprint(awake, role, image) for role in (*Role, None)}
    again = {role: fingerprint(awake, role, image) for role in (None, *reversed(Role))}
    assert first == again
    assert len(set(first.values())) == 4


def test_adapters_off_and_fresh_adapters_are_the_base(awake: JanusBackbone, load: Load, picture: Picture) -> None:
    image, fresh = picture(0), load()
    base = fingerprint(fresh, None, image)
    assert fingerprint(awake, None, image) == base
    assert all(fingerprint(fresh, role, image) == base for role in Role)


def test_saved_adapters_come_back_exactly_and_peft_reads_them(
    awake: JanusBackbone, load: Load, reference: JanusForConditionalGeneration, checkpoint: Path, tmp_path: Path
) -> None:
    second = load()
    for role in Role:
        awake.save_role(role, tmp_path / role.value)
        second.load_role(role, tmp_path / role.value)
        for name, parameter in awake.trainable(role).items():
            assert torch.equal(parameter, second.trainable(role)[name]), name
    model = JanusForConditionalGeneration.from_pretrained(checkpoint).eval()
    ids = torch.arange(8)[None]
    plain = model.model.language_model(ids).last_hidden_state
    merged = PeftModel.from_pretrained(model.model.language_model, tmp_path / "solver")
    with torch.no_grad(), awake.adapters.use(Role.SOLVER):
        expected = awake.text.decoder(ids).last_hidden_state
    torch.testing.assert_close(merged(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    (tmp_path / "solver" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="solver"):
        second.load_role(Role.SOLVER, tmp_path / "solver")


def test_float32_adapters_over_a_bfloat16_base_agree_with_themselves(load: Load, wake: Wake, picture: Picture) -> None:
    backbone = load(dtype="bfloat16")
    for role in Role:
        wake(backbone, role)
    assert backbone.dtype == torch.bfloat16
    assert {p.dtype for role in Role for p in backbone.trainable(role).values()} == {torch.float32}
    assert {p.dtype for n, p in backbone.text.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    with torch.no_grad():
        drawn = backbone.generate([ImageRequest("a red cat", 0)], ImageSampling())
        scored = backbone.generation_loss(drawn, [0])
        samples = backbone.solve([TextRequest("Why?", picture(0), 0)], TextSampling(8))
        answers = backbone.token_logits(samples, Role.SOLVER)
    assert scored.loss.dtype == scored.penalty.dtype == torch.float32
    assert float((scored.token_logprobs[0] - drawn[0].token_logprobs).abs().mean()) < 0.1  # type: ignore[index]
    assert float((answers[0].logprobs - torch.tensor(samples[0].logprobs)).abs().mean()) < 0.1


def test_embeddings_are_unit_vectors_of_the_base_that_depend_on_the_content(
    awake: JanusBackbone, load: Load, picture: Picture
) -> None:
    items = [picture(0), "a red cat", picture(1), "two hats", picture(0)]
    vectors = awake.embed(items)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(5))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors[0], vectors[4])
    similar = vectors @ vectors.T
    assert similar[0, 2] < 0.999
    assert similar[1, 3] < 0.999
    torch.testing.assert_close(vectors, load().embed(items))
    torch.testing.assert_close(vectors, torch.cat([awake.embed([item]) for item in items]), atol=1e-4, rtol=0)
    assert awake.embed([]).shape == (0, vectors.shape[1])


def test_compiled_decoding_gives_the_eager_samples(load: Load, wake: Wake, picture: Picture) -> None:
    """Traced as a whole, but not translated: that the core's tests do."""
    eager, compiled = load(), load(compile_decode=True)
    assert compiled.compiled is not None
    compiled.compiled = CompiledDecode(
        compiled.text, lambda run, _: torch.compile(run, fullgraph=True, dynamic=False, backend="eager")
    )
    for backbone in (eager, compiled):
        wake(backbone, Role.SOLVER)
    asked = [TextRequest("Why?", picture(0), 0), TextRequest("How many?", picture(0), 1)]
    for role in (Role.SOLVER, None):
        pairs = zip(*(b.solve(asked, TextSampling(8), role) for b in (compiled, eager)), strict=True)
        for sample, other in pairs:
            assert sample.token_ids == other.token_ids
            torch.testing.assert_close(sample.logprobs, other.logprobs, atol=1e-5, rtol=1e-5)
