"""Cases of the image side: the autoencoder, and pictures drawn step by step, with and without an image to edit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asg_bagel.kv_cache import Context, read
from asg_bagel.modeling_flow import guided_network
from asg_bagel.modeling_vae import decode_latent, to_images, to_map, to_tokens
from asg_bagel.options import Sampler
from asg_bagel.parity.setup import Replay
from asg_bagel.sampling import Step, euler_steps, guidance_on
from asg_bagel.text import MARKERS


@torch.no_grad()
def replay_autoencoder(fixture: Replay, key: str) -> None:
    """Decoding of a given latent; the mean code of a given picture."""
    run, vae = fixture.run, fixture.model.vae
    if key == "vae/decode_in":
        fixture.close("vae/decode", decode_latent(vae, run.tensor(key)), run.tensor("vae/decode_out"))
    elif key.startswith("vae/encode_mean_of_"):
        expected = run.tensor(key)
        picture = f"images/{key.removeprefix('vae/encode_mean_of_')}_u8"
        fixture.close(key, fixture.encode(picture, torch.zeros_like(expected)), expected)


@torch.no_grad()
def replay_drawing(fixture: Replay, key: str) -> None:
    """Every step of a drawing: guidance schedule, branches, velocity, latent; then pixels."""
    run = fixture.run
    case = run.value(key)
    sampler = _sampler(case["params"])
    stride = fixture.model.config.image_stride
    rows, columns = (side // stride for side in case["image_hw"])
    noise = run.tensor(f"{key}/init_noise")
    run.equal(f"{key} tokens", rows * columns, len(noise))
    contexts = _contexts(fixture, key, case)
    network = guided_network(fixture.builder, *contexts, rows)
    steps = list(euler_steps(network, noise[None], sampler))
    fixture.close(f"{key} time grid", torch.tensor([s.time for s in steps]), run.tensor(f"{key}/timesteps"))
    on, off = [sampler.text_scale, sampler.image_scale], [1.0, 1.0]
    run.equal(f"{key} guidance", [on if guidance_on(sampler, s.time) else off for s in steps], case["cfg_per_step"])
    for index, step in enumerate(steps):
        _check_branches(fixture, f"{key}/step{index}", step)
    fixture.close(f"{key} velocities", torch.cat([s.velocity for s in steps]), run.tensor(f"{key}/v_final"))
    fixture.close(f"{key} latents", torch.cat([s.latents for s in steps]), run.tensor(f"{key}/x_t"))
    latent = to_map(steps[-1].result, rows, fixture.model.config.latent_patch)
    fixture.close(f"{key} final latent", latent, run.tensor(f"{key}/latent_map"))
    decoded = run.tensor(f"{key}/decoded")
    fixture.close(f"{key} decoded", decode_latent(fixture.model.vae, latent), decoded)
    # From the recorded floats: truncation to 8 bits turns a last-digit difference into a whole level.
    (image,) = to_images(decoded)
    run.equal(f"{key} pixels", torch.from_numpy(np.array(image)), run.tensor(f"{key}/pixels_u8"))


def _sampler(params: dict[str, Any]) -> Sampler:
    renamed = {"cfg_text_scale": "text_scale", "cfg_img_scale": "image_scale", "cfg_renorm_type": "renorm"}
    renamed |= {"cfg_interval": "interval", "cfg_renorm_min": "renorm_min"}
    values = {renamed.get(name, name): tuple(v) if isinstance(v, list) else v for name, v in params.items()}
    return Sampler(**values)


def _contexts(
    fixture: Replay, key: str, case: dict[str, Any]
) -> tuple[list[Context], list[Context], list[Context] | None]:
    """The whole context, the one without text, and the one without images where there are images; batches of one."""
    builder = fixture.builder
    decoder = builder.model.language_model.model
    context = without_text = without_images = Context()
    for part in case["inputs"]:
        if part == "<image>":
            context = _read_picture(fixture, key, case["image"], context)
            without_text = context
        else:
            _, context = read(decoder, context, builder.text(part))
            _, without_images = read(decoder, without_images, builder.text(part))
    return [context], [without_text], [without_images] if "<image>" in case["inputs"] else None


def _read_picture(fixture: Replay, key: str, name: str, context: Context) -> Context:
    """A picture to edit enters twice: as clean latents, then through the vision tower at the autoencoder's size."""
    builder, decoder = fixture.builder, fixture.model.language_model.model
    latent = fixture.encode(name, fixture.run.tensor(f"{key}/vae_eps"))
    patch = fixture.model.config.latent_patch
    clean = builder.clean_latents(to_tokens(latent, patch)[0], latent.shape[2] // patch)
    _, context = read(decoder, context, clean, split=MARKERS)
    (seen,) = builder.see([fixture.vae_rule.resize(fixture.image(name))])
    return read(decoder, context, builder.vision(seen))[1]


def _check_branches(fixture: Replay, prefix: str, step: Step) -> None:
    branches: dict[str, Tensor | None] = {
        "v_cond": step.predicted.context,
        "v_drop_text": step.predicted.without_text,
        "v_drop_img": step.predicted.without_images,
    }
    for name in fixture.run.names(f"{prefix}/"):
        predicted = branches.get(name.rpartition("/")[2])
        if predicted is not None:
            fixture.close(name, predicted[0], fixture.run.tensor(name))
