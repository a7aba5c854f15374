"""The questions to a basket's contracts, on a real chain."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from invocator.preflight import Contracts
from node.endpoint import RpcEndpoint
from node.node import Node
from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import Basket, DevChain, call, create_basket, deploy_system
from service.preflight import read_contracts

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
