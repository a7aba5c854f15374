"""``bskt demo`` as people start it: a process of its own, which cleans up after itself."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.service.rows import bskt

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
CACHE_DIR = ROOT / ".cache"


@asynccontextmanager
async def demo(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from service.cli import main; main()"),
        *("demo", "--cache-dir", str(CACHE_DIR), *options),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_demo_ends_with_a_chain_that_agrees_with_the_requests() -> None:
    async with demo() as process:
        out, messages = await process.communicate()
    assert process.returncode == 0, messages.decode()
    assert "Requests and chain agree." in out.decode()
    assert "7 completed, 1 failed, 1 rejected" in out.decode()
    assert "7 mints, 1 kill -9, 1 reorg, 1 lost answer, 1 outage" in out.decode()
    story = [line for line in messages.decode().splitlines() if line.startswith("• ")]
    told = [line.partition(" s  ")[2] for line in story]
    assert told[3].startswith("The gateway is down")
    assert told[4].startswith("The gateway is back")


async def test_a_kept_demo_says_where_to_look_and_ends_on_sigterm() -> None:
    async with demo("--keep") as process:
        assert process.stderr is not None
        lines: dict[str, str] = {}
        while (line := (await process.stderr.readline()).decode()) and not line.startswith("Ctrl-C"):
            for word in ("status --watch", "curl", "the chain"):
                if word in line:
                    lines[word] = line
        env_file = lines["status --watch"].split()[2]
        url = lines["curl"].split()[-1]
        folder = Path(env_file).parent
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert json.loads(await answer.read())["requests"]["completed"] == 7
        # What it told to type.
        looked = await bskt("", "--env-file", env_file, "--output", "json", "requests", "list", BSKT_DATABASE_URL="")
        assert (looked.code, len(looked.json)) == (0, 9)
        reorgs = await bskt("", "--env-file", env_file, "--output", "json", "chain", "reorgs", BSKT_DATABASE_URL="")
        assert [(reorg["orphaned_blocks"], reorg["orphaned_requests"]) for reorg in reorgs.json] == [(2, 1)]
        process.send_signal(signal.SIGTERM)
        out, messages = await process.communicate()
    assert (process.returncode, "Requests and chain agree." in out.decode()) == (0, True), messages.decode()
    assert not folder.exists()


async def test_a_demo_that_is_interrupted_in_the_middle_leaves_nothing_behind() -> None:
    async with demo() as process:
        assert process.stderr is not None
        while b"The gateway is down" not in await process.stderr.readline():
            """It has set its stage, and plays."""
        process.send_signal(signal.SIGINT)
        _, messages = await process.communicate()
    assert (process.returncode, b"Interrupted." in messages) == (130, True), messages.decode()
