"""One order of locks: whatever works at the same moment waits in turn, and no two wait for each other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, TypeAlias

import asyncpg
import pytest

from datastore import claims, following, operators, sweeping
from datastore.connection import Pool, Role, lock_chain, open_pool, unit
from datastore.instructions import Cancel, Hold, Instruction, Release, Retry
from datastore.operators import BasketSwitch, Person, Switch
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Batch, Block, Finality
from datastore.settlement import Horizon
from tests.datastore.builders import (
    BOB,
    CHAIN,
    RULES,
    TOKEN,
    basket,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    request,
    role_change,
    with_finality,
)
from tests.datastore.workers import WORKFLOW, Worker

ELSEWHERE: Final = CHAIN + 1
PERSON: Final = Person(name="test", reason="a test")
ROUNDS: Final = 8
ONE: Final = block(1)


@dataclass(frozen=True, kw_only=True)
class Pools:
    indexer: Pool
    invocator: Pool
    operator: Pool


@pytest.fixture
async def pools(dsn: str, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[Pools]:
    """Requests for three deposits, on two chains, some confirmed and some refused as duplicates."""
    genesis = await pin_chain(indexer_pool)
    pin = Pin(
        chain_id=ELSEWHERE,
        genesis_hash=hash_of("genesis"),
        factory_address=bytes(20),
        factory_code_hash=hash_of("code"),
        forwarder_address=bytes(20),
        secret_check=b"check",
    )
    await pin_first_start(indexer_pool, pin, start=ONE, first_trigger_block_number=0)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    asked = tuple(request(f"r{n}", ONE, log_index=n, bank=f"D{n % 3}") for n in range(6))
    first = replace(batch(ONE, on=genesis, requests=asked, final=1), baskets=(basket(ONE, log_index=90),))
    await following.commit(indexer_pool, CHAIN, first, RULES)
    await following.commit(indexer_pool, ELSEWHERE, batch(ONE, on=genesis), RULES)
    async with await open_pool(dsn, Role.OPERATOR) as operator_pool:
        yield Pools(indexer=indexer_pool, invocator=invocator_pool, operator=operator_pool)


def branch(fork: str, *, leaving: Block, asked: int = 4) -> Batch:
    """Block 2 of another branch, with the same transactions in it; all of it is final enough to be judged."""
    two = block(2, fork=fork, parent_fork="a")
    requests = tuple(request(f"s{n}", two, log_index=n, bank=f"D{n % 3}") for n in range(asked))
    made = batch(two, on=ONE, leaving=leaving, requests=requests)
    return with_finality(made, Finality(finalized=1, safe=1, trigger=2, complete=1))


async def instruct(pool: Pool, request_id: int, instruction: Instruction) -> None:
    await operators.instruct(
        pool,
        CHAIN,
        request_id,
        instruction,
        PERSON,
        finality=lambda position: Horizon(complete=position.finalized, trigger=position.finalized),
        nonce_of=lambda *_: pytest.fail("nothing new is sent"),
        deadline_seconds=2_400,
    )


# -- the writers ------------------------------------------------------------------------------------------------------
Writer: TypeAlias = Callable[[Pools], Coroutine[object, object, None]]


async def reorganise(pools: Pools) -> None:
    """The chain leaves its last block again and again, and each time somebody forges a mint."""
    leaving = ONE
    for n in range(ROUNDS):
        made = branch(f"fork {n}", leaving=leaving)
        forged = mint(made.blocks[0], of=made.requests[n % 3], log_index=50)
        changed = (role_change(made.blocks[0]),) if n % 4 == 0 else ()
        made = replace(made, mints=(forged,) if n % 2 else (), role_changes=changed)
        await following.commit(pools.indexer, CHAIN, made, RULES)
        leaving = made.blocks[0]
        await following.settle_references(pools.indexer, CHAIN, RULES)


async def reorganise_elsewhere(pools: Pools) -> None:
    """Another chain's requests for the same deposits."""
    leaving = ONE
    for n in range(ROUNDS):
        two = block(2, fork=f"elsewhere {n}", parent_fork="a")
        asked = tuple(request(f"e{m}", two, log_index=m, bank=f"D{m % 3}", beneficiary=BOB) for m in range(3))
        made = with_finality(
            batch(two, on=ONE, leaving=leaving, requests=asked),
            Finality(finalized=-1, safe=-1, trigger=2, complete=-1),
        )
        await following.commit(pools.indexer, ELSEWHERE, made, RULES)
        leaving = two
        await following.settle_references(pools.indexer, ELSEWHERE, RULES)


