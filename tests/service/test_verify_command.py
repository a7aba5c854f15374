"""``bskt verify``, as a person runs it beside a daemon whose node left something out."""

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from datastore.connection import Pool
from service.cli import main
from tests.chain_model.chain import FACTORY, FORWARDER
from tests.chain_model.daemon import SECRET
from tests.chain_model.faults import Fault
from tests.chain_model.scenes import Scene, history, scene
from tests.chain_model.world import CHAIN_ID


async def bskt(made: Scene, dsn: str, *arguments: str) -> Result:
    """Run the command in a thread: it has a loop of its own, and the modelled nodes are in ours."""
    environment = {
        "BSKT_DATABASE_URL": dsn,
        "BSKT_INSTANCE_SECRET": SECRET.decode(),
        "BSKT_CHAIN_ID": str(CHAIN_ID),
        "BSKT_RPC_URL": ",".join(made.server.url(place) for place in range(len(made.world.endpoints))),
        "BSKT_FACTORY_ADDRESS": "0x" + FACTORY.hex(),
        "BSKT_FORWARDER_ADDRESS": "0x" + FORWARDER.hex(),
        "BSKT_START_BLOCK": "1",
        "BSKT_MAX_LOG_RANGE_BLOCKS": "3",
        "BSKT_CRE_MODE": "dry-run",
    }
    return await asyncio.to_thread(CliRunner().invoke, main, ["verify", *arguments], env=environment)


def rows(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


async def test_rows_that_are_what_the_chain_says_are_equal(indexer_pool: Pool, dsn: str) -> None:
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        result = await bskt(made, dsn, "--blocks", "1:finalized", "--output", "json")
        assert (result.exit_code, rows(result)) == (0, [])
        assert "blocks 1 to 7: the rows are what the chain says" in result.stderr


@pytest.mark.parametrize("endpoints", [1, 2])
async def test_a_gap_is_told_and_repaired_when_asked_to(indexer_pool: Pool, dsn: str, endpoints: int) -> None:
    async with scene(indexer_pool, history(), endpoints=endpoints) as made:
        made.world.endpoints[0].fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
        await made.daemon.follow()
        made.world.heal()
        before = await made.wrong()
        assert before
        told = await bskt(made, dsn, "--blocks", ":finalized", "--output", "json")
        assert told.exit_code == 4
        missing = rows(told)
        assert {(row["kind"], row["outcome"]) for row in missing} == {("missing", "confirmed")}
        assert {row["event"] for row in missing} <= {"BasketCreated", "MintRequested"}
        unasked = await bskt(made, dsn, "--blocks", ":finalized", "--repair")
        assert (unasked.exit_code, "`--yes` is needed" in unasked.stderr) == (2, True)
        assert await made.wrong() == before, "without --repair and a yes nothing is written"
        repaired = await bskt(made, dsn, "--blocks", ":finalized", "--repair", "--yes", "--output", "json")
        assert repaired.exit_code == 0
        assert [row | {"outcome": "confirmed"} for row in rows(repaired)] == missing
        assert await made.wrong() == []
        assert rows(await bskt(made, dsn, "--blocks", "1:", "--output", "json")) == []


async def test_what_two_nodes_say_differently_is_left_to_a_person(indexer_pool: Pool, dsn: str) -> None:
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        made.world.endpoints[1].fail(Fault.LOGS_MISSING, times=None, seed=1)
        result = await bskt(made, dsn, "--blocks", "1:", "--repair", "--yes", "--output", "json")
        assert result.exit_code == 4
        assert {(row["kind"], row["outcome"]) for row in rows(result)} == {("extra", "endpoints disagree")}
        assert await made.wrong() == []


@pytest.mark.parametrize("endpoints", [1, 2])
async def test_what_no_endpoint_can_prove_to_be_absent_stays_and_they_are_named(
    indexer_pool: Pool, dsn: str, endpoints: int
) -> None:
    async with scene(indexer_pool, history(), endpoints=endpoints) as made:
        await made.daemon.follow()
        for endpoint in made.world.endpoints:
            endpoint.fail(Fault.HISTORY_EMPTY, times=None, seed=1)
        result = await bskt(made, dsn, "--blocks", "1:", "--repair", "--yes", "--output", "json")
        assert result.exit_code == 4
        assert {(row["kind"], row["outcome"]) for row in rows(result)} == {("extra", "not proven")}
        assert f"endpoint {', '.join('01'[:endpoints])} cannot prove" in result.stderr
        assert await made.wrong() == []


@pytest.mark.parametrize(("blocks", "sentence"), [("8:9", "beyond the latest block"), ("nine", "not a block number")])
async def test_a_range_that_cannot_be_verified_is_refused_with_its_reason(
    indexer_pool: Pool, dsn: str, blocks: str, sentence: str
) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        result = await bskt(made, dsn, "--blocks", blocks)
        assert result.exit_code == 2
        assert sentence in result.stderr


async def test_only_final_blocks_are_verified(indexer_pool: Pool, dsn: str) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        made.world.mine([])
        await made.daemon.follow()
        result = await bskt(made, dsn, "--blocks", "8")
        assert result.exit_code == 2
        assert "block 7 is the last that is both indexed and final" in result.stderr
        assert "blocks 1 to 7" in (await bskt(made, dsn, "--blocks", "1:")).stderr
