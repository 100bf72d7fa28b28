"""What decoding needs of a model: embeddings in, hidden states out; and a stock transformers decoder that gives it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from asg_core.backbones.devices import tensor_on
from asg_core.errors import CapabilityError, PluginError


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of input embeddings that is prefilled as a whole.

    Attributes:
        embeds: (L, D) in the model's dtype and on its device.
        positions: (A, L) long, offsets from the row's running position counter; A position axes (1 for plain rotary
            embeddings, 3 for M-RoPE).
        advance: how far the segment moves the counter. L for text; an image may move it by less (M-RoPE) or by 1.
        causal: True: each position sees the past and the segment up to itself; False: the past and the whole segment.
    """

    embeds: Tensor
    positions: Tensor
    advance: int
    causal: bool = True


def join_segments(segments: Sequence[Segment]) -> Segment:
    """One segment that equals the given ones in a row, all of which must share ``causal``. Raises ValueError if causal
    and non-causal segments are mixed; one segment has one attention pattern."""
    if len({segment.causal for segment in segments}) != 1:
        raise ValueError("cannot join causal and non-causal segments into one")
    counter, positions = 0, []
    for segment in segments:
        positions.append(segment.positions + counter)
        counter += segment.advance
    return Segment(
        torch.cat([segment.embeds for segment in segments]), torch.cat(positions, dim=1), counter, segments[0].causal
    )


class CausalModel(Protocol):
    """A causal transformer behind text prompts and images. B rows, L new positions, S cached and new ones together.

    Rules that keep sampling and scoring equal:

    * the model is in eval mode (dropout off); base parameters are frozen;
    * the result for a row depends on that row alone;
    * :meth:`forward` obeys ``mask`` and ``positions`` to the letter and derives neither from the cache length: padding
      lies in the middle of a row;
    * layers write to the cache through ``cache.update(keys, values, layer_index)`` once per forward and attend over
      what it returns, and every layer attends over the full past.
    """

    @property
    def stop_token_ids(self) -> Collection[int]:
        """Tokens that end a completion."""

    @property
    def suppressed_token_ids(self) -> Collection[int]:
        """Tokens that are never sampled: -inf before the softmax, in sampling and in scoring log-probs alike."""

    def prefixes(self, images: Sequence[Image | None]) -> list[Segment]:
        """One segment per entry: template header and image, up to where the prompt starts.

        Entries are distinct objects; None is a text-only request. The vision tower runs as one batch. An empty segment
        (L = 0) is allowed.
        """

    def prompt(self, text: str) -> Segment:
        """Prompt text and template tail, up to where the answer starts; at least one position."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, L) long -> (B, L, D)."""

    def new_cache(self) -> Cache:
        """An empty cache with plain dynamic layers, as ``transformers.DynamicCache()`` is."""

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Run all layers and the final norm, appending keys and values to ``cache``.

        Args:
            embeds: (B, L, D).
            mask: (B, 1, L, S) bool, True where a query may look; the last L of the S keys are the new ones, except in
                a compiled pass, whose cache says where it put them.
            positions: (A, B, L) long, absolute.
            cache: gives S positions back when L are written to it.

        Returns:
            (B, L, D) hidden states, ready for :meth:`head`.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) float32 raw logits. Called with at most 128 rows."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


class TransformersCausalModel:
    """A decoder of transformers behind the decoding interface; the base class of most backbones' text side.

    The prompt is laid out as ``header``, image, prompt text, ``tail``. Text without an image leaves the image out.
    Subclasses that see images override :meth:`image_segments`.

    Args:
        decoder: the text stack without a head, e.g. ``LlamaForCausalLM.model`` or ``Qwen2_5_VLModel.language_model``;
            takes ``inputs_embeds``, ``position_ids``, a 4-D ``attention_mask`` and a cache. All layers full attention.
        head: hidden states (n, D) -> logits (n, V).
        tokenizer: of the model.
        header: text before the image, special tokens by name.
        tail: text between prompt and answer, special tokens by name.
        axes: position axes A, 3 for M-RoPE.
        stop_token_ids: tokens that end a completion.
        suppressed_token_ids: tokens never to sample, e.g. image codes and padded rows of the vocabulary.

    Raises:
        PluginError: if the decoder has sliding-window or recurrent layers, or its attention cannot read a boolean mask.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        head: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        header: str = "",
        tail: str = "",
        axes: int = 1,
        stop_token_ids: Collection[int],
        suppressed_token_ids: Collection[int] = (),
    ) -> None:
        kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or decoder.config._attn_implementation != "sdpa":
            raise PluginError(
                f"cannot decode with {type(decoder).__name__}: layers {sorted(kinds)}, attention "
                f"{decoder.config._attn_implementation!r}",
                "the prefix tree needs layers that attend over the full past under a boolean mask",
                "load it with attn_implementation='sdpa'; sliding-window and recurrent layers are not supported",
            )
        self.decoder, self.output, self.tokenizer = decoder, head, tokenizer
        self.header, self.tail, self.axes = header, tail, axes
        self.stop_token_ids = frozenset(stop_token_ids)
        self.suppressed_token_ids = tuple(sorted(suppressed_token_ids))

    def image_segments(self, images: Sequence[Image]) -> list[Segment]:
        """One segment per image, with the tokens that open and close it; causal, positions from 0. Raises
        CapabilityError here; subclasses that see images override this."""
        raise CapabilityError(
            f"{type(self).__name__} was given {len(images)} image(s)", "it is a text-only model", "pass image=None"
        )

    def text_segment(self, text: str, *, special: bool) -> Segment:
        """``text`` as tokens, nothing added. With ``special`` False, names of special tokens in it are plain text."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return self.token_segment(ids)

    def token_segment(self, ids: Sequence[int]) -> Segment:
        """A causal segment of known tokens at consecutive positions."""
        weight = self.decoder.get_input_embeddings().weight
        positions = torch.arange(len(ids), device=weight.device).expand(self.axes, -1)
        embeds = self.embed_tokens(tensor_on(weight.device, [ids], torch.long))[0]
        return Segment(embeds, positions, len(ids))

    def prefixes(self, images: Sequence[Image | None]) -> list[Segment]:
        """Header and image; see :class:`CausalModel`."""
        header = self.text_segment(self.header, special=True)
        shown = [image for image in images if image is not None]
        seen = iter(self.image_segments(shown) if shown else [])
        return [header if image is None else join_segments([header, next(seen)]) for image in images]

    def prompt(self, text: str) -> Segment:
        """Prompt and tail; see :class:`CausalModel`. Special tokens named in ``text`` have no power."""
        return join_segments([self.text_segment(text, special=False), self.text_segment(self.tail, special=True)])

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, L) long -> (B, L, D)."""
        embeds: Tensor = self.decoder.get_input_embeddings()(ids)
        return embeds

    def new_cache(self) -> Cache:
        """An empty cache."""
        return DynamicCache()

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """All layers and the final norm; see :class:`CausalModel`."""
        hidden: Tensor = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions[0] if self.axes == 1 else positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) float32."""
        logits: Tensor = self.output(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens show nothing."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
