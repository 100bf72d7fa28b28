"""Images as sequences of VQ codes, on the same decoding as text: a second vocabulary over the same language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from asg_core.backbones.interface import ImageRequest, ImageSample, TextRequest, TextSample
from asg_core.models.decoding import Segment, append_token, join_segments, pick, prefill_roots, uniforms_of
from asg_janus.text import JanusText

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageTokens:
    """The language model with image codes for tokens: a ``CausalModel`` whose prompts are captions to draw.

    Args:
        text: the text side, whose layers, tokenizer and processor it shares.
    """

    stop_token_ids: frozenset[int] = frozenset()
    suppressed_token_ids: tuple[int, ...] = ()

    def __init__(self, text: JanusText) -> None:
        self.text, self.model = text, text.model
        self.new_cache, self.forward = text.new_cache, text.forward
        self.length = int(self.model.config.vq_config.num_patches) ** 2

    def prefixes(self, images: Sequence[Image | None]) -> list[Segment]:
        """Nothing: a caption is a prompt of its own, without system text."""
        return [self.text.token_segment([]) for _ in images]

    def prompt(self, text: str) -> Segment:
        """The caption as the user's turn, up to the token that begins an image."""
        segment, tokenizer = self.text.text_segment, self.text.tokenizer
        return join_segments(
            [
                segment(f"{tokenizer.bos_token}<|User|>", special=True),
                segment(f": {text}\n\n", special=False),
                segment(f"<|Assistant|>:{tokenizer.boi_token}", special=True),
            ]
        )

    def unconditional(self, prompt: Segment) -> Segment:
        """What guidance compares with: as many positions, padding tokens between the first and the last."""
        ids = self.text.tokenizer
        padding = [ids.pad_token_id] * (prompt.advance - 2)
        return self.text.token_segment([ids.bos_token_id, *padding, ids.boi_token_id])

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, L) codes -> (B, L, D)."""
        embeds: Tensor = self.model.prepare_embeddings_for_image_generation(ids)
        return embeds

    def head(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, codes) float32."""
        logits: Tensor = self.model.model.generation_head(hidden)
        return logits.float()

    def decode(self, ids: Sequence[int]) -> str:
        """Codes have no text."""
        return ""

    @torch.no_grad()
    def sample(self, requests: Sequence[ImageRequest], temperature: float, guidance: float) -> tuple[Tensor, Tensor]:
        """Draw N images as one batch under the adapters that are active, each distinct caption prefilled once.

        Codes come from softmax(guided logits / temperature), guided = unconditional + g (conditional - unconditional).

        Returns:
            (N, L) codes, and their (N, L) log-probs in nats under the *conditional* policy,
            softmax(conditional logits / temperature): what a replay with teacher forcing gives.
        """
        captions = list(dict.fromkeys(request.prompt for request in requests))
        owners = [captions.index(request.prompt) for request in requests]
        roots = [self.prompt(caption) for caption in captions]
        if guidance > 1:
            owners += [owner + len(roots) for owner in owners]
            roots += [self.unconditional(root) for root in roots]
        rows = prefill_roots(self, roots).fork(owners, growing=True)
        uniforms = uniforms_of([request.seed for request in requests], self.length, rows.counter.device)
        codes: list[Tensor] = []
        logprobs: list[Tensor] = []
        for step in range(self.length):
            if step:
                rows = append_token(self, rows, codes[-1].repeat(len(owners) // len(requests)))
            conditional, *rest = torch.split(self.head(rows.last), len(requests))
            guided = rest[0] + guidance * (conditional - rest[0]) if rest else conditional
            codes.append(pick((guided / temperature).log_softmax(-1), uniforms[:, step]))
            policy = (conditional / temperature).log_softmax(-1)
            logprobs.append(policy.gather(-1, codes[-1][:, None])[:, 0])
        return torch.stack(codes, 1), torch.stack(logprobs, 1)

    @torch.no_grad()
    def picture(self, codes: Tensor) -> Image:
        """(L,) codes -> RGB, through the model's VQ decoder and its processor."""
        pixels = self.model.decode_image_tokens(codes[None]).float().cpu()  # (1, height, width, 3)
        # The PIL processor undoes its normalisation along the first axis only, whatever layout it is told.
        shown = self.text.processor.postprocess(
            list(pixels.permute(0, 3, 1, 2).numpy()),
            input_data_format="channels_first",
            return_tensors="PIL.Image.Image",
        )
        picture: Image = shown["pixel_values"][0]
        return picture


def as_text(sample: ImageSample) -> TextSample:
    """A drawn image as a completion of its caption, so that the core's ``token_logits`` can score it."""
    codes = tuple(sample.trajectory["codes"].tolist())
    request = TextRequest(sample.request.prompt, None, sample.request.seed)
    temperature = float(sample.trajectory["temperature"])
    return TextSample(request, "", codes, ("",) * len(codes), (), (), "length", temperature)
