"""A hundred thousand logs that no honest contract emits: the cursor goes on, nothing is lost, memory stays bounded."""

import gc
import random
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest
from eth_abi.abi import encode

from datastore import following
from datastore.connection import Pool
from datastore.rows import Batch, Block, BlockRef, Finality
from indexer.observation import Observation
from node.blocks import Log
from tests.chain_model.chain import (
    BASKET_CREATED,
    FACTORY,
    FACTORY_FORM,
    FORWARDER,
    MINT_EXECUTED,
    REPORT_PROCESSED,
    ROLE_EVENTS,
    STRANGER,
    TOKEN_FORM,
    TRANSFER,
    digest,
)
from tests.chain_model.daemon import RULES, SOURCES
from tests.datastore.builders import CHAIN, pin_chain
from tests.datastore.builders import block as stored_block

LOGS: Final = 100_000
A_BLOCK: Final = 1_000
HUGE: Final = 2_000_000
TOKEN, CONSUMER = b"\x70" * 20, b"\xc0" * 20
TOPICS: Final = (
    BASKET_CREATED,
    TOKEN_FORM,
    FACTORY_FORM,
    MINT_EXECUTED,
    REPORT_PROCESSED,
    *ROLE_EVENTS.values(),
    TRANSFER,
    digest("no event"),
)
EMITTERS: Final = (FACTORY, FACTORY, TOKEN, TOKEN, CONSUMER, FORWARDER, STRANGER)
TEXTS: Final = (b"\x00", b"\xff\xfe\xed\xa0\x80", "\u202e\u0000\x1b[2J'; DROP TABLE log; --".encode(), b"A" * 5_000)
BOMBS: Final = (0, 1, 31, 32, 33, 2**16, 2**31, 2**63, 2**255, 2**256 - 1)


