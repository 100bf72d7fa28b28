"""What is replayed: the fixture's checkpoint, loaded, and the integrity of the fixture's own files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PilImage
from PIL.Image import Image

from asg_core.testing import ParityRun
from asg_vargpt.files import read_json
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.processing import image_processor
from asg_vargpt.text import VargptText, load_tokenizer, stop_tokens
from asg_vargpt.weights_map import LoadReport, load_model

HIDDEN, GUIDED, DECODED, RELATIVE = 2e-5, 1e-4, 2e-4, 1e-5
"""Tolerances of FORMAT.md: hidden states and logits, guided logits, decoded pixels; relative, losses and norms."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The loaded checkpoint and its text side."""

    model: Vargpt
    text: VargptText
    report: LoadReport
    directory: Path


def load_subject(run: ParityRun) -> Subject:
    """Load the fixture's checkpoint in float32 with the image limits of its own ``preprocessor_config.json``."""
    directory = run.fixture / "ckpt"
    model, report = load_model(directory)
    limits = read_json(directory / "preprocessor_config.json")
    processor = image_processor(
        limits["min_pixels"], limits["max_pixels"], limits.get("patch_size", 14), limits.get("merge_size", 2)
    )
    tokenizer = load_tokenizer(directory)
    return Subject(model, VargptText(model, tokenizer, processor, stop_tokens(directory, tokenizer)), report, directory)


def picture(run: ParityRun, name: str) -> Image:
    """One of the fixture's pictures."""
    with PilImage.open(run.fixture / name) as image:
        return image.convert("RGB")


def replay_files(run: ParityRun, subject: Subject) -> None:
    """Hashes, the list of tensors, the loader's report and the inferred sizes."""
    for name, digest in sorted(run.value("files_sha256").items()):
        path = run.fixture / name if (run.fixture / name).is_file() else subject.directory / name
        with run.case(f"files {name}"):
            run.equal(f"files {name}", hashlib.sha256(path.read_bytes()).hexdigest(), digest)
    listed = run.value("tensors")
    run.equal("files list of tensors", sorted(listed), run.names())
    run.equal("checkpoint complete", subject.report.complete, True)
    replay_sizes(run, subject.model)


def replay_sizes(run: ParityRun, model: Vargpt) -> None:
    """Every recorded size against the one read from the checkpoint."""
    arch = run.value("arch")
    decoder, vae = model.architecture.decoder, model.architecture.vae
    text, vision = model.qwen.config.text_config, model.qwen.config.vision_config
    own = {
        "llm": {
            **{key: getattr(text, key) for key in arch["llm"] if key != "mrope"},
            "mrope": list(text.rope_parameters["mrope_section"]),
        },
        "vae": {
            "base_ch": vae.widths[0],
            "bits": vae.bits,
            "ch_mult": [width // vae.widths[0] for width in vae.widths],
            "num_res_blocks": vae.encoder_blocks,
        },
        "var": {
            "block_chunks": len(decoder.chunks),
            "depth": decoder.depth,
            "embed_dim": decoder.width,
            "mlp_ratio": round(decoder.ffn_width / decoder.width),
            "num_heads": decoder.heads,
        },
        "vit": {key: getattr(vision, key) for key in arch["vit"]},
    }
    for part in sorted(arch):
        run.equal(f"sizes {part}", own.get(part), arch[part])
