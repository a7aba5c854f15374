"""Which rows a worker's statements reach, no other chain's, generation's or mode's, and what they write there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from datastore import claims, following
from datastore.claims import Answered, Frozen, Gate, Order, Pacing, Says, Swept
from datastore.connection import Pool, Role, open_pool
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Basket, Finality
from tests.datastore.builders import (
    ALICE,
    BOB,
    CHAIN,
    CONSUMER,
    ETHER,
    RULES,
    TOKEN,
    batch,
    block,
    hash_of,
    pin_chain,
    report,
    request,
    with_finality,
)
from tests.datastore.workers import PACING, WORKFLOW, Worker, ahead, confirmed, execution_ids, frozen, let_pass, states

NEIGHBOUR = 1  # pinned before ours and with a lower id: whoever forgets the chain meets it first
OTHER_WORKFLOW = hash_of("another workflow")
NOTHING = Swept(leases=0, deadlines=0, doubts=0, resends=0, holds=0)


@pytest.fixture
def worker(invocator_pool: Pool) -> Worker:
    return Worker(pool=invocator_pool)


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[Any]:
    """Writes any state at once, as a replica would apply it."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


def announced(**changes: object) -> Basket:
    one = block(1)
    made = Basket(
        block_number=one.number,
        block_hash=one.hash,
        log_index=100,
        stablecoin=TOKEN,
        consumer=CONSUMER,
        creator=ALICE,
        admin=ALICE,
        name_raw=b"Test Dollar",
        symbol_raw=b"TUSD",
        name="Test Dollar",
        symbol="TUSD",
    )
    return made._replace(**changes)  # type: ignore[arg-type]


async def list_both(worker: Worker) -> None:
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW, OTHER_WORKFLOW])


# -- another chain in the same database -------------------------------------------------------------------------------


async def with_neighbour(indexer: Pool, owner: Any, *ours: str) -> None:
    """Our requests, and beside them a chain with a request in every state in which ours would be touched."""
    pin = Pin(
        chain_id=NEIGHBOUR,
        genesis_hash=hash_of("neighbour"),
        factory_address=bytes(20),
        factory_code_hash=hash_of("code"),
        forwarder_address=bytes(20),
        secret_check=b"check",
    )
    one = block(1)
    await pin_first_start(indexer, pin, start=one, first_trigger_block_number=0)
    theirs = [request(f"theirs{n}", one, log_index=n) for n in range(6)]
    reports = (report(one, execution_id=hash_of("their report")),)
    made = batch(ahead(one), on=block(0), requests=tuple(theirs), reports=reports, baskets=(announced(),), final=1)
    await following.commit(indexer, NEIGHBOUR, made, RULES)
    genesis = await pin_chain(indexer)
    requests = tuple(request(name, one, log_index=n) for n, name in enumerate(ours))
    await following.commit(indexer, CHAIN, batch(ahead(one), on=genesis, requests=requests, final=1), RULES)
    passed = "next_attempt_at = now() - interval '9 days', state_changed_at = now() - interval '9 days'"
    leased = "worker_id = gen_random_uuid(), lease_ends_at = now() - interval '1 day'"
    for number, change in enumerate(
        (
            "held_reason = NULL",
            f"state = 'claimed', {leased}",
            "state = 'in_doubt', deadline_at = now() + interval '1 day'",
            "state = 'accepted', deadline_at = now() - interval '1 day'",
            "state = 'failed', state_reason = 'not_delivered'",
            "held_at = now(), held_reason = 'daily_cap'",
        ),
        start=1,
    ):
        await owner.execute(f"UPDATE mint_request SET {passed}, {change} WHERE id = {number}")  # noqa: S608 - words of ours
        await owner.execute(
            """
            INSERT INTO frozen_request (
                request_id, generation, nonce, mode, workflow_id, receiver, gateway, signer, body, body_sha256
            )
            SELECT id, 0, nonce, 'gateway', $2, consumer, '', consumer, '', sha256('') FROM mint_request WHERE id = $1
            """,
            number,
            WORKFLOW,
        )


async def test_another_chain_s_requests_are_neither_listed_nor_swept_nor_counted(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    await with_neighbour(indexer_pool, owner, "ours")
    await claims.list_workflows(worker.pool, NEIGHBOUR, [WORKFLOW, OTHER_WORKFLOW])
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    before = await states(indexer_pool)
    pool, share = worker.pool, Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1, requester_max_in_flight=1)
    assert [order.request_id for order in await claims.waiting(pool, CHAIN, limit=9, pacing=share)] == [7]
    assert await claims.queue(pool, CHAIN) == [7]
    assert [order.request_id for order in await claims.waiting_orders(pool, CHAIN, besides=(), limit=9)] == [7]
    assert await claims.due(pool, CHAIN, limit=9) == []
    assert await worker.sweep(resend_after_seconds=1) == NOTHING
    assert await claims.gate(pool, CHAIN) == Gate(open=True, in_flight=0)
    assert await claims.gate(pool, NEIGHBOUR) == Gate(open=True, in_flight=1)
    assert await claims.listed_workflows(pool, CHAIN) == [WORKFLOW]
    both = [WORKFLOW, OTHER_WORKFLOW]
    assert await claims.free_workflows(pool, CHAIN, share, both) == {WORKFLOW}
    assert await claims.free_workflows(pool, NEIGHBOUR, PACING, both) == {WORKFLOW, OTHER_WORKFLOW}
    assert not await claims.is_reported(pool, CHAIN, [hash_of("their report")])
    assert await claims.is_reported(pool, NEIGHBOUR, [hash_of("their report")])
    worker.pacing = share
    await worker.send(7)
    assert await states(indexer_pool) == [*before[:6], "accepted"]
    assert await worker.sweep() == NOTHING


