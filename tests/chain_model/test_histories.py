"""The daemon beside modelled chains (see ``machine``); ``python -m tests.chain_model`` draws as many as one likes."""

from typing import Final

import pytest

from tests.chain_model.exploration import explored
from tests.chain_model.faults import Fault
from tests.chain_model.machine import Tally

SEQUENCES: Final = 500
STEPS: Final = 30


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_whatever_the_chain_and_its_nodes_do_the_rows_are_those_of_its_branch() -> None:
    """Hard cases 1 to 10, 15, 17 to 28, 30, 31, 33, 35 to 38, 54, 94 and 97."""
    tally = Tally()
    for part in explored(sequences=SEQUENCES, steps=STEPS, first_seed=1, jobs=2):
        assert part.failure is None, part.failure
        tally.add(part.tally)
    assert tally.wrong_rows == 0
    assert tally.sequences >= SEQUENCES
    # What was meant to happen did happen: a model that stands still would find nothing.
    assert tally.operations["reorganise"] > SEQUENCES
    assert tally.requests > SEQUENCES
    assert tally.resumed > 0
    assert tally.operations["steal"] > SEQUENCES / 2
    # Some strike only in the middle of a fork, or where receipts are asked, which so few histories may miss.
    assert len(set(Fault) - tally.faults.keys()) <= 5
    assert {"indexer.before_commit", "indexer.after_commit", "sweep.before_commit", "sweep.after_commit"} <= set(
        tally.kills
    )
    assert tally.differences["missing repaired"] > 0
