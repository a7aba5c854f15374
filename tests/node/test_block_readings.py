"""The ways to the logs of one block: each the last resort of the one before, and what a refusal teaches."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from node.blocks import ByAddress, Log, LogFilter
from node.bloom import BloomTrust, Guess
from node.capabilities import Feature
from node.endpoint import RpcEndpoint
from node.errors import AnswerTooMuch, NodeRefused, RangeRefused
from node.node import Node
from node.pool import EndpointPool
from node.refusals import Refusal
from tests.node.rpc_stand_in import Chain, Emitted, RpcError, RpcStandIn, Tamper, genesis, mined

US, BORN, THEM = b"\x11" * 20, b"\x12" * 20, b"\x22" * 20
OURS = b"\xaa" * 32
EVERYBODYS = (LogFilter(topics=((OURS,),)),)


def emitted(address: bytes, number: int = 0) -> Emitted:
    return Emitted(address=address, topics=(OURS,), data=number.to_bytes(2, "big"))


def announced(logs: Sequence[Log]) -> Sequence[LogFilter]:
    """Whoever of ours speaks makes another one known."""
    return (LogFilter(addresses=(BORN,), topics=((OURS,),)),) if any(log.address == US for log in logs) else ()


KNOWN = ByAddress(filters=(LogFilter(addresses=(US,), topics=((OURS,),)),), announced=announced)
GUESSES = [Guess(wanted=each) for each in KNOWN.filters]


def refusing(*, by_topic: RpcError | None = None, by_address: RpcError | None = None) -> Tamper:
    def tamper(params: list[Any], result: object) -> object:
        error = by_address if params[0].get("address") else by_topic
        if error is not None:
            raise error
        return result

    return tamper


CANNOT = RpcError(-32000, "")
TOO_MUCH = RpcError(-32005, "query returned more than 10000 results")


class World:
    def __init__(self, server: RpcStandIn, node: Node, pool: EndpointPool) -> None:
        self.server, self.node, self.pool = server, node, pool

    async def addresses(self, *, final: bool = False) -> list[bytes]:
        """Of the logs of the newest block."""
        head = self.server.head
        logs = await self.node.logs_in_block(
            head.hash, EVERYBODYS, by_address=KNOWN, final_number=head.number if final else None
        )
        return [log.address for log in logs]

    @property
    def lacks(self) -> set[Feature]:
        (report,) = self.node.reports()
        return set(report.lacks)


@asynccontextmanager
async def world(
    *logs: Emitted, tamper: Tamper | None = None, max_answer_bytes: int = 10_000_000, max_logs: int = 50_000
) -> AsyncIterator[World]:
    chain: Chain = mined(genesis(), logs)
    server = RpcStandIn(chain=chain, tampers={} if tamper is None else {"eth_getLogs": tamper})
    async with server.running():
        endpoint = RpcEndpoint(
            "0", server.url, request_timeout_seconds=10, max_answer_bytes=max_answer_bytes, observe=lambda *_: None
        )
        pool = EndpointPool([endpoint])
        node = Node(pool, max_logs=max_logs)
        try:
            yield World(server, node, pool)
        finally:
            await node.close()


BLOCK = (emitted(US), emitted(THEM), emitted(BORN))


async def test_by_topic_everybodys_logs_come_in_one_question() -> None:
    async with world(*BLOCK) as w:
        assert await w.addresses() == [US, THEM, BORN]
        assert (w.server.exchanges, w.lacks) == (1, set())


@pytest.mark.parametrize("error", [CANNOT, TOO_MUCH], ids=["cannot", "too_much"])
async def test_by_address_come_ours_and_what_the_same_block_makes_known(error: RpcError) -> None:
    async with world(*BLOCK, tamper=refusing(by_topic=error)) as w:
        assert await w.addresses() == [US, BORN]
        # That it was too much says nothing about the next block.
        assert w.lacks == ({Feature.LOGS_BY_TOPIC} if error is CANNOT else set())
        w.server.forget()
        assert await w.addresses() == [US, BORN]
        assert w.server.exchanges == (2 if error is CANNOT else 3)


async def test_the_receipts_say_what_no_filter_gives() -> None:
    async with world(*BLOCK, tamper=refusing(by_topic=CANNOT, by_address=CANNOT)) as w:
        assert await w.addresses() == [US, THEM, BORN]
        assert w.lacks == {Feature.LOGS_BY_HASH}
        w.server.forget()
        assert await w.addresses() == [US, THEM, BORN]
        assert w.server.seen == {"eth_getBlockByHash": 1, "eth_getBlockReceipts": 1}


async def test_a_final_block_is_asked_for_by_number_where_there_are_no_logs_by_hash() -> None:
    def by_number_only(params: list[Any], result: object) -> object:
        if "blockHash" in params[0]:
            raise CANNOT
        return result

    async with world(*BLOCK, tamper=by_number_only) as w:
        assert await w.addresses(final=True) == [US, THEM, BORN]
        assert w.lacks == {Feature.LOGS_BY_HASH}
        w.server.forget()
        assert await w.addresses(final=True) == [US, THEM, BORN]
        assert w.server.seen == {"eth_getLogs": 1}


async def test_a_block_with_a_thousand_logs_teaches_nothing_about_filters() -> None:
    many = [emitted(US, number) for number in range(1_001)]
    async with world(*many, tamper=refusing(by_topic=CANNOT, by_address=CANNOT)) as w:
        assert len(await w.addresses()) == 1_001
        assert w.lacks == set()


async def test_more_logs_than_are_taken_from_one_answer_are_asked_for_by_address() -> None:
    async with world(emitted(US), *(emitted(THEM, number) for number in range(60)), max_logs=50) as w:
        assert await w.addresses() == [US]
        with pytest.raises(RangeRefused, match="61 logs, more than 50"):
            await w.node.logs_in_range(0, 1, EVERYBODYS)


async def test_receipts_that_are_too_large_at_once_come_transaction_by_transaction() -> None:
    many = [emitted(THEM, number) for number in range(300)]
    tamper = refusing(by_topic=CANNOT, by_address=CANNOT)
    async with world(emitted(US), *many, tamper=tamper, max_answer_bytes=100_000) as w:
        assert (await w.addresses())[0] == US
        assert w.server.seen["eth_getBlockReceipts"] == 1
        assert w.server.seen["eth_getTransactionReceipt"] >= 301
        assert Feature.BLOCK_RECEIPTS not in w.lacks


async def test_a_limited_endpoint_is_not_asked_in_another_way() -> None:
    async with world(*BLOCK, tamper=refusing(by_topic=RpcError(429, ""))) as w:
        with pytest.raises(NodeRefused) as caught:
            await w.addresses()
        assert caught.value.refusal is Refusal.RATE_LIMITED
        assert w.server.exchanges == 1


async def test_an_endpoint_without_any_answer_to_it_teaches_nothing() -> None:
    def out_of_order(_params: list[Any], _result: object) -> object:
        raise CANNOT

    async with world(*BLOCK, tamper=out_of_order) as w:
        for method in ("eth_getBlockReceipts", "eth_getBlockByHash"):
            w.server.tampers[method] = out_of_order
        with pytest.raises(NodeRefused):
            await w.addresses()
        assert w.lacks == set()
        assert w.server.exchanges <= 5


async def test_an_answer_stands_where_the_bloom_admits_more_and_no_receipt_can_be_read() -> None:
    """Else a stranger could stop a block for ever, with one transaction whose receipt is too large."""
    huge = Emitted(address=THEM, topics=(b"\xdd" * 32,), data=bytes(100_000))
    # Of US and of OURS, in two logs: the bloom admits a log of ours, which there is not.
    chain_logs = (huge, Emitted(address=US, topics=(b"\xdd" * 32,)), emitted(THEM))
    async with world(*chain_logs, max_answer_bytes=50_000) as w:
        w.pool.members[0].bloom = BloomTrust(proofs=3)
        head = await w.node.head()
        with pytest.raises(AnswerTooMuch):
            await w.node.receipts(head.hash)
        logs = await w.node.logs_of(head, EVERYBODYS, KNOWN.filters, GUESSES, by_address=KNOWN)
        assert [log.address for log in logs] == [THEM]