async def send(pools: Pools) -> None:
    """Claims, some of which are left to the sweep, and attempts that are refused."""
    worker = Worker(pool=pools.invocator, lease_seconds=0)
    quick = Worker(pool=pools.invocator)
    for n in range(ROUNDS):
        ids = [order.request_id for order in await claims.waiting(pools.invocator, CHAIN, limit=3)]
        for request_id in ids:
            order = await (worker if n % 2 else quick).claim(request_id)
            if order is None or n % 2:
                continue
            if (order.frozen is not None or await quick.freeze(order)) and (number := await quick.begin(order)):
                await quick.answer(order, number, "refused_now")


async def sweep(pools: Pools) -> None:
    for _ in range(ROUNDS):
        await Worker(pool=pools.invocator).sweep()


async def steer(pools: Pools) -> None:
    """A person holds, releases, cancels and retries."""
    for n in range(ROUNDS):
        for instruction in (Hold(), Release(None), Retry(), Cancel() if n == ROUNDS - 1 else Hold()):
            await instruct(pools.operator, 1 + n % 6, instruction)


async def pause_baskets(pools: Pools) -> None:
    for n in range(ROUNDS):
        switch = BasketSwitch.RESUME if n % 2 else BasketSwitch.PAUSE
        await operators.turn_basket(pools.operator, CHAIN, TOKEN, switch, PERSON)


async def pause_all(pools: Pools) -> None:
    for n in range(ROUNDS):
        switch = Switch.RESUME if n % 2 else Switch.PAUSE
        await operators.throw(pools.operator, CHAIN, switch, PERSON, deadline_seconds=2400)


WRITERS: Final = (reorganise, reorganise_elsewhere, send, sweep, steer, pause_baskets, pause_all)


async def deadlocks(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    await connection.execute("SELECT pg_stat_force_next_flush()")
    number: int = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    await connection.close()
    return number


@pytest.mark.parametrize(("one", "other"), [*combinations(WRITERS, 2)], ids=lambda writer: writer.__name__)
async def test_no_two_writers_wait_for_each_other(dsn: str, pools: Pools, one: Writer, other: Writer) -> None:
    before = await deadlocks(dsn)
    await asyncio.gather(one(pools), other(pools))
    assert await deadlocks(dsn) == before


async def test_all_writers_at_once_wait_in_turn(dsn: str, pools: Pools) -> None:
    before = await deadlocks(dsn)
    await asyncio.gather(*(writer(pools) for writer in (*WRITERS, send, sweep, steer)))
    assert await deadlocks(dsn) == before


# -- the first lock ---------------------------------------------------------------------------------------------------
async def commit_nothing(pools: Pools) -> None:
    await following.commit(pools.indexer, CHAIN, branch("late", leaving=ONE), RULES)


async def record_again(pools: Pools) -> None:
    await following.record_range(pools.indexer, CHAIN, batch(ONE, on=block(0), final=1), RULES, hold_reason=None)


async def settle(pools: Pools) -> None:
    await pools.indexer.execute(
        "INSERT INTO unsettled_reference (chain_id, bank_reference, event) VALUES ($1, $2, 'rival_gave_up')",
        CHAIN,
        hash_of("reference"),
    )
    await following.settle_references(pools.indexer, CHAIN, RULES)


async def sweep_a_lease(pools: Pools) -> None:
    await Worker(pool=pools.invocator, lease_seconds=0).claim(1)
    await Worker(pool=pools.invocator).sweep()


async def pass_on(pools: Pools) -> None:
    orders = await claims.waiting(pools.invocator, CHAIN, limit=3)
    await claims.give_to_a_person(pools.invocator, CHAIN, orders, reason="mode_changed", detail="x", after_seconds=0)


async def hold_one(pools: Pools) -> None:
    await instruct(pools.operator, 1, Hold())


async def pause_one_basket(pools: Pools) -> None:
    await operators.turn_basket(pools.operator, CHAIN, TOKEN, BasketSwitch.PAUSE, PERSON)


async def conclude(pools: Pools) -> None:
    await sweeping.conclude(
        pools.indexer, CHAIN, swept=None, differences=[], repair=None, rules=RULES, sentence="a test"
    )


@pytest.mark.parametrize(
    "work",
    [commit_nothing, record_again, settle, sweep_a_lease, pass_on, hold_one, pause_one_basket, conclude],
    ids=lambda work: work.__name__,
)
async def test_whoever_works_on_several_requests_locks_the_chain_before_any_of_them(
    dsn: str, pools: Pools, work: Writer
) -> None:
    watcher = await asyncpg.connect(dsn)
    async with asyncio.TaskGroup() as tasks, unit(pools.indexer) as connection:
        await lock_chain(connection, CHAIN)
        working = tasks.create_task(work(pools))
        while not await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            assert not working.done()
        free = len(await watcher.fetch("SELECT FROM mint_request FOR UPDATE SKIP LOCKED"))
        assert free == await watcher.fetchval("SELECT count(*) FROM mint_request")
        assert await watcher.fetch("SELECT FROM control FOR UPDATE SKIP LOCKED")
    await watcher.close()
