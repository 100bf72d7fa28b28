"""A stock transformers decoder as a :class:`CausalModel`. Subclass it and say how images become embeddings."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from asg_core.backbones.devices import tensor_on
from asg_core.errors import CapabilityError, PluginError
from asg_core.models.decoding.causal_model import Segment, join_segments


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
        """One segment per image, with the tokens that open and close it; causal, positions from 0.

        Raises:
            CapabilityError: here; subclasses that see images override this.
        """
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
