"""Cases without a forward pass: the fixture's own files, the loader's report, the sizes read off the checkpoint."""

from __future__ import annotations

import hashlib

from asg_core.models.weights.inventory import path_inside
from asg_core.testing import ParityRun
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.parity.setup import Subject


def replay_files(run: ParityRun, subject: Subject) -> None:
    """Hashes, the list of tensors, the loader's report and the inferred sizes."""
    for name, digest in sorted(run.value("files_sha256").items()):
        with run.case(f"files {name}"):
            homes = (run.fixture, subject.directory)
            paths = [path_inside(home, name, run.fixture / "manifest.json") for home in homes]
            path = next((path for path in paths if path.is_file()), paths[-1])
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
