"""The seam between the method and a model: four role interfaces and the records that pass through them.

A backbone is a frozen unified model that plays three roles through three LoRA adapters (paper, section 3):

* **ask**: the Proposer writes questions about an image,
* **solve**: the Solver answers questions and judges drawn images,
* **generate**: the Generator draws,
* **token_logits**: the next-token distributions along stored token ids, for entropies and policy updates.

Everything is batched. Images are PIL RGB at the seam, tensors live inside. A seed belongs to a *sample*: the result for
a request depends on its prompt, image and seed, never on what else is in the batch. ``role=None`` means the base policy
(all adapters off). Whoever implements :class:`Backbone` needs to read this file and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from asg_core.errors import CapabilityError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from asg_core.backbones.manifest import BackboneManifest


class Role(StrEnum):
    """The three adapters over the one frozen model. The value is also the PEFT adapter name."""

    PROPOSER = "proposer"
    SOLVER = "solver"
    GENERATOR = "generator"


@dataclass(frozen=True, eq=False)
class TextRequest:
    """One prompt to complete. Requests of one call that hold the *same image object* share its prefix.

    Attributes:
        prompt: plain instruction text; the backbone adds its own chat template.
        image: RGB image shown before the prompt, or None for text only.
        seed: 63-bit seed of this sample's random stream.
    """

    prompt: str
    image: Image | None
    seed: int


@dataclass(frozen=True)
class TextSampling:
    """How to sample text: plain temperature sampling, no truncation, so that log-probs are those of the policy.

    Attributes:
        max_new_tokens: completion length limit in tokens, stop token included, >= 1.
        temperature: > 0 samples from softmax(logits / temperature); 0 is greedy.
    """

    max_new_tokens: int
    temperature: float = 1.0


TextSamplings = TextSampling | Sequence[TextSampling]
"""How to sample the requests of one call: all alike, or one each."""


def broadcast_sampling(sampling: TextSamplings, count: int) -> list[TextSampling]:
    """What ``ask`` and ``solve`` were given as ``sampling``, as one per request.

    Raises:
        ValueError: if there is one each, but not for ``count`` requests.
    """
    each = [sampling] * count if isinstance(sampling, TextSampling) else list(sampling)
    if len(each) != count:
        raise ValueError(f"{len(each)} samplings for {count} requests")
    return each


@dataclass(frozen=True, eq=False)
class TextSample:
    """A completion with everything captured while it was sampled. All sequences have one entry per token, T in all.

    Attributes:
        text: the decoded completion, without stop token, stripped of nothing else.
        token_ids: ids as sampled; includes the stop token when ``finish_reason == "stop"``. Never re-tokenised.
        pieces: text that each token contributes; ``"".join(pieces) == text`` (a stop token contributes "").
        logprobs: nats, log-prob of each token under the *sampling* policy softmax(logits / temperature); for greedy
            samples under temperature 1.
        entropies: nats, full-vocabulary entropy of the raw logits at temperature 1, float32, in [0, ln V]; NaN where
            logits were not finite.
        finish_reason: "stop" when the model ended the completion, "length" when the limit did.
        temperature: the temperature that ``logprobs`` refer to (1.0 for greedy samples).
    """

    request: TextRequest
    text: str
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    temperature: float


@dataclass(frozen=True, eq=False)
class TokenLogits:
    """Teacher-forced scores of one stored sample, float32, T tokens. ``logprobs`` and ``kl`` carry gradients.

    Attributes:
        logprobs: (T,) nats, at the sample's temperature.
        entropies: (T,) nats, raw logits, temperature 1, detached.
        base_logprobs: (T,) nats under the adapters-off model, same temperature, detached; None if not asked for.
        kl: (T,) nats, exact KL(policy || base) over the vocabulary at the sample's temperature; None if not asked for.
        logits: (T, V) raw logits, detached; None unless asked for.
    """

    logprobs: Tensor
    entropies: Tensor
    base_logprobs: Tensor | None = None
    kl: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw: a plain caption, to which the backbone adds its own template, and a seed as in TextRequest."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class ImageSampling:
    """How to draw. Everything else (steps, guidance, size) is in the backbone's own options.

    Attributes:
        profile: "rollout" for training candidates (may be cheaper), "quality" for images a person looks at.
        temperature: > 0, used by token-based generators only; flow and diffusion ignore it.
    """

    profile: Literal["rollout", "quality"] = "rollout"
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class ImageSample:
    """A drawn image and what is needed to score it again exactly, without going through pixels.

    Attributes:
        image: RGB.
        trajectory: backbone-private CPU tensors (final latent, codes, bits per scale); round-trips through safetensors.
        token_logprobs: (L,) nats of the sampled image tokens under the policy that ``generation_loss`` re-evaluates,
            CPU float32; None for flow and diffusion. They check that drawing and scoring agree. That policy is without
            guidance, also where guidance drew the tokens: only with guidance off did it sample them.
    """

    request: ImageRequest
    image: Image
    trajectory: Mapping[str, Tensor]
    token_logprobs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GenerationLoss:
    """Differentiable per-candidate loss of the Generator adapter on stored trajectories, guidance off, float32.

    Attributes:
        loss: (B,) flow-matching squared error (mean over latent elements), or mean negative token log-prob in nats.
        penalty: (B,) distance to the adapters-off model: mean squared difference of predictions (flow), or mean exact
            KL in nats per token (tokens). 0 when the adapter is zero.
        token_logprobs: (B, L) nats, only for token-based generators.
    """

    loss: Tensor
    penalty: Tensor
    token_logprobs: Tensor | None = None


class Backbone(ABC):
    """A unified model behind the four roles. Implementations keep every base parameter frozen and in eval mode."""

    manifest: BackboneManifest

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model lives."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen base; adapters are float32 regardless."""

    @abstractmethod
    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """Complete each request as the Proposer. One request gives one sample, in order. No gradient.

        ``sampling`` is that of all requests, or one each (:func:`broadcast_sampling`), so that sampled and greedy
        answers are one batch.
        """

    @abstractmethod
    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """Complete each request as the Solver, as :meth:`ask` does as the Proposer."""

    @abstractmethod
    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        """Score stored samples under ``role``, each under the prompt and image it was sampled from.

        Differentiable in the parameters of ``role`` when grad mode is on. With ``base`` the adapters-off scores and
        the exact KL come too. With ``role`` as it was while sampling, ``logprobs`` equal the sampled ones.
        """

    @abstractmethod
    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """Draw one image per request on the model's native path, as one batch where it fits. No gradient."""

    @abstractmethod
    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """Loss of each candidate of :meth:`generate` under the Generator adapter; differentiable when grad mode is on.

        ``noise_seeds``, one per sample: equal seeds give equal timestep and noise (METHOD: shared across the candidates
        of one prompt). Token-based generators ignore them.
        """

    @abstractmethod
    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """(n, d) float32 unit vectors from the *base* model, one space for images and texts. No gradient."""

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:  # noqa: B027 -- optional
        """Read ``images`` ahead of the next calls under each of ``roles``; changes no result, by default nothing."""

    def release_memory(self) -> None:  # noqa: B027 -- optional
        """Free what is kept only to save time. Called after memory ran out; by default nothing is kept."""

    @property
    def runs_compiled(self) -> bool:
        """Whether some passes run as compiled programs, in which no module is called. False by default."""
        return False

    def as_drawn(self, request: ImageRequest, image: Image) -> ImageSample:
        """``image`` as if :meth:`generate` had drawn it for ``request``, without log-probs.

        Only the ablation "source_images" needs it; the method never trains the Generator on given images.

        Raises:
            CapabilityError: the default.
        """
        raise CapabilityError(
            f"{type(self).__name__} cannot take an image for a drawing of its own",
            "it has no as_drawn method, which ablation=source_images needs",
            "use another ablation, or write as_drawn",
        )

    def shardable(self) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]] | None:
        """The whole model, and those of its layers whose frozen weights may be split over devices.

        Such a layer runs through its own ``forward``, and nobody else reads its weights. None, the default, if the
        base always has to be whole.
        """
        return None

    @abstractmethod
    def trainable(self, role: Role) -> Mapping[str, torch.nn.Parameter]:
        """The float32 adapter parameters of ``role`` by stable name. Disjoint between roles; never a base parameter."""

    @abstractmethod
    def save_role(self, role: Role, directory: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (PEFT's own format) into ``directory``."""

    @abstractmethod
    def load_role(self, role: Role, directory: Path) -> None:
        """Read what :meth:`save_role` wrote, exactly. WeightsError names a missing, extra or misshapen tensor."""
