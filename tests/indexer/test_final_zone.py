"""Final ranges: every log once and in order, whatever the node refuses; bounded; by topic or by address alike."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from indexer import final_zone
from indexer.final_zone import FinalZone, Next, ObservedRange, overlapped
from node.errors import NodeAnswerInvalid
from node.inconsistency import Inconsistency
from node.node import Node
from tests.indexer.ledger import SOURCES, Ledger, consumer, token


@asynccontextmanager
async def reading(
    ledger: Ledger, node: Node, max_range_blocks: int, known: Mapping[bytes, bytes] | None = None
) -> AsyncIterator[Next]:
    zone = FinalZone(max_range_blocks=max_range_blocks)
    async with (
        node.session() as asked,
        zone.reading(
            asked.node, SOURCES, 0, ledger.height, head=asked.head, consumer_by_token=known or {}
        ) as next_range,
    ):
        yield next_range


async def read_all(
    ledger: Ledger, *, max_range_blocks: int = 100, known: Mapping[bytes, bytes] | None = None
) -> list[ObservedRange]:
    ranges: list[ObservedRange] = []
    async with ledger.node() as node, reading(ledger, node, max_range_blocks, known) as next_range:
        while (read := await next_range()) is not None:
            ranges.append(read)
    return ranges


def banks(ranges: list[ObservedRange]) -> list[str]:
    return [
        request.bank_reference.rstrip(b"\0").decode()
        for read in ranges
        for request in read.observation.observed.requests
    ]


def busy_ledger(blocks: int, *, most_logs: int = 10**9) -> Ledger:
    ledger = Ledger(height=blocks, most_logs=most_logs)
    ledger.basket(1, 1)
    for number in range(2, blocks + 1):
        ledger.request(number, 1, f"D-{number}")
    return ledger


async def test_every_log_is_given_once_in_order_and_each_range_follows_the_one_before() -> None:
    ledger = busy_ledger(350)
    ranges = await read_all(ledger)
    assert banks(ranges) == [f"D-{number}" for number in range(2, 351)]
    ends = [each.read.last for each in ranges]
    assert [each.read.parent for each in ranges[1:]] == ends[:-1]
    assert (ranges[0].read.parent.number, ends[-1].number) == (0, 350)


async def test_a_node_that_refuses_large_answers_is_asked_for_less_and_nothing_is_lost() -> None:
    """Hard case 22."""
    ledger = busy_ledger(350, most_logs=17)
    ranges = await read_all(ledger)
    assert banks(ranges) == [f"D-{number}" for number in range(2, 351)]
    assert max(len(read.observation.observed.logs) for read in ranges) <= 17


async def test_a_block_with_more_logs_of_ours_than_an_answer_may_hold_is_read_from_its_receipts() -> None:
    """Hard case 22: neither by topic nor by address is it given."""
    ledger = Ledger(height=3, most_logs=4)
    ledger.basket(1, 1)
    for number in range(6):
        ledger.request(2, 1, f"D-{number}")
    ledger.request(3, 1, "D-6")
    assert banks(await read_all(ledger)) == [f"D-{number}" for number in range(7)]
    assert (2, 2) in ledger.ranges
    assert ledger.asked["eth_getBlockReceipts"] > 0


async def test_the_time_of_a_block_comes_from_its_header_where_logs_do_not_tell_it() -> None:
    (only,) = await read_all(busy_ledger(5))
    assert [(block.number, block.timestamp - 1_700_000_000) for block in only.read.blocks] == [
        (n, n) for n in range(1, 6)
    ]


@pytest.mark.parametrize("told", [0, 1_700_000_002], ids=["zero", "the right one"])
async def test_a_block_with_a_request_takes_the_time_of_its_header_whatever_its_logs_say(told: int) -> None:
    ledger = busy_ledger(5)
    ledger.log_times = {2: told, 3: 0}
    (only,) = await read_all(ledger)
    times = [request.block_timestamp for request in only.observation.observed.requests]
    assert times == [1_700_000_000 + number for number in (2, 3, 4, 5)]
    assert {block.number for block in only.read.blocks if block.parent_hash} == {1, 2, 3, 4, 5}


async def test_a_block_without_a_request_takes_the_time_that_its_logs_tell_and_never_zero() -> None:
    ledger = Ledger(height=4, log_times={2: 1_700_000_002, 3: 0})
    for number in (2, 3):
        ledger.basket(number, number)
    (only,) = await read_all(ledger)
    times = {block.number: (block.timestamp - 1_700_000_000, block.parent_hash is None) for block in only.read.blocks}
    assert times == {2: (2, True), 3: (3, False), 4: (4, False)}


async def test_a_log_that_tells_another_time_than_the_header_of_its_block_is_the_fault_of_the_endpoint() -> None:
    ledger = busy_ledger(5)
    ledger.log_times = {3: 1_700_000_004}
    with pytest.raises(NodeAnswerInvalid) as caught:
        await read_all(ledger)
    assert caught.value.kind is Inconsistency.BLOCK_TIME


async def test_nothing_is_asked_for_before_there_is_room() -> None:
    """Back-pressure: what nobody takes is not read."""
    ledger = busy_ledger(1_000)
    async with ledger.node() as node, reading(ledger, node, max_range_blocks=10) as next_range:
        for _ in range(3):
            await next_range()
        for _ in range(1_000):
            await asyncio.sleep(0)  # noqa: TID251 - gives it every chance to ask for more
    assert len(ledger.ranges) <= 5  # three were taken, two are ahead
    assert 2 <= ledger.most_at_once <= 3  # two ranges ahead, and the headers of the one that is given


def with_strangers(ledger: Ledger) -> Ledger:
    """In each block, a hundred logs of people who only use our event's name."""
    for block in range(1, ledger.height + 1):
        for number in range(100):
            ledger.request(block, 0, f"foreign-{number}", emitter=b"\x99" * 20)
    return ledger


