"""Served baskets and the others: who becomes served, how the slots and the places are shared, and that it lasts."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import asyncpg
import pytest

from datastore import claims, following, inspection, operators
from datastore.claims import Pacing
from datastore.connection import Pool, Role, open_pool
from datastore.instructions import AlreadySo, Will
from datastore.operators import BasketSwitch, Person
from datastore.rows import Block, Request
from tests.datastore.builders import (
    CHAIN,
    RULES,
    TOKEN,
    basket,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    report,
    request,
)
from tests.datastore.workers import PACING, WORKFLOW, Worker, confirmed, execution_ids, let_pass, states

OTHER = b"\x71" * 20
PERSON = Person(name="alice", reason="ticket 7")


@pytest.fixture
def worker(invocator_pool: Pool) -> Worker:
    return Worker(pool=invocator_pool)


@pytest.fixture
async def operator_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        yield pool


def token(number: int) -> bytes:
    return hash_of("token", number)[:20]


def of_basket(stablecoin: bytes, name: str, *, log_index: int) -> Request:
    return request(name, block(1), log_index=log_index, stablecoin=stablecoin, requester=stablecoin)


async def ready(indexer: Pool, worker: Worker, requests: Iterable[Request]) -> Block:
    tip = await confirmed(indexer, *requests)
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    return tip


async def rule(pool: Pool, dsn: str, stablecoin: bytes, *, allowed: bool = True) -> None:
    """As `bskt baskets allow` writes it, of a basket that this test did not announce."""
    owner = await asyncpg.connect(dsn)
    await owner.execute(
        """
        INSERT INTO basket_standing (chain_id, stablecoin, allowed, allowed_at, allowed_reason)
        VALUES ($1, $2, $3, now(), 'a test')
        ON CONFLICT (chain_id, stablecoin) DO UPDATE SET allowed = excluded.allowed
        """,
        CHAIN,
        stablecoin,
        allowed,
    )
    await owner.close()
    assert await pool.fetchval("SELECT served FROM basket_standing WHERE stablecoin = $1", stablecoin) is allowed


async def send_next(worker: Worker) -> bytes:
    """Claim and send whatever is first now; the token of its basket."""
    (first, *_) = await claims.waiting(worker.pool, CHAIN, limit=2, pacing=worker.pacing)
    return (await worker.send(first.request_id)).stablecoin


# -- who is served ---------------------------------------------------------------------------------------------------


async def test_a_completed_mint_serves_its_basket_for_good_and_only_a_final_one(
    indexer_pool: Pool, worker: Worker
) -> None:
    genesis, one, two, three = await pin_chain(indexer_pool), block(1), block(2), block(3)
    made = request("d1", one), request("d2", one, log_index=1, stablecoin=OTHER)
    await following.commit(
        indexer_pool, CHAIN, batch(one, on=genesis, requests=made, baskets=(basket(one, log_index=9),), final=1), RULES
    )
    await claims.list_workflows(worker.pool, CHAIN, [WORKFLOW])
    order = await worker.send(1)
    delivered = batch(
        two, on=one, mints=(mint(two, of=made[0]),), reports=(report(two, execution_id=execution_ids(order)[1]),)
    )
    await following.commit(indexer_pool, CHAIN, delivered, RULES)
    assert await states(indexer_pool) == ["executed", "confirmed"]
    assert await indexer_pool.fetch("SELECT * FROM basket_standing") == []
    await following.commit(indexer_pool, CHAIN, batch(three, on=two, final=3), RULES)
    assert await states(indexer_pool) == ["completed", "confirmed"]
    rows = await indexer_pool.fetch("SELECT stablecoin, served, allowed FROM basket_standing")
    assert [tuple(row) for row in rows] == [(TOKEN, True, None)]
    (view,) = await inspection.baskets(indexer_pool, CHAIN)
    assert (view.served, view.allowed, view.completed_at is not None) == (True, None, True)


async def test_a_second_completed_mint_leaves_the_first_one_s_time(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    await ready(indexer_pool, worker, [request("d1", block(1)), request("d2", block(1), log_index=1)])
    owner = await asyncpg.connect(dsn)
    for request_id in (1, 2):
        await owner.execute("SET ROLE bskt_indexer")
        await owner.execute("UPDATE mint_request SET state = 'executed' WHERE id = $1", request_id)
        await owner.execute("UPDATE mint_request SET state = 'completed' WHERE id = $1", request_id)
        await owner.execute("RESET ROLE")
        await owner.execute("UPDATE basket_standing SET completed_at = '2026-01-01Z'")
    rows = await owner.fetch("SELECT completed_at = '2026-01-01Z' AS kept, served FROM basket_standing")
    assert [tuple(row) for row in rows] == [(True, True)]
    await owner.close()


async def test_many_mints_of_many_baskets_complete_in_one_commit(dsn: str, indexer_pool: Pool, worker: Worker) -> None:
    await ready(indexer_pool, worker, [of_basket(token(n % 2), f"d{n}", log_index=n) for n in range(6)])
    owner = await asyncpg.connect(dsn)
    await owner.execute("SET ROLE bskt_indexer")
    await owner.execute("UPDATE mint_request SET state = 'executed'")
    await owner.execute("UPDATE mint_request SET state = 'completed', state_changed_at = clock_timestamp()")
    rows = await owner.fetch(
        "SELECT b.completed_at = (SELECT min(r.state_changed_at) FROM mint_request r WHERE r.stablecoin = b.stablecoin)"
        " FROM basket_standing b"
    )
    assert [tuple(row) for row in rows] == [(True,), (True,)]
    await owner.close()


async def test_a_person_allows_and_disallows_a_basket_and_each_is_recorded(
    indexer_pool: Pool, worker: Worker, operator_pool: Pool
) -> None:
    genesis, one = await pin_chain(indexer_pool), block(1)
    made = batch(one, on=genesis, requests=(request("d1", one),), baskets=(basket(one, log_index=9),), final=1)
    await following.commit(indexer_pool, CHAIN, made, RULES)

    async def turn(switch: BasketSwitch) -> operators.Answer:
        return await operators.turn_basket(operator_pool, CHAIN, TOKEN, switch, PERSON)

    allowed = await turn(BasketSwitch.ALLOW)
    assert isinstance(allowed.verdict, Will)
    assert (allowed.before["served"], allowed.after["served"]) == (False, True)
    assert isinstance((await turn(BasketSwitch.ALLOW)).verdict, AlreadySo)
    (order,) = await claims.waiting(worker.pool, CHAIN, limit=9)
    assert order.basket_is_served
    disallowed = await turn(BasketSwitch.DISALLOW)
    assert (disallowed.before["served"], disallowed.after["served"]) == (True, False)
    assert isinstance((await turn(BasketSwitch.DISALLOW)).verdict, AlreadySo)
    rows = await indexer_pool.fetch("SELECT action, operator, reason, request_id FROM operator_action ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("allow_basket", "alice", "ticket 7", None),
        ("disallow_basket", "alice", "ticket 7", None),
    ]


async def test_a_ruling_survives_a_reorg_of_its_basket(indexer_pool: Pool, operator_pool: Pool) -> None:
    genesis, one, other = await pin_chain(indexer_pool), block(1), block(1, fork="b", parent_fork="a")
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, baskets=(basket(one),)), RULES)
    await operators.turn_basket(operator_pool, CHAIN, TOKEN, BasketSwitch.ALLOW, PERSON)
    await following.commit(indexer_pool, CHAIN, batch(other, on=genesis, leaving=one, baskets=(basket(other),)), RULES)
    (view,) = await inspection.baskets(indexer_pool, CHAIN)
    assert (view.block_hash, view.served, view.allowed_reason) == (other.hash, True, "alice: ticket 7")


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("bskt_indexer", "INSERT INTO basket_standing (chain_id, stablecoin, completed_at) VALUES ($1, $2, now())"),
        ("bskt_invocator", "UPDATE basket_standing SET allowed = true WHERE chain_id = $1 AND stablecoin = $2"),
        ("bskt_operator", "UPDATE basket_standing SET completed_at = now() WHERE chain_id = $1 AND stablecoin = $2"),
        ("bskt_operator", "DELETE FROM basket_standing WHERE chain_id = $1 AND stablecoin = $2"),
    ],
)
async def test_no_part_makes_a_basket_served_but_a_person_by_a_ruling(
    dsn: str, indexer_pool: Pool, role: str, statement: str
) -> None:
    await pin_chain(indexer_pool)
    owner = await asyncpg.connect(dsn)
    await owner.execute(f"SET ROLE {role}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await owner.execute(statement, CHAIN, TOKEN)
    await owner.close()


# -- the slots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [10, 1_000])
async def test_behind_any_number_of_hostile_baskets_a_served_one_waits_for_one_send_at_most(
    dsn: str, indexer_pool: Pool, worker: Worker, hostile: int
) -> None:
    """Rotation by basket alone puts it behind all of them: at a send a minute, a thousand are 17 hours."""
    requests = [of_basket(token(n), f"hostile{n}", log_index=n) for n in range(hostile)]
    await ready(indexer_pool, worker, [*requests, of_basket(TOKEN, "honest", log_index=hostile)])
    assert (await inspection.queue_positions(worker.pool, CHAIN, [hostile + 1])) == {hostile + 1: hostile + 1}
    await rule(indexer_pool, dsn, TOKEN)
    assert (await inspection.queue_positions(worker.pool, CHAIN, [hostile + 1])) == {hostile + 1: 1}
    await rule(indexer_pool, dsn, token(0))
    assert await send_next(worker) == token(0)
    # The others have their turn, then it is served: its own basket's place among the served ones decides.
    assert (await inspection.queue_positions(worker.pool, CHAIN, [hostile + 1])) == {hostile + 1: 2}
    assert [await send_next(worker), await send_next(worker)] == [token(1), TOKEN]


async def test_both_kinds_alternate_also_over_restarts_and_the_queue_says_so(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    served = [of_basket(token(100 + n % 2), f"served{n}", log_index=n) for n in range(5)]
    others = [of_basket(token(n), f"other{n}", log_index=10 + n) for n in range(8)]
    await ready(indexer_pool, worker, [*served, *others])
    for number in (100, 101):
        await rule(indexer_pool, dsn, token(number))
    for sent in range(13):
        expected = await claims.queue(worker.pool, CHAIN)
        async with await open_pool(dsn, Role.INVOCATOR) as pool:  # another process, which remembers nothing
            (first, *_) = await claims.waiting(pool, CHAIN, limit=50, pacing=PACING)
            assert first.request_id == expected[0]
            assert first.basket_is_served is (sent % 2 == 0 and sent < 10)
            await Worker(pool=pool).send(first.request_id)
    assert await claims.queue(worker.pool, CHAIN) == []


async def test_the_queue_foretells_the_whole_order_of_claims(dsn: str, indexer_pool: Pool, worker: Worker) -> None:
    requests = [of_basket(token(n % 7), f"d{n}", log_index=n) for n in range(20)]
    await ready(indexer_pool, worker, [*requests, of_basket(TOKEN, "first", log_index=20)])
    for number in (1, 4):
        await rule(indexer_pool, dsn, token(number))
    await worker.send(21)  # the others had the last turn
    expected = await claims.queue(worker.pool, CHAIN)
    made = []
    for _ in expected:
        (first, *_) = await claims.waiting(worker.pool, CHAIN, limit=50, pacing=worker.pacing)
        made.append((await worker.send(first.request_id)).request_id)
    assert made == expected
    assert len(made) == 20


async def test_no_slot_is_left_unused_while_one_kind_has_nothing_that_waits(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    tip = await ready(indexer_pool, worker, [of_basket(token(n), f"other{n}", log_index=n) for n in range(4)])
    await rule(indexer_pool, dsn, TOKEN)
    assert [await send_next(worker) for _ in range(3)] == [token(0), token(1), token(2)]
    # However many the others had meanwhile, a served basket has no credit: it is next, and then they are.
    two = block(2)
    fresh = tuple(request(f"fresh{n}", two, log_index=n) for n in range(2))
    await following.commit(indexer_pool, CHAIN, batch(two, on=tip, requests=fresh, final=2), RULES)
    assert [await send_next(worker) for _ in range(3)] == [TOKEN, token(3), TOKEN]


async def test_what_is_claimed_and_not_sent_takes_no_turn(dsn: str, indexer_pool: Pool, worker: Worker) -> None:
    await ready(indexer_pool, worker, [of_basket(TOKEN, "a", log_index=0), of_basket(TOKEN, "b", log_index=1)])
    await rule(indexer_pool, dsn, TOKEN)
    order = await worker.claimed(1)
    await claims.give_back(worker.pool, order, reason="no_slot")
    assert await claims.last_turns(worker.pool, CHAIN) == {}
    await worker.send(2)
    assert await claims.last_turns(worker.pool, CHAIN) == {WORKFLOW: True}


async def test_a_new_name_among_the_others_is_still_no_way_to_the_front(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    tip = await ready(indexer_pool, worker, [of_basket(token(n), f"other{n}", log_index=n) for n in range(2)])
    await rule(indexer_pool, dsn, TOKEN)
    two = block(2)
    fresh = request("fresh", two, stablecoin=b"\x01" * 20), request("served", two, log_index=1)
    await following.commit(indexer_pool, CHAIN, batch(two, on=tip, requests=fresh, final=2), RULES)
    order = [await send_next(worker) for _ in range(4)]
    assert order == [TOKEN, token(0), token(1), b"\x01" * 20]


# -- the places in flight --------------------------------------------------------------------------------------------


async def test_the_others_never_fill_the_places_that_are_kept_for_served_baskets(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    """What CRE drops silently keeps its place until its deadline."""
    others = [of_basket(token(n), f"other{n}", log_index=n) for n in range(9)]
    await ready(indexer_pool, worker, [*others, of_basket(TOKEN, "served", log_index=9)])
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5, unserved_max_in_flight=2)
    await rule(indexer_pool, dsn, TOKEN)
    # Two that were claimed at once beside the two that are in flight: the recount under the lock refuses them.
    orders = [await worker.claimed(n) for n in range(1, 5)]
    for order in orders:
        await worker.freeze(order)
    assert [await worker.begin(order) for order in orders] == [1, 1, None, None]
    for order in orders[2:]:
        await claims.give_back(worker.pool, order, reason="no_slot")
    waiting = await claims.waiting(worker.pool, CHAIN, limit=9, pacing=worker.pacing)
    assert [order.stablecoin for order in waiting] == [TOKEN]
    await worker.send(10)
    owner = await asyncpg.connect(dsn)
    await let_pass(owner, 1, deadline_at=2_401)  # type: ignore[arg-type]
    await owner.close()
    assert len(await claims.waiting(worker.pool, CHAIN, limit=9, pacing=worker.pacing)) == 7


async def test_while_no_basket_is_served_all_places_are_for_the_others(indexer_pool: Pool, worker: Worker) -> None:
    await ready(indexer_pool, worker, [of_basket(token(n), f"other{n}", log_index=n) for n in range(4)])
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=3, unserved_max_in_flight=1)
    assert [await send_next(worker) for _ in range(3)] == [token(0), token(1), token(2)]
    assert await worker.claim(4) is None


async def test_with_one_place_in_flight_both_kinds_still_have_their_turns(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    served = [of_basket(TOKEN, f"served{n}", log_index=n) for n in range(2)]
    await ready(indexer_pool, worker, [*served, *(of_basket(token(n), f"o{n}", log_index=5 + n) for n in range(2))])
    await rule(indexer_pool, dsn, TOKEN)
    worker.pacing = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=1, unserved_max_in_flight=1)
    owner = await asyncpg.connect(dsn)
    made = []
    for _ in range(4):
        made.append(await send_next(worker))
        assert await claims.free_workflows(worker.pool, CHAIN, worker.pacing, [WORKFLOW]) == frozenset()
        await owner.execute("UPDATE mint_request SET deadline_at = 'epoch' WHERE deadline_at IS NOT NULL")
    await owner.close()
    assert made == [TOKEN, token(0), TOKEN, token(1)]


# -- only listed ones ------------------------------------------------------------------------------------------------

LISTED = replace(PACING, only_allowed=True)


async def test_where_only_listed_baskets_are_sent_for_the_others_wait_out_of_the_queue(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    two_of_one = [of_basket(token(1), f"allowed{n}", log_index=n) for n in range(2)]
    by_another = request("allowed too", block(1), log_index=2, stablecoin=token(1), requester=b"\xfe" * 20)
    beside = [of_basket(token(n), f"o{n}", log_index=5 + n) for n in (0, 2, 3)]
    await ready(indexer_pool, worker, [*two_of_one, by_another, *beside])
    await rule(indexer_pool, dsn, token(1))
    await rule(indexer_pool, dsn, token(2), allowed=False)
    waiting = await claims.waiting(worker.pool, CHAIN, limit=9, pacing=LISTED)
    assert {order.request_id for order in waiting} == {1, 2, 3}
    queue = await claims.queue(worker.pool, CHAIN, only_allowed=True)
    assert queue == [order.request_id for order in waiting]
    assert await inspection.queue_positions(worker.pool, CHAIN, [4], only_allowed=True) == {}
    shown = await claims.waiting_orders(worker.pool, CHAIN, besides=(), limit=9, only_allowed=True)
    assert [order.request_id for order in shown] == [1, 2, 3]


async def test_a_basket_that_is_disallowed_after_the_claim_is_not_sent_for_but_a_doubt_is_settled(
    dsn: str, indexer_pool: Pool, worker: Worker
) -> None:
    await ready(indexer_pool, worker, [of_basket(TOKEN, "a", log_index=0), of_basket(TOKEN, "b", log_index=1)])
    await rule(indexer_pool, dsn, TOKEN)
    worker.pacing = LISTED
    await worker.send(1, "unknown")
    order = await worker.claimed(2)
    await worker.freeze(order)
    await rule(indexer_pool, dsn, TOKEN, allowed=False)
    assert await worker.begin(order) is None
    await let_pass(indexer_pool, 1, next_attempt_at=91)
    (due,) = await claims.due(worker.pool, CHAIN, limit=9)
    assert await worker.begin(due) == 2
