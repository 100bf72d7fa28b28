"""Cases of the flow-matching loss: time, latent, prediction, errors, gradients."""

from __future__ import annotations

import torch

from asg_bagel.kv_cache import Context, read, stack
from asg_bagel.modeling_flow import noisy, squared_errors, training_time, velocity
from asg_bagel.modeling_vae import to_tokens
from asg_bagel.parity.setup import Replay


def replay_training(fixture: Replay, key: str) -> None:
    """One training loss with gradients of both experts, which reach the prompt through its keys and values."""
    run, builder = fixture.run, fixture.builder
    case = run.value(key)
    time = training_time(torch.tensor([case["raw_timestep"]]), case["timestep_shift"])
    fixture.close(f"{key} time", time[0], case["t"])
    with torch.no_grad():
        latent = fixture.encode(case["target"], run.tensor(f"{key}/vae_eps"))
    fixture.close(f"{key} latent", latent, run.tensor(f"{key}/latent"))
    patch = fixture.model.config.latent_patch
    clean, noise = to_tokens(latent, patch), run.tensor(f"{key}/noise")[None]
    for name in case["grad_norm"]:
        fixture.parameters[name].tensor.requires_grad_()
    with fixture.recorded_layout() as layout:
        _, context = read(builder.model.language_model.model, Context(), builder.text(case["prompt"]))
        predicted = velocity(builder, stack([context]), noisy(clean, noise, time), time, latent.shape[2] // patch)
    run.equal(f"{key} attention mask", layout.mask(), run.tensor(f"{key}/attention_mask"))
    run.equal(f"{key} positions", torch.cat(layout.positions), run.tensor(f"{key}/position_ids"))
    errors = squared_errors(predicted, clean, noise)
    fixture.close(f"{key} velocity", predicted[0], run.tensor(f"{key}/pred_v"))
    fixture.close(f"{key} squared errors", errors[0], run.tensor(f"{key}/mse_per_element"))
    fixture.close(f"{key} loss", errors.mean(), case["loss"])
    fixture.check_gradients(key, "gradient norm", errors.mean(), case["grad_norm"])
