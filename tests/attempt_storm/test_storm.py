"""A small storm in every check; ``python -m tests.attempt_storm --attempts 100000`` is the large one."""

import pytest

from tests.attempt_storm.__main__ import report, storm


@pytest.mark.timeout(600)
async def test_whatever_the_gateway_answers_each_request_is_completed_by_one_mint(dsn: str) -> None:
    """Hard cases 75 to 88."""
    tally = await storm(dsn, attempts=300, seed=20_260_101, workers=4)
    print(report(tally))  # noqa: T201 - shown by pytest -s
    assert tally.attempts >= 300
    assert tally.time_outs_after_acceptance >= 30
    assert tally.resends >= 1