def word(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


class Hostile:
    """Makes logs: some honest, most of them damaged in one of the ways that have stopped indexers."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - dice of a test

    def topics(self) -> tuple[bytes, ...]:
        dice = self.dice
        topic0 = dice.choice(TOPICS)
        honest = {
            BASKET_CREATED: (word(STRANGER), word(STRANGER), word(dice.choice((TOKEN, dice.randbytes(20))))),
            TOKEN_FORM: (word(STRANGER), word(dice.randbytes(20)), dice.randbytes(32)),
            FACTORY_FORM: (word(dice.choice((TOKEN, STRANGER))), word(STRANGER), word(STRANGER)),
            MINT_EXECUTED: (word(STRANGER), dice.randbytes(32)),
            REPORT_PROCESSED: (word(dice.choice((CONSUMER, STRANGER))), dice.randbytes(32), b"\0\1" + bytes(30)),
            **{each: (word(STRANGER),) for each in ROLE_EVENTS.values()},
        }.get(topic0, ())
        match dice.randrange(6):
            case 0:
                return (topic0, *(dice.randbytes(32) for _ in honest))  # dirty padding
            case 1:
                return (topic0, *honest)[: dice.randrange(5)]  # too few, or none at all
            case 2:
                return (topic0, *honest, dice.randbytes(32))[:4]  # too many
            case _:
                return (topic0, *honest)

    def data(self, topic0: bytes) -> bytes:
        dice = self.dice
        text = dice.choice(TEXTS)
        honest = {
            BASKET_CREATED: encode(["address", "bytes", "bytes"], [CONSUMER, text, text]),
            FACTORY_FORM: encode(["uint256", "bytes32"], [dice.choice(BOMBS), dice.randbytes(32)]),
            REPORT_PROCESSED: encode(["bool"], [bool(dice.randrange(2))]),
            **dict.fromkeys(ROLE_EVENTS.values(), b""),
        }.get(topic0, encode(["uint256"], [dice.choice(BOMBS)]))
        match dice.randrange(7):
            case 0:
                return dice.randbytes(dice.randrange(300))
            case 1:
                return honest[: dice.randrange(len(honest) + 1)]
            case 2:
                return honest + dice.randbytes(dice.randrange(1, 70))
            case 3:  # an offset or a length that leads anywhere
                place = 32 * dice.randrange(max(1, len(honest) // 32))
                return honest[:place] + dice.choice(BOMBS).to_bytes(32, "big") + honest[place + 32 :]
            case 4 if honest:
                flipped = bytearray(honest)
                flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
                return bytes(flipped)
            case _:
                return honest

    def log(self, number: int, index: int, *, data: bytes | None = None) -> Log:
        topics = self.topics()
        return Log(
            block_number=number,
            block_hash=stored_block(number).hash,
            tx_hash=digest("tx", number, index // 3),  # three logs a transaction, and some of them the same
            tx_index=index // 3,
            log_index=index,
            address=self.dice.choice(EMITTERS),
            topics=topics,
            data=self.data(topics[0] if topics else b"") if data is None else data,
            block_timestamp=None,
        )


def is_kept(log: Log, baskets: dict[bytes, bytes], births: dict[bytes, bytes]) -> bool:
    """Of known origin, by the words of the design (§5): worked out here again, without the code under test."""
    topic0 = log.topics[0] if log.topics else None
    if topic0 == BASKET_CREATED:
        return log.address == FACTORY
    if topic0 in {TOKEN_FORM, FACTORY_FORM}:
        return log.address == FACTORY or log.address in baskets
    if topic0 == MINT_EXECUTED:
        return log.address in baskets.values()
    if topic0 in ROLE_EVENTS.values():
        return log.address in baskets and births.get(log.address) != log.tx_hash
    return topic0 == REPORT_PROCESSED and log.address == FORWARDER


def blocks_of(logs: int, seed: int) -> Iterator[list[Log]]:
    hostile = Hostile(seed)
    for number, indexes in enumerate(batched_range(logs), 1):
        yield [hostile.log(number, index) for index in indexes]


def batched_range(logs: int) -> Iterator[range]:
    for _ in range(0, logs, A_BLOCK):
        yield range(A_BLOCK)


@pytest.mark.timeout(600)
def test_every_log_of_known_origin_becomes_a_row_byte_for_byte_and_none_stops_the_block() -> None:
    """Hard cases 43 to 48 and 50."""
    baskets = {TOKEN: CONSUMER}
    seen: Counter[str] = Counter()
    for logs in blocks_of(LOGS, seed=1):
        observation = Observation(SOURCES, baskets)
        observation.read(logs, {log.block_number: 0 for log in logs})
        rows = {row.log_index: row for row in observation.observed.logs}
        foreign_reports = observation.observed.foreign["ReportProcessed"]
        # What is born in this block is known from there on.
        born = {basket.log_index: basket for basket in observation.observed.baskets}
        known, kept, births = dict(baskets), [], dict[bytes, bytes]()
        for log in logs:
            if is_kept(log, known, births):
                kept.append(log)
            if log.log_index in born:
                known[born[log.log_index].stablecoin] = born[log.log_index].consumer
                births[born[log.log_index].stablecoin] = log.tx_hash
        missing = [log for log in kept if log.log_index not in rows]
        strange = sum(log.topics[:1] == (REPORT_PROCESSED,) and log.address != FORWARDER for log in logs)
        assert len(missing) + strange == foreign_reports  # those missing are for somebody else's contract
        assert all(log.topics[0] == REPORT_PROCESSED for log in missing)
        for log in kept:
            if log.log_index in rows:
                row = rows[log.log_index]
                assert (row.topics, row.data, row.address) == (b"".join(log.topics), log.data, log.address)
        assert len(rows) == len(kept) - len(missing)
        decoded = sum(row.undecodable is None for row in rows.values())
        made = observation.observed
        # A change of roles is told also where its fields cannot be read.
        changes = [row for row in rows.values() if row.event in ROLE_EVENTS]
        assert len(made.role_changes) == len(changes)
        others = len(made.reports) + sum(row.undecodable is None for row in changes)
        assert decoded == len(made.baskets) + len(made.requests) + len(made.mints) + others
        assert len({request.identity for request in made.requests}) == len(made.requests)
        for basket in made.baskets:
            assert "\x00" not in basket.name
            assert len(basket.name) <= 64
        seen.update({"decoded": decoded, "undecodable": len(rows) - decoded, "foreign": sum(made.foreign.values())})
    assert min(seen.values()) > LOGS // 50, "the logs must be of every sort"


def test_huge_strings_cost_what_they_weigh() -> None:
    """Hard case 48: a name of 2 MB is kept raw, and decoding it costs nothing."""
    hostile = Hostile(2)
    bombs = [
        hostile.log(1, index, data=encode(["address", "bytes", "bytes"], [CONSUMER, b"\xff" * HUGE, b""]))
        for index in range(20)
    ]
    tracemalloc.start()
    try:
        observation = Observation(SOURCES, {TOKEN: CONSUMER})
        observation.read(bombs, {1: 0})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < HUGE
    assert not observation.observed.baskets


def test_what_was_observed_goes_when_nobody_needs_it() -> None:
    """Not when Python next looks for cycles, which it seldom does: a backfill would hold all that it ever read."""
    observation = Observation(SOURCES, {TOKEN: CONSUMER})
    observation.read([Hostile(4).log(1, index) for index in range(100)], {1: 0})
    observed = weakref.ref(observation)
    gc.disable()
    try:
        del observation
        assert observed() is None
    finally:
        gc.enable()


async def test_they_are_committed_and_the_cursor_goes_on(indexer_pool: Pool) -> None:
    await pin_chain(indexer_pool)
    hostile, kept = Hostile(3), 0
    baskets = {TOKEN: CONSUMER}
    huge = encode(["address", "bytes", "bytes"], [CONSUMER, b"\x00\xff" * (HUGE // 2), b""])
    for number in range(1, 6):
        logs = [hostile.log(number, index) for index in range(400)]
        bomb = hostile.log(number, 400, data=huge)
        observation = Observation(SOURCES, baskets)
        observation.read([*logs, bomb], {number: 2**62})
        observed = observation.observed
        block, before = stored_block(number), stored_block(number - 1)
        cursor = BlockRef(number=before.number, hash=before.hash)
        await following.commit(
            indexer_pool,
            CHAIN,
            Batch(
                expected=cursor,
                ancestor=cursor,
                blocks=(Block(number=number, hash=block.hash, parent_hash=before.hash, timestamp=2**62),),
                head_number=number,
                finality=Finality(finalized=number, safe=number, trigger=number, complete=number),
                logs=tuple(observed.logs),
                baskets=tuple(observed.baskets),
                requests=tuple(observed.requests),
                mints=tuple(observed.mints),
                reports=tuple(observed.reports),
                role_changes=tuple(observed.role_changes),
            ),
            RULES,
        )
        kept += len(observed.logs)
        baskets = observation.consumer_by_token
        assert (await following.position(indexer_pool, CHAIN)).cursor.number == number
    assert await indexer_pool.fetchval("SELECT count(*) FROM log") == kept
    assert await indexer_pool.fetchval("SELECT count(*) FROM log WHERE undecodable IS NOT NULL") > 0
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE state = 'seen'") == 0
