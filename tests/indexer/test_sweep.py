"""The second sweep against endpoints that left something out, made something up, or do so now."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from typing import Any, TypeAlias

import pytest

from datastore import pinning
from datastore.connection import Pool
from datastore.errors import FinalityViolated
from datastore.rows import Difference, Kind
from indexer.differences import Word
from indexer.standstill import STANDSTILL_SECONDS
from indexer.sweep import Examined, NoSecondReading, believed
from node.errors import NodeUnavailable
from tests.chain_model.chain import Block, ChangeRole, CreateBasket, Said, Transaction, digest, token_address
from tests.chain_model.faults import Fault
from tests.chain_model.rpc import HonestNode, View
from tests.chain_model.scenes import Scene, ask, create, hiding, history, scene
from tests.chain_model.world import CHAIN_ID, World
from tests.datastore.builders import batch, block

Make: TypeAlias = Callable[[World, int], Awaitable[Scene]]


@pytest.fixture
async def make(indexer_pool: Pool) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:
        yield lambda world, endpoints: stack.enter_async_context(scene(indexer_pool, world, endpoints=endpoints))


async def test_what_is_right_is_swept_once_and_nothing_is_told(make: Make) -> None:
    made = await make(history(), 2)
    await made.daemon.follow()
    await made.daemon.sweep_all()
    assert await made.found() == []
    assert await made.alarms() == []
    assert await made.pool.fetchval("SELECT block_number FROM sweep") == made.world.finalized
    assert not await made.daemon.sweep.tick()
    # The other endpoint was asked for the logs, not the one that is followed.
    assert made.world.endpoints[1].asked["eth_getLogs"] > 0


async def test_a_request_that_a_node_left_out_is_recorded_and_judged_and_a_person_is_told(make: Make) -> None:
    """Hard case 19."""
    made = await make(history(), 2)
    made.world.endpoints[0].fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    await made.daemon.follow()
    assert len(await made.states()) < 5
    made.world.heal()
    await made.daemon.sweep_all()
    assert await made.states() == ["confirmed finalized"] * 5
    assert await made.wrong() == []
    assert {(kind, repaired) for kind, _, repaired in await made.found()} == {("missing", True)}
    assert set(await made.alarms()) == {"rows_repaired"}


async def test_what_an_endpoint_left_out_is_found_also_when_another_one_is_followed_by_then(make: Make) -> None:
    """Hard case 19: the endpoint that is not followed now may be the one that the rows are from."""
    made = await make(history(), 2)
    first, second = made.world.endpoints
    first.fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    await made.daemon.follow()
    assert len(await made.states()) < 5
    first.fail(Fault.SERVER_ERROR, times=1, seed=1)
    made.world.mine([])
    await made.daemon.follow()
    assert second.asked.total() > 0
    made.daemon.clock.now += 4_000  # the first one answers again, as it did before
    await made.daemon.sweep_all()
    assert await made.states() == ["confirmed finalized"] * 5
    assert await made.wrong() == []


async def test_the_sweep_waits_while_only_one_of_two_endpoints_answers(make: Make) -> None:
    made = await make(history(), 2)
    await made.daemon.follow()
    made.world.endpoints[1].fail(Fault.CONNECTION_LOST, times=None, seed=1)
    await made.daemon.sweep_all()
    assert await made.pool.fetchval("SELECT block_number FROM sweep") is None
    made.world.heal()
    made.daemon.clock.now += 4_000
    await made.daemon.sweep_all()
    assert await made.pool.fetchval("SELECT block_number FROM sweep") == made.world.finalized


async def test_a_basket_that_was_left_out_is_known_to_the_follower_from_the_next_block_on(make: Make) -> None:
    """Hard case 40: what the sweep adds is no news to the rows only."""
    made = await make(history(), 2)
    await made.daemon.follow()
    made.world.endpoints[0].fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    while True:  # the endpoint hides the logs of some blocks
        made.world.mine([create(f"second {made.world.next_number()}")])
        if int(made.world.view.head.hash.hex()[-1], 16) % 3 == 0:
            break
        made.world.view.head = made.world.view.head.parent or made.world.genesis
    while True:  # a factory names the basket, which nobody knows, in a block that is told
        made.world.mine([ask(f"early {made.world.next_number()}", ordinal=1, form="factory")])
        if int(made.world.view.head.hash.hex()[-1], 16) % 3 != 0:
            break
        made.world.view.head = made.world.view.head.parent or made.world.genesis
    made.world.become_final(100, 0)
    await made.daemon.follow()
    assert await made.pool.fetchval("SELECT count(*) FROM basket") == 1
    assert await made.pool.fetchval("SELECT count(*) FROM log WHERE undecodable IS NOT NULL") == 1
    made.world.heal()
    await made.daemon.sweep_all()
    assert await made.pool.fetchval("SELECT count(*) FROM basket") == 2
    made.world.mine([ask("of the second", ordinal=1)])
    await made.daemon.follow()
    assert await made.wrong() == []


def announced_twice() -> World:
    """Its first announcement can be hidden without the second: an endpoint hides by the hash of a block."""
    for salt in count():
        world = World()
        world.mine([create(f"basket {salt}")])
        world.mine([ask("before")])
        again = CreateBasket(name=b"Dollar", symbol=b"USD", again=True)
        world.mine([Transaction(hash=digest("tx", "again", salt), wishes=(again,))])
        world.mine([ask("after"), ask("after, by the factory", form="factory")])
        world.mine([])
        world.become_final(100, 0)
        if hiding(world, 1) not in {hiding(world, number) for number in (3, 4)}:
            return world
    raise AssertionError("there is no end of numbers")


async def test_a_basket_that_was_announced_before_takes_its_requests_back(make: Make) -> None:
    """Hard case 40: the consumer of the first announcement is the one that is believed."""
    made = await make(announced_twice(), 2)
    made.world.endpoints[0].fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    made.world.endpoints[0].place = hiding(made.world, 1)
    await made.daemon.follow()
    second = await made.pool.fetchval("SELECT consumer FROM basket")
    assert await made.pool.fetchval("SELECT count(*) FROM mint_request WHERE consumer = $1", second) == 2
    made.world.heal()
    await made.daemon.sweep_all()
    assert await made.pool.fetchval("SELECT count(*) FROM mint_request WHERE consumer <> $1", second) == 3
    assert await made.wrong() == []
    assert all(repaired for *_, repaired in await made.found())


def with_a_change_of_roles() -> World:
    """A basket that is born with roles, a request, and a change; the change can be hidden without the others."""
    for salt in count():
        world = World()
        born = ChangeRole(ordinal=0, event="MintRoleGranted")
        basket = CreateBasket(name=b"Dollar", symbol=b"USD")
        world.mine([Transaction(hash=digest("tx", "basket", salt), wishes=(born, basket, born))])
        world.mine([ask("before")])
        revoked = ChangeRole(ordinal=0, event="MintRoleRevoked")
        world.mine([Transaction(hash=digest("tx", "change", salt), wishes=(revoked,))])
        world.mine([])
        world.become_final(100, 0)
        if hiding(world, 3) not in {hiding(world, 1), hiding(world, 2)}:
            return world
    raise AssertionError("there is no end of numbers")


async def test_a_change_of_roles_that_a_node_left_out_pauses_its_basket_when_it_is_found(make: Make) -> None:
    made = await make(with_a_change_of_roles(), 2)
    made.world.endpoints[0].fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    made.world.endpoints[0].place = hiding(made.world, 3)
    await made.daemon.follow()
    assert (await made.states(), await made.alarms()) == (["confirmed finalized"], [])
    made.world.heal()
    await made.daemon.sweep_all()
    assert await made.found() == [("missing", "MintRoleRevoked", True)]
    assert set(await made.alarms()) == {"basket_role_changed", "rows_repaired"}
    assert await made.pool.fetchval("SELECT held_reason FROM mint_request") == "basket_paused"
    assert await made.wrong() == []


async def test_a_log_with_another_content_is_replaced_and_what_it_led_to_is_dropped(make: Make) -> None:
    """Hard case 20."""
    made = await make(history(), 2)
    made.world.endpoints[0].fail(Fault.LOGS_WITH_OTHER_CONTENT, times=None, seed=1)
    await made.daemon.follow()
    before = await made.pool.fetch("SELECT block_hash, log_index, tx_hash FROM log")
    assert await made.wrong() != []
    made.world.heal()
    await made.daemon.sweep_all()
    assert await made.wrong() == []
    kept = await made.pool.fetch("SELECT stored->>'tx_hash' AS tx_hash FROM sweep_difference WHERE kind = 'different'")
    assert {row["tx_hash"] for row in kept} <= {"0x" + row["tx_hash"].hex() for row in before}
    assert kept
    dropped = [state for state in await made.states() if state != "confirmed finalized"]
    assert set(dropped) <= {"dropped orphaned"}


async def test_an_endpoint_that_leaves_something_out_cannot_take_it_from_the_rows(make: Make) -> None:
    made = await make(history(), 2)
    await made.daemon.follow()
    made.world.endpoints[1].fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    made.world.endpoints[1].place = hiding(made.world, 3)
    await made.daemon.sweep_all()
    assert await made.wrong() == []
    found = await made.found()
    assert found
    assert not any(repaired for *_, repaired in found)
    assert await made.alarms() == ["endpoints_disagree"]  # once an hour, however many blocks it hides
    assert await made.pool.fetchval("SELECT block_number FROM sweep") == made.world.finalized


async def swept_again(made: Scene) -> None:
    """As after a late factory has become live."""
    await made.pool.execute("UPDATE sweep SET block_number = 0")
    await made.daemon.sweep_all()


@pytest.mark.parametrize("fault", [Fault.HISTORY_EMPTY, Fault.LOGS_MISSING_IN_RECEIPTS_TOO])
@pytest.mark.parametrize("endpoints", [1, 2, 3])
async def test_endpoints_that_answer_with_nothing_take_nothing_from_the_rows(
    make: Make, endpoints: int, fault: Fault
) -> None:
    made = await make(history(), endpoints)
    await made.daemon.follow()
    before = await made.states()
    for endpoint in made.world.endpoints:
        endpoint.fail(fault, times=None, seed=1)
        endpoint.place = hiding(made.world, 3)
    await swept_again(made)
    assert (await made.states(), await made.wrong()) == (before, [])
    found = await made.found()
    assert {(kind, repaired) for kind, _, repaired in found} == {("extra", False)}
    assert set(await made.alarms()) == {"endpoints_disagree"}
    sentence = await made.pool.fetchval("SELECT sentence FROM alarm")
    names = ", ".join(str(place) for place in range(endpoints))
    assert f"endpoint {names} cannot prove that it gives all receipts" in sentence


async def test_an_endpoint_that_shows_a_row_has_a_veto_whatever_two_others_deny(make: Make) -> None:
    made = await make(history(), 3)
    await made.daemon.follow()
    before = await made.states()
    for endpoint in made.world.endpoints[:2]:
        endpoint.node = HonestNode(without_logs(made.world).view, without_logs(made.world).blocks_by_hash)
    await swept_again(made)
    assert (await made.states(), await made.wrong()) == (before, [])
    assert not any(repaired for *_, repaired in await made.found())
    assert set(await made.alarms()) == {"endpoints_disagree"}
    assert "endpoint 2 does not" in await made.pool.fetchval("SELECT sentence FROM alarm")


@pytest.mark.parametrize("by_hand", [False, True])
async def test_an_endpoint_that_cannot_be_asked_agrees_to_no_removal(make: Make, by_hand: bool) -> None:
    made = await make(history(), 3)
    await made.daemon.follow()
    for endpoint in made.world.endpoints[:2]:
        endpoint.node = HonestNode(without_logs(made.world).view, without_logs(made.world).blocks_by_hash)
    made.world.endpoints[2].fail(Fault.CONNECTION_LOST, times=None, seed=1)
    await made.daemon.node.probe()
    examined = await made.daemon.examiner.examine(2, 3, by_hand=by_hand)
    assert (len(examined.differences), examined.repair) == (1, None)
    assert examined.saying(Word.IS_SILENT) == ("2",)
    assert "endpoint 2 cannot be asked" in examined.sentence


async def test_what_every_endpoint_proves_to_be_absent_is_taken_from_the_rows(make: Make) -> None:
    made = await make(history(), 2)
    await made.daemon.follow()
    for endpoint in made.world.endpoints:
        endpoint.node = HonestNode(without_logs(made.world).view, without_logs(made.world).blocks_by_hash)
    await swept_again(made)
    assert set(await made.states()) == {"dropped orphaned"}
    assert {(kind, repaired) for kind, _, repaired in await made.found()} == {("extra", True)}


def without_logs(world: World) -> World:
    """The same blocks, in which nothing ever happened: headers, receipts and blooms are of one mind."""
    other, parent = World(), world.genesis
    for held in reversed([*world.view.head.branch()][:-1]):
        parent = Block(
            number=held.number,
            hash=held.hash,
            parent=parent,
            timestamp=held.timestamp,
            transactions=held.transactions,
            logs=(),
            said=Said(),
            consumer_by_token={},
        )
        other.blocks_by_hash[parent.hash] = parent
    other.view = View(chain_id=CHAIN_ID, head=parent, safe=parent, finalized=parent)
    return other


async def test_what_one_endpoint_proves_is_added_although_the_other_one_answers_with_nothing(make: Make) -> None:
    made = await make(history(), 2)
    made.world.endpoints[0].fail(Fault.HISTORY_EMPTY, times=None, seed=1)
    await made.daemon.follow()
    assert await made.states() == []
    await made.daemon.sweep_all()
    assert (await made.states(), await made.wrong()) == (["confirmed finalized"] * 5, [])
    assert set(await made.alarms()) == {"rows_repaired"}


async def test_requests_with_another_time_than_their_block_are_put_right(make: Make) -> None:
    made = await make(history(), 2)
    await made.daemon.follow()
    await made.pool.execute("UPDATE block SET timestamp = 1 WHERE number IN (3, 4)")
    await made.pool.execute("UPDATE mint_request SET block_timestamp = 1 WHERE block_number IN (3, 4)")
    before = await made.states()
    assert await made.wrong() != []
    await made.daemon.sweep_all()
    assert (await made.states(), await made.wrong()) == (before, [])
    assert await made.found() == [("mistimed", "block", True)] * 2
    assert set(await made.alarms()) == {"rows_repaired"}


@pytest.mark.parametrize("liar", [0, 1])
async def test_a_reading_that_leaves_out_a_part_of_what_is_missing_does_not_hide_the_rest(
    make: Make, liar: int
) -> None:
    """Hard case 19: a block is believed as a whole."""
    world = World()
    world.mine([create("basket"), ask("bank-1"), ask("bank-2")])
    world.mine([ask("bank-3"), ask("bank-4"), ask("bank-5")])
    world.become_final(100, 0)
    made = await make(world, 2)
    made.world.endpoints[0].fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    await made.daemon.follow()
    assert len(await made.states()) == 2
    made.world.heal()
    made.world.endpoints[liar].fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    made.daemon.start()
    # Half of both blocks was the first one; half of the second one is one request of three.
    examined = await made.daemon.examiner.examine(1, 2)
    assert [(each.kind, each.log_index) for each in examined.differences] == [(Kind.MISSING, n) for n in range(3)]
    assert examined.repair is not None
    assert len(examined.repair.requests) == 3


@pytest.mark.parametrize("fault", [Fault.LOGS_CUT_AT_A_CAP, Fault.LOGS_MISSING_IN_RECEIPTS_TOO])
async def test_of_readings_that_tell_of_other_differences_one_is_believed_if_the_other_is_refuted_or_proves_nothing(
    make: Make, fault: Fault
) -> None:
    world = World()
    world.mine([create("basket")])
    for place, asked in enumerate((4, 3)):
        world.mine([ask(f"bank-{place}-{number}") for number in range(asked)])
    world.become_final(100, 0)
    made = await make(world, 2)
    liar = made.world.endpoints[0]
    liar.fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    await made.daemon.follow()
    assert len(await made.states()) == 3
    # Now the liar denies requests of which it told; the other one tells of one more.
    made.world.heal()
    liar.fail(fault, times=None, seed=1)
    liar.place = hiding(made.world, 2)
    examined = await made.daemon.examiner.examine(1, 2)
    assert [(each.kind, each.log_index) for each in examined.differences] == [(Kind.MISSING, 3)]
    assert examined.repair is not None
    assert (examined.last, examined.readers) == (2, ("1",))


async def test_who_contradicted_another_is_not_confirmed_by_himself_once_that_one_is_gone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two endpoints may agree, one alone may add; but not what the other one has just denied."""
    made = await make(history(), 2)
    first, second = made.world.endpoints
    first.fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=1)
    await made.daemon.follow()
    examiner, read = made.daemon.examiner, made.daemon.examiner._read

    async def read_and_leave(*args: Any, than: str | None) -> Any:
        reading = await read(*args, than=than)
        if than is not None:  # the second reading is done
            first.fail(Fault.SERVER_ERROR, times=None, seed=1)
        return reading

    monkeypatch.setattr(examiner, "_read", read_and_leave)  # between two of its lines
    with pytest.raises(NoSecondReading, match="cannot be asked about the differences any more"):
        await examiner.examine(0, made.world.finalized)
    assert second.asked["eth_getBlockReceipts"] > 0


