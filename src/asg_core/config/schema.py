"""The configuration of a run, as data. Units are in the names; every field is documented; unknown keys are refused.

``asg config`` prints these defaults as commented YAML. Loading and merging is in ``runs.configuration``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

Ablation = Literal[
    "none",
    "random_rewards",
    "shuffled_votes",
    "own_drawings",
    "one_framing",
    "base_ratio",
    "source_images",
    "no_fidelity",
    "no_cycle",
    "no_diversity",
    "no_contradiction",
]
"""What of the method is taken away or replaced (``RunConfig.ablation``)."""


Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all configuration sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LoraSettings(Section):
    """Shape of every role adapter (METHOD: rank 16, alpha 32). No dropout: it would break replayed log-probs."""

    rank: int = Field(16, ge=1, le=1024, description="LoRA rank r")
    alpha: float = Field(32.0, gt=0, description="LoRA scale is alpha / rank")


class Schedule(Section):
    """Which step comes when (METHOD, Schedule)."""

    mode: Literal["alternate", "understanding", "generation", "two_stage"] = Field(
        "alternate",
        description="alternate U:G, one kind only, or two_stage: first all understanding steps, then all generation",
    )
    ratio: tuple[PositiveInt, PositiveInt] = Field((3, 2), description="U:G, understanding : generation steps a round")


class Ask(Section):
    """The Proposer's questions (METHOD, understanding step 1)."""

    questions_per_image: int = Field(3, ge=1, le=64, description="K, the group of questions sampled for one image")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of questions and specs")
    max_new_tokens: int = Field(64, ge=1, description="length limit of a question, tokens")
    spec_max_new_tokens: int = Field(192, ge=1, description="length limit of a drawing spec, tokens")


class Solve(Section):
    """The Solver's answers under N framings (METHOD, understanding steps 2 to 4)."""

    framings: int = Field(7, ge=2, le=7, description="N, how many of the seven framings vote")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of answers, one constant")
    max_new_tokens: int = Field(32, ge=1, description="length limit of an answer, tokens")
    caption_max_new_tokens: int = Field(64, ge=1, description="length limit of a caption, tokens")
    min_agreement: Share = Field(0.5, description="the Solver learns from a question only if f >= this and f < 1")


class Ste(Section):
    """Solver Token Entropy (METHOD, understanding step 4)."""

    reduce: Literal["max", "mean", "off"] = Field("max", description="over the first answer tokens; off removes STE")
    tokens: int = Field(5, ge=1, description="K_t, how many tokens of the answer span")


class Generate(Section):
    """The generation step (METHOD, generation step)."""

    prompts_per_step: int = Field(2, ge=1, description="images, hence prompts, in one generation step")
    candidates: int = Field(3, ge=2, le=64, description="N_g, images drawn per prompt")
    temperature: float = Field(1.0, gt=0, description="of token-based generators; flow and diffusion ignore it")
    fidelity: Literal["vote", "probability"] = Field(
        "vote",
        description="S_fid from majority answers (METHOD), or from the Solver's probability of the reference answer",
    )
    update: Literal["auto", "regression", "policy_gradient"] = Field(
        "auto", description="auto: reward-weighted regression for flow and diffusion, policy gradient for image tokens"
    )
    tau: float = Field(0.2, gt=0, description="regression weights are softmax(R / tau) over the candidates of a prompt")
    penalty_weight: float = Field(0.01, ge=0, description="beta_g, weight of the distance to the adapters-off model")


class Policy(Section):
    """Updates of the text roles (METHOD, Policy update); ``clip`` and ``inner_steps`` also hold for image tokens."""

    solver_advantage: Literal["leave_one_out", "z_score", "ema"] = Field(
        "leave_one_out", description="of the N answers to one question; ema is the paper's baseline, momentum 0.6"
    )
    clip: float = Field(
        0.2, gt=0, lt=1, description="the ratio to the first inner step's policy is clipped to [1 - clip, 1 + clip]"
    )
    inner_steps: int = Field(1, ge=1, description="optimizer steps on one set of samples; regression takes one")
    kl: Literal["exact", "k3"] = Field("exact", description="KL to the base: over the vocabulary, or the k3 estimator")
    beta_start: float = Field(0.01, ge=0, description="initial KL weight; adapted to kl_target after every update")
    kl_target: float = Field(0.02, gt=0, description="mean KL per token, nats, that beta steers to")


