"""The questions to a basket's contracts, on a real chain."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from datastore import claims
from datastore.connection import Pool
from invocator.preflight import Contracts
from node.endpoint import RpcEndpoint
from node.node import Node
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import Basket, DevChain, call, create_basket, deploy_system
from service.preflight import is_witnessed, read_contracts
from tests.chain_model.faults import Fault
from tests.chain_model.scenes import hiding, history, scene

ROOT = Path(__file__).parents[2]


def node_at(url: str) -> Node:
    endpoint = RpcEndpoint("0", url, request_timeout_seconds=10, max_answer_bytes=1024 * 1024, observe=lambda *_: None)
    return Node([endpoint])


@pytest.fixture
async def world() -> AsyncIterator[tuple[DevChain, Basket, Node]]:
    binary = find_or_install_anvil(configured=None, cache_dir=ROOT / ".cache")
    async with await Anvil.start(binary) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Test Dollar", symbol="TUSD")
        node = node_at(anvil.url)
        yield chain, basket, node
        await node.close()


async def test_the_contracts_say_who_may_mint_what(world: tuple[DevChain, Basket, Node]) -> None:
    """Hard case 41."""
    chain, basket, node = world
    right = Contracts(is_minter=True, stablecoin=basket.token, decimals=18)
    assert await read_contracts(node, token=basket.token, consumer=basket.consumer) == right
    await chain.transact(call(basket.token, "revokeMintRole(address)", basket.consumer))
    revoked = await read_contracts(node, token=basket.token, consumer=basket.consumer)
    assert revoked == Contracts(is_minter=False, stablecoin=basket.token, decimals=18)


async def test_contracts_without_these_functions_and_addresses_without_code_say_nothing(
    world: tuple[DevChain, Basket, Node],
) -> None:
    _, basket, node = world
    silent = Contracts(is_minter=None, stablecoin=None, decimals=None)
    assert await read_contracts(node, token=b"\x01" * 20, consumer=b"\x02" * 20) == silent
    # The two in each other's place: neither has the other's functions.
    assert await read_contracts(node, token=basket.consumer, consumer=basket.token) == silent


async def test_a_node_that_does_not_answer_is_no_answer_of_the_contracts() -> None:
    node = node_at("http://127.0.0.1:1/")
    assert await read_contracts(node, token=b"\x01" * 20, consumer=b"\x02" * 20) is None
    await node.close()


async def test_a_request_is_witnessed_by_two_endpoints_or_by_the_only_one_that_answers(indexer_pool: Pool) -> None:
    """Hard case 20."""
    async with scene(indexer_pool, history(), endpoints=2) as made:
        await made.daemon.follow()
        rows = await indexer_pool.fetch("SELECT id FROM mint_request ORDER BY id")
        found = [await claims.requested_by(indexer_pool, row["id"]) for row in rows]
        node, world = made.daemon.node, made.world

        async def said() -> set[bool | None]:
            return {await is_witnessed(node, row) for row in found if row is not None}

        assert (len(found), await said()) == (5, {True})
        assert [endpoint.asked["eth_getTransactionReceipt"] for endpoint in world.endpoints] == [5, 5]
        for liar in world.endpoints:
            liar.fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
            liar.place = hiding(world, 3)
            assert await said() == {True, False}
            world.heal()
        world.endpoints[0].fail(Fault.CONNECTION_LOST, times=None, seed=1)
        assert await said() == {True}
        world.endpoints[1].fail(Fault.CONNECTION_LOST, times=None, seed=1)
        assert await said() == {None}


async def test_what_a_receipt_says_otherwise_is_not_the_request(indexer_pool: Pool) -> None:
    async with scene(indexer_pool, history(), endpoints=1) as made:
        await made.daemon.follow()
        row = await claims.requested_by(indexer_pool, 1)
        assert row is not None
        for other in (
            row._replace(block_hash=bytes(32)),
            row._replace(log_index=row.log_index + 1),
            row._replace(address=bytes(20)),
            row._replace(topics=bytes(len(row.topics))),
            row._replace(data=row.data + b"\0"),
            row._replace(tx_hash=bytes(32)),
        ):
            assert await is_witnessed(made.daemon.node, other) is False
