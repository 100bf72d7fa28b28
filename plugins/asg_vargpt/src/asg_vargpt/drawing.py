"""The Generator's images: drawing them in batches, and scoring the stored bits again with gradients.

Trajectory of an image: ``bits`` (L, d) uint8, ``grids`` (scales, 2) and ``prompt_ids`` (n,) long; no pixel is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from asg_core.backbones.interface import GenerationLoss, ImageRequest, ImageSample, ImageSampling, Role
from asg_core.models.decoding import recomputed
from asg_core.models.lora import RoleAdapters
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.options import Sampler, VargptOptions, per_scale
from asg_vargpt.prefill import prefill
from asg_vargpt.processing import to_images
from asg_vargpt.sampling import draw, draw_bits, filtered_logits
from asg_vargpt.scales import Schedule, schedule, schedule_of
from asg_vargpt.scoring import BitScores, bit_scores, conditional_logits
from asg_vargpt.text import VargptText


class Candidates:
    """Draws and scores.

    Args:
        model: loaded.
        text: builds drawing prompts.
        adapters: role switch.
        options: of the plugin.
        checkpointing: recompute activations in :meth:`loss`.
    """

    def __init__(
        self, model: Vargpt, text: VargptText, adapters: RoleAdapters, options: VargptOptions, *, checkpointing: bool
    ) -> None:
        self._model, self._text, self._adapters, self._options = model, text, adapters, options
        layers = [*model.language_model.layers, *model.decoder.blocks] if checkpointing else []
        self._checkpointed: list[nn.Module] = layers

    @torch.no_grad()
    def draw(self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None) -> list[ImageSample]:
        """One image per request, ``draw_batch`` at a time; each distinct prompt of a batch is prefilled once.

        Raises:
            ConfigError: a per-scale setting has the wrong length. CapabilityError: a prompt is too long for guidance.
        """
        sampler = self._options.quality if sampling.profile == "quality" else self._options.rollout
        with self._adapters.use(role):
            size = self._options.draw_batch
            return [
                sample
                for start in range(0, len(requests), size)
                for sample in self._draw(requests[start : start + size], sampler, sampling.temperature)
            ]

    def _draw(self, requests: Sequence[ImageRequest], sampler: Sampler, temperature: float) -> list[ImageSample]:
        plan = schedule(sampler.aspect_ratio, sampler.resolution)
        scales = len(plan.grids)
        top_k = per_scale("top_k", sampler.top_k, scales)
        top_p = per_scale("top_p", sampler.top_p, scales)
        streams = [torch.Generator().manual_seed(request.seed) for request in requests]

        def choose(scale: int, logits: Tensor) -> Tensor:
            return draw_bits(filtered_logits(logits, int(top_k[scale]), top_p[scale]), streams)

        prompts = {text: self._prompt_ids(text) for text in dict.fromkeys(request.prompt for request in requests)}
        row_of = {text: row for row, text in enumerate(prompts)}
        drawn, logits = [], []
        for step in draw(
            self._model,
            prefill(self._model, list(prompts.values())),
            [row_of[request.prompt] for request in requests],
            plan,
            per_scale("guidance", sampler.guidance, scales),
            [temperature * tau for tau in per_scale("tau", sampler.tau, scales)],
            choose,
        ):
            drawn.append(step.bits)
            logits.append(step.logits[: len(requests)])
            latent = step.latent
        bits, conditional = torch.cat(drawn, dim=1), torch.cat(logits, dim=1)
        units, kept = self._units(bit_scores(conditional, bits, plan)).cpu(), bits.cpu()
        return [
            ImageSample(
                request,
                to_images(self._model.vae.decode(latent[row : row + 1]))[0],
                {
                    "bits": kept[row].clone(),
                    "grids": torch.tensor(plan.grids),
                    "prompt_ids": torch.tensor(prompts[request.prompt]),
                },
                units[row],
            )
            for row, request in enumerate(requests)
        ]

    def _prompt_ids(self, prompt: str) -> list[int]:
        return self._text.drawing_ids(self._options.instruction.replace("{prompt}", prompt), self._options.reply)

    def loss(self, samples: Sequence[ImageSample]) -> GenerationLoss:
        """See Backbone: bit cross-entropy on the stored bits under the Generator, exact KL per bit to the base."""
        losses: dict[int, Tensor] = {}
        penalties: dict[int, Tensor] = {}
        logprobs: dict[int, Tensor] = {}
        for rows in _groups(samples):
            scores, divergence = self._score([samples[row] for row in rows])
            units = self._units(scores)
            for row, loss, penalty, unit in zip(
                rows, -self._average(scores), self._average(divergence), units, strict=True
            ):
                losses[row], penalties[row], logprobs[row] = loss, penalty, unit
        order = range(len(samples))
        return GenerationLoss(
            torch.stack([losses[row] for row in order]),
            torch.stack([penalties[row] for row in order]),
            nn.utils.rnn.pad_sequence([logprobs[row] for row in order], batch_first=True),
        )

    def scores(self, samples: Sequence[ImageSample], role: Role | None) -> list[BitScores]:
        """Exact conditional log-probs of stored images under ``role``, per bit, scale and image; one record each."""
        with self._adapters.use(role):
            return [
                bit_scores(self._logits([sample], role), sample.trajectory["bits"][None], _plan(sample))
                for sample in samples
            ]

    def _score(self, samples: Sequence[ImageSample]) -> tuple[BitScores, BitScores]:
        """Log-probs under the Generator and KL(Generator || base) of every bit, for samples of one prompt and size."""
        plan = _plan(samples[0])
        bits = torch.stack([sample.trajectory["bits"] for sample in samples])
        logits = self._logits(samples, Role.GENERATOR)
        with torch.no_grad():
            reference = self._logits(samples, None).log_softmax(-1)
        policy = logits.log_softmax(-1)
        divergence = (policy.exp() * (policy - reference)).sum(-1)
        return bit_scores(logits, bits, plan), BitScores(divergence, plan)

    def _logits(self, samples: Sequence[ImageSample], role: Role | None) -> Tensor:
        bits = torch.stack([sample.trajectory["bits"] for sample in samples])
        prompt = samples[0].trajectory["prompt_ids"].tolist()
        with self._adapters.use(role), recomputed(self._checkpointed, partial(self._adapters.use, role)):
            return conditional_logits(self._model, prompt, bits, _plan(samples[0]))

    def _average(self, values: BitScores) -> Tensor:
        """(B,) mean over an image as the options say."""
        if self._options.loss_average == "scales":
            return values.mean_per_scale.mean(1)
        return values.logprobs.mean((1, 2))

    def _units(self, scores: BitScores) -> Tensor:
        """(B, units) log-probs of what carries one probability ratio."""
        return scores.logprobs.sum(-1) if self._options.policy_unit == "position" else scores.logprobs.flatten(1)


def _plan(sample: ImageSample) -> Schedule:
    return schedule_of(tuple((int(h), int(w)) for h, w in sample.trajectory["grids"].tolist()))


def _groups(samples: Sequence[ImageSample]) -> list[list[int]]:
    """Rows of samples that share prompt and size, and so one forward pass."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, sample in enumerate(samples):
        key = (tuple(sample.trajectory["prompt_ids"].tolist()), _plan(sample).grids)
        groups.setdefault(key, []).append(row)
    return list(groups.values())
