"""The follower and answers that no chain could give: another endpoint is asked, and nothing of them becomes a row."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from datastore import status
from datastore.connection import Pool, Role, open_pool
from node.health import EndpointState
from node.inconsistency import Inconsistency
from tests.indexer.test_follower_endpoints import BASE, BASKET, NOISE, World, following, request
from tests.node.rpc_stand_in import BLOCK_SECONDS, CHAIN_ID, Chain, RpcStandIn, StandInBlock, mined, refused, to_hex


async def rows_are(world: World, chain: Chain) -> bool:
    """Whether the canonical blocks are the chain's, from the start block on."""
    rows = await world.pool.fetch("SELECT number, hash FROM block WHERE canonical AND number > 1 ORDER BY number")
    return [(row["number"], row["hash"]) for row in rows] == [(block.number, block.hash) for block in chain[2:]]


async def test_a_pause_until_a_year_that_no_calendar_has_is_a_refusal_like_any_other(indexer_pool: Pool) -> None:
    """Hard case 24."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    moment = "Wed, 21 Oct 2015{} 07:28:00 GMT"
    first.interfere = refused(429, {"Retry-After": moment.format("5" * 16), "Date": moment.format("")})
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        assert await w.is_at(BASE)
        assert w.states == [EndpointState.RATE_LIMITED, EndpointState.ALIVE]


@pytest.mark.parametrize("member", ["logIndex", "transactionIndex"])
@pytest.mark.parametrize("finalized", [0, 4])
async def test_an_index_that_no_row_can_hold_is_an_invalid_answer(
    indexer_pool: Pool, member: str, finalized: int
) -> None:
    """Hard case 30: it must not get as far as the database."""

    def enlarged(logs: list[Any]) -> list[Any]:
        return [log | {member: hex(2**31)} for log in logs]

    servers = [RpcStandIn(chain=BASE, finalized=finalized) for _ in range(2)]
    servers[0].tampers["eth_getLogs"] = lambda _, logs: enlarged(logs)
    servers[0].tampers["eth_getBlockReceipts"] = lambda _, receipts: [
        receipt | {"logs": enlarged(receipt["logs"])} for receipt in receipts
    ]
    async with following(indexer_pool, *servers) as w:
        await w.follow()
        assert await w.is_at(BASE)
        assert w.kinds == {Inconsistency.MALFORMED: 1}
        assert w.states == [EndpointState.UNREACHABLE, EndpointState.ALIVE]


async def test_one_hash_at_two_final_heights_is_left_for_another_endpoint(indexer_pool: Pool) -> None:
    """The logs tell the time, and no request is among them, so that no header of theirs is asked for."""
    chain = mined(BASE, [request("two")], [BASKET], [BASKET], [NOISE], [NOISE])

    def mix_up(_: list[Any], logs: Any) -> Any:
        timed = [
            log | {"blockTimestamp": hex(1_700_000_000 + BLOCK_SECONDS * int(log["blockNumber"], 16))} for log in logs
        ]
        return [log | {"blockHash": to_hex(chain[7].hash)} if log["blockNumber"] == "0x6" else log for log in timed]

    servers = [RpcStandIn(chain=chain, finalized=9) for _ in range(2)]
    servers[0].tampers["eth_getLogs"] = mix_up
    async with following(indexer_pool, *servers) as w:
        await w.follow()
        assert await w.is_at(chain)
        assert w.kinds == {Inconsistency.OTHER_BLOCK: 1}
        assert await w.requests() == [("one", "finalized"), ("two", "finalized")]


def in_a_circle(chain: Chain) -> Chain:
    """Its last block has the hash of the second last but one: X, Z, X."""
    return (*chain[:-1], replace(chain[-1], hash=chain[-3].hash))


def with_a_held_hash(chain: Chain) -> Chain:
    """The last block but one has the hash of block 3, and the last stands on it."""
    reused = replace(chain[-2], hash=chain[3].hash)
    return (*chain[:-2], reused, replace(chain[-1], parent_hash=reused.hash))


@pytest.mark.parametrize("spoil", [in_a_circle, with_a_held_hash])
async def test_a_hash_at_two_heights_near_the_head_is_left_for_another_endpoint(
    indexer_pool: Pool, spoil: Callable[[Chain], Chain]
) -> None:
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        second.chain = mined(BASE, [NOISE], [NOISE], [request("two")])
        first.chain = spoil(second.chain)
        await w.follow()
        assert w.kinds == {Inconsistency.OTHER_BLOCK: 1}
        assert w.states == [EndpointState.UNREACHABLE, EndpointState.ALIVE]
        assert await rows_are(w, second.chain)


async def test_a_held_hash_at_another_final_height_is_left_for_another_endpoint(indexer_pool: Pool) -> None:
    """Not even where nothing is asked twice: it would be a hole that no row shows."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        second.chain = mined(BASE, [NOISE], [request("two")], [])
        last = second.chain[-1]
        told = StandInBlock(number=last.number, hash=second.chain[3].hash, parent_hash=last.parent_hash)
        first.chain = (*second.chain[:-1], told)
        first.finalized = second.finalized = last.number
        await w.follow()
        assert w.kinds == {Inconsistency.OTHER_BLOCK: 1}
        assert await w.is_at(second.chain)


