import asyncio
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]


async def test_the_demo_ends_with_a_chain_that_agrees_with_the_requests() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from service.cli import main; main()",
        "demo",
        "--cache-dir",
        str(ROOT / ".cache"),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, messages = await process.communicate()
    assert process.returncode == 0, messages.decode()
    assert "Requests and chain agree." in out.decode()
    assert "7 completed, 1 failed, 1 rejected" in out.decode()
