"""The questions, asked of a real chain; and of servers whose answers contradict the question."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from eth_hash.auto import keccak

from node.blocks import LogFilter
from node.bloom import bloom_contains
from node.endpoint import RpcEndpoint
from node.errors import (
    BlockUnknown,
    CallReverted,
    ChainMismatch,
    HistoryPruned,
    NodeAnswerInvalid,
    NodeUnavailable,
    RangeRefused,
)
from node.inconsistency import Inconsistency
from node.node import Node, Tag
from service.demo.anvil import Anvil
from service.demo.contracts import (
    Basket,
    DevChain,
    System,
    batch_call,
    call,
    create_basket,
    deploy_system,
    load_artifact,
    request_mint,
)

CHAIN_ID = 271828
USER = b"\x11" * 20
REQUESTED = next(
    keccak(f"{entry['name']}({','.join(field['type'] for field in entry['inputs'])})".encode())
    for entry in load_artifact("StablecoinERC20").abi
    if entry["type"] == "event" and entry["name"] == "MintRequested"
)


def node_at(url: str, *, max_filter_addresses: int = 500, max_answer_bytes: int = 10_000_000) -> Node:
    endpoint = RpcEndpoint(
        "first",
        url,
        request_timeout_seconds=10,
        max_answer_bytes=max_answer_bytes,
        observe=lambda *_: None,
    )
    return Node([endpoint], max_filter_addresses=max_filter_addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A chain with a basket and two mint requests in different blocks."""

    url: str
    chain: DevChain
    node: Node
    system: System
    basket: Basket
    tx_hashes: tuple[bytes, ...]


@pytest.fixture
async def world(anvil_binary: Path) -> AsyncIterator[World]:
    async with (
        await Anvil.start(anvil_binary, chain_id=CHAIN_ID, slots_in_an_epoch=1) as anvil,
        aiohttp.ClientSession() as session,
    ):
        chain, node = DevChain(session=session, url=anvil.url), node_at(anvil.url)
        system = await deploy_system(chain)
        basket = await create_basket(chain, system.factory, name="Basket", symbol="B")
        tx_hashes = [
            (
                await request_mint(
                    chain, basket.token, beneficiary=USER, amount_wei=amount, bank_reference=bytes([amount] * 32)
                )
            ).tx_hash
            for amount in (1, 2)
        ]
        try:
            yield World(url=anvil.url, chain=chain, node=node, system=system, basket=basket, tx_hashes=tuple(tx_hashes))
        finally:
            await node.close()


async def test_the_chain_is_known_by_its_id_and_its_genesis(world: World) -> None:
    """Hard cases 14, 27."""
    node = world.node
    genesis_hash = await node.genesis_hash()
    assert await node.chain_id() == CHAIN_ID
    assert (await node.header_by_number(0)).hash == genesis_hash
    await node.require_chain(chain_id=CHAIN_ID, genesis_hash=genesis_hash)
    await node.require_chain(chain_id=CHAIN_ID, genesis_hash=None)
    for chain_id, pinned in ((1, genesis_hash), (CHAIN_ID, bytes(32))):
        with pytest.raises(ChainMismatch):
            await node.require_chain(chain_id=chain_id, genesis_hash=pinned)


async def test_headers_are_linked_whichever_way_they_are_asked_for(world: World) -> None:
    node, head = world.node, await world.node.head()
    headers = await node.headers_by_number(range(head.number + 1))
    assert list(headers) == list(range(head.number + 1))
    assert headers[head.number] == head == await node.header_by_hash(head.hash)
    assert all(headers[number].parent_hash == headers[number - 1].hash for number in range(1, head.number + 1))
    assert await node.headers_by_number([]) == {}


async def test_tags_name_blocks_below_the_head(world: World) -> None:
    head = await world.node.head()
    numbers = []
    tags: tuple[Tag, ...] = ("earliest", "finalized", "safe", "latest")
    for tag in tags:
        header = await world.node.tagged(tag)
        assert header is not None
        numbers.append(header.number)
    assert numbers == [0, head.number - 2, head.number - 1, head.number]


