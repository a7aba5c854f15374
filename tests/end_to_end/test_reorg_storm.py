from pathlib import Path

import pytest

from tests.end_to_end.reorg_storm import run

pytestmark = pytest.mark.end_to_end


@pytest.mark.timeout(300)
async def test_after_many_reorgs_under_traffic_the_rows_are_those_of_the_receipts(
    anvil_binary: Path, data_dir: Path
) -> None:
    """Hard cases 1 to 6, 35 and 97; the five hundred reorgs are one command, see the module."""
    report = await run(anvil_binary=anvil_binary, seed=7, reorgs=10, folder=data_dir)
    print(f"\n{report.text()}")  # noqa: T201 - the measurement, shown by pytest -s
    assert report.findings == []
    assert report.requests > 0
    assert report.reorgs_seen > 0
    assert report.finds_a_wrong_row, "a wrong amount must be found"
