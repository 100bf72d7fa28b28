"""The language model of BAGEL: Qwen2.5 shape, query and key norms, two experts per layer (mixture of transformers).

Routing is by token type and deterministic: latent tokens use every ``*_moe_gen`` weight, all others (text, vision
patches, image markers) the understanding weights; attention is joint. A sequence is laid out so that the routing is one
number: the first ``split`` tokens are understanding tokens, the rest latents. Module names are the released names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from asg_core.backbones.devices import tensor_on

SUFFIX = "_moe_gen"
"""Marks the generation expert in tensor names: on the leaf for projections and norms, on the parent for the MLP."""

EXPERTS = ("", SUFFIX)

Recompute = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
"""Contexts of a checkpointed forward and of its recomputation (``torch.utils.checkpoint``'s ``context_fn``)."""


def route(x: Tensor, split: int, und: Callable[[Tensor], Tensor], gen: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, L, ...) -> (B, L, ...): ``und`` on the first ``split`` tokens, ``gen`` on the rest."""
    if split >= x.shape[1]:
        return und(x)
    if split == 0:
        return gen(x)
    return torch.cat([und(x[:, :split]), gen(x[:, split:])], dim=1)


class Attention(nn.Module):
    """Joint attention over both token types; each type has its own projections and per-head norms."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        keys = config.num_key_value_heads * self.head_dim
        for suffix in EXPERTS:
            self.add_module(f"q_proj{suffix}", nn.Linear(width, width))
            self.add_module(f"k_proj{suffix}", nn.Linear(width, keys))
            self.add_module(f"v_proj{suffix}", nn.Linear(width, keys))
            self.add_module(f"o_proj{suffix}", nn.Linear(width, width, bias=False))
            self.add_module(f"q_norm{suffix}", Qwen2RMSNorm(self.head_dim, config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", Qwen2RMSNorm(self.head_dim, config.rms_norm_eps))

    def _route(self, name: str, x: Tensor, split: int) -> Tensor:
        return route(x, split, getattr(self, name), getattr(self, name + SUFFIX))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor], split: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> queries (B, H, L, d) and keys, values (B, H_kv, L, d), normed and rotated.

        With latents present, norm and rotation are in float32, as upstream computes them in its image path.
        """
        q, k, v = (self._heads(self._route(f"{n}_proj", x, split)) for n in "qkv")
        dtype = v.dtype
        if split < x.shape[1]:
            q, k = q.float(), k.float()
        q, k = self._route("q_norm", q, split), self._route("k_norm", k, split)
        q, k = apply_rotary_pos_emb(q, k, *rope, unsqueeze_dim=2)
        return q.to(dtype).transpose(1, 2), k.to(dtype).transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, split: int) -> Tensor:
        """Queries (B, H, L, d) over all keys and values (B, H_kv, S, d) -> (B, L, D)."""
        mixed, _ = sdpa_attention_forward(self, q, k, v, mask, scaling=self.head_dim**-0.5, is_causal=False)
        return self._route("o_proj", mixed.flatten(2), split)


class Layer(nn.Module):
    """One pre-norm decoder layer with both experts."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        for suffix in EXPERTS:
            self.add_module(f"mlp{suffix}", Qwen2MLP(config))
            self.add_module(f"input_layernorm{suffix}", Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))
            self.add_module(f"post_attention_layernorm{suffix}", Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))

    def _route(self, name: str, x: Tensor, split: int) -> Tensor:
        return route(x, split, getattr(self, name), getattr(self, name + SUFFIX))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
        cache: Cache | None,
        index: int,
        split: int,
        append: bool,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); ``index`` is this layer's number in ``cache``. Arguments as in :class:`Decoder`."""
        q, k, v = self.self_attn.project(self._route("input_layernorm", x, split), rope, split)
        if cache is not None and append:
            k, v = cache.update(k, v, index)
        elif cache is not None:
            k = torch.cat([cache.layers[index].keys, k], dim=2)
            v = torch.cat([cache.layers[index].values, v], dim=2)
        x = x + self.self_attn.attend(q, k, v, mask, split)
        return x + self._route("mlp", self._route("post_attention_layernorm", x, split), split)


class Decoder(nn.Module):
    """All layers and the final norms."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        for suffix in EXPERTS:
            self.add_module(f"norm{suffix}", Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.reset_rope("cpu")

    def reset_rope(self, device: torch.device | str) -> None:
        """Put the rotary frequencies on ``device``; they are in no file, so a model built on meta needs this."""
        with torch.device("cpu"):
            self.rotary = Qwen2RotaryEmbedding(self.config).to(device)

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache: Cache | None,
        *,
        split: int | None = None,
        append: bool = True,
        recompute: Recompute | None = None,
    ) -> Tensor:
        """Run all layers and the final norms.

        Args:
            embeds: (B, L, D), understanding tokens first.
            mask: bool, broadcastable to (B, 1, L, S), True where a query may look; None: everywhere.
            positions: (B, L) long, absolute rotary positions; tokens of one image share theirs.
            cache: holds the S - L earlier positions; None when there are none.
            split: number of leading understanding tokens; None: all of them.
            append: whether the new keys and values are written to ``cache``. False leaves it untouched, for an image
                that is being denoised and never becomes context.
            recompute: given, layers keep no activations and are run again in the backward pass, under its second
                context, which must make the same adapter active. Only with ``append=False``.

        Returns:
            (B, L, D), understanding tokens under ``norm``, latents under ``norm_moe_gen``.
        """
        split = embeds.shape[1] if split is None else split
        # Only dtype and device of the first argument matter to the rotary embedding.
        like = embeds[:, :1].float() if split < embeds.shape[1] else embeds[:, :1]
        rope = self.rotary(like, positions)
        x = embeds
        for index, layer in enumerate(self.layers):
            inputs = (x, mask, rope, cache, index, split, append)
            x = (
                layer(*inputs)
                if recompute is None
                else checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=recompute)
            )
        return route(x, split, self.get_submodule("norm"), self.get_submodule(f"norm{SUFFIX}"))


class LanguageModel(nn.Module):
    """The decoder and its untied head, nested as the released names are."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def stack_positions(counters: Sequence[int], length: int, device: torch.device) -> Tensor:
    """(B, length) long in which every token of row i is at position ``counters[i]``, as in an image segment."""
    return tensor_on(device, counters)[:, None].expand(-1, length)
