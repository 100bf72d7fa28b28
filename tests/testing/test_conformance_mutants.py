"""The kit itself: backbones that are broken on purpose, each caught by the check that names the defect."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from asg_core.decoding import PrefixCache, scoring
from asg_core.manifest import Capabilities, LoadRequest
from asg_core.roles import GenerationLoss, ImageSample, Role, TextSample, TextSampling
from asg_core.testing import check_backbone
from asg_core.testing.conformance import CHECKS, imports
from asg_core.tiny.backbone import TinyBackbone, TinyFlowBackbone
from asg_core.tiny.causal import TinyCausal
from asg_core.tiny.plugin import MANIFEST
from asg_core.tiny.vocabulary import Vocabulary
from asg_core.tiny.weights import load_base, to_device

MUTANTS: dict[str, tuple[type[TinyBackbone], str]] = {}


def caught_by(check: str) -> Callable[[type[TinyBackbone]], type[TinyBackbone]]:
    """Register a broken backbone and the check that must name its defect."""

    def register(cls: type[TinyBackbone]) -> type[TinyBackbone]:
        MUTANTS[cls.__name__] = cls, check
        return cls

    return register


@caught_by("scoring.gradient")
class DetachedPrefix(TinyBackbone):
    """Scores over a prefix that carries no gradient."""

    def token_logits(self, samples, role, **wanted):
        def detached(model, requests, kept=None):
            rows, prompts, node_of = sprout(model, requests, kept)
            for layer in rows.cache.layers:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
                layer.past = layer.keys, layer.values
            return rows, prompts, node_of

        sprout = scoring.sprout
        scoring.sprout = detached
        try:
            return super().token_logits(samples, role, **wanted)
        finally:
            scoring.sprout = sprout


@caught_by("text.seeds")
class SharedGenerator(TinyBackbone):
    """Samples from the global generator instead of the requests' seeds."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        drawn = [replace(r, seed=int(torch.randint(2**62, ()))) for r in requests]
        samples = super().solve(drawn, sampling, role)
        return [replace(sample, request=request) for sample, request in zip(samples, requests, strict=True)]


@caught_by("text.batch")
class SeedOfThePlace(TinyBackbone):
    """A sample depends on its place in the batch."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        drawn = [replace(r, seed=r.seed + i) for i, r in enumerate(requests)]
        samples = super().solve(drawn, sampling, role)
        return [replace(sample, request=request) for sample, request in zip(samples, requests, strict=True)]


@caught_by("scoring.replay")
class ShiftedLabels(TinyBackbone):
    """Scores each token with the row of its neighbour."""

    def token_logits(self, samples, role, **wanted):
        return [replace(s, logprobs=s.logprobs.roll(1)) for s in super().token_logits(samples, role, **wanted)]


@caught_by("scoring.labels")
class ShiftedEverywhere(TinyBackbone):
    """Off by one in sampling and scoring alike, so that both agree."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return [replace(s, logprobs=_turn(s.logprobs)) for s in super().solve(requests, sampling, role)]

    def token_logits(self, samples, role, **wanted):
        return [replace(s, logprobs=s.logprobs.roll(1)) for s in super().token_logits(samples, role, **wanted)]


@caught_by("scoring.replay")
class ScoresAtTemperatureOne(TinyBackbone):
    """Forgets the sampling temperature when it scores."""

    def token_logits(self, samples, role, **wanted):
        return super().token_logits([replace(s, temperature=1.0) for s in samples], role, **wanted)


@caught_by("text.entropy")
class EntropyOfTheWarmedLogits(TinyBackbone):
    """Entropies after temperature."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        samples = super().solve(requests, sampling, role)
        return [replace(s, entropies=tuple(e * sampling.temperature for e in s.entropies)) for s in samples]


@caught_by("text.max_new_tokens")
class OneTokenMore(TinyBackbone):
    """Does not count the stop token."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return super().solve(requests, replace(sampling, max_new_tokens=sampling.max_new_tokens + 1), role)


@caught_by("text.greedy")
class LukewarmGreedy(TinyBackbone):
    """Temperature 0 samples a little."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return super().solve(requests, replace(sampling, temperature=sampling.temperature or 0.7), role)


@caught_by("text.records")
class PiecesThatDoNotJoin(TinyBackbone):
    """The text is stripped, the pieces are not."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return [replace(s, text=s.text[1:]) for s in super().solve(requests, sampling, role)]


class _OtherText(TinyBackbone):
    """Swaps the text half for a broken one."""

    broken: type[TinyCausal]

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        self.text = self.broken(model, vocabulary)