async def finality(world: World) -> tuple[int, int]:
    row = await world.pool.fetchrow("SELECT finalized_number, safe_number FROM cursor")
    assert row is not None
    return row["finalized_number"], row["safe_number"]


@pytest.mark.parametrize("tags", [{"finalized", "safe"}, {"safe"}])
@pytest.mark.parametrize("is_new", [False, True], ids=["of rows", "of what is read"])
async def test_a_tag_of_another_branch_makes_nothing_final(indexer_pool: Pool, tags: set[str], is_new: bool) -> None:
    """Hard cases 26, 33: one backend tells head and logs, another one, on another fork, what is final."""
    chain = mined(BASE, [request("two")], [NOISE], [NOISE])
    fork = mined(BASE, [NOISE], [NOISE], [NOISE], fork="another")
    first, second = RpcStandIn(chain=BASE if is_new else chain), RpcStandIn(chain=BASE if is_new else chain)
    async with following(indexer_pool, first, second, finality_pause_seconds=6.0) as w:
        await w.follow()
        w.serve(chain)
        first.tampers["eth_getBlockByNumber"] = lambda params, told: fork[6].header() if params[0] in tags else told
        if is_new:
            w.serve(mined(chain, []))
        w.now[0] += 6.0
        await w.follow()
        assert (w.kinds, w.states) == (
            {Inconsistency.OTHER_BLOCK: 1},
            [EndpointState.UNREACHABLE, EndpointState.ALIVE],
        )
        assert await finality(w) == (0, 0)
        assert await w.requests() == [("one", "canonical"), ("two", "canonical")]
        w.serve(second.chain, finalized=6)
        w.now[0] += 6.0
        await w.follow()
        assert await finality(w) == (6, 6)


async def test_a_finalized_block_of_another_branch_makes_no_range_final(indexer_pool: Pool) -> None:
    """Not even the ranges before it, which are committed first."""
    chain = mined(BASE, [request("two")], *[[NOISE]] * 220)
    fork = mined(BASE, *[[NOISE]] * 221, fork="another")
    first, second = RpcStandIn(chain=chain), RpcStandIn(chain=chain)
    first.tampers["eth_getBlockByNumber"] = lambda params, told: (
        fork[210].header() if params[0] in {"finalized", "safe"} else told
    )
    async with following(indexer_pool, first, second, most_unfinalized_blocks=1_000) as w:
        await w.follow()
        assert await finality(w) == (0, 0)
        assert await w.is_at(chain)
        assert w.kinds == {Inconsistency.OTHER_BLOCK: 1}
        w.serve(chain, finalized=210)
        await w.follow()
        assert await finality(w) == (210, 210)


async def lag_blocks(reader_dsn: str) -> int:
    async with await open_pool(reader_dsn, Role.READER) as reader:
        snapshot = await status.snapshot(reader, CHAIN_ID)
    assert snapshot is not None
    return snapshot.lag_blocks


async def test_blocks_that_are_announced_and_never_given_are_a_trouble_and_a_lag(indexer_pool: Pool, dsn: str) -> None:
    """Hard case 21: once is a tip that moves; for a minute it is an index that stands still."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        server.tampers["eth_getBlockByNumber"] = lambda params, told: told if params[0].isalpha() else None
        chain = BASE
        for seconds in range(0, 72, 12):
            assert (w.follower.troubles(), await lag_blocks(dsn)) == ((), 0), seconds
            chain = mined(chain, [NOISE], [NOISE])
            w.serve(chain)
            w.now[0] += 12
            await w.follower.tick()
        (sentence,) = w.follower.troubles()
        assert "has not known the blocks that it announces for 60 s; indexing waits at block 4" in sentence
        assert await lag_blocks(dsn) == 12
        server.tampers.clear()
        await w.follow()
        assert (w.follower.troubles(), await lag_blocks(dsn), await w.is_at(chain)) == ((), 0, True)


async def test_the_lag_grows_while_the_index_is_held(indexer_pool: Pool, dsn: str) -> None:
    """Hard case 12."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server, most_unfinalized_blocks=10) as w:
        chain = BASE
        for blocks in (10, 30):
            chain = mined(chain, *[[NOISE]] * blocks)
            w.serve(chain)
            await w.follow()
            assert await lag_blocks(dsn) == chain[-1].number - 10
