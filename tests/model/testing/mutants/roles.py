"""Backbones whose three roles are not apart, or not what they were."""

from __future__ import annotations

import torch

from asg_core.backbones.interface import Role
from asg_core.models.decoding import PrefixCache
from asg_core.models.decoding.prefix_tree import prefill_roots
from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


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


@caught_by("roles.no_stale_cache")
class StaleCache(TinyBackbone):
    """Prefixes prefilled before an update are used after it."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        self._prefixes = PrefixCache(lambda: (self.adapters.active,))


@caught_by("roles.prefill")
class ReadsForOneRole(TinyBackbone):
    """What is read ahead is read under the first role and kept for all."""

    def prefill(self, images, roles):
        distinct = list({id(image): image for image in images}.values())
        with torch.no_grad(), self.adapters.use(roles[0]):
            rows = prefill_roots(self.text, self.text.prefixes(distinct))
        for role in roles:
            with self.adapters.use(role):
                self._prefixes.keep(distinct, rows)


@caught_by("roles.isolation")
class MovesTheBase(TinyBackbone):
    """A tensor of the base is trained with the Solver."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        model.trunk.norm.weight.requires_grad_(True)

    def trainable(self, role):
        extra = {"norm": self._model.trunk.norm.weight} if role is Role.SOLVER else {}
        return {**super().trainable(role), **extra}


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