class Optimizer(Section):
    """One AdamW per role."""

    lr_proposer: float = Field(1e-6, ge=0, description="learning rate of the Proposer adapter; 0 leaves it untouched")
    lr_solver: float = Field(1e-6, ge=0, description="learning rate of the Solver adapter; 0 leaves it untouched")
    lr_generator: float = Field(1e-6, ge=0, description="learning rate of the Generator adapter; 0 leaves it untouched")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip per role")
    micro_batch: NonNegativeInt | Literal["auto"] = Field(
        0,
        description="groups per backward pass (gradient accumulation); 0: the whole step at once; auto: likewise, and "
        "a step that runs out of memory is taken again with half as many images at a time",
    )

    def rate(self, role: str) -> float:
        """Learning rate of the proposer, the solver or the generator; with 0 it neither learns nor has moments."""
        return float(getattr(self, f"lr_{role}"))

    def groups_per_pass(self, groups: int) -> int:
        """How many of ``groups`` groups one backward pass takes as long as memory lasts."""
        return groups if self.micro_batch in (0, "auto") else min(int(self.micro_batch), groups)


class Alarms(Section):
    """Collapse alarms over the last ``window`` steps of a kind."""

    action: Literal["warn", "stop", "rollback"] = Field(
        "warn", description="what an alarm does; rollback: the roles go back to the newest good checkpoint, once"
    )
    window: int = Field(10, ge=2, description="steps an alarm looks back")
    min_distinct_questions: Share = Field(
        0.1, description="alarm if fewer of the questions are distinct (0: one question repeated, 1: all differ)"
    )
    max_constant_answers: Share = Field(0.95, description="alarm if one label or non-answers take more of all answers")
    max_zero_variance: Share = Field(0.95, description="alarm if more of the groups carry no signal")
    max_kl: float = Field(1.0, gt=0, description="alarm if the mean KL per token, nats, exceeds this")
    min_entropy: float = Field(0.001, ge=0, description="alarm if the mean raw STE, nats, falls below this")
    max_nonfinite: int = Field(5, ge=1, description="consecutive non-finite updates that stop the run")


class RunConfig(Section):
    """Everything that defines a run. Same config, seed, weights and images give the same run."""

    backbone: str = Field("tiny", description="name of an installed backbone (asg plugins lists them)")
    weights: Path | None = Field(None, description="directory of the model's weights; embedded backbones need none")
    backbone_options: dict[str, Any] = Field(default_factory=dict, description="the backbone's own settings")
    images: Path | None = Field(
        None, description="folder of unlabeled images, searched recursively; none: the backbone's own"
    )
    out: Path | None = Field(None, description="run folder, holds no other run; none: runs/<backbone>-<date>-<time>")
    steps: int = Field(100, ge=0, le=10**9, description="steps in all")
    images_per_step: int = Field(4, ge=1, description="images in one understanding step")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of everything random in the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the frozen base; auto: bfloat16 on cuda, float32 elsewhere; adapters are always float32"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory in updates")
    ablation: Ablation = Field(
        "none",
        description="take one thing of the method away, to measure what it contributes. random_rewards, "
        "shuffled_votes: noise for rewards; own_drawings: the model's own drawings for the images; one_framing: all "
        "answers under the canonical framing; base_ratio: the policy ratio against the base; source_images: the "
        "Generator learns from the source image; no_...: that term of the Generator's reward left out",
    )
    profile: bool = Field(
        False, description="count calls, tokens, time and weights read by phase; printed and kept in profile.json"
    )
    evaluate: bool = Field(True, description="evaluate before and after if the backbone has an evaluation")
    checkpoint_every_steps: int = Field(25, ge=1, description="steps between checkpoints")
    sample_every_steps: int = Field(5, ge=1, description="steps between written samples")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field((), description="also log there (extras)")
    lora: LoraSettings = LoraSettings()
    schedule: Schedule = Schedule()
    ask: Ask = Ask()
    solve: Solve = Solve()
    ste: Ste = Ste()
    generate: Generate = Generate()
    policy: Policy = Policy()
    optimizer: Optimizer = Optimizer()
    alarms: Alarms = Alarms()