class _IgnoresPadding(TinyCausal):
    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        length, total = mask.shape[-2:]
        causal = torch.ones(length, total, dtype=torch.bool).tril(total - length)
        return super().forward(embeds, causal.expand_as(mask), positions, cache)


@caught_by("text.batch")
class WrongPadding(_OtherText):
    """Attends to the padding of shorter rows when it samples."""

    broken = _IgnoresPadding


@caught_by("scoring.batch")
class PadsOnTheLeft(TinyBackbone):
    """Scores shorter samples behind padding that the model sees."""

    def token_logits(self, samples, role, **wanted):
        longest = max(len(sample.token_ids) for sample in samples)
        padded = [replace(s, token_ids=(5,) * (longest - len(s.token_ids)) + s.token_ids) for s in samples]
        scored = super().token_logits(padded, role, **wanted)
        return [replace(x, logprobs=x.logprobs[-len(s.token_ids) :]) for x, s in zip(scored, samples, strict=True)]


class _SeesNothing(TinyCausal):
    def vision(self, images: Sequence[Image]) -> list[Tensor]:
        return [torch.zeros_like(tokens) for tokens in super().vision(images)]


@caught_by("text.sees_the_image")
class Blind(_OtherText):
    """The picture's features never reach the model."""

    broken = _SeesNothing


class _CachesBySize(TinyCausal):
    def vision(self, images: Sequence[Image]) -> list[Tensor]:
        if not hasattr(self, "kept"):
            self.kept = {}
        return [self.kept.setdefault(image.size, super(_CachesBySize, self).vision([image])[0]) for image in images]


@caught_by("text.image_cache")
class CachesBySize(_OtherText):
    """Pictures of one size, and so of equal token ids, share their features."""

    broken = _CachesBySize


@caught_by("roles.switching")
class OneTextRole(TinyBackbone):
    """The Proposer speaks with the Solver's adapter."""

    def token_logits(self, samples, role, **wanted):
        return super().token_logits(samples, role and Role.SOLVER, **wanted)


@caught_by("roles.adapters_off")
class AlwaysOn(TinyBackbone):
    """The base policy is the Solver's."""

    def token_logits(self, samples, role, **wanted):
        return super().token_logits(samples, role or Role.SOLVER, **wanted)


@caught_by("scoring.base")
class BaseIsThePolicy(TinyBackbone):
    """KL and base log-probs are taken with the adapter on."""

    def token_logits(self, samples, role, **wanted):
        scored = super().token_logits(samples, role, **wanted)
        return [replace(s, base_logprobs=s.logprobs.detach(), kl=s.logprobs * 0) for s in scored]


@caught_by("roles.no_stale_cache")
class StaleCache(TinyBackbone):
    """Prefixes prefilled before an update are used after it."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        self._prefixes = PrefixCache(lambda: (self.adapters.active,))


@caught_by("roles.isolation")
class MovesTheBase(TinyBackbone):
    """A tensor of the base is trained with the Solver."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        model.trunk.norm.weight.requires_grad_(True)

    def trainable(self, role):
        extra = {"norm": self._model.trunk.norm.weight} if role is Role.SOLVER else {}
        return {**super().trainable(role), **extra}


@caught_by("scoring.all_adapters_learn")
class InertAdapter(TinyBackbone):
    """One adapter tensor is not in the graph."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        self._idle = torch.nn.Parameter(torch.ones(3))

    def trainable(self, role):
        return {**super().trainable(role), "idle": self._idle} if role is Role.SOLVER else super().trainable(role)


@caught_by("roles.trainables")
class SharedTensor(TinyBackbone):
    """Two roles train the same tensors."""

    def trainable(self, role):
        return super().trainable(Role.SOLVER if role is Role.PROPOSER else role)


@caught_by("roles.trainables")
class HalfPrecisionAdapters(TinyBackbone):
    """Adapters in the base's low precision."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        for weight in self.adapters.parameters(Role.GENERATOR).values():
            weight.data = weight.data.bfloat16()


@caught_by("roles.initialisation")
class UnseededAdapters(TinyBackbone):
    """Adapters start from the global generator."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        with torch.no_grad():
            for name, weight in self.adapters.parameters(Role.SOLVER).items():
                if "lora_A" in name:
                    weight.copy_(torch.randn(weight.shape))


@caught_by("embed.sees")
class BlindEmbedding(TinyBackbone):
    """Every picture has one embedding."""

    def _embed_pictures(self, pictures):
        return super()._embed_pictures([picture.copy().resize((1, 1)).point(lambda _: 0) for picture in pictures])


@caught_by("embed.base")
class EvolvingEmbedding(TinyBackbone):
    """Embeds with the Solver's adapter on."""

    def embed(self, items):
        use = self.adapters.use
        self.adapters.use = lambda role: use(Role.SOLVER)
        try:
            return super().embed(items)
        finally:
            self.adapters.use = use