async def test_a_block_that_is_not_there_is_unknown(world: World) -> None:
    """Hard case 21."""
    with pytest.raises(BlockUnknown):
        await world.node.header_by_hash(bytes(32))
    with pytest.raises(BlockUnknown):
        await world.node.header_by_number(10**6)
    with pytest.raises(BlockUnknown):
        await world.node.headers_by_number([0, 10**6])
    with pytest.raises(BlockUnknown):
        await world.node.receipts(bytes(32))


async def test_logs_are_the_same_by_block_by_range_and_in_receipts(world: World) -> None:
    node, head = world.node, await world.node.head()
    wanted = [LogFilter(addresses=(world.basket.token,), topics=((REQUESTED,),))]
    ranged = await node.logs_in_range(0, head.number, wanted)
    assert [log.tx_hash for log in ranged] == list(world.tx_hashes)
    assert all(log.address == world.basket.token for log in ranged)
    by_block = [log for found in ranged for log in await node.logs_in_block(found.block_hash, wanted)]
    assert by_block == list(ranged)
    for found in ranged:
        receipts = await node.receipts(found.block_hash)
        assert found in [log for receipt in receipts for log in receipt.logs]
        receipt = await node.transaction_receipt(found.tx_hash)
        assert receipt in receipts
        assert receipt is not None
        assert receipt.status == 1


async def test_several_filters_and_split_addresses_find_each_log_once(world: World) -> None:
    """Hard cases 31, 39."""
    head = await world.node.head()
    everything = await world.node.logs_in_range(0, head.number, [LogFilter()])
    addresses = tuple(dict.fromkeys([log.address for log in everything]))
    assert len(addresses) > 1
    narrow = node_at(world.url, max_filter_addresses=1)
    overlapping = [LogFilter(addresses=addresses), LogFilter(topics=((REQUESTED,),))]
    assert await narrow.logs_in_range(0, head.number, overlapping) == everything
    await narrow.close()


async def test_the_bloom_of_a_block_holds_its_logs(world: World) -> None:
    """Hard case 19."""
    head = await world.node.head()
    (log,) = await world.node.logs_in_block(head.hash, [LogFilter()])
    assert all(bloom_contains(head.logs_bloom, value) for value in (log.address, *log.topics))
    assert not bloom_contains(head.logs_bloom, b"\x99" * 20)


async def test_what_left_the_branch_is_unknown_and_never_empty(world: World) -> None:
    """Hard case 1."""
    orphan = await world.node.head()
    await world.chain.reorg(1)
    assert (await world.node.head()).hash != orphan.hash
    with pytest.raises(BlockUnknown):
        await world.node.header_by_hash(orphan.hash)
    with pytest.raises(BlockUnknown):
        await world.node.logs_in_block(orphan.hash, [LogFilter()])
    assert await world.node.transaction_receipt(world.tx_hashes[-1]) is None


async def test_code_is_told_apart_by_its_hash(world: World) -> None:
    """Hard case 14."""
    node = world.node
    assert await node.code_hash(USER) is None
    code_hash = await node.code_hash(world.system.factory)
    assert code_hash is not None
    assert code_hash != await node.code_hash(world.basket.token)
    assert await node.code_hash(world.system.factory, 0) is None
    assert await node.code_hash(world.system.factory, (await node.head()).hash) == code_hash


async def test_code_and_storage_are_those_after_a_block(world: World) -> None:
    node = world.node
    assert await node.code(USER) == b""
    code = await node.code(world.basket.token)
    slot = (3).to_bytes(32, "big")
    before = (await node.head()).hash
    await world.chain.mine()
    await world.chain.rpc("anvil_setStorageAt", f"0x{USER.hex()}", hex(3), f"0x{7:064x}")
    await world.chain.mine()
    after = (await node.head()).hash
    assert keccak(code) == await node.code_hash(world.basket.token, after)
    assert [int.from_bytes(await node.storage(USER, slot, each), "big") for each in (before, after)] == [0, 7]
    with pytest.raises(BlockUnknown):
        await node.storage(USER, slot, bytes(32))