def looked(*log_indices: int, confirmed: bool = True) -> Examined:
    differences = tuple(
        Difference(kind=Kind.MISSING, event="MintRequested", block_number=7, block_hash=b"7", log_index=log_index)
        for log_index in log_indices
    )
    repair = batch(block(1), on=block(0)) if confirmed else None
    return Examined(first=1, last=7, differences=differences, repair=repair, readers=("0", "1"))


@pytest.mark.parametrize(
    ("examined", "place"),
    [
        ([looked(1, confirmed=False)], 0),
        ([looked(1), looked(1, 2)], 1),
        ([looked(1, 2), looked(1)], 0),
        ([looked(1), looked(2, 3, confirmed=False)], 0),
        ([looked(1), looked(2)], None),  # each left out what the other one tells
        ([looked(1, confirmed=False), looked(2, confirmed=False)], None),
    ],
)
def test_a_reading_counts_if_it_tells_of_all_that_was_confirmed(examined: list[Examined], place: int | None) -> None:
    assert believed(examined) is (None if place is None else examined[place])


async def test_a_single_endpoint_may_add_what_it_left_out_but_take_nothing_away(make: Make) -> None:
    made = await make(history(), 1)
    endpoint = made.world.endpoints[0]
    endpoint.fail(Fault.LOGS_CUT_AT_A_CAP, times=None, seed=3)
    await made.daemon.follow()
    made.world.heal()
    await made.daemon.sweep_all()
    assert await made.wrong() == []
    assert {(kind, repaired) for kind, _, repaired in await made.found()} == {("missing", True)}
    endpoint.fail(Fault.LOGS_MISSING_IN_RECEIPTS_TOO, times=None, seed=1)
    endpoint.place = hiding(made.world, 3)
    before = await made.daemon.examiner.examine(0, made.world.finalized)
    assert (before.first, before.last, before.differences) == (1, 2, ())  # what is beyond dispute comes first
    for by_hand in (False, True):
        examined = await made.daemon.examiner.examine(2, made.world.finalized, by_hand=by_hand)
        assert [difference.kind for difference in examined.differences] == [Kind.EXTRA]
        assert examined.repair is None
        assert examined.saying(Word.PROVES_NOTHING) == ("0",)


