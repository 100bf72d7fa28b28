"""From the released folder to a loaded model: config files, headers, a strict report, then the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asg_blip3o.config import DEAD, EVA, FLOW, eva_dims, flow_dims, latent_grid
from asg_blip3o.headers import TensorInfo, read_folder, shapes
from asg_blip3o.loading import LoadReport, compare, fill, require, slots
from asg_blip3o.modeling_blip3o import Blip3oModel, build_empty, main_slots
from asg_blip3o.modeling_decoder import read_decoder_configs
from asg_blip3o.options import Blip3oOptions
from asg_core.errors import ConfigError, WeightsError

DECODER = "diffusion-decoder"
"""Sub-folder of the pixel decoder."""


@dataclass(frozen=True)
class Release:
    """A released folder, looked at but not loaded.

    Attributes:
        folder: where it is.
        config: ``config.json``.
        decoder_configs: UNet, autoencoder and scheduler settings.
        main, unet, vae: headers of the weights.
        variant: "8B", "4B" or "custom", told from the tensors.
    """

    folder: Path
    config: Mapping[str, Any]
    decoder_configs: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
    main: Mapping[str, TensorInfo]
    unet: Mapping[str, TensorInfo]
    vae: Mapping[str, TensorInfo]
    variant: str


def read_release(folder: Path) -> Release:
    """Read config files and headers of a released folder.

    Raises:
        WeightsError: a file is missing, broken or cut short; config and tensors do not belong together.
    """
    config = _read_config(folder / "config.json")
    main = read_folder(folder, "model")
    decoder = folder / DECODER
    return Release(
        folder,
        config,
        read_decoder_configs(decoder),
        main,
        read_folder(decoder / "unet", "diffusion_pytorch_model"),
        read_folder(decoder / "vae", "diffusion_pytorch_model"),
        _variant(config, main),
    )


def empty_model(release: Release, options: Blip3oOptions) -> Blip3oModel:
    """The model of a release on the meta device: names and shapes, no memory.

    Raises:
        WeightsError: a tensor that shows a size is missing. ConfigError: options that do not fit the model.
    """
    main = shapes(release.main)
    n_query = int(release.config.get("n_query", 0)) or main.get("model.latent_queries", (1, 0))[1]
    dims = flow_dims(main)
    grid = latent_grid(main, release.config, n_query, options.latent_grid)
    tower = None
    if options.real_image_target:
        if f"{EVA}pos_embed" not in main:
            raise ConfigError(
                "real_image_target=true needs the EVA-CLIP tower",
                f"{release.folder} has no tensor {EVA}pos_embed",
                "leave real_image_target=false, or give a checkpoint that holds the tower",
            )
        tower = (eva_dims(main), options.eva_head_width)
    return build_empty(release.config, n_query, dims, grid, release.decoder_configs, tower)


def load_model(
    release: Release, options: Blip3oOptions, device: torch.device, dtype: torch.dtype
) -> tuple[Blip3oModel, LoadReport]:
    """Build the model and read its weights, one tensor at a time.

    Returns:
        The frozen model in eval mode, and the report over all files (decoder tensors under their folder's name).

    Raises:
        WeightsError: a tensor is missing, misshapen or unexpected. ConfigError: options that do not fit the model.
    """
    model = empty_model(release, options)
    expected = main_slots(model)
    unused = DEAD if model.eva is not None else (*DEAD, EVA)
    if model.vlm.config.tie_word_embeddings:
        unused = (*unused, "lm_head.weight")
    reports = {"": compare(expected, release.main, unused)}
    require(reports[""], expected, release.main, allow_unexpected=options.allow_unexpected)
    parts = (("unet", model.decoder.unet, release.unet), ("vae", model.decoder.vae, release.vae))
    for name, module, header in parts:
        places = slots(module, str)
        reports[f"{DECODER}/{name}:"] = compare(places, header)
        require(reports[f"{DECODER}/{name}:"], places, header, allow_unexpected=options.allow_unexpected)
        if options.drawing:
            fill(places, header, device, _decoder_dtype(name, dtype))
    flow = {name: slot for name, slot in expected.items() if name.startswith(FLOW)}
    fill({name: slot for name, slot in expected.items() if name not in flow}, release.main, device, dtype)
    fill(flow, release.main, device if options.drawing else torch.device("cpu"), dtype)
    model.settle()
    for module in model.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = buffer.to(device) if buffer is not None else None
    return model, _joined(reports)


def _decoder_dtype(part: str, dtype: torch.dtype) -> torch.dtype:
    """The SDXL autoencoder overflows in float16."""
    return torch.float32 if part == "vae" and dtype == torch.float16 else dtype


def _joined(reports: Mapping[str, LoadReport]) -> LoadReport:
    def names(field: str) -> tuple[str, ...]:
        return tuple(prefix + name for prefix, report in reports.items() for name in getattr(report, field))

    return LoadReport(names("matched"), names("missing"), names("unexpected"), names("unused"))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read", str(error), "give the directory of a BLIP3o release") from error
    if config.get("model_type") != "blip3o_qwen" or "gen_pooling" not in config:
        raise WeightsError(
            f"{path} is of another model (model_type={config.get('model_type')!r})",
            "BLIP3o's diffusion family has model_type 'blip3o_qwen' and gen_pooling; BLIP3o-NEXT differs",
            "give the directory of BLIP3o-Model-8B or -4B",
        )
    return config


def _variant(config: Mapping[str, Any], header: Mapping[str, TensorInfo]) -> str:
    """Which release the tensors are of; refuses a config of another one."""
    stored = header.get("model.embed_tokens.weight")
    if stored is None:
        raise WeightsError(
            "tensor 'model.embed_tokens.weight' is missing",
            "the variant is told from its shape",
            "give the directory of a complete BLIP3o release (4B or 8B, not BLIP3o-NEXT)",
        )
    variants = {3584: "8B", 2048: "4B"}
    told, width = variants.get(stored.shape[-1], "custom"), config.get("hidden_size")
    if stored.shape[-1] != width:
        raise WeightsError(
            f"config.json is of variant {variants.get(int(width or 0), 'custom')}, the weights are of variant {told}",
            f"hidden_size is {width}, 'model.embed_tokens.weight' has shape {list(stored.shape)}",
            "use config files and weights of the same release",
        )
    return told
