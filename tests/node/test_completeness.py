"""Whether a block's logs are all there: the bloom, the receipts, and what happens when they disagree (hard case 19)."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from node.blocks import Log, LogFilter
from node.bloom import BLOCKS_A_FALSE_HIT, BLOCKS_TO_PROVE, MOST_FALSE_HITS, Guess
from node.endpoint import RpcEndpoint
from node.errors import NodeAnswerInvalid, RangeRefused
from node.inconsistency import Inconsistency
from node.node import Node
from node.pool import EndpointPool, Told
from tests.node.rpc_stand_in import Emitted, RpcError, RpcStandIn, genesis, mined

US, THEM = b"\x11" * 20, b"\x22" * 20
OURS, OTHER = b"\xaa" * 32, b"\xbb" * 32
FILTERS = (LogFilter(topics=((OURS,),)), LogFilter(addresses=(b"\x33" * 20,), topics=((b"\xcc" * 32,),)))
BELIEVED = (LogFilter(addresses=(US,), topics=((OURS,),)),)
GUESSES = (Guess(wanted=BELIEVED[0]),)
NOISE = Emitted(address=THEM, topics=(OTHER,))
WANTED = Emitted(address=US, topics=(OURS,))


class World:
    def __init__(self, server: RpcStandIn, node: Node, pool: EndpointPool, kinds: Counter[Inconsistency]) -> None:
        self.server, self.node, self.pool, self.kinds = server, node, pool, kinds

    async def logs(self, *emitted: Emitted, guesses: Sequence[Guess] = GUESSES) -> tuple[Log, ...]:
        """The logs of a new block with these."""
        self.server.chain = mined(self.server.chain, emitted)
        head = await self.node.head()
        self.server.forget()
        return await self.node.logs_of(head, FILTERS, BELIEVED, guesses)

    async def prove_bloom(self) -> None:
        for _ in range(BLOCKS_TO_PROVE):
            assert await self.logs(NOISE) == ()
        assert self.trust.is_proven

    @property
    def trust(self) -> Any:
        return self.pool.members[0].bloom


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    kinds: Counter[Inconsistency] = Counter()
    async with RpcStandIn(chain=genesis()).running() as server:
        endpoint = RpcEndpoint(
            "0", server.url, request_timeout_seconds=30, max_answer_bytes=10_000_000, observe=lambda *_: None
        )
        pool = EndpointPool([endpoint], told=Told(inconsistency=lambda kind: kinds.update([kind])))
        node = Node(pool)
        try:
            yield World(server, node, pool, kinds)
        finally:
            await node.close()


async def test_a_bloom_on_trial_is_compared_with_the_whole_block_at_the_price_of_one_question() -> None:
    async with world() as w:
        for proofs in range(BLOCKS_TO_PROVE):
            assert w.trust.proofs == proofs
            (log,) = await w.logs(NOISE, WANTED)
            assert (log.address, log.log_index, w.server.exchanges) == (US, 1, 1)
        assert w.trust.is_proven
        assert w.kinds == Counter()


async def test_empty_blocks_prove_nothing() -> None:
    async with world() as w:
        for _ in range(BLOCKS_TO_PROVE):
            assert await w.logs() == ()
        assert w.trust.is_on_trial


async def test_a_proven_bloom_that_denies_our_logs_saves_the_question() -> None:
    async with world() as w:
        await w.prove_bloom()
        assert await w.logs(NOISE) == ()
        assert await w.logs() == ()
        # Another contract's event of our name is denied by its emitter.
        assert await w.logs(Emitted(address=THEM, topics=(OURS,))) == ()
        assert w.server.exchanges == 0


async def test_a_block_with_our_log_costs_one_question_for_it() -> None:
    async with world() as w:
        await w.prove_bloom()
        (log,) = await w.logs(NOISE, WANTED)
        assert (log.address, w.server.exchanges, w.server.seen["eth_getLogs"]) == (US, 1, 1)


async def test_a_log_that_the_answer_lacks_is_found_in_the_receipts() -> None:
    """Hard case 19."""
    async with world() as w:
        await w.prove_bloom()
        w.server.tampers["eth_getLogs"] = lambda *_: []
        (log,) = await w.logs(NOISE, WANTED)
        assert log.address == US
        assert w.kinds == {Inconsistency.LOGS_MISSING: 1}


async def test_a_bloom_that_is_wrong_by_saying_yes_is_settled_and_nobody_is_blamed() -> None:
    """Hard case 19: address and topic are both in the bloom, of two logs of others."""
    async with world() as w:
        await w.prove_bloom()
        assert await w.logs(Emitted(address=US, topics=(OTHER,)), Emitted(address=THEM, topics=(OURS,))) != ()
        assert w.server.seen["eth_getBlockReceipts"] == 1
        assert await w.logs(Emitted(address=US, topics=(OTHER,)), Emitted(address=THEM, topics=(OTHER, OURS))) == ()
        assert w.server.seen["eth_getBlockReceipts"] == 1
        assert w.kinds == Counter()
        assert w.trust.is_proven


FALSE_HIT = (Emitted(address=US, topics=(OTHER,)), Emitted(address=THEM, topics=(OTHER, OURS)))


async def test_blooms_that_say_yes_in_every_block_cost_the_receipts_of_a_bounded_share_of_them() -> None:
    async with world() as w:
        await w.prove_bloom()
        fetched = 0
        for _ in range(2 * BLOCKS_A_FALSE_HIT * MOST_FALSE_HITS):
            assert await w.logs(*FALSE_HIT) == ()
            fetched += w.server.seen["eth_getBlockReceipts"]
        assert MOST_FALSE_HITS < fetched <= 3 * MOST_FALSE_HITS
        assert w.kinds == Counter()


async def test_an_endpoint_that_leaves_out_every_log_is_settled_by_receipts_however_long_it_does_so() -> None:
    async with world() as w:
        await w.prove_bloom()
        w.server.tampers["eth_getLogs"] = lambda *_: []
        for _ in range(2 * MOST_FALSE_HITS):
            assert len(await w.logs(NOISE, WANTED)) == 1
        assert w.kinds == {Inconsistency.LOGS_MISSING: 2 * MOST_FALSE_HITS}


async def test_a_guess_whose_other_logs_a_bloom_denies_costs_no_receipts() -> None:
    async with world() as w:
        await w.prove_bloom()
        with_other = [Guess(wanted=BELIEVED[0], beside=(LogFilter(addresses=(b"\x44" * 20,)),))]
        assert await w.logs(*FALSE_HIT, guesses=with_other) == ()
        assert (w.server.seen["eth_getLogs"], w.server.seen["eth_getBlockReceipts"]) == (1, 0)


async def test_logs_that_are_missing_during_the_trial_are_found_too() -> None:
    """Hard case 19."""
    async with world() as w:
        w.server.tampers["eth_getLogs"] = lambda _, result: result[:-1]
        (log,) = await w.logs(NOISE, WANTED)
        assert log.address == US
        assert w.kinds == {Inconsistency.LOGS_MISSING: 1}
        assert w.trust.is_on_trial


@pytest.mark.parametrize("kept", [0, 1])
async def test_receipts_that_are_not_those_of_all_transactions_settle_nothing(kept: int) -> None:
    """The header lists two transactions, whatever the endpoint has of their receipts."""
    async with world() as w:
        await w.prove_bloom()
        w.server.tampers["eth_getLogs"] = lambda *_: []
        w.server.tampers["eth_getBlockReceipts"] = lambda _, receipts: receipts[:kept]
        w.server.tampers["eth_getTransactionReceipt"] = lambda *_: None
        with pytest.raises(NodeAnswerInvalid) as caught:
            await w.logs(NOISE, WANTED)
        assert caught.value.kind is Inconsistency.RECEIPTS_MISSING
        assert w.kinds == {Inconsistency.RECEIPTS_MISSING: 1}


async def test_receipts_whose_logs_do_not_explain_a_bloom_settle_nothing() -> None:
    async with world() as w:
        await w.prove_bloom()
        w.server.tampers["eth_getLogs"] = lambda *_: []
        w.server.tampers["eth_getBlockReceipts"] = lambda _, receipts: [each | {"logs": []} for each in receipts]
        with pytest.raises(NodeAnswerInvalid, match="its receipts do not hold"):
            await w.logs(NOISE, WANTED)


async def test_a_block_that_is_refused_is_not_read_from_receipts_that_are_cut() -> None:
    async with world() as w:
        w.server.chain = mined(w.server.chain, [NOISE, WANTED])
        head = await w.node.head()
        w.server.tampers["eth_getLogs"] = refuse_range
        assert [log.address for log in await w.node.logs_in_block(head.hash, FILTERS)] == [US]
        w.server.tampers["eth_getBlockReceipts"] = lambda _, receipts: receipts[:1]
        w.server.tampers["eth_getTransactionReceipt"] = lambda *_: None
        with pytest.raises(NodeAnswerInvalid, match="not of all 2 transactions"):
            await w.node.logs_in_block(head.hash, FILTERS)


def refuse_range(*_: object) -> object:
    raise RpcError(-32005, "query returned more than 10000 results")


@pytest.mark.parametrize(
    ("method", "tamper"),
    [
        ("eth_getBlockReceipts", lambda *_: []),
        ("eth_getBlockReceipts", lambda *_: None),
        ("eth_getBlockReceipts", lambda _, receipts: receipts[1:]),
        ("eth_getBlockReceipts", lambda _, receipts: [each | {"logs": []} for each in receipts]),
        ("eth_getBlockByNumber", lambda _, header: header | {"transactions": None}),
        ("eth_getBlockByNumber", lambda _, header: header | {"transactions": [], "transactionsRoot": "0x" + "11" * 32}),
    ],
)
async def test_an_endpoint_that_cannot_prove_what_it_leaves_out_is_counted_and_goes_on_to_be_asked(
    method: str, tamper: Any
) -> None:
    async with world() as w:
        w.server.chain = mined(w.server.chain, [NOISE, WANTED])
        assert len(await w.node.proven_logs(await w.node.head()) or ()) == 2
        w.server.tampers[method] = tamper
        w.server.tampers["eth_getTransactionReceipt"] = lambda *_: None
        assert await w.node.proven_logs(await w.node.head()) is None
        assert w.kinds == {Inconsistency.RECEIPTS_MISSING: 1}
        assert w.pool.members[0].health.is_alive


@pytest.mark.parametrize("octet", ["00", "ff"])
async def test_where_blooms_are_empty_or_full_the_number_of_receipts_is_the_proof(octet: str) -> None:
    async with world() as w:
        w.server.chain = mined(w.server.chain, [NOISE, WANTED])
        w.server.tampers["eth_getBlockByNumber"] = lambda _, header: header | {"logsBloom": "0x" + octet * 256}
        head = await w.node.head()
        assert len(await w.node.proven_logs(head) or ()) == 2
        w.server.tampers["eth_getBlockReceipts"] = lambda _, receipts: [each | {"logs": []} for each in receipts]
        assert await w.node.proven_logs(head) == ()
        w.server.tampers["eth_getBlockReceipts"] = lambda _, receipts: receipts[:1]
        w.server.tampers["eth_getTransactionReceipt"] = lambda *_: None
        assert await w.node.proven_logs(head) is None


@pytest.mark.parametrize("cut", [lambda _, receipts: receipts[1:], lambda _, receipts: receipts[:1]])
async def test_a_receipt_that_is_left_out_of_a_block_s_is_asked_for_by_its_transaction(cut: Any) -> None:
    """As of a system transaction, the first or the last of a block."""
    async with world() as w:
        w.server.chain = mined(w.server.chain, [NOISE, WANTED])
        head = await w.node.head()
        w.server.tampers["eth_getBlockReceipts"] = cut
        assert len(await w.node.proven_logs(head) or ()) == 2
        assert w.kinds == {}


async def test_a_bloom_that_was_caught_is_no_part_of_a_proof() -> None:
    async with world() as w:
        w.server.tampers["eth_getBlockByNumber"] = without_bloom
        assert await w.logs(NOISE) == ()
        assert w.trust.was_caught
        w.server.tampers["eth_getBlockByNumber"] = lambda _, header: header | {"logsBloom": "0x" + "0f" * 256}
        assert len(await w.node.proven_logs(await w.node.head()) or ()) == 1


async def test_a_receipt_beyond_the_listed_transactions_is_read_too() -> None:
    """Some chains have system transactions that the header does not list, and whose logs are not in its bloom."""
    async with world() as w:
        w.server.chain = mined(w.server.chain, [NOISE, WANTED])
        w.server.tampers["eth_getBlockByNumber"] = lambda _, header: (
            header
            | {
                "transactions": header["transactions"][:1],
                "logsBloom": mined(genesis(), [NOISE])[-1].header()["logsBloom"],
            }
        )
        logs = await w.node.proven_logs(await w.node.head())
        assert [log.address for log in logs or ()] == [THEM, US]


async def test_a_log_near_the_head_that_tells_another_time_than_its_block_is_refused() -> None:
    async with world() as w:
        await w.prove_bloom()
        w.server.tampers["eth_getLogs"] = lambda _, logs: [log | {"blockTimestamp": "0x0"} for log in logs]
        assert len(await w.logs(WANTED)) == 1
        w.server.tampers["eth_getLogs"] = lambda _, logs: [log | {"blockTimestamp": "0x1"} for log in logs]
        with pytest.raises(NodeAnswerInvalid) as caught:
            await w.logs(WANTED)
        assert caught.value.kind is Inconsistency.BLOCK_TIME


def without_bloom(_: list[Any], result: dict[str, Any]) -> dict[str, Any]:
    return result | {"logsBloom": "0x" + "00" * 256}


async def test_a_node_that_does_not_list_transactions_is_believed_without_the_comparison() -> None:
    """Hard case 20."""
    async with world() as w:
        w.server.tampers["eth_getBlockByNumber"] = lambda _, result: result | {"transactions": None}
        assert len(await w.logs(WANTED)) == 1


async def test_a_strangers_log_of_a_transaction_that_is_not_listed_stops_nothing() -> None:
    """Some chains have system transactions with logs and without a place in the block."""
    async with world() as w:
        w.server.tampers["eth_getLogs"] = lambda _, result: [
            result[0] | {"transactionHash": "0x" + "99" * 32},
            *result[1:],
        ]
        (log,) = await w.logs(NOISE, WANTED)
        assert log.address == US


async def test_a_chain_without_blooms_is_asked_for_every_block() -> None:
    async with world() as w:
        w.server.tampers["eth_getBlockByNumber"] = without_bloom
        assert await w.logs(NOISE) == ()
        assert w.trust.was_caught
        assert w.kinds == {Inconsistency.BLOOM_MISMATCH: 1}
        (log,) = await w.logs(NOISE, WANTED)
        assert (log.address, w.server.exchanges) == (US, 1)


async def test_a_bloom_that_was_proven_and_then_denies_a_log_is_never_believed_again() -> None:
    async with world() as w:
        await w.prove_bloom()

        def half_a_bloom(_: list[Any], result: dict[str, Any]) -> dict[str, Any]:
            # It admits our log, and denies the two others in this block, one of them of another filter.
            return result | {"logsBloom": mine.header()["logsBloom"]}

        mine = mined(genesis(), [WANTED])[-1]
        w.server.tampers["eth_getBlockByNumber"] = half_a_bloom
        logs = await w.logs(
            WANTED, Emitted(address=THEM, topics=(OURS,)), Emitted(address=b"\x33" * 20, topics=(b"\xcc" * 32,))
        )
        assert [log.address for log in logs] == [US, THEM, b"\x33" * 20]
        assert w.kinds == {Inconsistency.BLOOM_MISMATCH: 1}
        w.server.tampers["eth_getBlockByNumber"] = without_bloom
        (log,) = await w.logs(WANTED)
        assert log.address == US


async def test_logs_receipts_and_bloom_that_tell_three_stories_are_believed_by_nobody() -> None:
    async with world() as w:
        other = mined(genesis(), [NOISE])[-1].header()
        w.server.tampers["eth_getBlockByNumber"] = lambda _, result: result | {"logsBloom": other["logsBloom"]}
        w.server.tampers["eth_getLogs"] = lambda *_: []
        with pytest.raises(NodeAnswerInvalid, match="three stories"):
            await w.logs(WANTED, Emitted(address=THEM, topics=(OURS,)))


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda logs: [*logs, logs[-1]], Inconsistency.DUPLICATE_LOGS),
        (lambda logs: logs[::-1], Inconsistency.UNSORTED_LOGS),
        (lambda logs: [log | {"blockNumber": "0x63"} for log in logs], Inconsistency.OTHER_BLOCK),
        (lambda logs: [log | {"blockHash": "0x" + "99" * 32} for log in logs], Inconsistency.OTHER_BLOCK),
        (lambda logs: [log | {"transactionHash": "0x" + "99" * 32} for log in logs], Inconsistency.OTHER_TRANSACTION),
        (lambda logs: [log | {"transactionIndex": "0x7"} for log in logs], Inconsistency.OTHER_TRANSACTION),
        (lambda logs: [log | {"removed": True} for log in logs], Inconsistency.MALFORMED),
        (lambda _: "0x", Inconsistency.MALFORMED),
    ],
)
async def test_what_is_wrong_with_an_answer_is_counted_by_kind_and_refused(spoil: Any, kind: Inconsistency) -> None:
    """Hard cases 1, 18, 20, 30, 31."""
    async with world() as w:
        await w.prove_bloom()
        w.server.tampers["eth_getLogs"] = lambda _, result: spoil(result)
        with pytest.raises(NodeAnswerInvalid) as caught:
            await w.logs(WANTED, Emitted(address=US, topics=(OURS, OTHER)))
        assert caught.value.kind is kind
        assert w.kinds == {kind: 1}


@pytest.mark.parametrize("cap", [500, 1_000])
async def test_exactly_as_many_logs_as_a_provider_gives_are_not_all(cap: int) -> None:
    """Hard case 22."""
    async with world() as w:
        await w.prove_bloom()
        emitted = [Emitted(address=US, topics=(OURS,), data=bytes([n // 256, n % 256])) for n in range(cap + 1)]
        w.server.tampers["eth_getLogs"] = lambda _, result: result[:cap]
        assert len(await w.logs(*emitted)) == cap + 1
        assert w.kinds == {Inconsistency.ROUND_COUNT: 1}
        last = (await w.node.head()).number
        with pytest.raises(RangeRefused):
            await w.node.logs_in_range(1, last, FILTERS)
        assert w.kinds == {Inconsistency.ROUND_COUNT: 2}
