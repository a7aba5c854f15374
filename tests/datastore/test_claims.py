"""What workers may do to rows, also many at once, also late."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from datastore import claims, following, inspection
from datastore.claims import Pacing, Says
from datastore.connection import Pool, Role, open_pool
from tests.datastore.builders import ALICE, BOB, CHAIN, ETHER, RULES, TOKEN, batch, block, mint, request
from tests.datastore.workers import PACING, WORKFLOW, Worker, ahead, confirmed, let_pass, let_probe, states

DAY_SECONDS = 86_400


@pytest.fixture
def worker(invocator_pool: Pool) -> Worker:
    return Worker(pool=invocator_pool)


async def list_workflow(pool: Pool) -> None:
    await claims.list_workflows(pool, CHAIN, [WORKFLOW])


# -- how many are in flight ------------------------------------------------------------------------------------------


async def test_workers_at_once_never_have_more_in_flight_than_allowed(dsn: str, indexer_pool: Pool) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(12)))
    pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=3)
    async with await open_pool(dsn, Role.INVOCATOR, max_size=12) as pool:
        await list_workflow(pool)
        workers = [Worker(pool=pool, pacing=pacing) for _ in range(12)]
        # Each counts before anybody sends, so that only the recount under the lock can refuse.
        orders = await asyncio.gather(*(each.claimed(n + 1) for n, each in enumerate(workers)))
        await asyncio.gather(*(each.freeze(order) for each, order in zip(workers, orders, strict=True)))
        begun = await asyncio.gather(*(each.begin(order) for each, order in zip(workers, orders, strict=True)))
        assert sum(number is not None for number in begun) == 3
        assert (await states(indexer_pool)).count("in_doubt") == 3
        # What is refused costs nothing: it is given back, and a claim is refused as long as there is no room.
        for order, number in zip(orders, begun, strict=True):
            assert await claims.give_back(pool, order, reason="no_slot") is (number is None)
        assert await workers[0].claim(begun.index(None) + 1) is None
        assert await claims.free_workflows(pool, CHAIN, pacing, [WORKFLOW]) == frozenset()


async def test_a_resend_is_not_refused_because_of_its_own_place_in_flight(indexer_pool: Pool, worker: Worker) -> None:
    await confirmed(indexer_pool, request("d", block(1)))
    await list_workflow(worker.pool)
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1)
    await worker.send(1, outcome="unknown")
    await let_pass(indexer_pool, 1, next_attempt_at=91)
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert await worker.begin(due) == 2


async def test_a_delivery_makes_room(indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    asked = request("d1", one), request("d2", one, log_index=1)
    await confirmed(indexer_pool, *asked)
    await list_workflow(worker.pool)
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1)
    await worker.send(1)
    assert await worker.claim(2) is None
    await let_pass(indexer_pool, 1, deadline_at=2401)
    assert await worker.claim(2) is not None


@pytest.mark.parametrize("share", ["requester", "basket"])
async def test_nobody_alone_fills_all_places_in_flight(indexer_pool: Pool, worker: Worker, share: str) -> None:
    """Hard case 117: what CRE drops silently keeps its place until its deadline."""
    one, other_token = block(1), b"\x71" * 20
    flood = [request(f"flood{n}", one, log_index=n) for n in range(9)]
    same_basket, same_requester = share == "requester", share == "basket"
    victim = request(
        "victim",
        one,
        log_index=9,
        requester=ALICE if same_requester else BOB,
        stablecoin=TOKEN if same_basket else other_token,
    )
    await confirmed(indexer_pool, *flood, victim)
    await list_workflow(worker.pool)
    worker.pacing = Pacing(
        seconds_per_trigger=0,
        burst=1,
        max_in_flight=5,
        requester_max_in_flight=3 if share == "requester" else None,
        basket_max_in_flight=3 if share == "basket" else None,
    )
    orders = [await worker.claimed(n) for n in range(1, 6)]
    for order in orders:
        await worker.freeze(order)
    assert [await worker.begin(order) for order in orders] == [1, 1, 1, None, None]
    for order in orders[3:]:
        await claims.give_back(worker.pool, order, reason="no_slot")
    waiting = await claims.waiting(worker.pool, CHAIN, limit=9, pacing=worker.pacing)
    assert [order.request_id for order in waiting] == [10]
    await worker.send(10)


# -- the daily cap ---------------------------------------------------------------------------------------------------


async def reason_of(pool: Pool, request_id: int) -> str | None:
    reason: str | None = await pool.fetchval("SELECT held_reason FROM mint_request WHERE id = $1", request_id)
    return reason


async def test_what_exceeds_the_daily_cap_waits_for_the_next_day(dsn: str, indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    await confirmed(
        indexer_pool,
        request("d1", one, amount=6 * ETHER),
        request("d2", one, log_index=1, amount=5 * ETHER),
        request("d3", one, log_index=2, amount=4 * ETHER),
    )
    await list_workflow(worker.pool)
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=9, daily_cap_wei=10 * ETHER)
    await worker.send(1)
    order = await worker.claimed(2)
    await worker.freeze(order)
    assert await worker.begin(order) is None
    assert (await states(indexer_pool), await reason_of(indexer_pool, 2)) == (
        ["accepted", "confirmed", "confirmed"],
        "daily_cap",
    )
    assert await indexer_pool.fetchval(
        "SELECT next_attempt_at = date_trunc('day', held_at, 'UTC') + interval '1 day' FROM mint_request WHERE id = 2"
    )
    assert (await worker.sweep()).holds == 0
    # A smaller one still fits.
    await worker.send(3)
    # The day ends: what was sent today was sent yesterday.
    owner = await asyncpg.connect(dsn)
    await owner.execute("UPDATE attempt SET started_at = started_at - interval '1 day'")
    await owner.close()
    await let_pass(indexer_pool, 2, next_attempt_at=DAY_SECONDS)
    assert (await worker.sweep()).holds == 1
    await worker.send(2)
    assert await states(indexer_pool) == ["accepted"] * 3


async def test_a_refused_attempt_does_not_count_for_the_day(indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    await confirmed(
        indexer_pool, request("d1", one, amount=6 * ETHER), request("d2", one, log_index=1, amount=5 * ETHER)
    )
    await list_workflow(worker.pool)
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=9, daily_cap_wei=10 * ETHER)
    await worker.send(1, outcome="refused_now")
    await worker.send(2)
    assert await states(indexer_pool) == ["confirmed", "accepted"]


async def test_two_workers_at_once_do_not_exceed_the_daily_cap(dsn: str, indexer_pool: Pool) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n, amount=6 * ETHER) for n in range(6)))
    pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=99, daily_cap_wei=13 * ETHER)
    async with await open_pool(dsn, Role.INVOCATOR, max_size=6) as pool:
        await list_workflow(pool)
        workers = [Worker(pool=pool, pacing=pacing) for _ in range(6)]
        orders = await asyncio.gather(*(each.claimed(n + 1) for n, each in enumerate(workers)))
        await asyncio.gather(*(each.freeze(order) for each, order in zip(workers, orders, strict=True)))
        begun = await asyncio.gather(*(each.begin(order) for each, order in zip(workers, orders, strict=True)))
    assert sum(number is not None for number in begun) == 2
    assert sorted(await states(indexer_pool)) == ["confirmed"] * 4 + ["in_doubt"] * 2


# -- holds -----------------------------------------------------------------------------------------------------------


async def test_a_hold_for_now_ends_by_itself_and_a_person_s_hold_does_not(indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await list_workflow(worker.pool)
    for request_id in (1, 2):
        order = await worker.claimed(request_id)
        assert await claims.hold(worker.pool, CHAIN, order, reason="not_a_minter", detail="No.", seconds=600)
    assert await claims.waiting(worker.pool, CHAIN, limit=9) == []
    await indexer_pool.execute("UPDATE mint_request SET held_reason = 'a person looks into it' WHERE id = 2")
    assert (await worker.sweep()).holds == 0
    for request_id in (1, 2):
        await let_pass(indexer_pool, request_id, next_attempt_at=601)
    assert (await worker.sweep()).holds == 1
    assert [order.request_id for order in await claims.waiting(worker.pool, CHAIN, limit=9)] == [1]
    story = await indexer_pool.fetch("SELECT reason, detail FROM mint_transition WHERE request_id = 1 ORDER BY id DESC")
    assert tuple(story[0]) == ("not_a_minter", "No.")


async def test_a_claim_that_was_lost_is_not_held(indexer_pool: Pool, worker: Worker) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_workflow(worker.pool)
    worker.lease_seconds = 0
    asleep = await worker.claimed(1)
    await worker.sweep()
    worker.lease_seconds = 60
    await worker.claimed(1)
    assert not await claims.hold(worker.pool, CHAIN, asleep, reason="not_a_minter", detail="No.", seconds=600)
    assert not await claims.refuse(worker.pool, asleep, reason="x", detail="No.")
    assert not await claims.give_back(worker.pool, asleep, reason="no_slot")
    assert await states(indexer_pool) == ["claimed"]


# -- resend ----------------------------------------------------------------------------------------------------------


async def test_what_was_not_delivered_is_sent_again_with_the_same_bytes_when_its_time_has_come(
    indexer_pool: Pool, worker: Worker
) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_workflow(worker.pool)
    await worker.send(1)
    await let_pass(indexer_pool, 1, deadline_at=2401)
    assert (await worker.sweep(resend_after_seconds=1000)).deadlines == 1
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 0
    # Longer ago than a doubt may last: the resend begins a new one.
    await let_pass(indexer_pool, 1, state_changed_at=5_000, next_attempt_at=5_000)
    assert (await worker.sweep()).resends == 0
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 1
    assert await worker.sweep(resend_after_seconds=1000) == claims.Swept(
        leases=0, deadlines=0, doubts=0, resends=0, holds=0
    )
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert due.frozen is not None
    assert due.frozen.body == due.nonce.hex.encode()
    assert await worker.begin(due) == 2
    assert await worker.answer(due, 2, "accepted") == "accepted"


async def test_what_failed_otherwise_is_not_sent_again_by_itself(indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    asked = [request(f"d{n}", one, log_index=n) for n in range(3)]
    tip = await confirmed(indexer_pool, *asked)
    await list_workflow(worker.pool)
    for number in (1, 2, 3):
        await worker.send(number)
        await let_pass(indexer_pool, number, deadline_at=2401)
    await worker.sweep()
    for number in (1, 2, 3):
        await let_pass(indexer_pool, number, state_changed_at=5_000)
    # 1 was held by a person; 2 was minted by somebody else, so a person decides; 3 is sent again.
    await indexer_pool.execute("UPDATE mint_request SET held_at = clock_timestamp(), held_reason = 'x' WHERE id = 1")
    two = block(2)
    await following.commit(indexer_pool, CHAIN, batch(ahead(two), on=tip, mints=(mint(two, of=asked[1]),)), RULES)
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 1
    assert await states(indexer_pool) == ["failed", "review", "in_doubt"]


async def test_a_doubt_that_a_person_put_back_is_sent_before_it_is_given_up(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    """The first attempt is a day old; the doubt is not."""
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_workflow(worker.pool)
    await worker.send(1, outcome="unknown")
    await let_pass(indexer_pool, 1, state_changed_at=4_000, next_attempt_at=4_000)
    assert (await worker.sweep()).doubts == 1
    async with await open_pool(dsn, Role.OPERATOR) as operator:
        await operator.execute(
            "UPDATE mint_request SET state = 'in_doubt', state_changed_at = clock_timestamp() WHERE id = 1"
        )
    assert (await worker.sweep()).doubts == 0
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert await worker.begin(due) == 2


# -- mode simulate ---------------------------------------------------------------------------------------------------


async def test_a_simulated_request_in_doubt_is_never_run_again_and_ends_with_a_person(
    indexer_pool: Pool, worker: Worker
) -> None:
    """Hard case 77."""
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_workflow(worker.pool)
    worker.mode = claims.SIMULATE
    await worker.send(1, outcome="unknown")
    await let_pass(indexer_pool, 1, next_attempt_at=10_000)
    assert await claims.due(worker.pool, CHAIN, limit=9) == []
    async with worker.pool.acquire() as connection:
        (order,) = await claims._orders(connection, [1])  # what a careless worker would take
    assert await worker.begin(order) is None
    await let_pass(indexer_pool, 1, state_changed_at=2_401)
    assert (await worker.sweep(resend_after_seconds=1)).doubts == 1
    assert await states(indexer_pool) == ["review"]


async def test_the_transaction_that_a_simulation_returned_proves_the_mint_also_when_it_was_indexed_first(
    indexer_pool: Pool, worker: Worker
) -> None:
    one, two, three = block(1), block(2), block(3)
    asked = request("d1", one), request("d2", one, log_index=1)
    tip = await confirmed(indexer_pool, *asked)
    await list_workflow(worker.pool)
    worker.mode = claims.SIMULATE
    order = await worker.send(1, outcome=None)
    minted = mint(two, of=asked[0], tx="broadcast")
    await following.commit(indexer_pool, CHAIN, batch(two, on=tip, mints=(minted,)), RULES)
    assert await states(indexer_pool) == ["in_doubt", "confirmed"]
    assert await indexer_pool.fetchval("SELECT count(*) FROM alarm") == 0
    await worker.answer(order, 1, "unknown", simulated_tx_hash=minted.tx_hash)
    await following.commit(indexer_pool, CHAIN, batch(three, on=two), RULES)
    assert await states(indexer_pool) == ["executed", "confirmed"]
    assert await indexer_pool.fetchval("SELECT proof FROM mint_execution") == "simulated"


# -- fairness --------------------------------------------------------------------------------------------------------


async def test_baskets_take_turns_and_so_do_the_requesters_in_a_basket(indexer_pool: Pool, worker: Worker) -> None:
    """Hard case 117: of two baskets and a requester who floods one of them, nobody starves."""
    one, other_token, carol = block(1), b"\x71" * 20, b"\xca" * 20
    flood = [request(f"flood{n}", one, log_index=n) for n in range(50)]
    await confirmed(
        indexer_pool,
        *flood,
        request("bob", one, log_index=50, requester=BOB),
        request("carol1", one, log_index=51, requester=carol, stablecoin=other_token),
        request("carol2", one, log_index=52, requester=carol, stablecoin=other_token),
    )
    await list_workflow(worker.pool)
    order = [each.request_id for each in await claims.waiting(worker.pool, CHAIN, limit=6)]
    assert order == [1, 52, 51, 53, 2, 3]
    positions = await inspection.queue_positions(worker.pool, CHAIN, range(1, 54))
    assert [request_id for request_id, _ in sorted(positions.items(), key=lambda each: each[1])][:6] == order
    assert sorted(positions.values()) == list(range(1, 54))
    served = []
    for _ in range(6):
        (first, *_) = await claims.waiting(worker.pool, CHAIN, limit=1)
        served.append(first.request_id)
        await worker.send(first.request_id)
    assert served == [1, 52, 51, 53, 2, 3]


async def test_as_many_as_are_asked_for_wait_also_when_one_requester_has_them_all(
    indexer_pool: Pool, worker: Worker
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(30)))
    assert [each.request_id for each in await claims.waiting(worker.pool, CHAIN, limit=20)] == list(range(1, 21))


# -- claims under contention and under any plan ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "disabled", [(), ("enable_indexscan", "enable_bitmapscan"), ("enable_nestloop", "enable_seqscan")]
)
async def test_workers_that_claim_the_same_requests_at_once_share_them_out_whatever_the_plan(
    dsn: str, indexer_pool: Pool, disabled: tuple[str, ...]
) -> None:
    """Hard case 68."""
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(40)))
    owner = await asyncpg.connect(dsn)
    name = await owner.fetchval("SELECT current_database()")
    for setting in disabled:
        await owner.execute(f"ALTER DATABASE {name} SET {setting} = off")
    await owner.close()
    async with await open_pool(dsn, Role.INVOCATOR, max_size=8) as pool:
        taken = await asyncio.gather(
            *(
                claims.claim_all(
                    pool, CHAIN, range(5 * n + 1, 5 * n + 11), worker_id=uuid4(), lease_seconds=60, pacing=PACING
                )
                for n in range(6)
            )
        )
    ids = [order.request_id for orders in taken for order in orders]
    assert sorted(ids) == list(range(1, 36))
    assert (await states(indexer_pool)).count("claimed") == 35


async def test_a_claim_takes_no_more_than_there_is_room_for(indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(5)))
    pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=2)
    taken = await claims.claim_all(worker.pool, CHAIN, [3, 4, 5], worker_id=uuid4(), lease_seconds=60, pacing=pacing)
    assert [order.request_id for order in taken] == [3, 4]


# -- the breaker -----------------------------------------------------------------------------------------------------


REFUSED = {"says": Says.INSTANCE_REFUSED, "code": "clock_off", "sentence": "Not authorized."}


async def closed(pool: Pool) -> tuple[int, float] | None:
    """How many refusals in a row, and for how many seconds nothing is sent."""
    row = await pool.fetchrow("SELECT refusals, pause_seconds FROM breaker")
    return None if row is None else (row["refusals"], row["pause_seconds"])


async def test_a_refused_instance_sends_nothing_but_probes_and_no_request_pays(
    indexer_pool: Pool, worker: Worker
) -> None:
    """Hard case 85."""
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await list_workflow(worker.pool)
    await worker.send(1, "instance_refused", **REFUSED)
    assert (await states(indexer_pool), await closed(worker.pool)) == (["confirmed", "confirmed"], (1, 5.0))
    assert await worker.claim(2) is None
    assert not (await claims.gate(worker.pool, CHAIN)).open
    for refusals in range(2, 10):
        await let_probe(worker.pool)
        await worker.send(1, "instance_refused", **REFUSED)
        assert await closed(worker.pool) == (refusals, min(300.0, 5.0 * 2 ** (refusals - 1)))
    await let_probe(worker.pool)
    await worker.send(1, "accepted", says=Says.WORKS)
    assert await closed(worker.pool) is None
    await worker.send(2)
    assert await states(indexer_pool) == ["accepted", "accepted"]
    alarms = await indexer_pool.fetch("SELECT kind, sentence FROM alarm")
    assert [tuple(row) for row in alarms] == [("instance_refused", "Not authorized.")]


async def test_one_probe_at_a_time_is_let_through(indexer_pool: Pool, worker: Worker) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await list_workflow(worker.pool)
    first, second, third = [await worker.claimed(n) for n in (1, 2, 3)]
    for order in (first, second, third):
        await worker.freeze(order)
    number = await worker.begin(first)
    assert number is not None
    await worker.answer(first, number, "never_connected", **REFUSED)
    assert await worker.begin(second) is None
    await let_probe(worker.pool)
    assert await worker.begin(second) == 1
    assert await worker.begin(third) is None


async def test_what_was_under_way_when_the_gate_closed_neither_lengthens_the_pause_nor_opens_it(
    indexer_pool: Pool, worker: Worker
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await list_workflow(worker.pool)
    orders = [await worker.claimed(n) for n in (1, 2, 3)]
    for order in orders:
        await worker.freeze(order)
        assert await worker.begin(order) == 1
    await worker.answer(orders[0], 1, "instance_refused", **REFUSED)
    await worker.answer(orders[1], 1, "instance_refused", **REFUSED)
    assert await closed(worker.pool) == (2, 5.0)
    assert await worker.answer(orders[2], 1, "accepted", says=Says.WORKS) == "accepted"
    assert await closed(worker.pool) == (2, 5.0)


async def test_the_gateway_s_clock_is_remembered_and_alarms_once_beyond_thirty_seconds(
    indexer_pool: Pool, worker: Worker
) -> None:
    """Hard case 82."""
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(6)))
    await list_workflow(worker.pool)
    for request_id, offset in enumerate((2.0, 30.0, -30.9, -40.0, 1.0, 400.0), start=1):
        await worker.send(request_id, clock_offset_seconds=offset)
    assert await worker.pool.fetchval("SELECT clock_offset_seconds FROM trigger_gate") == 400.0
    alarms = await indexer_pool.fetch("SELECT sentence FROM alarm WHERE kind = 'clock_off' ORDER BY id")
    assert [row["sentence"].split()[6] for row in alarms] == ["-31", "+400"]


# -- after a failover that lost commits: numbers come back -----------------------------------------------------------


async def test_an_attempt_begins_only_for_the_frozen_bytes(indexer_pool: Pool, worker: Worker) -> None:
    """A worker that slept holds today's claim number with yesterday's workflow; found by the protocol model."""
    await confirmed(indexer_pool, request("d", block(1)))
    await list_workflow(worker.pool)
    order = await worker.claimed(1)
    assert await worker.begin(order) is None  # nothing is frozen yet
    assert await worker.freeze(order)
    assert await worker.begin(order, workflow_id=bytes(32)) is None
    assert await worker.begin(order) == 1


async def test_an_answer_is_recorded_only_at_the_attempt_of_its_own_token(indexer_pool: Pool, worker: Worker) -> None:
    """A late "refused" for an attempt that was lost must not say that today's attempt was never sent."""
    await confirmed(indexer_pool, request("d", block(1)))
    await list_workflow(worker.pool)
    order = await worker.send(1, outcome=None)
    assert await worker.answer(order, 1, "refused_now", jti=uuid4()) == "in_doubt"
    assert await indexer_pool.fetchval("SELECT outcome FROM attempt") is None
    jti = await indexer_pool.fetchval("SELECT jti FROM attempt")
    assert await worker.answer(order, 1, "refused_now", jti=jti) == "confirmed"