async def test_what_a_single_endpoint_made_up_is_taken_from_the_rows_by_hand_only(make: Make) -> None:
    made = await make(history(), 1)
    made.world.endpoints[0].fail(Fault.LOGS_WITH_OTHER_CONTENT, times=None, seed=1)
    await made.daemon.follow()
    assert await made.wrong() != []
    made.world.heal()
    done, last = 0, made.world.finalized
    while not (examined := await made.daemon.examiner.examine(done, last)).differences:
        done = examined.last
    assert {each.kind for each in examined.differences} == {Kind.DIFFERENT}
    assert examined.repair is None
    assert "there is no other to ask" in examined.sentence
    by_hand = await made.daemon.examiner.examine(done, last, by_hand=True)
    assert by_hand.repair is not None


async def test_a_chain_that_is_another_below_finality_stops_the_sweep_and_changes_nothing(make: Make) -> None:
    """Hard case 5."""
    made = await make(history(), 1)
    await made.daemon.follow()
    made.world.floor = 0
    made.world.reorganise(3, [[("ask_token", 1, 4)], [], [], []])
    made.world.view.finalized = made.world.view.head
    before = await made.pool.fetch("SELECT * FROM log ORDER BY block_hash, log_index")
    with pytest.raises(FinalityViolated):
        await made.daemon.sweep_all()
    assert await made.pool.fetch("SELECT * FROM log ORDER BY block_hash, log_index") == before
    assert await made.found() == []