async def test_a_word_of_storage_has_at_most_32_bytes() -> None:
    async with answering({"eth_getStorageAt": lambda _: "0x" + "01" * 33}) as node:
        with pytest.raises(NodeAnswerInvalid):
            await node.storage(USER, bytes(32))
    async with answering({"eth_getStorageAt": lambda _: "0x01"}) as node:
        assert await node.storage(USER, bytes(32)) == (1).to_bytes(32, "big")


async def test_a_call_gives_what_the_contract_returns_or_that_it_refused(world: World) -> None:
    decimals = call(world.basket.token, "decimals()")
    head = await world.node.head()
    assert int.from_bytes(await world.node.call(world.basket.token, decimals.data, head.hash), "big") == 18
    failing = batch_call(world.system.batch, [call(world.basket.token, "mint(address,uint256)", USER, 1)])
    with pytest.raises(CallReverted) as caught:
        await world.node.call(world.system.batch, failing.data)
    assert caught.value.revert_data.startswith(keccak(b"CallFailed(uint256)")[:4])
    with pytest.raises(BlockUnknown):
        await world.node.call(world.basket.token, decimals.data, bytes(32))


# From here on: answers that no honest node gives.

HASH, OTHER_HASH, TX_HASH = ("0x" + letter * 64 for letter in "abc")
Answers = dict[str, Callable[[list[Any]], object]]


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        self.error = {"code": code, "message": message}


def refusing(code: int, message: str) -> Callable[[list[Any]], object]:
    def refuse(_: list[Any]) -> object:
        raise RpcError(code, message)

    return refuse


