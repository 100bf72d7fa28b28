"""Replay recorded cases of upstream BAGEL (``asg parity bagel --fixture DIR``).

The manifest names every case and its key says which kind it is. Dimensions, transforms and tolerances come from the
files, so any checkpoint of the family can be recorded and replayed; what nothing here knows is reported as a failure.
"""

from __future__ import annotations

from asg_bagel.parity import drawing, inputs, training, understanding
from asg_bagel.parity.setup import INFORMATIONAL, open_replay
from asg_core.testing import ParityReport, ParityRun

__all__ = ["replay"]


def replay(run: ParityRun) -> ParityReport:
    """Replay every case of a fixture against its own checkpoint, float32 on the CPU.

    Raises:
        WeightsError: the fixture's checkpoint cannot be loaded.
    """
    fixture = open_replay(run)
    inputs.replay_tokenizer(fixture)
    inputs.replay_resize_table(fixture)
    inputs.replay_preprocessing(fixture)
    for prefix, function in (
        ("und/", understanding.replay_understanding),
        ("logprob/", understanding.replay_logprobs),
        ("vae/", drawing.replay_autoencoder),
        ("gen/", drawing.replay_drawing),
        ("train/", training.replay_training),
    ):
        keys = run.keys(prefix) or sorted({prefix + name.split("/")[1] for name in run.names(prefix)})
        for key in keys:
            with run.case(key):
                function(fixture, key)
    return run.finish(INFORMATIONAL)
