"""Replay of the recorded cases of the original implementation, through the code paths that training and drawing use."""

from __future__ import annotations

from asg_blip3o.parity.drawing import replay_decoder, replay_flow
from asg_blip3o.parity.inputs import replay_facts, replay_preprocessing
from asg_blip3o.parity.setup import groups, open_stage
from asg_blip3o.parity.training import replay_loss, replay_weighted_update
from asg_blip3o.parity.understanding import replay_understanding
from asg_core.testing import ParityReport, ParityRun


def replay(run: ParityRun) -> ParityReport:
    """Replay every case of a fixture.

    The checkpoint lies in ``checkpoint/`` of the fixture, in the released layout. All dimensions come from the files.

    Raises:
        WeightsError: the checkpoint cannot be loaded. Everything later is reported as a failed case.
    """
    stage = open_stage(run)
    replay_facts(stage)
    replay_preprocessing(stage)
    for name in groups(run, "und"):
        replay_understanding(stage, name)
    for name in groups(run, "gen."):
        replay_flow(stage, name)
    replay_decoder(stage)
    replay_loss(stage)
    replay_weighted_update(stage)
    stage.cases.finish()
    return run.finish(informational=("libs", "notes", "set"))