async def test_another_chain_s_turns_are_not_ours(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    await with_neighbour(indexer_pool, owner, "ours", "ours too")
    await worker.claimed(7)
    await owner.execute("INSERT INTO basket_turn SELECT $1, stablecoin, now() FROM basket_turn", NEIGHBOUR)
    await owner.execute(
        "INSERT INTO requester_turn SELECT $1, stablecoin, requester, now() FROM requester_turn", NEIGHBOUR
    )
    assert await claims.queue(worker.pool, CHAIN) == [8]


async def test_another_chain_s_pause_stops_nothing_here(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    await with_neighbour(indexer_pool, owner, "ours")
    await claims.list_workflows(worker.pool, NEIGHBOUR, [WORKFLOW])
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    await owner.execute("UPDATE control SET paused_at = now(), paused_reason = 'x' WHERE chain_id = $1", NEIGHBOUR)
    assert not (await claims.gate(worker.pool, NEIGHBOUR)).open
    assert (await claims.gate(worker.pool, CHAIN)).open
    await worker.send(7)


async def test_our_pause_stops_us_beside_a_chain_that_goes_on(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    await with_neighbour(indexer_pool, owner, "ours", "ours too")
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    order = await worker.claimed(7)
    await worker.freeze(order)
    await owner.execute("UPDATE control SET paused_at = now(), paused_reason = 'x' WHERE chain_id = $1", CHAIN)
    assert await claims.gate(worker.pool, NEIGHBOUR) == Gate(open=True, in_flight=1)
    assert await worker.claim(8) is None
    assert await worker.begin(order) is None


async def test_another_chain_s_sends_do_not_count_for_our_day(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    await with_neighbour(indexer_pool, owner, "ours")
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    await owner.execute(
        "INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)"
        " VALUES (3, 1, 0, 0, gen_random_uuid(), gen_random_uuid())"
    )
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=9, daily_cap_wei=ETHER)
    await worker.send(7)


async def test_another_chain_s_gate_slots_and_baskets_are_left_alone(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    await with_neighbour(indexer_pool, owner, "ours", "ours too", "ours as well")
    for chain in (NEIGHBOUR, CHAIN):
        await claims.list_workflows(worker.pool, chain, [WORKFLOW])
    await owner.execute("INSERT INTO workflow_slot VALUES ($1, $2, now() - interval '1 day')", NEIGHBOUR, WORKFLOW)
    theirs = "SELECT * FROM trigger_gate g JOIN workflow_slot s USING (chain_id) JOIN basket USING (chain_id)"
    before = await owner.fetch(theirs)
    worker.pacing = Pacing(seconds_per_trigger=60, burst=9, max_in_flight=9)
    refused = {"says": Says.INSTANCE_REFUSED, "code": "clock_off", "sentence": "No.", "postpone_seconds": 60.0}
    await worker.send(7, "instance_refused", clock_offset_seconds=70.0, **refused)
    await owner.execute("UPDATE breaker SET probe_at = now() WHERE chain_id = $1", CHAIN)
    await owner.execute("UPDATE workflow_slot SET earliest_next_at = now() WHERE chain_id = $1", CHAIN)
    await worker.send(8, "instance_refused", clock_offset_seconds=70.0, **refused)
    assert await owner.fetchval("SELECT count(*) FROM alarm WHERE kind = 'clock_off'") == 1
    assert await owner.fetchval("SELECT pause_seconds FROM breaker WHERE chain_id = $1", CHAIN) == 10
    await owner.execute("UPDATE workflow_slot SET earliest_next_at = now() WHERE chain_id = $1", CHAIN)
    assert await owner.fetch(theirs) == before
    # Theirs opens too, and stays so when ours closes.
    await owner.execute(
        """
        INSERT INTO breaker (chain_id, opened_at, outcome, code, sentence, pause_seconds, probe_at)
        VALUES ($1, now() - interval '1 hour', 'x', 'x', 'x', 5, now())
        """,
        NEIGHBOUR,
    )
    await owner.execute("UPDATE breaker SET probe_at = now() WHERE chain_id = $1", CHAIN)
    await worker.send(9, says=Says.WORKS)
    await claims.pin_decimals(worker.pool, CHAIN, TOKEN, 6)
    assert await owner.fetch("SELECT chain_id FROM breaker") == [(NEIGHBOUR,)]
    assert await owner.fetch(theirs) == before


# -- turns ------------------------------------------------------------------------------------------------------------

CAROL = b"\xca" * 20


async def asked_over_two_blocks(indexer: Pool, *asked: tuple[int, int, dict[str, bytes]]) -> list[int]:
    """Requests, each of a block and a place in it, all confirmed; their ids in this order."""
    genesis, blocks = await pin_chain(indexer), {1: block(1), 2: block(2)}
    requests = [request(f"d{at}-{place}", blocks[at], log_index=place, **changes) for at, place, changes in asked]  # type: ignore[arg-type]
    made = batch(blocks[1], blocks[2], on=genesis, requests=tuple(requests), final=2)
    await following.commit(indexer, CHAIN, made, RULES)
    ids = {row["identity"]: row["id"] for row in await indexer.fetch("SELECT id, identity FROM mint_request")}
    return [ids[each.identity] for each in requests]


async def test_three_requesters_take_turns_oldest_request_first(indexer_pool: Pool, worker: Worker) -> None:
    ids = await asked_over_two_blocks(
        indexer_pool,
        *((2, 0, {"requester": ALICE}), (1, 2, {"requester": ALICE}), (1, 1, {"requester": ALICE})),
        *((1, 0, {"requester": BOB}), (2, 1, {"requester": BOB}), (2, 2, {"requester": BOB})),
        *((1, 3, {"requester": CAROL}), (2, 3, {"requester": CAROL}), (2, 4, {"requester": CAROL})),
    )
    await list_both(worker)
    alice, bob, carol = (ids[2], ids[1], ids[0]), tuple(ids[3:6]), tuple(ids[6:9])
    expected = [bob[0], alice[0], carol[0], bob[1], alice[1], carol[1], bob[2], alice[2], carol[2]]
    assert await claims.queue(worker.pool, CHAIN) == [
        *(bob[0], alice[0], carol[0]),
        *(alice[1], bob[1], carol[1]),
        *(alice[2], bob[2], carol[2]),
    ]
    served = []
    for _ in expected:
        (first,) = await claims.waiting(worker.pool, CHAIN, limit=1)
        served.append(first.request_id)
        await worker.send(first.request_id)
    assert served == expected


async def test_of_baskets_that_were_never_served_the_one_with_the_oldest_request_is_first(
    indexer_pool: Pool, worker: Worker
) -> None:
    ids = await asked_over_two_blocks(
        indexer_pool, (2, 0, {}), (1, 9, {"stablecoin": b"\x71" * 20}), (1, 8, {"stablecoin": b"\x72" * 20})
    )
    assert await claims.queue(worker.pool, CHAIN) == [ids[2], ids[1], ids[0]]


@pytest.mark.parametrize("new", ["requester", "stablecoin"])
async def test_a_new_name_is_no_way_to_the_front(indexer_pool: Pool, worker: Worker, new: str) -> None:
    """Hard case 117: whoever asks under ever new addresses, or in ever new baskets, waits behind who waits already."""
    tip = await confirmed(indexer_pool, request("first", block(1)), request("second", block(1), log_index=1))
    await list_both(worker)
    await worker.send(1)
    served = []
    for number in range(2, 6):
        fresh = request(f"new {number}", block(number), **{new: bytes([number]) * 20})  # type: ignore[arg-type]
        await following.commit(
            indexer_pool, CHAIN, batch(block(number), on=tip, requests=(fresh,), final=number), RULES
        )
        tip = block(number)
        (first,) = await claims.waiting(worker.pool, CHAIN, limit=1)
        await worker.send(first.request_id)
        served.append(first.request_id)
    assert served == [2, 3, 4, 5]


async def test_a_requester_s_turn_in_one_basket_is_none_in_another(indexer_pool: Pool, worker: Worker) -> None:
    other = {"stablecoin": b"\x71" * 20}
    ids = await asked_over_two_blocks(indexer_pool, (1, 0, {}), (1, 1, other), (2, 0, {}), (2, 1, other))
    for request_id in ids[:2]:
        await worker.claimed(request_id)
    assert await claims.queue(worker.pool, CHAIN) == ids[2:]


async def test_what_is_past_its_deadline_counts_for_nobody_s_share(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await list_both(worker)
    share: dict[str, Any] = {"requester_max_in_flight": 1, "basket_max_in_flight": 1}
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1, **share)
    await worker.send(1)
    second = await worker.claim(2)
    assert second is None
    assert await claims.waiting(worker.pool, CHAIN, limit=9, pacing=worker.pacing) == []
    assert len(await claims.waiting(worker.pool, CHAIN, limit=9)) == 2
    await let_pass(owner, 1, deadline_at=2_401)
    assert len(await claims.waiting(worker.pool, CHAIN, limit=9, pacing=worker.pacing)) == 2
    await worker.send(2)


async def test_one_look_takes_of_each_requester_its_share_and_one_more_or_four(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    first, last = b"\x01" * 20, b"\xff" * 20
    ids = await asked_over_two_blocks(
        indexer_pool,
        *((1, n, {"requester": ALICE}) for n in range(9)),
        *((2, n, {"requester": each}) for n, each in enumerate((BOB, CAROL, b"\xda" * 20, first, last))),
    )
    # The flows before and behind ours are another chain's: nobody's share is less for them.
    await owner.execute("UPDATE mint_request SET chain_id = $1 WHERE id = ANY($2)", NEIGHBOUR, ids[-2:])

    async def taken(limit: int) -> tuple[int, int]:
        orders = await claims.waiting(worker.pool, CHAIN, limit=limit)
        return sum(order.request_id in ids[:9] for order in orders), len(orders)

    assert await taken(2) == (1, 2)
    assert await taken(11) == (4, 7)
    assert await taken(16) == (5, 8)


# -- what an order says ------------------------------------------------------------------------------------------------


async def orders_of(pool: Pool, request_id: int) -> list[Order]:
    async with pool.acquire() as connection:
        return await claims._orders(connection, [request_id])


async def test_an_order_knows_its_own_basket_and_no_other(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    genesis, one = await pin_chain(indexer_pool), block(1)
    made = batch(
        one,
        on=genesis,
        requests=(request("d1", one), request("d2", one, log_index=1, stablecoin=b"\x71" * 20)),
        baskets=(announced(),),
        final=1,
    )
    await following.commit(indexer_pool, CHAIN, made, RULES)
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    await owner.execute(
        """
        INSERT INTO basket
        SELECT chain_id, sha256('orphaned'), log_index, block_number, stablecoin, consumer, creator, admin, name_raw,
            symbol_raw, name, symbol, NULL, false
        FROM basket
        """
    )
    await claims.pin_decimals(worker.pool, CHAIN, TOKEN, 6)
    await claims.pin_decimals(worker.pool, CHAIN, TOKEN, 7)  # the first reading stays
    assert await owner.fetch("SELECT decimals, canonical FROM basket ORDER BY canonical") == [(None, False), (6, True)]
    (mine,) = await orders_of(worker.pool, 1)
    assert (mine.symbol, mine.decimals, mine.basket_is_canonical) == ("TUSD", 6, True)
    (homeless,) = await orders_of(worker.pool, 2)
    assert (homeless.symbol, homeless.decimals, homeless.basket_is_canonical) == ("", None, False)
    for change in ("canonical = false", "consumer = '\\x00000000000000000000000000000000000000c1'", "chain_id = 2"):
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute(f"UPDATE basket SET {change}")  # noqa: S608 - words of ours
        for statement in (claims._ORDERS, claims._CLAIM):
            arguments = [[1]] if statement is claims._ORDERS else [CHAIN, [1], uuid4(), timedelta(1), 9]
            (row,) = await owner.fetch(statement, *arguments)
            assert (row["symbol"], row["decimals"], row["basket_is_canonical"]) == (None, None, False), change
        await transaction.rollback()
    order = await worker.claimed(1)
    assert (order.symbol, order.decimals, order.basket_is_canonical) == ("TUSD", 6, True)
    homeless = await worker.claimed(2)
    assert (homeless.symbol, homeless.decimals, homeless.basket_is_canonical) == ("", None, False)
    assert (order.frozen, order.found_workflow_id) == (None, None)
    assert (order.nonce, order.amount, order.consumer, order.claim_no) == (mine.nonce, ETHER, CONSUMER, 1)


async def test_an_order_has_the_bytes_and_the_found_workflow_of_its_own_generation(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    for request_id in (1, 2):
        order = await worker.claimed(request_id)
        await worker.freeze(order)
        await claims.give_back(worker.pool, order, reason="no_slot")
    for request_id, generation, source, workflow in (
        (1, 0, "found", b"\xfe" * 32),
        (1, 0, "found", b"\xfd" * 32),  # of two, always the same one: that of the lower execution id
        (1, 1, "found", b"\xff" * 32),
        (2, 0, "returned", None),
    ):
        await owner.execute(
            "INSERT INTO execution_id VALUES ($1, $2, $3, $4, $5, $6)",
            CHAIN,
            workflow or b"\4" * 32,
            request_id,
            source,
            generation,
            workflow,
        )
    ours = frozen((await orders_of(worker.pool, 1))[0])
    for order in (*await orders_of(worker.pool, 1), await worker.claimed(1)):
        assert (order.frozen, order.found_workflow_id) == (ours, b"\xfd" * 32)
    for order in (*await orders_of(worker.pool, 2), await worker.claimed(2)):
        assert order.frozen is not None
        assert order.frozen.body == order.nonce.hex.encode()
        assert order.found_workflow_id is None
    (third,) = await orders_of(worker.pool, 3)
    assert (third.frozen, third.found_workflow_id) == (None, None)
    await owner.execute(
        "UPDATE mint_request SET generation = 1, state = 'confirmed', lease_ends_at = NULL WHERE id = 1"
    )
    for order in (*await orders_of(worker.pool, 1), await worker.claimed(1)):
        assert (order.generation, order.frozen, order.found_workflow_id) == (1, None, b"\xff" * 32)


async def test_the_decimals_of_one_basket_are_not_those_of_another(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    genesis = await pin_chain(indexer_pool)
    baskets = (announced(), announced(log_index=101, stablecoin=b"\x71" * 20))
    await following.commit(indexer_pool, CHAIN, batch(block(1), on=genesis, baskets=baskets), RULES)
    await claims.pin_decimals(worker.pool, CHAIN, TOKEN, 6)
    assert await owner.fetch("SELECT decimals FROM basket ORDER BY stablecoin") == [(6,), (None,)]


# -- generations and modes --------------------------------------------------------------------------------------------


async def freeze_old(owner: Any, request_id: int, mode: str) -> None:
    """Bytes of an earlier generation; the request is now in its second one."""
    await owner.execute(
        """
        INSERT INTO frozen_request SELECT id, 0, gen_random_uuid(), $2, $3, consumer, '', consumer, 'old', sha256('old')
        FROM mint_request WHERE id = $1
        """,
        request_id,
        mode,
        WORKFLOW,
    )
    await owner.execute("UPDATE mint_request SET generation = 1 WHERE id = $1", request_id)


async def doubts(worker: Worker, owner: Any, first_mode: str, second_mode: str) -> list[Order]:
    """Two requests in doubt, due, each with bytes for a mode of its own, and older bytes for the mode of the other."""
    sent = []
    for request_id, mode, old_mode in ((1, first_mode, second_mode), (2, second_mode, first_mode)):
        await freeze_old(owner, request_id, old_mode)
        worker.mode = mode
        sent.append(await worker.send(request_id, outcome="unknown"))
        await let_pass(owner, request_id, next_attempt_at=10_000)
    return sent


def worker_pool(owner: Any) -> Any:
    return owner  # `let_pass` only executes


async def test_a_doubt_s_mode_is_that_of_its_own_bytes(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    await doubts(worker, owner, claims.GATEWAY, claims.SIMULATE)
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert due.request_id == 1
    # What was simulated is given up after 2,400 s, what was sent to the gateway after 3,600 s.
    for request_id in (1, 2):
        await let_pass(owner, request_id, state_changed_at=3_000)
    assert (await worker.sweep()).doubts == 1
    assert await states(indexer_pool) == ["in_doubt", "review"]
    worker.mode = claims.GATEWAY
    assert await worker.begin(due) == 2
    await owner.execute("UPDATE mint_request SET state = 'in_doubt', next_attempt_at = now() WHERE id = 2")
    worker.mode = claims.SIMULATE
    async with worker.pool.acquire() as connection:
        (simulated,) = await claims._orders(connection, [2])
    assert await worker.begin(simulated) is None


async def test_only_what_went_to_the_gateway_is_sent_again_by_itself(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    await doubts(worker, owner, claims.GATEWAY, claims.SIMULATE)
    await owner.execute(
        "UPDATE mint_request SET state = 'failed', state_reason = 'not_delivered', state_changed_at = '2020-01-01'"
    )
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 1
    assert await states(indexer_pool) == ["in_doubt", "failed"]


async def test_only_the_bytes_of_its_own_generation_are_sent(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    await freeze_old(owner, 1, claims.GATEWAY)
    order = await worker.claimed(1)
    assert order.frozen is None
    old = Frozen(mode="gateway", workflow_id=WORKFLOW, receiver=CONSUMER, gateway="", signer=CONSUMER, body=b"old")
    kept = {"jti": uuid4(), "worker_id": uuid4(), "pacing": PACING, "deadline_seconds": 9.0}
    assert await claims.begin_attempt(worker.pool, CHAIN, order, old, retry_seconds=float, **kept) is None  # type: ignore[arg-type]
    assert await worker.freeze(order)
    assert await claims.begin_attempt(worker.pool, CHAIN, order, old, retry_seconds=float, **kept) is None  # type: ignore[arg-type]
    assert not await worker.freeze(order)  # the first one's bytes are kept
    # Those of another request of this generation are not its own either.
    beside = await worker.claimed(2)
    await owner.execute("UPDATE mint_request SET generation = 1 WHERE id = 2")
    beside = replace(beside, generation=1)
    assert await worker.freeze(beside)
    theirs = frozen(beside)
    assert await claims.begin_attempt(worker.pool, CHAIN, order, theirs, retry_seconds=float, **kept) is None  # type: ignore[arg-type]
    assert await worker.begin(order) == 1


# -- what stops everything --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop",
    [
        "paused_at = now(), paused_reason = 'x'",
        "quarantined_at = now(), quarantined_reason = 'x', quarantined_until = now()",
        "server_identifier = server_identifier + 1",
        "server_timeline = server_timeline + 1",
    ],
)
async def test_a_pause_a_quarantine_or_another_server_each_stops_claims_and_attempts(
    indexer_pool: Pool, worker: Worker, owner: Any, stop: str
) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await list_both(worker)
    order = await worker.claimed(1)
    await worker.freeze(order)
    await owner.execute(f"UPDATE control SET {stop}")  # noqa: S608 - words of ours
    assert not (await claims.gate(worker.pool, CHAIN)).open
    assert await claims.free_workflows(worker.pool, CHAIN, PACING, [WORKFLOW]) == frozenset()
    assert await worker.claim(2) is None
    assert await worker.begin(order) is None
    assert await owner.fetchval("SELECT count(*) FROM attempt") == 0


async def test_the_pause_of_a_basket_stops_the_attempts_of_its_own_requests(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one, other = block(1), b"\x71" * 20
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1, stablecoin=other))
    await list_both(worker)
    orders = [await worker.claimed(request_id) for request_id in (1, 2)]
    for order in orders:
        await worker.freeze(order)
    paused = "INSERT INTO basket_pause (chain_id, stablecoin, paused_reason) VALUES ($1, $2, 'x')"
    for chain_id, stablecoin in ((CHAIN, other), (NEIGHBOUR, TOKEN)):
        await owner.execute(paused, chain_id, stablecoin)
    assert [await worker.begin(order) for order in orders] == [1, None]


async def test_without_a_gate_nothing_is_sent(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_both(worker)
    order = await worker.claimed(1)
    await worker.freeze(order)
    await owner.execute("DELETE FROM trigger_gate")
    assert await worker.begin(order) is None


async def test_a_claim_waits_for_nobody_who_holds_the_row(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    """Hard case 68."""
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    async with owner.transaction(), asyncio.timeout(10):
        await owner.execute("SELECT FROM mint_request WHERE id = 1 FOR UPDATE")
        taken = await claims.claim_all(worker.pool, CHAIN, [1, 2], worker_id=uuid4(), lease_seconds=60, pacing=PACING)
    assert [order.request_id for order in taken] == [2]


# -- what is written --------------------------------------------------------------------------------------------------


async def test_a_claim_writes_who_has_it_until_when(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await owner.execute(
        """
        UPDATE mint_request SET state_detail = 'old', state_attempt_no = 9, state_changed_at = now() - interval '1 day'
        """
    )
    await worker.claimed(1)
    row = await owner.fetchrow(
        """
        SELECT state, state_reason, state_detail, state_attempt_no, claim_no, worker_id,
            lease_ends_at - state_changed_at, clock_timestamp() - state_changed_at < interval '1 minute'
        FROM mint_request WHERE id = 1
        """
    )
    lease = row[6]
    assert tuple(row)[:6] == ("claimed", "claim", None, None, 1, worker.worker_id)
    assert abs(lease - timedelta(seconds=60)) < timedelta(seconds=1)
    assert row[7]
    assert await states(indexer_pool) == ["claimed", "confirmed"]
    turns = "SELECT b.last_claim_at, r.last_claim_at FROM basket_turn b, requester_turn r"
    first = await owner.fetchrow(turns)
    await worker.claimed(2)
    then = await owner.fetchrow(turns)
    assert (then[0] > first[0], then[1] > first[1]) == (True, True)


async def test_what_is_held_orphaned_taken_or_without_room_is_not_claimed(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(4)))
    await owner.execute("UPDATE mint_request SET held_at = now(), held_reason = 'x' WHERE id = 1")
    await owner.execute("UPDATE mint_request SET chain_status = 'orphaned' WHERE id = 2")
    await owner.execute("UPDATE mint_request SET state = 'seen' WHERE id = 3")
    every = [1, 2, 3, 4]
    assert [order.request_id for order in await claims.waiting(worker.pool, CHAIN, limit=9)] == [4]
    assert await claims.queue(worker.pool, CHAIN) == [4]
    assert [order.request_id for order in await claims.waiting_orders(worker.pool, CHAIN, besides=(), limit=9)] == [4]
    nothing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=0)
    for pacing, expected in ((nothing, []), (PACING, [4])):
        taken = await claims.claim_all(worker.pool, CHAIN, every, worker_id=uuid4(), lease_seconds=60, pacing=pacing)
        assert [order.request_id for order in taken] == expected


async def test_an_attempt_and_its_answer_are_written_whole(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    beside = await worker.send(2, outcome=None)
    order = await worker.send(1, outcome=None)
    assert await worker.begin(beside) is None  # its row is in doubt, no longer claimed
    row = await owner.fetchrow("SELECT generation, claim_no, worker_id, outcome FROM attempt WHERE request_id = 1")
    assert tuple(row) == (0, 1, worker.worker_id, None)
    waits = "SELECT round(extract(epoch FROM {} - clock_timestamp())) FROM mint_request WHERE id = 1"
    assert 85 < await owner.fetchval(waits.format("next_attempt_at")) <= 90
    assert 2390 < await owner.fetchval(waits.format("deadline_at")) <= 2400
    await owner.execute("UPDATE mint_request SET deadline_at = now()")
    returned = hash_of("returned")
    answered = {"sentence": "Queued.", "execution_id": returned, "simulated_tx_hash": hash_of("tx")}
    await worker.answer(order, 1, "accepted", **answered)
    row = await owner.fetchrow(
        "SELECT outcome, http_status, sentence, answer, simulated_tx_hash, answered_at IS NOT NULL FROM attempt"
        " WHERE request_id = 1"
    )
    assert tuple(row) == ("accepted", 200, "Queued.", None, hash_of("tx"), True)
    assert 2390 < await owner.fetchval(waits.format("deadline_at")) <= 2400
    assert 80 < await owner.fetchval(waits.format("next_attempt_at")) <= 90
    assert await owner.fetchval("SELECT deadline_at < now() FROM mint_request WHERE id = 2")
    assert await owner.fetchval("SELECT outcome FROM attempt WHERE request_id = 2") is None
    legacy, trigger_index = execution_ids(order)
    rows = await owner.fetch("SELECT execution_id, source FROM execution_id WHERE request_id = 1")
    assert dict(rows) == {legacy: "legacy", trigger_index: "trigger_index", returned: "returned"}
    story = await owner.fetch(
        "SELECT to_state, reason, detail, attempt_no FROM mint_transition WHERE request_id = 1 ORDER BY id"
    )
    assert [tuple(each) for each in story[-2:]] == [
        ("in_doubt", "attempt_started", None, 1),
        ("accepted", "accepted", "Queued.", 1),
    ]


async def test_the_bytes_are_frozen_whole_and_only_by_whoever_has_the_claim(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    order, stale = await worker.claimed(1), await worker.claimed(2)
    await claims.give_back(worker.pool, stale, reason="no_slot")
    assert not await worker.freeze(stale)  # not claimed any more
    await worker.claimed(2)
    assert not await worker.freeze(stale)  # claimed by another one
    assert await worker.freeze(order)
    (now,) = await orders_of(worker.pool, 1)
    assert now.frozen == frozen(order)
    assert await owner.fetchval("SELECT nonce = $1 AND request_id = 1 FROM frozen_request", order.nonce)


# -- pace -------------------------------------------------------------------------------------------------------------

PACED = Pacing(seconds_per_trigger=60, burst=2, max_in_flight=99)


async def paced(indexer: Pool, worker: Worker) -> list[Order]:
    """Six frozen claims of a worker that may send two at once, then one a minute."""
    one = block(1)
    await confirmed(indexer, *(request(f"d{n}", one, log_index=n) for n in range(6)))
    await list_both(worker)
    worker.pacing = PACED
    orders = [await worker.claimed(n + 1) for n in range(6)]
    for order in orders:
        await worker.freeze(order)
    return orders


async def rest(owner: Any, seconds: float) -> None:
    await owner.execute(
        "UPDATE workflow_slot SET earliest_next_at = earliest_next_at - make_interval(secs => $1)", seconds
    )


async def test_a_workflow_is_triggered_in_a_burst_and_then_at_its_pace(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    orders = await paced(indexer_pool, worker)
    both = {WORKFLOW, OTHER_WORKFLOW}

    async def free() -> frozenset[bytes]:
        return await claims.free_workflows(worker.pool, CHAIN, PACED, [*both])

    assert await free() == both
    assert await claims.free_workflows(worker.pool, CHAIN, PACED, [WORKFLOW]) == {WORKFLOW}
    assert await worker.begin(orders[0]) == 1
    assert await free() == both
    assert await worker.begin(orders[1]) == 1
    assert await free() == {OTHER_WORKFLOW}
    assert await worker.begin(orders[2]) is None
    await rest(owner, 30)
    assert await worker.begin(orders[2]) is None
    await rest(owner, 31)
    assert await free() == both
    assert await worker.begin(orders[2]) == 1
    assert await worker.begin(orders[3]) is None
    # Without a pace, no slot is asked for.
    worker.pacing = PACING
    assert await worker.begin(orders[3]) == 1
    worker.pacing = PACED
    # However long it rested, no more than the burst.
    await rest(owner, 6_000)
    assert [await worker.begin(order) for order in orders[4:]] == [1, 1]
    assert await free() == {OTHER_WORKFLOW}


async def test_a_pace_of_a_second_is_a_pace(indexer_pool: Pool, worker: Worker) -> None:
    orders = await paced(indexer_pool, worker)
    worker.pacing = Pacing(seconds_per_trigger=1, burst=1, max_in_flight=99)
    assert None in [await worker.begin(order) for order in orders]


async def test_a_pause_that_cre_asks_for_moves_its_workflow_only_and_never_nearer(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    orders = await paced(indexer_pool, worker)
    await owner.execute("INSERT INTO workflow_slot VALUES ($1, $2, now())", CHAIN, OTHER_WORKFLOW)
    assert await worker.begin(orders[0]) == 1
    waits = "SELECT round(extract(epoch FROM earliest_next_at - clock_timestamp()) / 10) FROM workflow_slot"
    assert await worker.answer(orders[0], 1, "refused_now", postpone_seconds=300.0) == "confirmed"
    assert [row[0] for row in await owner.fetch(f"{waits} ORDER BY workflow_id = $1", WORKFLOW)] == [0, 30]
    assert (
        await owner.fetchval(
            "SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) FROM mint_request WHERE id = 1"
        )
        > 290
    )
    assert await claims.waiting(worker.pool, CHAIN, limit=9) == []
    assert await claims.queue(worker.pool, CHAIN) == [1]
    assert await worker.begin(orders[1]) is None
    await owner.execute("UPDATE workflow_slot SET earliest_next_at = now() + interval '1 hour'")
    await worker.answer(orders[0], 1, "unknown", postpone_seconds=60.0)
    assert [row[0] for row in await owner.fetch(waits)] == [360, 360]
    await owner.execute("UPDATE workflow_slot SET earliest_next_at = '2020-01-01'")
    await worker.answer(orders[0], 1, "unknown", postpone_seconds=1.0)
    assert await owner.fetchval("SELECT max(earliest_next_at) > now() - interval '1 minute' FROM workflow_slot")


# -- the daily cap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", sorted(claims.REFUSED_BEFORE_FORWARDING))
async def test_what_never_left_does_not_count_for_the_day(
    indexer_pool: Pool, worker: Worker, owner: Any, outcome: str
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=9, daily_cap_wei=ETHER)
    await worker.send(1, outcome=outcome)
    await worker.send(2)  # fills the day to the last wei
    third = await worker.claimed(3)
    await worker.freeze(third)
    assert await worker.begin(third) is None
    story = await owner.fetchrow("SELECT reason, detail FROM mint_transition WHERE request_id = 3 ORDER BY id DESC")
    assert story["reason"] == "daily_cap"
    assert story["detail"].startswith(f"{ETHER} wei were sent this UTC day")
    # What was refused yesterday and sent today was first sent today; what may have been delivered yesterday was not.
    await owner.execute("UPDATE attempt SET started_at = started_at - interval '1 day' WHERE request_id = 1")
    assert await owner.fetchval(claims._SENT_TODAY, CHAIN, 3) == ETHER
    await owner.execute(
        "INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)"
        " VALUES (1, 2, 0, 1, gen_random_uuid(), gen_random_uuid())"
    )
    assert await owner.fetchval(claims._SENT_TODAY, CHAIN, 3) == 2 * ETHER
    for known, answered in (("'unknown'", "now()"), ("NULL", "NULL")):
        changed = f"outcome = {known}, answered_at = {answered}"
        await owner.execute(f"UPDATE attempt SET {changed} WHERE request_id = 1 AND attempt_no = 1")  # noqa: S608 - words of ours
        assert await owner.fetchval(claims._SENT_TODAY, CHAIN, 3) == ETHER


async def test_a_day_begins_at_midnight_in_utc_and_a_request_counts_on_its_first_one(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    for request_id in (1, 2):
        await worker.send(request_id, outcome="unknown")
        await owner.execute("UPDATE mint_request SET next_attempt_at = now() WHERE id = $1", request_id)
    midnight = "date_trunc('day', now(), 'UTC')"
    at = "UPDATE attempt SET started_at = {} WHERE request_id = {} AND attempt_no = {}"

    async def sent_today(besides: int = 3) -> int:
        return int(await owner.fetchval(claims._SENT_TODAY, CHAIN, besides))

    assert (await sent_today(), await sent_today(besides=1)) == (2 * ETHER, ETHER)
    await owner.execute(at.format(midnight, 1, 1))
    assert await sent_today() == 2 * ETHER
    await owner.execute(at.format(f"{midnight} - interval '1 microsecond'", 1, 1))
    assert await sent_today() == ETHER
    # Sent again today: it stays yesterday's.
    for order in await claims.due(worker.pool, CHAIN, limit=9):
        assert await worker.begin(order) == 2
    assert await sent_today() == ETHER


async def test_what_was_sent_is_sent_again_whatever_the_day_has_seen_since(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, request("d1", one), request("d2", one, log_index=1))
    await list_both(worker)
    for request_id in (1, 2):
        await worker.send(request_id, outcome="unknown")
    await let_pass(owner, 1, next_attempt_at=91)
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=9, daily_cap_wei=ETHER)
    assert await worker.begin(due) == 2


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("accepted", "accepted"),
        ("refused_for_good", "review"),
        ("payload_conflict", "review"),
        ("refused_now", "confirmed"),
        ("instance_refused", "confirmed"),
        ("never_connected", "confirmed"),
        ("in_flight", "in_doubt"),
        ("unknown", "in_doubt"),
    ],
)
async def test_where_an_answer_leads(indexer_pool: Pool, worker: Worker, outcome: str, state: str) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_both(worker)
    order = await worker.send(1, outcome=None)
    assert await worker.answer(order, 1, outcome) == state
    assert await states(indexer_pool) == [state]


async def test_a_refusal_after_a_doubt_keeps_the_back_off_of_its_attempt(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_both(worker)
    await worker.send(1, outcome="unknown")
    await let_pass(owner, 1, next_attempt_at=91)
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert await worker.begin(due) == 2
    assert await worker.answer(due, 2, "refused_now") == "in_doubt"
    assert await claims.due(worker.pool, CHAIN, limit=9) == []


async def test_an_answer_that_asks_for_no_pause_moves_no_slot_and_its_request_waits_for_nothing(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    orders = await paced(indexer_pool, worker)
    for order in orders[:2]:
        assert await worker.begin(order) == 1
    await owner.execute("UPDATE workflow_slot SET earliest_next_at = '2020-01-01'")
    await worker.answer(orders[0], 1, "refused_now")
    await worker.answer(orders[1], 1, "unknown")
    assert await owner.fetchval("SELECT earliest_next_at = '2020-01-01' FROM workflow_slot")
    at_once = """
        SELECT r.next_attempt_at BETWEEN a.answered_at AND clock_timestamp()
        FROM mint_request r JOIN attempt a ON a.request_id = r.id WHERE r.id = 1
    """
    assert await owner.fetchval(at_once)


def test_an_answer_says_nothing_that_it_was_not_told() -> None:
    answered = Answered(outcome="accepted", http_status=200, sentence=None, answer=None)
    assert (answered.postpone_seconds, answered.deadline_seconds, answered.says) == (0, 0, Says.NOTHING)


async def test_an_acceptance_that_comes_too_late_gives_no_new_deadline(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_both(worker)
    order = await worker.send(1, outcome=None)
    await owner.execute("UPDATE mint_request SET state = 'failed', deadline_at = '2020-01-01'")
    assert await worker.answer(order, 1, "accepted") == "failed"
    assert await owner.fetchval("SELECT deadline_at = '2020-01-01' FROM mint_request")


async def test_a_refusal_without_a_sentence_opens_the_breaker_too(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    await confirmed(indexer_pool, request("d1", block(1)))
    await list_both(worker)
    await worker.send(1, "instance_refused", says=Says.INSTANCE_REFUSED, code="clock_off")
    sentence = "CRE refuses it."
    assert await owner.fetchval("SELECT sentence FROM breaker") == sentence
    assert await owner.fetchval("SELECT sentence FROM alarm") == sentence


# -- sweeps -----------------------------------------------------------------------------------------------------------


async def test_a_sweep_moves_what_is_overdue_and_says_why(indexer_pool: Pool, worker: Worker, owner: Any) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(10)))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    for request_id, outcome in ((1, None), (2, "accepted"), (3, "unknown"), (4, "accepted")):
        await worker.send(request_id, outcome=outcome)
    # Beside each a fresh one, which nothing moves.
    for request_id, outcome in ((6, "accepted"), (7, "unknown")):
        await worker.send(request_id, outcome=outcome)
    fresh = await worker.claimed(5)
    await owner.execute(
        "UPDATE mint_request SET state = 'claimed', lease_ends_at = now(), worker_id = $1 WHERE id = 1", uuid4()
    )
    await let_pass(owner, 2, deadline_at=2_401)
    await let_pass(owner, 3, state_changed_at=3_601, next_attempt_at=3_601)
    await owner.execute(
        """
        UPDATE mint_request SET state = 'failed', state_reason = 'not_delivered',
            state_changed_at = now() - interval '1001 seconds'
        WHERE id = 4
        """
    )
    held = "UPDATE mint_request SET held_at = now(), held_reason = $2, next_attempt_at = now() + $3 WHERE id = $1"
    for request_id, reason, wait in ((8, "daily_cap", -1), (9, "daily_cap", 60), (10, "a person", -1)):
        await owner.execute(held, request_id, reason, timedelta(seconds=wait))
    assert await worker.sweep(resend_after_seconds=1_000) == Swept(leases=1, deadlines=1, doubts=1, resends=1, holds=1)
    assert await states(indexer_pool) == [
        *("confirmed", "failed", "review", "in_doubt", "claimed", "accepted", "in_doubt"),
        *("confirmed",) * 3,
    ]
    rows = await owner.fetch("SELECT id, held_at IS NULL, held_reason FROM mint_request WHERE id > 7 ORDER BY id")
    assert [tuple(row) for row in rows] == [(8, True, None), (9, False, "daily_cap"), (10, False, "a person")]
    story = await owner.fetch(
        "SELECT DISTINCT ON (request_id) reason, detail FROM mint_transition WHERE request_id < 5"
        " ORDER BY request_id, id DESC"
    )
    assert [tuple(row) for row in story] == [
        ("lease_expired", None),
        ("not_delivered", "CRE accepted the request, but no delivery reached the chain in time.  It is still watched."),
        ("gave_up", "No attempt got an answer that settles whether it was delivered."),
        ("resend", "Not delivered long ago: the same bytes are sent again under the same id."),
    ]
    (alarm,) = await owner.fetch("SELECT kind, request_id, sentence FROM alarm")
    assert tuple(alarm) == (
        "gave_up",
        3,
        "Nothing settles whether CRE got this request; ask CRE for its execution id.",
    )
    assert await worker.freeze(fresh)


async def test_what_a_sweep_lets_go_of_is_held_while_its_basket_is_paused(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(3)))
    await list_both(worker)
    await worker.send(1)
    failed = "state = 'failed', state_reason = 'not_delivered', state_changed_at = now() - interval '1001 seconds'"
    await owner.execute(f"UPDATE mint_request SET {failed} WHERE id = 1")  # noqa: S608 - words of ours
    held = "UPDATE mint_request SET held_at = now(), held_reason = 'daily_cap', next_attempt_at = now() WHERE id > 1"
    await owner.execute(held)
    await owner.execute("UPDATE mint_request SET state = 'seen' WHERE id = 3")
    await owner.execute("INSERT INTO basket_pause VALUES ($1, $2, now(), 'x')", CHAIN, TOKEN)

    async def holds() -> list[tuple[str, str | None]]:
        return [tuple(row) for row in await owner.fetch("SELECT state, held_reason FROM mint_request ORDER BY id")]

    assert await worker.sweep() == replace(NOTHING, holds=1)
    # What waits to be judged is not released by its time.
    assert await holds() == [("failed", None), ("confirmed", "basket_paused"), ("seen", "daily_cap")]
    assert await worker.sweep(resend_after_seconds=1_000) == replace(NOTHING, resends=1)
    assert (await holds())[0] == ("in_doubt", "basket_paused")


async def test_fifty_are_sent_again_at_a_time_oldest_first_and_what_may_not_be_is_in_nobody_s_way(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(51 + 4 * 50)))
    await owner.execute(
        """
        INSERT INTO frozen_request
        SELECT id, 0, nonce, CASE WHEN id > 201 THEN 'simulate' ELSE 'gateway' END, $1, consumer, '', consumer, '',
            sha256('')
        FROM mint_request
        """,
        WORKFLOW,
    )
    await owner.execute(
        "INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)"
        " SELECT id, 1, 0, 1, gen_random_uuid(), gen_random_uuid() FROM mint_request"
    )
    # The first is the youngest of those that may be sent again; all of the others are older.
    await owner.execute(
        """
        UPDATE mint_request SET state = 'failed', state_reason = 'not_delivered',
            state_changed_at = now() - make_interval(days => id::integer)
        """
    )
    for change in (
        "chain_status = 'orphaned' WHERE id BETWEEN 52 AND 101",
        "held_at = now(), held_reason = 'x' WHERE id BETWEEN 102 AND 151",
        "holds_reference = false WHERE id BETWEEN 152 AND 201",
    ):
        await owner.execute(f"UPDATE mint_request SET {change}")  # noqa: S608 - words of ours
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 50
    rest = [*["in_doubt"] * 50, *["failed"] * 200]
    assert await states(indexer_pool) == ["failed", *rest]
    await owner.execute("UPDATE mint_request SET state_reason = 'delivery_failed' WHERE id = 1")
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 0
    await owner.execute("UPDATE mint_request SET state_reason = 'not_delivered' WHERE id = 1")
    assert (await worker.sweep(resend_after_seconds=1000)).resends == 1
    assert await states(indexer_pool) == ["in_doubt", *rest]


async def test_doubts_come_due_in_the_order_in_which_they_were_due_unless_held_or_orphaned(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(6)))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    for request_id, seconds in ((1, 10), (2, 30), (3, 20), (4, 40), (5, 50)):
        await worker.send(request_id, outcome="unknown")
        await let_pass(owner, request_id, next_attempt_at=90 + seconds)
    await worker.send(6, outcome="unknown")  # not due yet
    await owner.execute("UPDATE mint_request SET held_at = now(), held_reason = 'x' WHERE id = 4")
    await owner.execute("UPDATE mint_request SET chain_status = 'orphaned' WHERE id = 5")
    assert [order.request_id for order in await claims.due(worker.pool, CHAIN, limit=9)] == [2, 3, 1]
    assert [order.request_id for order in await claims.due(worker.pool, CHAIN, limit=2)] == [2, 3]


async def test_what_waits_is_listed_oldest_first_but_what_was_shown(indexer_pool: Pool, worker: Worker) -> None:
    two, one = block(2), block(1)
    genesis = await pin_chain(indexer_pool)
    made = batch(
        one,
        two,
        on=genesis,
        requests=(
            request("d1", two),
            request("d2", one, log_index=1),
            request("d3", one),
        ),
    )
    finality = Finality(finalized=2, safe=2, trigger=2, complete=2)
    await following.commit(indexer_pool, CHAIN, with_finality(made, finality), RULES)
    names = {
        row["id"]: (row["block_number"], row["log_index"])
        for row in await indexer_pool.fetch("SELECT * FROM mint_request")
    }

    async def listed(besides: set[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
        orders = await claims.waiting_orders(worker.pool, CHAIN, besides=besides, limit=limit)
        return [names[order.request_id] for order in orders]

    assert await listed(set(), 9) == [(1, 0), (1, 1), (2, 0)]
    assert await listed(set(), 2) == [(1, 0), (1, 1)]
    oldest = next(request_id for request_id, place in names.items() if place == (1, 0))
    assert await listed({(oldest, 0)}, 9) == [(1, 1), (2, 0)]
    assert await listed({(oldest, 1)}, 9) == [(1, 0), (1, 1), (2, 0)]  # of another generation


async def test_a_chain_that_nobody_pinned_lets_nothing_through(dsn: str) -> None:
    async with await open_pool(dsn, Role.INVOCATOR) as pool:
        assert await claims.gate(pool, CHAIN) == Gate(open=False, in_flight=0)
        assert await claims.free_workflows(pool, CHAIN, PACING, [WORKFLOW]) == frozenset()


# -- the gate ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_is_kept_with_its_reason_until_cre_works_again(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n, requester=BOB) for n in range(4)))
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    orders = [await worker.claimed(n) for n in (1, 2, 3, 4)]
    for order in orders:
        await worker.freeze(order)
    assert await worker.begin(orders[0]) == 1
    refused = {"says": Says.INSTANCE_REFUSED, "code": "clock_off", "sentence": "Off."}
    await worker.answer(orders[0], 1, "never_connected", **refused)
    gate = await owner.fetchrow(
        """
        SELECT outcome, code, sentence, refusals, pause_seconds,
            round(extract(epoch FROM probe_at - opened_at)), opened_at
        FROM breaker
        """
    )
    assert tuple(gate)[:6] == ("never_connected", "clock_off", "Off.", 1, 5.0, 5)
    # No alarm of an instance that is refused: it was not even reached.
    assert await owner.fetchval("SELECT count(*) FROM alarm") == 0
    assert await claims.gate(worker.pool, CHAIN) == Gate(open=False, in_flight=0)
    assert await worker.begin(orders[1]) is None
    await owner.execute("UPDATE breaker SET probe_at = now()")
    assert (await claims.gate(worker.pool, CHAIN)).open
    assert await worker.begin(orders[1]) == 1  # a probe, for as long as its attempt may take
    between = "SELECT extract(epoch FROM probe_at - next_attempt_at) FROM breaker, mint_request WHERE id = 2"
    assert abs(await owner.fetchval(between)) < 0.5
    assert await worker.begin(orders[2]) is None
    again = {"says": Says.INSTANCE_REFUSED, "code": "token_refused", "sentence": "Bad."}
    await worker.answer(orders[1], 1, "instance_refused", **again)
    since = await owner.fetchrow("SELECT outcome, code, sentence, refusals, pause_seconds, opened_at FROM breaker")
    assert tuple(since) == ("instance_refused", "token_refused", "Bad.", 2, 10.0, gate["opened_at"])
    await owner.execute("UPDATE breaker SET probe_at = now(), pause_seconds = 200")
    assert await worker.begin(orders[2]) == 1
    assert await owner.fetchval("SELECT extract(epoch FROM probe_at - clock_timestamp()) FROM breaker") > 190
    await worker.answer(orders[2], 1, "unknown", says=Says.WORKS)
    assert await owner.fetch("SELECT FROM breaker") == []
    assert await worker.begin(orders[3]) == 1


async def test_only_what_began_after_the_gate_closed_says_anything_about_it(
    indexer_pool: Pool, worker: Worker, owner: Any
) -> None:
    one = block(1)
    await confirmed(indexer_pool, *(request(f"d{n}", one, log_index=n) for n in range(4)))
    await list_both(worker)
    orders = [await worker.claimed(n) for n in (1, 2, 3, 4)]
    for order in orders:
        await worker.freeze(order)
    early, closing, second, probe = orders
    assert [await worker.begin(order) for order in (early, closing, second)] == [1, 1, 1]
    await worker.answer(second, 1, "unknown")
    refused = {"says": Says.INSTANCE_REFUSED, "code": "clock_off", "sentence": "Off."}
    await worker.answer(closing, 1, "instance_refused", **refused)
    # A probe is under way, and after it another attempt of one that had one before.
    await owner.execute("UPDATE breaker SET probe_at = now()")
    assert await worker.begin(probe) == 1
    await owner.execute("UPDATE breaker SET probe_at = now()")
    await let_pass(owner, 3, next_attempt_at=91)
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert await worker.begin(due) == 2
    await worker.answer(early, 1, "unknown", says=Says.WORKS)
    await worker.answer(second, 1, "unknown", says=Says.WORKS)
    assert await owner.fetchval("SELECT pause_seconds FROM breaker") == 5.0
    assert await owner.fetchval("SELECT outcome FROM attempt WHERE request_id = 3 AND attempt_no = 2") is None
    # At the very moment is after.
    await owner.execute(
        "UPDATE attempt SET started_at = opened_at FROM breaker WHERE request_id = 3 AND attempt_no = 2"
    )
    await worker.answer(due, 2, "unknown", **refused)
    assert await owner.fetchval("SELECT pause_seconds FROM breaker") == 10.0
    await worker.answer(due, 2, "unknown", says=Says.WORKS)
    assert await owner.fetch("SELECT FROM breaker") == []
