"""From captions to images: query pass, feature flow, pixel decoder, batched over prompts and candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from asg_blip3o.modeling_blip3o import Blip3oModel, query_states
from asg_blip3o.modeling_decoder import to_images
from asg_blip3o.options import Blip3oOptions, Sampler
from asg_blip3o.processing import Vocabulary
from asg_blip3o.sampling import feature_tokens, sample_features
from asg_core.backbones.devices import moved_to, tensor_on
from asg_core.backbones.interface import ImageRequest
from asg_core.config.seeding import derive_seed


@dataclass(frozen=True)
class Features:
    """Result of stage 1: ``features`` (B, C, g, g) of the requests and ``negative`` (1, C, g, g), float32."""

    features: Tensor
    negative: Tensor


class Drawing:
    """Both stages under whatever adapters are active.

    Args:
        model: the loaded model.
        vocabulary: its tokenizer.
        options: seeds and batch limit.
    """

    def __init__(self, model: Blip3oModel, vocabulary: Vocabulary, options: Blip3oOptions) -> None:
        self.model, self.vocabulary, self.options = model, vocabulary, options

    def conditions(self, captions: Sequence[str]) -> Tensor:
        """(B, n, D) query states of captions under the generation template; equal captions are computed once."""
        places = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        prompts = [self.vocabulary.generation_ids(caption) for caption in places]
        states = query_states(self.model, prompts, self.vocabulary.special.img)
        return states.index_select(0, tensor_on(states.device, [places[caption] for caption in captions]))

    def features(self, requests: Sequence[ImageRequest], sampler: Sampler) -> Features:
        """Stage 1 of all requests and of the decoder's negative, in one batch.

        The negative is one more row of the batch: it costs next to nothing there, it always belongs to the adapters
        that are active, and its seed is fixed, so that it is the same for every image of a policy.
        """
        captions = list(dict.fromkeys(request.prompt for request in requests))
        prompts = [self.vocabulary.generation_ids(caption) for caption in captions] + [self.vocabulary.negative_ids()]
        states = query_states(self.model, prompts, self.vocabulary.special.img)
        rows = [captions.index(request.prompt) for request in requests] + [len(captions)]
        shape = self.model.flow.sample_shape
        seeds = [*(request.seed for request in requests), self.options.negative_seed]
        features = sample_features(
            self.model.flow,
            states.index_select(0, tensor_on(states.device, rows)),
            self._noise([derive_seed("blip3o", "features", seed) for seed in seeds], shape),
            steps=sampler.flow_steps,
            guidance=sampler.flow_guidance,
            shift=self.options.flow_shift,
        )
        return Features(features[:-1], features[-1:])

    def images(self, requests: Sequence[ImageRequest], drawn: Features, sampler: Sampler) -> list[Image]:
        """Stage 2, ``images_per_batch`` candidates at a time.

        Raises:
            ConfigError: the profile's size does not fit the decoder.
        """
        decoder = self.model.decoder
        shape = decoder.latent_shape(sampler.height, sampler.width)
        tokens, negative = feature_tokens(drawn.features), feature_tokens(drawn.negative)
        images: list[Image] = []
        for start in range(0, len(requests), self.options.images_per_batch):
            part = slice(start, start + self.options.images_per_batch)
            latents = decoder.sample(
                tokens[part],
                negative,
                self._noise([derive_seed("blip3o", "pixels", request.seed) for request in requests[part]], shape),
                steps=sampler.decoder_steps,
                guidance=sampler.decoder_guidance,
            )
            images += to_images(decoder.pixels(latents))
        return images

    def _noise(self, seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal, drawn on the CPU so that a seed means the same on every device."""
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return moved_to(self.model.device, torch.stack(rows))
