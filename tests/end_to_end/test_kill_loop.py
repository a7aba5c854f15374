from pathlib import Path

import pytest

from tests.end_to_end.kill_loop import run
from tests.end_to_end.processes import crash_points

pytestmark = pytest.mark.end_to_end


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_daemon_killed_everywhere_loses_nothing_and_mints_nothing_twice(
    anvil_binary: Path, data_dir: Path
) -> None:
    """Hard cases 53, 56, 67, 70, 102 and 103; the thousand kills are one command, see the module."""
    points = crash_points()
    report = await run(
        anvil_binary=anvil_binary, seed=1, kills=30 + 2 * len(points), times_each_point=2, folder=data_dir
    )
    print(f"\n{report.text()}")  # noqa: T201 - the measurement, shown by pytest -s
    assert report.findings == []
    assert report.mints == report.requests > 0
    assert set(report.points) == set(points)
