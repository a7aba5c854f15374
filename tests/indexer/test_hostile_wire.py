"""Logs that no honest contract emits, told by a node of the real protocol to the real follower."""

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Final

from datastore.connection import Pool
from node.blocks import Log
from tests.chain_model.chain import FACTORY as MODEL_FACTORY
from tests.chain_model.chain import FORWARDER as MODEL_FORWARDER
from tests.chain_model.chain import REPORT_PROCESSED
from tests.chain_model.chain import STRANGER as MODEL_STRANGER
from tests.indexer.test_follower_endpoints import BASKET, FORWARDER, GENESIS, STRANGER, following
from tests.indexer.test_hostile_logs import Hostile, is_kept
from tests.node.rpc_stand_in import FACTORY, Chain, Emitted, RpcStandIn, StandInBlock, mined

BLOCKS: Final = 24
A_BLOCK: Final = 150
FINAL: Final = 16
ADDRESSES: Final = {MODEL_FACTORY: FACTORY, MODEL_FORWARDER: FORWARDER, MODEL_STRANGER: STRANGER}
MOST_INDEX: Final = 2**31 - 1


class WildBlock(StandInBlock):
    """Its own numbers are anything that the protocol allows and a row can hold."""

    def header(self) -> dict[str, object]:
        return _header(self)

    def log(self, index: int) -> dict[str, object]:
        place = hex(_places(self)[index])
        told = super().log(index) | {"logIndex": place}
        if self.number <= FINAL:  # near the head a transaction's place is looked up in its block
            told["transactionIndex"] = place
        return told | {"blockTimestamp": self.header()["timestamp"]} if self.number % 2 else told

    def receipts(self) -> list[dict[str, object]]:
        logs = [self.log(index) for index in range(len(self.emitted))]
        found = zip(super().receipts(), logs, strict=True)
        return [receipt | {"transactionIndex": log["transactionIndex"]} for receipt, log in found]


@cache
def _header(block: StandInBlock) -> dict[str, object]:
    timestamp = Random(block.hash).randrange(2**63)  # noqa: S311 - dice of a test
    return StandInBlock.header(block) | {"timestamp": hex(timestamp)}


@cache
def _places(block: StandInBlock) -> list[int]:
    count = len(block.emitted)
    drawn = sorted(Random(block.hash).sample(range(MOST_INDEX), k=max(0, count - 1)))  # noqa: S311 - dice of a test
    return [*drawn, MOST_INDEX][:count]


def hostile_chain() -> Chain:
    hostile = Hostile(8)
    blocks = [[BASKET]]
    for number in range(2, BLOCKS + 1):
        logs = [hostile.log(number, index) for index in range(A_BLOCK)]
        emitted = [
            Emitted(address=ADDRESSES.get(log.address, log.address), topics=log.topics, data=log.data) for log in logs
        ]
        blocks.append(list(dict.fromkeys(emitted)))  # each is its own transaction here, and has its own hash
    chain = mined(GENESIS, *blocks)
    return (
        chain[0],
        *(
            WildBlock(number=block.number, hash=block.hash, parent_hash=block.parent_hash, emitted=block.emitted)
            for block in chain[1:]
        ),
    )


def logs_of(chain: Chain) -> Iterator[Log]:
    """What the chain holds, without the wire and without the code that reads it."""
    for block in chain[1:]:
        for index, emitted in enumerate(block.emitted):
            yield Log(
                block_number=block.number,
                block_hash=block.hash,
                tx_hash=block.tx_hash(index),
                tx_index=index,
                log_index=_places(block)[index],
                address=emitted.address,
                topics=emitted.topics,
                data=emitted.data,
                block_timestamp=None,
            )


async def test_whatever_a_node_tells_of_its_logs_the_cursor_goes_on_and_no_byte_is_lost(indexer_pool: Pool) -> None:
    """Hard cases 43 to 50, from the wire to the rows: half by ranges of final blocks, half near the head."""
    chain = hostile_chain()
    server = RpcStandIn(chain=chain, finalized=FINAL, safe=FINAL)
    async with following(indexer_pool, server) as world:
        await world.follow()
        assert await world.is_at(chain)
        assert not world.kinds
        rows = {
            (row["block_number"], row["log_index"]): (row["address"], row["topics"], row["data"], row["undecodable"])
            for row in await world.pool.fetch("SELECT * FROM log")
        }
        stored = await world.pool.fetch("SELECT number, timestamp FROM block WHERE number > 0")
        created = await world.pool.fetch("SELECT stablecoin, consumer, block_number, log_index FROM basket")
    assert {row["number"]: hex(row["timestamp"]) for row in stored} == {
        block.number: block.header()["timestamp"] for block in chain[1:]
    }
    born = {(row["block_number"], row["log_index"]): (row["stablecoin"], row["consumer"]) for row in created}
    known, births, kept = dict[bytes, bytes](), dict[bytes, bytes](), dict[tuple[int, int], Log]()
    for log in logs_of(chain):
        place = (log.block_number, log.log_index)
        if is_kept(log, known, births):
            kept[place] = log
        if place in born:
            token, consumer = born[place]
            known[token] = consumer
            births[token] = log.tx_hash
    assert rows.keys() <= kept.keys()
    # Reports for somebody else's contract are counted only.
    assert all(kept[place].topics[0] == REPORT_PROCESSED for place in kept.keys() - rows.keys())
    for place, (address, topics, data, _) in rows.items():
        log = kept[place]
        assert (address, topics, data) == (log.address, b"".join(log.topics), log.data)
    undecodable = sum(row[3] is not None for row in rows.values())
    assert min(undecodable, len(rows) - undecodable) > len(rows) // 10, "the logs must be of every sort"
