"""Endpoints that hang at logs, or count what a batch asks: what was read is committed, and indexing goes on."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from datastore.connection import Pool
from indexer import follower as following_module
from node.errors import NodeUnavailable
from node.health import EndpointState
from tests.indexer.test_follower_endpoints import BASE, NOISE, World, following, request
from tests.node.rpc_stand_in import Chain, Interfere, RpcStandIn, mined

TIMEOUT_SECONDS = 0.3


def hanging(server: RpcStandIn, is_asked: Callable[[dict[str, Any]], bool]) -> Interfere:
    """Never answer a question of this sort; ``hung`` counts them."""

    async def interfere(exchange: web.Request) -> web.StreamResponse | None:
        question = await exchange.json()
        if any(is_asked(each) for each in (question if isinstance(question, list) else [question])):
            server.seen["hung"] += 1
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            await never  # cancelled when the client gives up
        return None

    return interfere


def about_logs(question: dict[str, Any]) -> bool:
    return bool(question["method"] == "eth_getLogs")


def by_topic(question: dict[str, Any]) -> bool:
    return about_logs(question) and not question["params"][0].get("address")


def grown(blocks: int) -> Chain:
    return mined(BASE, *([NOISE, request(f"more-{number}")] for number in range(blocks)))


async def until_at(world: World, chain: Chain, *, turns: int) -> int:
    """As the supervisor does, at most so many turns; how many failed."""
    failed = 0
    for _ in range(turns):
        try:
            while await world.follower.tick():
                pass
        except NodeUnavailable:
            failed += 1
            world.now[0] += 5
        if await world.is_at(chain):
            return failed
    raise AssertionError(f"not done in {turns} turns: {world.node.reports()}")


@pytest.mark.parametrize("finalized", [0, 12], ids=["near_the_head", "final"])
async def test_an_endpoint_that_hangs_at_logs_is_left_for_the_next_one(indexer_pool: Pool, finalized: int) -> None:
    chain = grown(8)
    bad, good = (RpcStandIn(chain=chain, finalized=finalized, safe=finalized) for _ in range(2))
    bad.interfere = hanging(bad, about_logs)
    async with following(indexer_pool, bad, good, timeout_seconds=TIMEOUT_SECONDS) as world:
        assert await until_at(world, chain, turns=8) <= 1
        assert bad.seen["hung"] <= 3  # twelve blocks, one, and then it is to blame
        assert world.states[0] is EndpointState.UNREACHABLE
        assert len(await world.requests()) == 9


@pytest.mark.parametrize("finalized", [0, 12], ids=["near_the_head", "final"])
async def test_the_only_endpoint_may_hang_at_logs_for_ever_and_the_receipts_are_read(
    indexer_pool: Pool, finalized: int
) -> None:
    chain = grown(8)
    server = RpcStandIn(chain=chain, finalized=finalized, safe=finalized)
    server.interfere = hanging(server, about_logs)
    async with following(indexer_pool, server, timeout_seconds=TIMEOUT_SECONDS) as world:
        assert await until_at(world, chain, turns=8) <= 3
        assert len(await world.requests()) == 9
        assert server.seen["eth_getBlockReceipts"] > 0


async def test_the_only_endpoint_may_hang_where_strangers_logs_come_along(indexer_pool: Pool) -> None:
    chain = grown(4)
    server = RpcStandIn(chain=chain, finalized=0, safe=0)
    server.interfere = hanging(server, by_topic)
    async with following(indexer_pool, server, timeout_seconds=TIMEOUT_SECONDS) as world:
        assert await until_at(world, chain, turns=6) <= 2
        assert len(await world.requests()) == 5


async def test_what_a_slow_endpoint_gave_is_committed_before_the_rest_is_read(
    indexer_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "READING_SECONDS", 60.0)
    chain = grown(12)
    server = RpcStandIn(chain=chain, finalized=0, safe=0)
    async with following(indexer_pool, server) as world:

        async def slow(exchange: web.Request) -> web.StreamResponse | None:
            question = await exchange.json()
            if not isinstance(question, list) and about_logs(question):
                world.now[0] += 25.0
            return None

        server.interfere = slow
        cursors = []
        while await world.follower.tick():
            cursors.append((await world.cursor())[0])
        assert cursors[0] == 3  # 75 seconds, and what they brought
        assert await world.is_at(chain)


def counting(limit: int, now: list[float]) -> Interfere:
    """So many questions a second, those of a batch counted one by one."""
    asked: list[float] = []

    async def interfere(exchange: web.Request) -> web.StreamResponse | None:
        question = await exchange.json()
        count = len(question) if isinstance(question, list) else 1
        asked[:] = [at for at in asked if now[0] - at < 1]
        if len(asked) + count > limit:
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": {"code": -32005}}, status=429)
        asked.extend([now[0]] * count)
        return None

    return interfere


@pytest.mark.parametrize("ours", [None, 10.0], ids=["without_a_budget_of_ours", "with_one"])
async def test_a_limit_that_counts_a_batch_by_its_questions_makes_the_batches_smaller(
    indexer_pool: Pool, ours: float | None
) -> None:
    chain = grown(70)
    server = RpcStandIn(chain=chain, finalized=0, safe=0)
    async with following(indexer_pool, server, requests_per_second=ours) as world:
        server.interfere = counting(25, world.now)
        for _ in range(200):
            try:
                await world.follower.tick()
            except NodeUnavailable:
                world.now[0] += 60
            world.now[0] += 5
            if await world.is_at(chain):
                break
        assert await world.is_at(chain)
        assert len(await world.requests()) == 71
