"""The installed daemon as a process of its own: an embedded Postgres, real signals, kill -9."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.demo.contracts import total_supply
from service.demo.cre_stand_in import faults
from tests.end_to_end.processes import AtPoint, Stage, daemon, open_stage, until
from tests.end_to_end.world import AMOUNT, USER, minted, reference

pytestmark = pytest.mark.end_to_end


@pytest.fixture
async def stage(anvil_binary: Path) -> AsyncIterator[Stage]:
    async with open_stage(anvil_binary) as stage:
        yield stage


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "daemon.log"


async def test_the_daemon_brings_its_own_database_mints_once_and_stops_gracefully(
    stage: Stage, data_dir: Path, log: Path
) -> None:
    """Hard case 102."""
    await stage.request("DEPOSIT-1")
    settings = stage.settings(BSKT_DATA_DIR=str(data_dir / "bskt"), BSKT_INSTANCE_SECRET="")
    async with daemon(settings, log) as running:
        await running.until_said("to_state=completed")
        base = f"http://{settings['BSKT_LISTEN']}"
        async with aiohttp.ClientSession() as session:
            for path in ("/livez", "/readyz", "/metrics", "/status"):
                async with session.get(base + path) as answer:
                    assert (path, answer.status) == (path, 200)
                    body = await answer.read()
        status = json.loads(body)
        assert (status["requests"]["completed"], status["chain"]["lag_blocks"]) == (1, 0)
        assert await running.end() == 0
    assert await total_supply(stage.chain, stage.baskets[0].token) == AMOUNT
    assert len(stage.cre.ledger.request_ids()) == 1


# The other boundaries, and those of many requests at once, are the kill loop's.
@pytest.mark.parametrize("crash_point", ["indexer.before_commit", "invocator.after_attempt"])
async def test_a_daemon_killed_at_a_commit_boundary_mints_exactly_once_after_its_restart(
    stage: Stage, data_dir: Path, log: Path, crash_point: str
) -> None:
    """Hard cases 3, 53, 70 and 103."""
    await stage.request("DEPOSIT-1")
    settings = stage.settings(BSKT_DATA_DIR=str(data_dir / "bskt"), BSKT_INSTANCE_SECRET="")
    async with daemon(settings, log, at=AtPoint(name=crash_point)) as killed:
        assert await killed.process.wait() == -signal.SIGKILL
    async with daemon(settings, log) as running:
        await running.until_said("to_state=completed")
        assert await running.end() == 0
    assert await total_supply(stage.chain, stage.baskets[0].token) == AMOUNT
    assert len(stage.cre.ledger.request_ids()) == 1


async def test_two_replicas_over_one_database_mint_each_request_once(stage: Stage, dsn: str, log: Path) -> None:
    """Hard case 54."""
    deposits = [f"DEPOSIT-{number}" for number in range(20)]
    # Slow enough that one worker alone would fall behind: both find work.
    stage.cre.faults.next(faults.slow_answer(0.3), count=len(deposits))
    settings = [stage.settings(BSKT_DATABASE_URL=dsn) for _ in range(2)]
    async with (
        daemon(settings[0], log) as first,
        daemon(settings[1], log.with_suffix(".second")) as second,
    ):
        for replica in (first, second):
            await replica.until_said("daemon.started")
        for deposit in deposits:
            await stage.request(deposit)
        reader = await asyncpg.connect(dsn)

        async def all_completed() -> bool:
            states = await reader.fetch("SELECT state FROM mint_request")
            return [row["state"] for row in states] == ["completed"] * len(deposits)

        async def all_folded() -> bool:
            return not await reader.fetchval("SELECT EXISTS (SELECT FROM tally_delta)")

        await until(all_completed, what="every request completed")
        await until(all_folded, what="every counted change folded into the tally")
        workers = await reader.fetchval("SELECT count(DISTINCT worker_id) FROM attempt")
        await reader.close()
        assert [await first.end(), await second.end()] == [0, 0]
    assert workers == 2
    mints = [(mint.recipient, mint.amount, mint.bank_reference) for mint in await minted(stage.chain)]
    assert sorted(mints) == sorted((USER, AMOUNT, reference(deposit)) for deposit in deposits)
    ledger = stage.cre.ledger
    assert len(ledger.request_ids()) == len(ledger.runs) == len(ledger.attempts) == len(deposits)
