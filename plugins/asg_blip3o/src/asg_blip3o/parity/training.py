"""Parity of the losses: upstream's flow matching with gradient norms, and the reward-weighted update under LoRA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asg_blip3o.backbone import FLOW_MODULE, FLOW_TARGETS
from asg_blip3o.config import pool_stride
from asg_blip3o.modeling_blip3o import query_states
from asg_blip3o.modeling_eva import pool_features
from asg_blip3o.parity.setup import Stage, close
from asg_blip3o.processing import training_text
from asg_blip3o.sampling import FlowPoint, flow_error, flow_point, velocity_at
from asg_blip3o.weights_map import main_slots
from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.lora import RoleAdapters


def replay_loss(stage: Stage) -> None:
    """The original's training loss of two captions and real images, and the gradient norms it gives."""
    run, cases, model = stage.run, stage.cases, stage.model
    with run.case("loss"):
        prompts = _check_batch(stage)
        images = [stage.image(name) for name in run.names("loss.image")]
        assert model.eva is not None
        with torch.no_grad():
            features = model.eva(stage.eva_pixels(images))
        close(run, "loss.eva_features", features, run.tensor("loss.eva_features"))
        targets = pool_features(features, pool_stride(stage.release.config))
        close(run, "loss.target_latents", targets, run.tensor("loss.target_latents"))
        point = flow_point(run.tensor("loss.u"), run.tensor("loss.noise"), stage.options.flow_shift)
        run.equal("loss.timesteps", point.timesteps, run.tensor("loss.timesteps"))
        close(run, "loss.sigmas", point.sigmas, run.tensor("loss.sigmas"))
        norms: dict[str, float] = cases.take("loss", "grad_norms")
        slots = main_slots(model)
        watched = {name: slots[name].tensor for name in norms}
        loss, found = _loss_and_norms(stage, prompts, targets, point, watched)
        close(run, "loss.loss", loss, run.tensor("loss.loss"))
        close(run, "loss.loss (manifest)", float(loss), cases.take("loss", "loss"))
        for name, norm in norms.items():
            close(run, f"loss.grad_norms.{name}", found[name], norm)
        recorded = run.tensor("loss.grad_norms")
        close(run, "loss.grad_norms", torch.tensor(sorted(found.values())), recorded.sort().values)
        cases.take("loss", "note")


def _check_batch(stage: Stage) -> list[list[int]]:
    """Captions read off the recorded rows compose to the same ids, labels and query positions; gives the prompts."""
    run, vocabulary = stage.run, stage.vocabulary
    special, rows = vocabulary.special, run.tensor("loss.input_ids")
    head, tail = training_text("\0").split("\0")
    turn = vocabulary.encode("<|im_start|>assistant\n<|im_end|>\n")
    prompts, ids, labels, starts = [], [], [], []
    for row in rows.tolist():
        text = vocabulary.tokenizer.decode(row[: row.index(special.img)], skip_special_tokens=False)
        caption = text.removeprefix(head).removesuffix(tail)
        prompt = vocabulary.encode(training_text(caption))
        whole = [*prompt, special.img, *[special.query_slot] * stage.model.n_query]
        padding = rows.shape[1] - len(whole)
        answer = len(prompt) - len(turn)
        prompts.append(prompt)
        ids.append(whole + [special.end_of_text] * padding)
        labels.append([-100] * answer + whole[answer:] + [-100] * padding)
        starts.append(len(prompt) + 1)
    run.equal("loss.input_ids", ids, rows.tolist())
    run.equal("loss.labels", labels, run.tensor("loss.labels").tolist())
    run.equal("loss.query_start", starts, run.tensor("loss.query_start").tolist())
    run.equal("loss.attention_mask", "input_ids != pad", stage.cases.take("loss", "attention_mask"))
    return prompts


def _loss_and_norms(
    stage: Stage,
    prompts: list[list[int]],
    targets: Tensor,
    point: FlowPoint,
    parameters: Mapping[str, Tensor],
) -> tuple[Tensor, dict[str, float]]:
    model = stage.model
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    context = model.flow.context(query_states(model, prompts, stage.vocabulary.special.img))
    loss = flow_error(velocity_at(model.flow, context, targets, point), targets, point.noise).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return loss.detach(), {name: float(g.norm()) for name, g in zip(parameters, gradients, strict=True)}


def replay_weighted_update(stage: Stage) -> None:
    """The original's generator update: flow matching on a real image, scaled by 1 + weight * reward, under LoRA."""
    run, cases, model = stage.run, stage.cases, stage.model
    with run.case("rwr"):
        rank, alpha = cases.take("rwr", "lora", "r"), cases.take("rwr", "lora", "alpha")
        adapters = RoleAdapters(
            {FLOW_MODULE: model.flow},
            {Role.GENERATOR: {FLOW_MODULE: FLOW_TARGETS}},
            LoraSettings(rank=rank, alpha=alpha),
        )
        parameters = {_recorded_name(name): p for name, p in adapters.parameters(Role.GENERATOR).items()}
        recorded = {name.removeprefix("ditlora."): run.tensor(name) for name in run.names("ditlora.")}
        run.equal("ditlora names", sorted(parameters), sorted(recorded))
        with torch.no_grad():
            for name, tensor in recorded.items():
                parameters[name].copy_(tensor)
            prompt = stage.vocabulary.encode(cases.take("rwr", "prompt"))
            queries = query_states(model, [prompt], stage.vocabulary.special.img)
            assert model.eva is not None
            features = model.eva(stage.eva_pixels([stage.image(cases.take("rwr", "image"))]))
        close(run, "rwr.query_hidden", queries, run.tensor("rwr.query_hidden"))
        targets = pool_features(features, pool_stride(stage.release.config))
        close(run, "rwr.target_latents", targets, run.tensor("rwr.target_latents"))
        point = flow_point(run.tensor("rwr.u"), run.tensor("rwr.noise"), stage.options.flow_shift)
        with adapters.use(Role.GENERATOR):
            velocity = velocity_at(model.flow, model.flow.context(queries), targets, point)
            scale = 1 + cases.take("rwr", "reward_weight") * cases.take("rwr", "reward")
            loss = scale * flow_error(velocity, targets, point.noise).mean()
            gradients = torch.autograd.grad(loss / 2, list(parameters.values()))
        close(run, "rwr.loss", loss, run.tensor("rwr.loss"))
        close(run, "rwr.loss (manifest)", float(loss.detach()), cases.take("rwr", "loss"))
        norms = {name: float(gradient.norm()) for name, gradient in zip(parameters, gradients, strict=True)}
        for name, norm in cases.take("rwr", "grad_norms_half").items():
            close(run, f"rwr.grad_norms_half.{name}", norms[name], norm)
        cases.take("rwr", "note")


def _recorded_name(name: str) -> str:
    """``flow.dit.layers.0.x`` as the original names it: ``base_model.model.model.layers.0.x``."""
    return "base_model.model.model." + name.removeprefix(f"{FLOW_MODULE}.").removeprefix("dit.")
