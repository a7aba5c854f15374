"""One endpoint on another fork is set aside and named; a violated finality is the word of two, or of the only one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from datastore.connection import Pool
from datastore.errors import FinalityViolated
from indexer.standstill import STANDSTILL_SECONDS
from node.errors import EndpointOnOtherFork, NodeUnavailable
from node.health import EndpointState
from node.inconsistency import Inconsistency
from tests.indexer.test_follower_endpoints import BASE, NOISE, World, following, request
from tests.node.rpc_stand_in import Chain, RpcStandIn, mined, refused, to_hex

CHAIN = mined(BASE, [request("two")], [NOISE])
FORK = mined(BASE[:3], *[[request(f"forged-{n}")] for n in range(6)], fork="another")
ANOTHER_FORK = mined(BASE[:3], *[[NOISE]] * 6, fork="a third")

ALIVE, OTHER_FORK, UNREACHABLE = EndpointState.ALIVE, EndpointState.OTHER_FORK, EndpointState.UNREACHABLE


async def alarms(pool: Pool) -> list[tuple[str, str]]:
    return [tuple(row) for row in await pool.fetch("SELECT kind, sentence FROM alarm ORDER BY id")]


@asynccontextmanager
async def indexed(pool: Pool, endpoints: int) -> AsyncIterator[World]:
    """So many endpoints of one chain, all of whose blocks up to 5 are stored as final."""
    async with following(pool, *(RpcStandIn(chain=BASE) for _ in range(endpoints))) as w:
        w.serve(CHAIN, finalized=5)
        await w.follow()
        yield w


def grow(w: World, *, forks: dict[int, Chain]) -> Chain:
    """The chain goes on; the endpoints at some places follow another fork of it."""
    longer = mined(CHAIN, [request("three")])
    for place, server in enumerate(w.servers):
        server.chain = forks.get(place, longer)
    return longer


async def test_one_endpoint_on_another_fork_is_set_aside_alarmed_and_the_others_are_indexed(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 2) as w:
        longer = grow(w, forks={0: FORK})
        await w.follow()
        assert await w.is_at(longer)
        assert (w.states, w.kinds) == ([OTHER_FORK, ALIVE], {Inconsistency.OTHER_FORK: 1})
        assert [name for name, _ in await w.requests()] == ["one", "two", "three"]
        ((kind, sentence),) = await alarms(indexer_pool)
        assert (kind, sentence.split(":")[0]) == (
            "endpoint_on_other_fork",
            "endpoint 0, eth_getBlockByNumber",
        )
        assert f"it denies our final block 5, {to_hex(CHAIN[5].hash)}: its own is {to_hex(FORK[5].hash)}" in sentence
        assert "denies our final block 5" in (w.node.reports()[0].reason or "")
        assert w.node.troubles() == ()


async def test_it_is_asked_for_nothing_but_our_final_block_and_comes_back_by_itself_with_it(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 2) as w:
        longer = grow(w, forks={0: FORK})
        await w.follow()
        first, second = w.servers
        second.interfere = refused(502)
        w.forget()
        for _ in range(4):
            w.now[0] += 400
            with pytest.raises(NodeUnavailable):
                await w.follower.tick()
        assert {tuple(params) for _, params in first.asked if params} <= {(hex(5), False), (hex(0), False)}
        assert first.seen["eth_getLogs"] == 0
        assert w.states == [OTHER_FORK, UNREACHABLE]
        assert await w.is_at(longer)
        first.chain = mined(longer, [request("four")])
        w.now[0] += 400
        await w.follow()
        assert await w.is_at(first.chain)
        assert w.states[0] is ALIVE
        assert len(await alarms(indexer_pool)) == 1


async def test_it_gets_its_work_back_after_three_looks(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 2) as w:
        longer = grow(w, forks={0: FORK})
        await w.follow()
        await w.probe()
        assert w.states == [OTHER_FORK, ALIVE]
        w.serve(longer)
        await w.probe()
        assert w.states == [ALIVE, ALIVE]


async def test_a_fork_that_two_endpoints_show_halts_and_both_are_named(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 3) as w:
        grow(w, forks={0: FORK, 1: FORK})
        with pytest.raises(FinalityViolated, match=r"endpoints 1 and 0 deny our final block 5, 0x"):
            await w.follow()
        assert await w.is_at(CHAIN)


async def test_two_endpoints_on_two_different_forks_are_both_set_aside(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 3) as w:
        longer = grow(w, forks={0: FORK, 1: ANOTHER_FORK})
        await w.follow()
        assert await w.is_at(longer)
        assert w.states == [OTHER_FORK, OTHER_FORK, ALIVE]


async def test_one_that_was_on_the_fork_and_has_left_it_since_is_no_second_voice(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 2) as w:
        longer = grow(w, forks={0: FORK})
        await w.follow()
        w.servers[0].chain, w.servers[1].chain = longer, FORK
        with pytest.raises(EndpointOnOtherFork, match="endpoint 1"):
            await w.follower.tick()
        w.now[0] += 400
        await w.follow()
        assert await w.is_at(longer)


@pytest.mark.parametrize("agrees", [True, False])
async def test_while_the_second_endpoint_says_nothing_indexing_waits_and_does_not_halt(
    indexer_pool: Pool, *, agrees: bool
) -> None:
    async with indexed(indexer_pool, 2) as w:
        w.servers[1].interfere = refused(502)
        longer = grow(w, forks={0: FORK} if agrees else {0: FORK, 1: FORK})
        for _ in range(3):
            with pytest.raises(NodeUnavailable):
                await w.follow()
            w.now[0] += 400
        assert await w.is_at(CHAIN)
        assert "0 other_fork (" in w.node.troubles()[0]
        w.servers[1].interfere = None
        if agrees:
            await w.follow()
            assert await w.is_at(longer)
        else:
            with pytest.raises(FinalityViolated, match="endpoints 1 and 0 deny"):
                await w.follow()


async def test_the_only_endpoint_halts_as_it_speaks_for_the_chain(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 1) as w:
        grow(w, forks={0: FORK})
        with pytest.raises(FinalityViolated, match="endpoint 0, the only one, denies our final block 5, 0x"):
            await w.follow()


async def test_an_endpoint_whose_servers_are_on_two_forks_contradicts_itself_and_does_not_halt(
    indexer_pool: Pool,
) -> None:
    """A load balancer: the head and its ancestors are of one server, the block by its number of another one."""
    async with indexed(indexer_pool, 1) as w:
        grow(w, forks={0: FORK})
        w.servers[0].tampers["eth_getBlockByNumber"] = lambda params, told: (
            CHAIN[5].header() if params[0] == hex(5) else told
        )
        with pytest.raises(NodeUnavailable, match="endpoint 0, several answers: its block 5 is our final one"):
            await w.follow()
        assert w.states == [UNREACHABLE]


async def test_an_endpoint_that_comes_and_goes_between_two_forks_is_alarmed_once_an_hour(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 2) as w:
        for _ in range(3):
            grow(w, forks={0: FORK})
            await w.follow()
            assert w.states == [OTHER_FORK, ALIVE]
            w.serve(CHAIN)
            for _ in range(3):
                await w.probe()
            assert w.states == [ALIVE, ALIVE]
            await w.follow()
        assert len(await alarms(indexer_pool)) == 1


async def test_the_sweep_leaves_it_out_and_goes_on_with_two_others(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 3) as w:
        grow(w, forks={1: FORK})
        while await w.sweep.tick():
            pass
        assert await w.pool.fetchval("SELECT block_number FROM sweep") == 5
        assert w.states[1] is OTHER_FORK
        assert [kind for kind, _ in await alarms(indexer_pool)] == ["endpoint_on_other_fork"]


async def test_the_sweep_says_why_it_waits_when_the_second_of_two_endpoints_is_left_out(indexer_pool: Pool) -> None:
    async with indexed(indexer_pool, 2) as w:
        grow(w, forks={1: FORK})
        while await w.sweep.tick():
            pass
        assert w.sweep.troubles() == ()
        w.now[0] += STANDSTILL_SECONDS
        assert w.sweep.troubles() == ("sweep: has stood still for 10 minutes: endpoint 0 is the only one that answers",)
