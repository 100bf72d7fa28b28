"""Parity of what goes in: sizes and settings read off the files, images, templates."""

from __future__ import annotations

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from asg_blip3o.config import eva_dims, flow_dims
from asg_blip3o.parity.setup import Stage, close, groups
from asg_blip3o.processing import NEGATIVE_TEXT, generation_text
from asg_blip3o.sampling import flow_scheduler
from asg_core.models.weights.inventory import read_header, shapes

_DTYPES = {
    "F32": "torch.float32",
    "I64": "torch.int64",
    "U8": "torch.uint8",
    "BF16": "torch.bfloat16",
    "F64": "torch.float64",
}


def replay_facts(stage: Stage) -> None:
    """What the manifest says about the model must be what the loader found in its files."""
    run, model, header = stage.run, stage.model, shapes(stage.release.main)
    flow, grid = flow_dims(header), model.flow.grid
    found = {
        "dim": flow.width,
        "in_channels": flow.channels,
        "input_size": grid,
        "latent_embedding_size": flow.condition,
        "n_heads": flow.heads,
        "n_kv_heads": flow.kv_heads,
        "n_layers": flow.layers,
        "norm_eps": model.flow.dit.config.norm_eps,
        "qk_norm": model.flow.dit.config.qk_norm,
    }
    said = dict(run.value("dit_config"))
    run.equal("dit_config.multiple_of", flow.ffn % said.pop("multiple_of"), 0)
    run.equal("dit_config", found, said)
    eva = eva_dims(header)
    found = {
        "head_width": stage.options.eva_head_width,
        "image_size": eva.image_size,
        "layer_norm_eps": 1e-6,
        "layers": eva.layers,
        "patch_size": eva.patch,
        "postnorm": True,
        "qkv_bias": True,
        "width": eva.width,
    }
    said = dict(run.value("eva_config"))
    run.equal("eva_config.mlp_ratio", int(eva.width * said.pop("mlp_ratio")), eva.mlp)
    run.equal("eva_config", found, said)
    flow_config = flow_scheduler(stage.options.flow_shift).config
    for key, said_value in run.value("flow_scheduler").items():
        run.equal(f"flow_scheduler.{key}", flow_config[key], said_value)
    decoder_config = model.decoder.scheduler(1, torch.device("cpu")).config
    for key, said_value in run.value("decoder_scheduler").items():
        run.equal(f"decoder_scheduler.{key}", decoder_config[key], said_value)
    run.equal("gen_pooling", stage.release.config["gen_pooling"], run.value("gen_pooling"))
    run.equal("n_query", model.n_query, run.value("n_query"))
    vocabulary = stage.vocabulary.tokenizer.get_vocab()
    for token, said_value in run.value("token_ids").items():
        run.equal(f"token_ids.{token}", vocabulary.get(token), said_value)
    stored = {
        name: [list(info.shape), _DTYPES[info.dtype]]
        for name, info in read_header(run.fixture / "cases.safetensors").items()
    }
    run.equal("tensors", stored, run.value("tensors"))


def replay_preprocessing(stage: Stage) -> None:
    """Sizes, patches, pixels and texts of the recorded images and captions."""
    run, cases, patches = stage.run, stage.cases, stage.language.patches
    with run.case("pre.smart_resize"):
        asked = run.tensor("pre.smart_resize_in").tolist()
        sizes = [list(patches.target_size(height, width)) for height, width in asked]
        run.equal("pre.smart_resize", sizes, run.tensor("pre.smart_resize_out").tolist())
    for name in groups(run, "pre.und"):
        with run.case(name):
            image = stage.image(f"{name}.image_u8")
            resized = patches.resize(image)
            shown = patches.patches(resized)
            run.equal(f"{name}.size clamp", _bytes(resized), run.tensor(f"{name}.asg_normalised_u8"))
            run.equal(f"{name}.grid", [list(shown.grid)], run.tensor(f"{name}.image_grid_thw").tolist())
            if f"{name}.pixel_values" in run.names(name):
                close(run, f"{name}.pixel_values", shown.pixels, run.tensor(f"{name}.pixel_values"))
    with run.case("pre.gen.eva_pixel_values"):
        pixels = stage.eva_pixels([stage.image("pre.gen.image_u8")])
        close(run, "pre.gen.eva_pixel_values", pixels, run.tensor("pre.gen.eva_pixel_values"))
    with run.case("pre.gen texts"):
        caption = cases.take("preprocess", "gen_text_raw")
        run.equal("pre.gen template", generation_text(caption), cases.take("preprocess", "gen_text_templated"))
        run.equal("pre.gen negative", NEGATIVE_TEXT, cases.take("preprocess", "gen_text_uncond_decoder"))
        vocabulary = stage.vocabulary
        made = {
            "raw": vocabulary.encode(caption),
            "space": vocabulary.negative_ids(),
            "templated": vocabulary.generation_ids(caption),
        }
        for name, ids in made.items():
            run.equal(f"pre.gen_{name}_ids", [ids], run.tensor(f"pre.gen_{name}_ids").tolist())


def _bytes(image: Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy())
