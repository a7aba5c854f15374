"""A daemon that finds another chain, or another instance's database, does not start, and says what to do."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datastore.connection import Pool
from tests.chain_model.chain import FACTORY, FORWARDER, digest, mine
from tests.chain_model.daemon import SECRET
from tests.chain_model.scenes import Scene, history, scene
from tests.chain_model.world import CHAIN_ID


async def start(made: Scene, dsn: str, **changed: str) -> tuple[int | None, str]:
    """Run the daemon as a process; its exit code and what it says."""
    environment = {
        "BSKT_DATABASE_URL": dsn,
        "BSKT_INSTANCE_SECRET": SECRET.decode(),
        "BSKT_CHAIN_ID": str(CHAIN_ID),
        "BSKT_RPC_URL": made.server.url(0),
        "BSKT_FACTORY_ADDRESS": "0x" + FACTORY.hex(),
        "BSKT_FORWARDER_ADDRESS": "0x" + FORWARDER.hex(),
        "BSKT_START_BLOCK": "1",
        "BSKT_CRE_MODE": "dry-run",
        "BSKT_CRE_WORKFLOW": "11" * 32,
        "BSKT_LISTEN": "127.0.0.1:0",
    }
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("bskt")), "run", "--part", "indexer"),
        env=environment | changed,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


def reset(made: Scene) -> None:
    """The development chain was started again: the same id, another genesis."""
    world = made.world
    block = mine(world.genesis, [], salt=-1)
    other = world.endpoints[0].node
    block.parent, block.number, block.hash = None, 0, digest("another genesis")
    other.view.head = other.view.finalized = other.view.safe = block


def another_chain(made: Scene) -> None:
    made.world.view.chain_id = 1


def another_code(made: Scene) -> None:
    made.world.endpoints[0].node.code = b"\x60\x01"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (reset, "genesis hash"),
        (another_chain, f"endpoint 0's chain id is 1; this daemon serves {CHAIN_ID}"),
        (another_code, "endpoint 0's factory's code hash is"),
    ],
)
async def test_a_chain_that_is_not_the_one_that_was_pinned_is_refused(
    indexer_pool: Pool, dsn: str, change: Callable[[Scene], None], sentence: str
) -> None:
    """Hard cases 14 and 27."""
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        before = await indexer_pool.fetchrow("SELECT * FROM cursor")
        change(made)
        code, told = await start(made, dsn)
        assert (code, sentence in told) == (1, True), told
        assert await indexer_pool.fetchrow("SELECT * FROM cursor") == before


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"BSKT_FACTORY_ADDRESS": "0x" + "11" * 20}, "follows another factory; check BSKT_FACTORY_ADDRESS"),
        ({"BSKT_FORWARDER_ADDRESS": "0x" + "11" * 20}, "believes another forwarder; check BSKT_FORWARDER_ADDRESS"),
        ({"BSKT_INSTANCE_SECRET": "the secret of another environment"}, "nonces would change; restore the secret"),
    ],
)
async def test_a_database_of_another_instance_is_refused(
    indexer_pool: Pool, dsn: str, changed: dict[str, str], sentence: str
) -> None:
    """Hard case 108."""
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        before = await indexer_pool.fetchrow("SELECT * FROM cursor")
        code, told = await start(made, dsn, **changed)
        assert (code, sentence in told) == (1, True), told
        assert await indexer_pool.fetchrow("SELECT * FROM cursor") == before