@caught_by("embed.unit_vectors")
class UnnormalisedEmbedding(TinyBackbone):
    """Embeddings of any length."""

    def embed(self, items):
        return 2 * super().embed(items)


@caught_by("drawing.seeds")
class DrawsFromTheGlobalGenerator(TinyBackbone):
    """All candidates of a batch share one stream."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        drawn = [replace(r, seed=int(torch.randint(2**62, ()))) for r in requests]
        samples = super().generate(drawn, sampling, role)
        return [replace(sample, request=request) for sample, request in zip(samples, requests, strict=True)]


@caught_by("drawing.images")
class TransparentImages(TinyBackbone):
    """Images are not RGB."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        return [replace(s, image=s.image.convert("RGBA")) for s in super().generate(requests, sampling, role)]


@caught_by("drawing.reads_the_prompt")
class IgnoresThePrompt(TinyBackbone):
    """Draws the same whatever is asked for."""

    def _prompts(self, requests):
        return super()._prompts([replace(request, prompt="a circle") for request in requests])


@caught_by("drawing.gradient")
class LossWithoutGradient(TinyBackbone):
    """The loss is computed under no_grad."""

    def generation_loss(self, samples, noise_seeds):
        with torch.no_grad():
            return super().generation_loss(samples, noise_seeds)


@caught_by("drawing.gradient")
class HalfALoss(TinyBackbone):
    """The penalty is not in the graph."""

    def generation_loss(self, samples, noise_seeds):
        result = super().generation_loss(samples, noise_seeds)
        return replace(result, penalty=result.penalty.detach())


@caught_by("drawing.weighting")
class BatchStatistics(TinyBackbone):
    """Losses are divided by the batch's mean."""

    def generation_loss(self, samples, noise_seeds):
        result = super().generation_loss(samples, noise_seeds)
        return GenerationLoss(result.loss / result.loss.mean(), result.penalty, result.token_logprobs)


@caught_by("drawing.trajectory")
class RemembersByObject(TinyBackbone):
    """The codes are kept beside the sample and not in its trajectory."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        samples = super().generate(requests, sampling, role)
        self._kept = [(sample.trajectory, sample.trajectory["codes"]) for sample in samples]
        for sample in samples:
            sample.trajectory["codes"] = torch.zeros_like(sample.trajectory["codes"])
        return samples

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds):
        def whole(sample: ImageSample) -> ImageSample:
            codes = [codes for trajectory, codes in self._kept if trajectory is sample.trajectory]
            return replace(
                sample, trajectory={**sample.trajectory, "codes": (codes or [sample.trajectory["codes"]])[0]}
            )

        return super().generation_loss([whole(sample) for sample in samples], noise_seeds)


@caught_by("drawing.token_logprobs")
class UnwarmedTokenLogprobs(TinyBackbone):
    """Scores image tokens at temperature 1 whatever they were sampled at."""

    def generation_loss(self, samples, noise_seeds):
        cold = [replace(s, trajectory={**s.trajectory, "temperature": torch.tensor(1.0)}) for s in samples]
        return super().generation_loss(cold, noise_seeds)


@caught_by("drawing.flow_records")
class SaysItIsAFlow(TinyBackbone):
    """Declares a flow and draws tokens."""

    manifest = MANIFEST.model_copy(update={"capabilities": Capabilities(image_loss="flow")})


@caught_by("contract.denied")
class DeniesWhatItCan(TinyBackbone):
    """Declares that it cannot embed, and embeds."""

    manifest = MANIFEST.model_copy(update={"capabilities": Capabilities(image_loss="tokens", embed=False)})


@caught_by("contract.typed_errors")
class UntypedErrors(TinyBackbone):
    """A long prompt is an IndexError."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        if any(len(request.prompt) > 1000 for request in requests):
            raise IndexError("index out of range in self")
        return super().solve(requests, sampling, role)


@caught_by("state.files")
class PicklesAside(TinyBackbone):
    """Writes a pickle next to the tensors."""

    def save_role(self, role, directory):
        super().save_role(role, directory)
        torch.save({"role": role.value}, directory / "extra.bin")


