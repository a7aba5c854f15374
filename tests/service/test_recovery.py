"""An outage of the only node, in virtual time: what comes after it does not depend on how long it was."""

import asyncio
from collections.abc import Callable

import pytest

from datastore.connection import Pool
from datastore.errors import DatastoreUnavailable
from node.errors import NodeUnavailable
from service.supervision import Part, Stop, Supervisor
from tests.indexer.test_follower_endpoints import BASE, following, request
from tests.node.rpc_stand_in import RpcStandIn, mined, refused

SOON_SECONDS = 5.0


def without_an_answer(server: RpcStandIn) -> None:
    server.interfere = refused(502)


def limited_without_a_word_for_how_long(server: RpcStandIn) -> None:
    server.interfere = refused(429)


def without_a_head(server: RpcStandIn) -> None:
    server.tampers["eth_getBlockByNumber"] = lambda *_: None


def without_logs(server: RpcStandIn) -> None:
    server.tampers["eth_getLogs"] = lambda *_: None


@pytest.mark.parametrize("fail", [without_an_answer, limited_without_a_word_for_how_long, without_a_head, without_logs])
@pytest.mark.parametrize("outage_seconds", [60.0, 3_600.0])
async def test_once_the_node_answers_the_first_new_block_is_a_row_within_seconds_however_long_it_was_away(
    indexer_pool: Pool, fail: Callable[[RpcStandIn], None], outage_seconds: float
) -> None:
    server, stop = RpcStandIn(chain=BASE), Stop()
    async with following(indexer_pool, server) as w:
        await w.follow()
        server.chain = mined(BASE, [request("two")])
        fail(server)
        well_at = w.now[0] + outage_seconds
        failures = 0

        async def wait(_event: asyncio.Event, seconds: float) -> None:
            nonlocal failures
            failures += 1
            if w.now[0] + seconds > well_at and server.chain != longer:
                # It is well in the middle of a pause: all of the pause's rest counts.
                server.chain, server.interfere = longer, None
                server.tampers.clear()
            w.now[0] += seconds

        async def tick() -> bool:
            is_more = await w.follower.tick()
            if await w.is_at(longer):
                stop.ask()
            return is_more

        longer = mined(server.chain, [request("three")])
        part = Part(
            name="indexer",
            tick=tick,
            pause_seconds=2.0,
            wake=asyncio.Event(),
            forgives=(NodeUnavailable, DatastoreUnavailable),
            hurries_after=(NodeUnavailable, DatastoreUnavailable),
        )
        assert await Supervisor([part], stop=stop, wait=wait, clock=lambda: w.now[0], chance=lambda: 0.99).run() == 0
        assert w.now[0] - well_at <= SOON_SECONDS
        assert failures > outage_seconds / 4
        assert [name for name, _ in await w.requests()] == ["one", "two", "three"]