async def test_where_strangers_emit_too_much_our_contracts_are_asked_for_by_address() -> None:
    ledger = with_strangers(busy_ledger(1_000))
    ranges = await read_all(ledger)
    assert banks(ranges) == [f"D-{number}" for number in range(2, 1_001)]
    # Only the first ranges were read by topic: a hundred foreign logs a block.
    assert ledger.sent_logs < 50_000


async def test_baskets_born_while_asking_by_address_are_found_with_what_they_did_in_their_first_block() -> None:
    """Hard case 35."""
    ledger = with_strangers(Ledger(height=600))
    for block in range(1, 601, 7):
        ledger.basket(block, block)
        ledger.request(block, block, f"born-{block}")
        if block > 7:
            ledger.request(block, block - 7, f"older-{block}")
    by_address = await read_all(ledger, max_range_blocks=60)
    expected = [
        name
        for block in range(1, 601, 7)
        for name in ([f"born-{block}", f"older-{block}"] if block > 7 else ["born-1"])
    ]
    assert banks(by_address) == expected
    assert ledger.sent_logs < 60_000
    assert by_address[-1].observation.consumer_by_token == {token(b): consumer(b) for b in range(1, 601, 7)}


async def test_preparing_and_committing_overlap_in_order_with_one_ready_at_most() -> None:
    events: list[str] = []
    numbers = iter(range(5))

    async def prepare() -> int | None:
        number = next(numbers, None)
        events.append(f"prepared {number}")
        return number

    async def commit(number: int) -> None:
        events.append(f"began {number}")
        for _ in range(10):
            await asyncio.sleep(0)  # noqa: TID251 - lets the other side go on
        events.append(f"committed {number}")

    await overlapped(prepare, commit)
    assert [event for event in events if event.startswith("committed")] == [f"committed {n}" for n in range(5)]
    assert events.index("prepared 1") < events.index("committed 0")
    assert events.index("prepared 3") > events.index("committed 0")


@pytest.mark.parametrize("broken", ["prepare", "commit"])
async def test_what_either_side_raises_is_raised_after_both_have_ended(broken: str) -> None:
    committed: list[int] = []
    numbers = iter(range(100))

    async def prepare() -> int:
        number = next(numbers)
        if broken == "prepare" and number == 2:
            raise LookupError(broken)
        return number

    async def commit(number: int) -> None:
        if broken == "commit" and number == 2:
            raise LookupError(broken)
        committed.append(number)

    with pytest.raises(LookupError, match=broken):
        await overlapped(prepare, commit)
    assert committed == [0, 1]
    assert len(asyncio.all_tasks()) == 1


async def test_a_turn_is_bounded() -> None:
    committed: list[int] = []

    async def prepare() -> int:
        return 1

    async def commit(number: int) -> None:
        committed.append(number)

    await overlapped(prepare, commit, turns=3)
    assert committed == [1, 1, 1]


async def test_a_turn_ends_after_its_time_with_what_it_has_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_zone, "TURN_SECONDS", -1.0)
    committed: list[int] = []
    numbers = iter(range(5))

    async def prepare() -> int:
        return next(numbers)

    async def commit(number: int) -> None:
        committed.append(number)

    await overlapped(prepare, commit)
    assert committed == [0]


async def test_a_range_that_holds_too_much_of_strangers_is_asked_for_by_address_and_not_halved() -> None:
    ledger = busy_ledger(60, most_logs=80)
    for number in range(100):
        ledger.request(30, 0, f"foreign-{number}", emitter=b"\x99" * 20)
    ranges = await read_all(ledger)
    assert banks(ranges) == [f"D-{number}" for number in range(2, 61)]
    assert ledger.ranges == [(1, 60)] * 3  # by topic, by address, and for the basket that these blocks make
