"""The Generator: candidates on BAGEL's native path, and the flow-matching loss on their final latents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asg_bagel.config import BagelConfig
from asg_bagel.kv_cache import Context, read, stack
from asg_bagel.modeling_flow import guided_network, noisy, squared_errors, training_time, velocity
from asg_bagel.modeling_language import Recompute
from asg_bagel.modeling_vae import decode_latent, to_images, to_map
from asg_bagel.options import BagelOptions, Sampler
from asg_bagel.sampling import euler_steps, seeded_noise
from asg_bagel.text import SegmentBuilder
from asg_core.backbones.devices import moved_to
from asg_core.backbones.interface import GenerationLoss, ImageRequest, ImageSample, ImageSampling, Role
from asg_core.errors import ConfigError
from asg_core.models.lora import RoleAdapters


def rollout_side(config: BagelConfig) -> int:
    """Latent tokens per side of a training candidate whose size is not set: 5/8 of the largest."""
    return max(1, config.latent_side * 5 // 8)


def grid_of(config: BagelConfig, sampler: Sampler, default: int) -> tuple[int, int]:
    """(rows, columns) of latent tokens that ``sampler`` draws; ``default`` per side where it names no size.

    Raises:
        ConfigError: the size does not fit the checkpoint.
    """
    stride, side = config.image_stride, config.latent_side
    sizes = [default * stride if size is None else size for size in (sampler.height, sampler.width)]
    for size in sizes:
        if size % stride or not stride <= size <= side * stride:
            raise ConfigError(
                f"an image side of {size} pixels cannot be drawn",
                f"sides are multiples of {stride} up to {side * stride} for this checkpoint",
                f"use {max(stride, min(size // stride, side) * stride)}",
            )
    return sizes[0] // stride, sizes[1] // stride


class Drawing:
    """Draws and scores pictures.

    Prompts are always read with all adapters off: text adapters never act while drawing, and the Generator's has no
    weight there, so the prefix needs no gradient.

    Args:
        builder: the model.
        adapters: of the three roles.
        options: samplers and loss.
        checkpointing: recompute layers in the backward pass of the loss.

    Raises:
        ConfigError: a sampler's size does not fit the checkpoint.
    """

    def __init__(
        self, builder: SegmentBuilder, adapters: RoleAdapters, options: BagelOptions, checkpointing: bool
    ) -> None:
        self._builder, self._adapters, self._options = builder, adapters, options
        self._recompute: Recompute | None = self._generator_again if checkpointing else None
        config = builder.model.config
        self._grids = {
            "quality": grid_of(config, options.quality, config.latent_side),
            "rollout": grid_of(config, options.rollout, rollout_side(config)),
        }

    def _generator_again(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), self._adapters.use(Role.GENERATOR)

    @torch.no_grad()
    def draw(self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None) -> list[ImageSample]:
        """One image per request, all candidates of a call denoised together, ``draw_batch`` at most."""
        sampler = self._options.quality if sampling.profile == "quality" else self._options.rollout
        rows, columns = self._grids[sampling.profile]
        contexts = self._contexts([request.prompt for request in requests])
        samples: list[ImageSample] = []
        for start in range(0, len(requests), self._options.draw_batch):
            batch = requests[start : start + self._options.draw_batch]
            prompts = [contexts[request.prompt] for request in batch]
            samples += self._denoise(batch, prompts, sampler, rows, columns, role)
        return samples

    def _denoise(
        self,
        requests: Sequence[ImageRequest],
        contexts: Sequence[Context],
        sampler: Sampler,
        rows: int,
        columns: int,
        role: Role | None,
    ) -> list[ImageSample]:
        model = self._builder.model
        noise = [seeded_noise(r.seed, rows * columns, model.config.latent_width) for r in requests]
        latents = moved_to(model.device, torch.stack(noise))
        network = guided_network(self._builder, contexts, [Context()] * len(requests), None, rows)
        with self._adapters.use(Role.GENERATOR if role is Role.GENERATOR else None):
            for step in euler_steps(network, latents, sampler):
                latents = step.result
        grid = torch.tensor([rows, columns])
        pictures = [self._picture(tokens, rows) for tokens in latents]
        return [
            ImageSample(request, picture, {"latent": latent.clone(), "grid": grid})
            for request, picture, latent in zip(requests, pictures, latents.cpu(), strict=True)
        ]

    def _picture(self, tokens: Tensor, rows: int) -> Any:
        # One at a time: decoding a large picture needs gigabytes of activations.
        model = self._builder.model
        (picture,) = to_images(decode_latent(model.vae, to_map(tokens[None], rows, model.config.latent_patch)))
        return picture

    @torch.no_grad()
    def _contexts(self, prompts: Sequence[str]) -> dict[str, Context]:
        decoder = self._builder.model.language_model.model
        with self._adapters.use(None):
            return {p: read(decoder, Context(), self._builder.text(p))[1] for p in dict.fromkeys(prompts)}

    def loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """Flow-matching error of the Generator on final latents, guidance off, and its distance to the base model.

        Candidates of different sizes are scored in one batch per size. Equal seeds give equal time, and equal noise
        where sizes are equal.
        """
        contexts = self._contexts([sample.request.prompt for sample in samples])
        by_grid: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(samples):
            by_grid.setdefault(tuple(sample.trajectory["grid"].tolist()), []).append(index)
        losses: list[Tensor] = [torch.empty(0)] * len(samples)
        penalties = list(losses)
        for (rows, _), members in by_grid.items():
            clean = torch.stack([samples[i].trajectory["latent"] for i in members])
            raw, noise = zip(*(self._draws(noise_seeds[i], clean.shape[1:]) for i in members), strict=True)
            prompts = [contexts[samples[i].request.prompt] for i in members]
            time = training_time(torch.stack(raw), self._options.loss_shift)
            error, penalty = self.flow_loss(prompts, clean, time, torch.stack(noise), rows)
            for place, index in enumerate(members):
                losses[index], penalties[index] = error[place], penalty[place]
        return GenerationLoss(torch.stack(losses), torch.stack(penalties))

    def flow_loss(
        self, contexts: Sequence[Context], clean: Tensor, time: Tensor, noise: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        """The loss at given times and noise.

        Args:
            contexts: B prefilled prompts.
            clean: (B, n, w) float32 final latents.
            time: (B,) float32 in (0, 1).
            noise: (B, n, w) float32.
            rows: of the latent grid.

        Returns:
            (B,) mean squared error to the velocity, and (B,) mean squared difference to the adapters-off prediction.
        """
        clean, time, noise = (moved_to(self._builder.model.device, tensor) for tensor in (clean, time, noise))
        under = partial(velocity, self._builder, stack(contexts), noisy(clean, noise, time), time, rows)
        with self._adapters.use(Role.GENERATOR):
            predicted = under(self._recompute if torch.is_grad_enabled() else None)
        with torch.no_grad(), self._adapters.use(None):
            base = under()
        return squared_errors(predicted, clean, noise).mean((1, 2)), (predicted - base).square().mean((1, 2))

    @staticmethod
    def _draws(seed: int, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        stream = torch.Generator().manual_seed(seed)
        return torch.randn((), generator=stream), torch.randn(*shape, generator=stream)
