"""The list of mutants is of the code as it is: a change that rewrites a line of it takes the mutant along."""

from __future__ import annotations

from pathlib import Path

import pytest

from devkit.mutant_list import MUTANTS, Mutant

# the tree and not what is imported: of that, the runner of mutants changes a line
SOURCE = Path(__file__).resolve().parents[2] / "src" / "asg_core"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.harm)
def test_a_mutant_changes_one_place_that_is_there(mutant: Mutant) -> None:
    assert (SOURCE / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