@asynccontextmanager
async def answering(answers: Answers) -> AsyncIterator[Node]:
    def answer(request: dict[str, Any]) -> dict[str, object]:
        try:
            return {"id": request["id"], "result": answers[request["method"]](request["params"])}
        except RpcError as refusal:
            return {"id": request["id"], "error": refusal.error}

    async def handle(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response([answer(each) for each in asked] if isinstance(asked, list) else answer(asked))

    application = web.Application()
    application.router.add_post("/", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    node = node_at(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    try:
        yield node
    finally:
        await node.close()
        await runner.cleanup()


def raw_block(number: int = 16, block_hash: str = HASH, **more: object) -> dict[str, object]:
    return {
        "number": hex(number),
        "hash": block_hash,
        "parentHash": OTHER_HASH,
        "timestamp": "0x1",
        "logsBloom": "0x" + "00" * 256,
        **more,
    }


def raw_log(index: int = 0, number: int = 16, block_hash: str = HASH) -> dict[str, object]:
    return {
        "address": "0x" + "11" * 20,
        "topics": [],
        "data": "0x",
        "blockHash": block_hash,
        "blockNumber": hex(number),
        "transactionHash": TX_HASH,
        "transactionIndex": "0x0",
        "logIndex": hex(index),
    }


def raw_receipt(logs: int = 1) -> dict[str, object]:
    return {
        "transactionHash": TX_HASH,
        "transactionIndex": "0x0",
        "status": "0x1",
        "blockHash": HASH,
        "blockNumber": "0x10",
        "logs": [raw_log(index) for index in range(logs)],
    }


BLOCK_HASH = bytes.fromhex(HASH[2:])


async def test_another_block_than_the_one_asked_for_is_refused() -> None:
    """Hard cases 1, 26."""
    answers: Answers = {
        "eth_getBlockByHash": lambda _: raw_block(block_hash=OTHER_HASH),
        "eth_getBlockByNumber": lambda _: raw_block(17),
        "eth_getLogs": lambda _: [raw_log(block_hash=OTHER_HASH)],
        "eth_getBlockReceipts": lambda _: [raw_receipt() | {"blockHash": OTHER_HASH, "logs": []}],
        "eth_getTransactionReceipt": lambda _: raw_receipt(),
        "eth_chainId": lambda _: "0x1",
    }
    async with answering(answers) as node:
        questions: list[Callable[[], Awaitable[object]]] = [
            lambda: node.header_by_hash(BLOCK_HASH),
            lambda: node.header_by_number(16),
            lambda: node.logs_in_block(BLOCK_HASH, [LogFilter()]),
            lambda: node.logs_in_range(17, 20, [LogFilter()]),
            lambda: node.receipts(BLOCK_HASH),
            lambda: node.transaction_receipt(bytes(32)),
        ]
        for question in questions:
            with pytest.raises(NodeAnswerInvalid) as caught:
                await question()
            assert caught.value.kind is Inconsistency.OTHER_BLOCK
            assert await node.chain_id() == 1  # it works again: its circuit stays closed


async def test_a_null_block_is_unknown_and_a_null_head_is_invalid() -> None:
    """Hard case 21."""
    async with answering({"eth_getBlockByHash": lambda _: None, "eth_getBlockByNumber": lambda _: None}) as node:
        with pytest.raises(BlockUnknown):
            await node.header_by_hash(BLOCK_HASH)
        with pytest.raises(NodeAnswerInvalid):
            await node.head()
        assert await node.tagged("finalized") is None


@pytest.mark.parametrize(
    ("code", "message"),
    [(-32602, "invalid argument 0: hex string without 0x prefix"), (-39001, "finalized block not found")],
)
async def test_a_tag_that_the_node_does_not_know_is_none(code: int, message: str) -> None:
    """Hard case 33."""
    async with answering({"eth_getBlockByNumber": refusing(code, message)}) as node:
        assert await node.tagged("finalized") is None


async def test_a_node_in_trouble_does_not_look_like_one_without_tags() -> None:
    """Hard case 33."""
    async with answering({"eth_getBlockByNumber": refusing(-32000, "internal error")}) as node:
        with pytest.raises(NodeUnavailable):
            await node.tagged("finalized")


async def test_a_refused_block_is_read_from_its_receipts_and_a_refused_range_is_not() -> None:
    """Hard case 22."""
    answers: Answers = {
        "eth_getLogs": refusing(-32005, "query returned more than 10000 results"),
        "eth_getBlockByHash": lambda _: raw_block(transactions=[TX_HASH]),
        "eth_getBlockReceipts": lambda _: [raw_receipt(3)],
    }
    async with answering(answers) as node:
        logs = await node.logs_in_block(BLOCK_HASH, [LogFilter(addresses=(b"\x11" * 20,))])
        assert [log.log_index for log in logs] == [0, 1, 2]
        assert await node.logs_in_block(BLOCK_HASH, [LogFilter(addresses=(USER[:19] + b"\0",))]) == ()
        with pytest.raises(RangeRefused):
            await node.logs_in_range(1, 20, [LogFilter()])


async def test_a_round_number_of_logs_may_be_cut_and_is_not_believed() -> None:
    """Hard case 22."""
    answers: Answers = {
        "eth_getLogs": lambda _: [raw_log(index) for index in range(100)],
        "eth_getBlockByHash": lambda _: raw_block(transactions=[TX_HASH]),
        "eth_getBlockReceipts": lambda _: [raw_receipt(101)],
    }
    async with answering(answers) as node:
        assert len(await node.logs_in_block(BLOCK_HASH, [LogFilter()])) == 101
        with pytest.raises(RangeRefused):
            await node.logs_in_range(16, 16, [LogFilter()])


async def test_receipts_are_read_one_by_one_where_they_cannot_be_had_at_once() -> None:
    answers: Answers = {
        "eth_getBlockReceipts": refusing(-32601, "the method eth_getBlockReceipts does not exist/is not available"),
        "eth_getBlockByHash": lambda _: raw_block(transactions=[TX_HASH]),
        "eth_getTransactionReceipt": lambda _: raw_receipt(2),
    }
    async with answering(answers) as node:
        (receipt,) = await node.receipts(BLOCK_HASH)
        assert len(receipt.logs) == 2
        answers["eth_getTransactionReceipt"] = lambda _: None
        with pytest.raises(BlockUnknown):
            await node.receipts(BLOCK_HASH)


async def test_history_that_is_thrown_away_is_named_with_its_block() -> None:
    """Hard case 34."""
    async with answering({"eth_getLogs": refusing(4444, "pruned history unavailable")}) as node:
        with pytest.raises(HistoryPruned, match="block 7 "):
            await node.logs_in_range(7, 9, [LogFilter()])
