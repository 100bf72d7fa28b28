"""Parity of drawing: query states, both diffusion stages step by step, pixels."""

from __future__ import annotations

import torch

from asg_blip3o.modeling_blip3o import query_states
from asg_blip3o.modeling_decoder import DecoderStep, to_bytes
from asg_blip3o.parity.setup import Stage, close
from asg_blip3o.processing import NEGATIVE_TEXT
from asg_blip3o.sampling import FlowStep, feature_tokens, network_timestep, sample_features, sampling_scheduler


def replay_flow(stage: Stage, name: str) -> None:
    """Stage 1 of one recorded prompt: condition, schedule, every step, features."""
    run, cases, model = stage.run, stage.cases, stage.model
    with run.case(name), torch.no_grad():
        text = {
            "gen.cond": ("gen", "text"),
            "gen.uncond": ("gen", "uncond_text"),
            "gen.raw30": ("gen", "raw30_text"),
        }[name]
        prompt: str = cases.take(*text)
        queries = query_states(model, [stage.vocabulary.encode(prompt)], stage.vocabulary.special.img)
        close(run, f"{name}.query_hidden", queries, run.tensor(f"{name}.query_hidden"))
        expected_timesteps = run.tensor(f"{name}.dit_timesteps")
        steps = len(expected_timesteps)
        if name != "gen.raw30":
            run.equal(f"{name}.steps", steps, cases.take("gen", "dit_steps"))
        scheduler = sampling_scheduler(steps, queries.device, stage.options.flow_shift)
        run.equal(f"{name}.dit_timesteps", network_timestep(scheduler.timesteps), expected_timesteps)
        close(run, f"{name}.scheduler_timesteps", scheduler.timesteps, run.tensor(f"{name}.scheduler_timesteps"))
        close(run, f"{name}.sigmas", scheduler.sigmas, run.tensor(f"{name}.sigmas"))
        trace: list[FlowStep] = []
        features = sample_features(
            model.flow,
            queries,
            run.tensor(f"{name}.init_noise"),
            steps=steps,
            guidance=cases.take("gen", "dit_cfg"),
            shift=stage.options.flow_shift,
            on_step=trace.append,
        )
        nulls = [step.null for step in trace if step.null is not None]
        recorded = {
            "x_in": torch.stack([step.x for step in trace]),
            "v_cond": torch.stack([step.conditional for step in trace]),
            "v_uncond": torch.stack(nulls),
            "clip_latents": features,
            "clip_tokens": feature_tokens(features),
        }
        for key, value in recorded.items():
            if f"{name}.{key}" in run.names(f"{name}."):
                close(run, f"{name}.{key}", value, run.tensor(f"{name}.{key}"))


def replay_decoder(stage: Stage) -> None:
    """Stage 2 on the recorded features: schedule, every step, pixels."""
    run, cases, decoder = stage.run, stage.cases, stage.model.decoder
    with run.case("dec"), torch.no_grad():
        run.equal("gen.order_stage1", "[uncond, cond]", cases.take("gen", "order_stage1"))
        run.equal("gen.order_stage2", "[cond, uncond]", cases.take("gen", "order_stage2"))
        run.equal("gen.uncond_text", NEGATIVE_TEXT, cases.take("gen", "uncond_text"))
        height, width = cases.take("gen", "height"), cases.take("gen", "width")
        noise = run.tensor("dec.init_noise")
        run.equal("dec.latent_shape", list(decoder.latent_shape(height, width)), list(noise.shape[1:]))
        time_ids = run.tensor("dec.time_ids")
        run.equal("dec.time_ids", decoder.time_ids(noise, len(time_ids)), time_ids)
        said = [*cases.take("gen", "original_size"), *cases.take("gen", "crop"), height, width]
        run.equal("gen.time_ids", time_ids.tolist(), [said] * len(time_ids))
        steps = cases.take("gen", "decoder_steps")
        scheduler = decoder.scheduler(steps, noise.device)
        close(run, "dec.init_noise_sigma", float(scheduler.init_noise_sigma), run.tensor("dec.init_noise_sigma").item())
        close(run, "dec.timesteps", scheduler.timesteps, run.tensor("dec.timesteps"))
        close(run, "dec.sigmas", scheduler.sigmas, run.tensor("dec.sigmas"))
        trace: list[DecoderStep] = []
        latents = decoder.sample(
            run.tensor("gen.cond.clip_tokens"),
            run.tensor("gen.uncond.clip_tokens"),
            noise,
            steps=steps,
            guidance=cases.take("gen", "decoder_cfg"),
            on_step=trace.append,
        )
        close(run, "dec.eps_guided", torch.stack([step.guided for step in trace]), run.tensor("dec.eps_guided"))
        close(run, "dec.latents", torch.stack([step.latents for step in trace]), run.tensor("dec.latents"))
        pixels = decoder.pixels(latents)
        close(run, "dec.pixels", pixels, run.tensor("dec.pixels"))
        apart = (to_bytes(pixels).int() - run.tensor("dec.pixels_u8").int()).abs().max()
        run.close("dec.pixels_u8", float(apart), 0.0, 1.0)  # a value on the edge of rounding may fall either way
