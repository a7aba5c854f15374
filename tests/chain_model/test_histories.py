"""The follower beside modelled chains (see ``machine``); ``python -m tests.chain_model`` draws as many as one likes."""

from typing import Final

import pytest

from tests.chain_model.arena import arena, explore

SEQUENCES: Final = 500
STEPS: Final = 30


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_the_chain_does_the_rows_are_those_of_its_branch(dsn: str) -> None:
    """Hard cases 1 to 10, 15, 17, 35 to 38, 54, 94 and 97."""
    with arena(dsn) as place:
        explore(place, sequences=SEQUENCES, steps=STEPS, seed_number=1)
        tally = place.tally
    assert tally.wrong_rows == 0
    assert tally.sequences >= SEQUENCES
    # What was meant to happen did happen: a model that stands still would find nothing.
    assert tally.operations["reorganise"] > SEQUENCES
    assert tally.requests > SEQUENCES
    assert {"indexer.before_commit", "indexer.after_commit", "cancelled"} <= tally.kills.keys()