async def test_a_halt_is_over_when_two_endpoints_have_shown_that_the_chain_is_in_order(make: Make) -> None:
    world = World()
    world.mine([create("basket")])
    for number in range(4):
        world.mine([ask(f"bank-{number}")])
    world.reorganise(2, [[], []])
    world.become_final(100, 0)
    made = await make(world, 2)
    await made.daemon.follow()
    await pinning.halt(made.pool, CHAIN_ID, "a node told of another chain")
    before = await pinning.halted_at(made.pool, CHAIN_ID)
    first, second = made.world.endpoints
    second.fail(Fault.BLOCK_OF_A_FORK, times=None, seed=1)
    made.daemon.start(halted_at=before)
    while await made.daemon.sweep.tick():
        pass
    made.daemon.clock.now += STANDSTILL_SECONDS
    assert made.daemon.sweep.troubles() == (
        "sweep: has stood still for 10 minutes: endpoint 0 shows our final block, 1 denies it",
    )
    assert await pinning.halted_at(made.pool, CHAIN_ID) == before
    made.world.heal()
    for endpoint in (first, second):
        endpoint.fail(Fault.SERVER_ERROR, times=None, seed=1)
    made.daemon.start(halted_at=before)
    with pytest.raises(NodeUnavailable):
        await made.daemon.sweep.tick()
    assert await pinning.halted_at(made.pool, CHAIN_ID) == before
    made.world.heal()
    made.daemon.start(halted_at=before)
    await made.daemon.sweep.tick()
    assert await pinning.halted_at(made.pool, CHAIN_ID) is None
    # One that comes later is another one.
    await pinning.halt(made.pool, CHAIN_ID, "again")
    await made.daemon.sweep.tick()
    assert await pinning.halted_at(made.pool, CHAIN_ID) is not None


async def test_the_sweep_leaves_the_node_to_a_follower_that_has_blocks_to_catch_up_with(make: Make) -> None:
    world = history()
    for _ in range(200):
        world.mine([])
    world.become_final(300, 0)
    made = await make(world, 2)
    assert await made.daemon.follower.tick()
    assert not await made.daemon.sweep.tick()
    assert made.world.endpoints[1].asked.total() == 0
    await made.daemon.follow()
    await made.daemon.sweep_all()
    assert await made.pool.fetchval("SELECT block_number FROM sweep") == made.world.finalized


async def test_nothing_but_a_difference_that_was_written_down_may_be_discarded(make: Make) -> None:
    made = await make(history(), 1)
    await made.daemon.follow()
    row = await made.pool.fetchrow("SELECT block_hash, log_index FROM log LIMIT 1")
    assert row is not None
    with pytest.raises(Exception, match="only what is kept as a difference"):
        await made.pool.execute("SELECT discard_log($1, $2, $3)", CHAIN_ID, row["block_hash"], row["log_index"])
    assert token_address(0) in {row["stablecoin"] for row in await made.pool.fetch("SELECT stablecoin FROM basket")}