@caught_by("state.round_trip")
class LossySave(TinyBackbone):
    """Stores adapters in low precision."""

    def save_role(self, role, directory):
        super().save_role(role, directory)
        file = directory / "adapter_model.safetensors"
        save_file({k: v.bfloat16().float() for k, v in load_file(file).items()}, file)


@caught_by("state.damaged_files")
class LenientLoad(TinyBackbone):
    """Takes what fits and says nothing of the rest."""

    def load_role(self, role: Role, directory: Path) -> None:
        with suppress(Exception):
            super().load_role(role, directory)


@caught_by("state.peft")
class OwnNames(TinyBackbone):
    """Adapter files that only this backbone can read."""

    def save_role(self, role, directory):
        super().save_role(role, directory)
        config = json.loads((directory / "adapter_config.json").read_text())
        config["target_modules"] = ["some_other_layer"]
        (directory / "adapter_config.json").write_text(json.dumps(config))


@caught_by("hygiene.global_generators")
class DrawsForALog(TinyBackbone):
    """Consumes the global generator."""

    def solve(self, requests, sampling: TextSampling, role=Role.SOLVER):
        torch.rand(1)
        return super().solve(requests, sampling, role)


@caught_by("hygiene.modes")
class LeavesGradOff(TinyBackbone):
    """Switches grad mode off and leaves it so."""

    def solve(self, requests, sampling, role=Role.SOLVER) -> list[TextSample]:
        torch.set_grad_enabled(False)
        return super().solve(requests, sampling, role)


@caught_by("hygiene.modes")
class LeavesTrainingOn(TinyBackbone):
    """Switches the model to training mode for its loss and leaves it so."""

    def generation_loss(self, samples, noise_seeds):
        self._model.train()
        return super().generation_loss(samples, noise_seeds)


@caught_by("hygiene.memory")
class KeepsEverything(TinyBackbone):
    """A log that grows with every call."""

    def generation_loss(self, samples, noise_seeds):
        self.__dict__.setdefault("log", []).append(torch.zeros(200_000))
        return super().generation_loss(samples, noise_seeds)


@caught_by("hygiene.inputs")
class DrawsIntoThePicture(TinyBackbone):
    """Marks the pictures that it has seen."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        samples = super().solve(requests, sampling, role)
        for request in requests:
            if request.image is not None:
                request.image.putpixel((0, 0), (1, 2, 3))
        return samples


@caught_by("imports.offline")
class CallsHome(TinyBackbone):
    """Opens a connection while it loads."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        with suppress(OSError), socket.socket() as connection:
            connection.connect(("127.0.0.1", 9))


def _factory(cls: type[TinyBackbone]) -> Callable[..., TinyBackbone]:
    def load(**settings: Any) -> TinyBackbone:
        request = LoadRequest(**settings)
        return cls(to_device(load_base(None), "cpu", "float32"), Vocabulary(), request)

    return load


def _turn(values: Sequence[float]) -> tuple[float, ...]:
    return (*values[-1:], *values[:-1])


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_backbone_is_caught_by_the_check_that_names_its_defect(name: str):
    cls, check = MUTANTS[name]
    try:
        report = check_backbone(_factory(cls), only=[check])
    finally:
        torch.set_grad_enabled(True)
    assert [outcome.check.id for outcome in report.failures] == [check], report.outcomes


@pytest.mark.parametrize("check", sorted({check for _, check in MUTANTS.values()}))
def test_the_same_factory_without_a_defect_passes(check: str):
    sound = TinyFlowBackbone if check == "drawing.flow_records" else TinyBackbone
    assert check_backbone(_factory(sound), only=[check]).passed


def test_a_plugin_module_that_imports_torch_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "heavy_plugin.py").write_text("import torch\n")
    (tmp_path / "light_plugin.py").write_text("import json\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module, passed in (("heavy_plugin", False), ("light_plugin", True)):
        monkeypatch.setattr(imports, "_plugin_module", lambda _, module=module: module)
        assert check_backbone(_factory(TinyBackbone), only=["imports.manifest"]).passed is passed


@pytest.mark.parametrize(
    "line",
    [
        "import flash_attn",
        "import torch; torch.cuda.is_initialized = lambda: True",
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
    ],
)
def test_model_code_that_does_more_than_define_is_caught(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "greedy_model.py").write_text(f"try:\n    {line}\nexcept OSError:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(TinyBackbone, "__module__", "greedy_model")
    assert not check_backbone(_factory(TinyBackbone), only=["imports.side_effects"]).passed


def test_most_checks_have_a_mutant():
    named = {check for _, check in MUTANTS.values()} | {"imports.manifest", "imports.side_effects"}
    assert len(named) >= 30
    assert named <= set(CHECKS)
