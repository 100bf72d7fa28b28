"""Replay of recorded cases of the original implementation: every tensor and every number of a fixture.

A fixture holds ``ckpt`` in the released layout, two pictures to look at, a source and a target picture to quantise,
``manifest.json`` and ``cases.safetensors``. Sizes, scales and settings are read from it.
"""

from __future__ import annotations

from asg_core.testing import ParityReport, ParityRun
from asg_vargpt.parity import drawing, inputs, setup, training, understanding

INFORMATIONAL = (
    "ca_mode",
    "gen_image_u8_bgr_sha256",
    "generate_loop_matches_manual_path_u8",
    "generate_loop_vs_manual_max_u8_diff",
    "set",
    "torch",
    "train_sequence",
    "transformers",
    "und2_padded_batch_vs_single_max_abs",
)
"""How the fixture was made. The image's hash is among them: other orders of summation move a pixel by one level, so the
image is compared by its recorded values."""


def replay(run: ParityRun) -> ParityReport:
    """Replay every case of a fixture in float32 on the CPU."""
    subject = setup.load_subject(run)
    inputs.replay_files(run, subject)
    understanding.replay(run, subject)
    drawing.replay(run, subject)
    training.replay(run, subject)
    return run.finish(INFORMATIONAL)
