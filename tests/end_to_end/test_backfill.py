"""``bskt backfill`` on a real chain and a real database, through the daemon's own wiring."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import orjson
import pytest

from datastore.connection import Role, open_pool
from indexer.backfill import NotFinal
from service import wiring
from service.commands import backfill
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import Basket, DevChain, create_basket, deploy_system, request_mint
from service.metrics import RpcMetrics
from service.settings import Settings, load

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parents[2]
SECRET = "a secret of this test, 32 bytes!"
USER = bytes.fromhex("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
TABLES = ("block", "log", "basket", "mint_request", "mint_transition", "mint_execution", "report", "cursor")
# Backfills, and kills itself with SIGKILL when it has come to the named boundary for the n-th time.
RUN_UNTIL = """
import asyncio, os, signal, sys
from service import settings
from service.commands import backfill
seen = 0
def reached(point):
    global seen
    seen += point == sys.argv[2]
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
given = settings.load({})
dsn = given.database_url.get_secret_value()
asyncio.run(backfill.run(given, dsn, blocks=sys.argv[1], hold=True, dry_run=False, reached=reached))
"""
COMMAND = "from service.cli import main; main()"


@dataclass(kw_only=True)
class World:
    """Ten requests in blocks that lie below the configured start block, and the same number above it, indexed."""

    chain: DevChain
    basket: Basket
    environment: dict[str, str]
    settings: Settings
    dsn: str
    gap: tuple[int, int]

    async def request(self, bank: str) -> int:
        receipt = await request_mint(
            self.chain,
            self.basket.token,
            beneficiary=USER,
            amount_wei=10**18,
            bank_reference=bank.encode().ljust(32, b"\0"),
        )
        return receipt.block_number

    async def rows(self) -> dict[str, list[tuple[object, ...]]]:
        connection = await asyncpg.connect(self.dsn)
        try:
            return {
                # The version only tells who remembers baskets to read them again; it is no row of the chain.
                table: [
                    tuple(value for name, value in row.items() if name != "baskets_version")
                    for row in await connection.fetch(f"TABLE {table} ORDER BY 1, 2, 3")
                ]
                for table in TABLES
            }
        finally:
            await connection.close()

    async def requests(self) -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch(
                "SELECT convert_from(rtrim(bank_reference, '\\x00'), 'UTF8'), state, held_reason FROM mint_request"
                " ORDER BY block_number, log_index"
            )
            return [tuple(row) for row in rows]
        finally:
            await connection.close()

    async def backfill(
        self, blocks: str | None = None, *, hold: bool = True, dry_run: bool = False
    ) -> dict[str, object]:
        wanted = blocks or f"{self.gap[0]}:{self.gap[1]}"
        return await backfill.run(self.settings, self.dsn, blocks=wanted, hold=hold, dry_run=dry_run)


@pytest.fixture
async def world(dsn: str) -> AsyncIterator[World]:
    binary = find_or_install_anvil(configured=None, cache_dir=ROOT / ".cache")
    async with await Anvil.start(binary, slots_in_an_epoch=1) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 - the child needs a PATH, and no other setting of ours
            "BSKT_DATABASE_URL": dsn,
            "BSKT_INSTANCE_SECRET": SECRET,
            "BSKT_CHAIN_ID": "31337",
            "BSKT_RPC_URL": anvil.url,
            "BSKT_FACTORY_ADDRESS": "0x" + system.factory.hex(),
            "BSKT_FORWARDER_ADDRESS": "0x" + system.forwarder.hex(),
            "BSKT_MAX_LOG_RANGE_BLOCKS": "3",
            "BSKT_CRE_MODE": "dry-run",
        }
        made = World(
            chain=chain,
            basket=basket,
            environment=environment,
            settings=load({}, environ={}),
            dsn=dsn,
            gap=(1, 1),
        )
        for number in range(10):
            last_of_gap = await made.request(f"OLD-{number}")
        environment["BSKT_START_BLOCK"] = str(last_of_gap + 1)
        made.settings = load({}, environ=environment)
        made.gap = (1, last_of_gap)
        for number in range(10):
            await made.request(f"NEW-{number}")
        await chain.mine(2)
        # The first start, and the daemon's indexer until it has caught up.
        async with wiring._datastore(made.settings) as (opened, secret):
            node = wiring._node(made.settings, RpcMetrics(31337))
            pool = await open_pool(opened, Role.INDEXER)
            sources = wiring._sources(made.settings, secret)
            pinned = await wiring._pin(pool, node, made.settings, sources)
            follower = wiring._follower(made.settings, pool, node, sources, pinned, lambda _: None)
            while await follower.tick():
                pass
            await pool.close()
            await node.close()
        yield made


async def test_a_gap_is_filled_and_what_is_new_is_held(world: World) -> None:
    # The basket was created below the start block, so that nothing of it was known.
    assert await world.requests() == []
    result = await world.backfill()
    assert (result["requests_new"], result["requests_known"], result["baskets"]) == (10, 0, 1)
    assert await world.requests() == [(f"OLD-{number}", "confirmed", "backfill") for number in range(10)]
    await world.backfill(f"{world.gap[1] + 1}:finalized")
    assert [name for name, _, _ in await world.requests()] == [
        *(f"OLD-{number}" for number in range(10)),
        *(f"NEW-{number}" for number in range(10)),
    ]


async def test_with_trigger_new_requests_wait_for_their_slot_only(world: World) -> None:
    await world.backfill(hold=False)
    assert await world.requests() == [(f"OLD-{number}", "confirmed", None) for number in range(10)]


async def test_trigger_releases_nothing_that_was_held_before(world: World) -> None:
    await world.backfill()
    await world.backfill(hold=False)
    assert {held for _, _, held in await world.requests()} == {"backfill"}


async def test_a_second_backfill_changes_no_row(world: World) -> None:
    await world.backfill()
    before = await world.rows()
    result = await world.backfill()
    assert (result["requests_new"], result["requests_known"]) == (0, 10)
    assert await world.rows() == before


async def test_a_backfill_does_not_move_the_cursor(world: World) -> None:
    before = (await world.rows())["cursor"]
    await world.backfill(":finalized")
    assert (await world.rows())["cursor"] == before


@pytest.mark.parametrize(("point", "times"), [("before_commit", 1), ("before_commit", 3), ("after_commit", 2)])
async def test_a_backfill_that_was_killed_is_finished_by_running_it_again(world: World, point: str, times: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN_UNTIL, f"1:{world.gap[1]}", f"backfill.{point}", str(times)),
        env=world.environment,
        cwd=ROOT,
    )
    assert await process.wait() == -signal.SIGKILL
    assert len(await world.requests()) < 10
    result = await world.backfill()
    assert result["requests_new"] == 10 - int(str(result["requests_known"]))
    assert await world.requests() == [(f"OLD-{number}", "confirmed", "backfill") for number in range(10)]
    history = (await world.rows())["mint_transition"]
    assert len(history) == 20  # seen and confirmed, once each


async def test_a_dry_run_says_what_it_would_find_and_writes_nothing(world: World) -> None:
    before = await world.rows()
    result = await world.backfill(dry_run=True)
    assert (result["requests_new"], result["requests_known"], result["baskets"]) == (10, 0, 1)
    assert await world.rows() == before
    await world.backfill()
    again = await world.backfill(dry_run=True)
    assert (again["requests_new"], again["requests_known"]) == (0, 10)


async def test_what_lies_above_the_indexed_final_blocks_is_refused(world: World) -> None:
    finalized = (await world.rows())["cursor"][0][3]
    assert isinstance(finalized, int)
    await world.chain.mine(10)  # final on chain, and not indexed
    with pytest.raises(NotFinal, match=f"above {finalized}"):
        await world.backfill(f"{finalized + 1}:latest")


async def test_a_range_that_reaches_above_the_indexed_final_blocks_ends_there(world: World) -> None:
    finalized = (await world.rows())["cursor"][0][3]
    result = await world.backfill("1:latest")
    assert result["last"] == finalized


async def test_the_command_answers_on_stdout_and_explains_on_stderr(world: World) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, "backfill", "--blocks", "1:latest", "--output", "json"),
        env=world.environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0
    assert orjson.loads(out)["requests_new"] == 20
    assert "ended at block" in err.decode()


@pytest.mark.parametrize("blocks", ["9:8", "nonsense", "1:999999"])
async def test_a_range_that_cannot_be_read_is_a_usage_error(world: World, blocks: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, "backfill", "--blocks", blocks),
        env=world.environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 2
    assert (out, "--blocks" in err.decode()) == (b"", True)
