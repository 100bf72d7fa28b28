"""The half of a backbone that is the same for every model with a causal text decoder: text roles and adapters.

Subclass it, hand over a :class:`~asg_core.models.decoding.CausalModel` and
:class:`~asg_core.models.lora.RoleAdapters`, and what is left to write is drawing (``generate``, ``generation_loss``).
A model with a trained joint space overrides ``embed``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn

from asg_core.backbones.devices import avoid_cudnn_attention, sum_in_float32
from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSample, TextSamplings, TokenLogits
from asg_core.backbones.options import BackboneOptions
from asg_core.models.decoding import CausalModel, CompiledDecode, PromptEmbedding, sample_text, token_logits
from asg_core.models.decoding.prefix_tree import PrefixCache, prefill_roots
from asg_core.models.lora import RoleAdapters


class CausalBackbone(Backbone):
    """Asks, solves and scores through :mod:`asg_core.models.decoding`; a prefix is prefilled once per adapter version.

    Args:
        text: the model as decoding needs it.
        adapters: the three roles over it.
        checkpoint_layers: decoder layers whose activations are recomputed in the backward pass; none by default.
        options: those that all backbones share; None: the defaults.

    Attributes:
        compiled: runs decode passes where ``compile_decode`` is on; None: they are eager.
    """

    def __init__(
        self,
        text: CausalModel,
        adapters: RoleAdapters,
        checkpoint_layers: Sequence[nn.Module] = (),
        options: BackboneOptions | None = None,
    ) -> None:
        avoid_cudnn_attention()
        sum_in_float32()
        self.text, self.adapters = text, adapters
        self.checkpoint_layers = checkpoint_layers
        self.compiled = CompiledDecode(text) if options and options.compile_decode else None
        self._prefixes = PrefixCache(adapters.version)
        self._embedding = PromptEmbedding(text, adapters)

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        return self._complete(requests, sampling, role)

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        return self._complete(requests, sampling, role)

    def _complete(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None
    ) -> list[TextSample]:
        with self.adapters.use(role):
            return sample_text(self.text, requests, sampling, prefixes=self._prefixes, compiled=self.compiled)

    @torch.no_grad()
    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        """See Backbone: the rows of all roles run as one batch, each under its own adapter."""
        distinct = list({id(image): image for image in images}.values())
        lacking = [role for role in dict.fromkeys(roles) if not self._has_read(role, distinct)]
        if not distinct or not lacking:
            return
        segments = self.text.prefixes(distinct)
        with self.adapters.use_rows([role for role in lacking for _ in distinct]):
            rows = prefill_roots(self.text, segments * len(lacking))
        for place, role in enumerate(lacking):
            with self.adapters.use(role):
                self._prefixes.keep(distinct, rows, place * len(distinct))

    def release_memory(self) -> None:
        """See Backbone: the static slots of compiled passes."""
        if self.compiled is not None:
            self.compiled.release()

    @property
    def runs_compiled(self) -> bool:
        return self.compiled is not None

    def _has_read(self, role: Role | None, images: Sequence[Image]) -> bool:
        with self.adapters.use(role):
            return self._prefixes.find(images) is not None

    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        return token_logits(
            self.text,
            samples,
            self.adapters,
            role,
            base=base,
            logits=logits,
            checkpoint_layers=self.checkpoint_layers,
            prefixes=self._prefixes,
        )

    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """See Backbone: (n, hidden size), hidden states before a one-word summary (``decoding.prompt_embedding``)."""
        return self._embedding(items)

    def trainable(self, role: Role) -> Mapping[str, nn.Parameter]:
        return self.adapters.parameters(role)

    def save_role(self, role: Role, directory: Path) -> None:
        self.adapters.save(role, directory)

    def load_role(self, role: Role, directory: Path) -> None:
        self.adapters.load(role, directory)
