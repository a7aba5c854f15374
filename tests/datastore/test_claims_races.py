"""Two writers who want one row at one moment: whoever is first, nothing that happened is lost or overwritten.

Both wait for a row that a third session holds, so each has looked already, with its old eyes; then they get the row in
the order in which they came.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
import pytest

from datastore import claims, following, operators
from datastore.claims import Order
from datastore.connection import Pool, Role, open_pool
from datastore.instructions import Will
from datastore.lifecycle import State
from datastore.operators import Person, Switch
from datastore.rows import Finality
from tests.datastore.builders import CHAIN, RULES, batch, block, mint, pin_chain, report, request, with_finality
from tests.datastore.workers import WORKFLOW, Worker, ahead, execution_ids, let_pass

WAITS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
ONE, TWO, OTHER = (ahead(each) for each in (block(1), block(2), block(2, fork="b", parent_fork="a")))
ASKED = request("d1", TWO)


@dataclass(kw_only=True)
class Scene:
    indexer: Pool
    worker: Worker
    owner: Any
    operator: Pool
    order: Order | None = None

    async def begin(self) -> None:
        assert self.order is not None
        await self.worker.begin(self.order)

    async def answer(self, outcome: str) -> None:
        assert self.order is not None
        await self.worker.answer(self.order, 1, outcome)

    async def sweep(self) -> None:
        await self.worker.sweep(resend_after_seconds=100)

    async def give_back(self) -> None:
        assert self.order is not None
        await claims.give_back(self.worker.pool, self.order, reason="no_slot")

    async def hold(self) -> None:
        await self.operator.execute(
            "UPDATE mint_request SET held_at = clock_timestamp(), held_reason = 'operator' WHERE id = 1"
        )

    async def orphan(self) -> None:
        await following.commit(self.indexer, CHAIN, batch(OTHER, on=ONE, leaving=TWO), RULES)

    async def deliver(self) -> None:
        three = ahead(block(3))
        (ours, _) = execution_ids_of(ASKED.nonce)
        made = batch(three, on=TWO, mints=(mint(three, of=ASKED),), reports=(report(three, execution_id=ours),))
        await following.commit(self.indexer, CHAIN, made, RULES)

    async def state(self) -> str:
        row = await self.indexer.fetchrow("SELECT state, chain_status, held_at FROM mint_request")
        assert row is not None
        held = " held" if row["held_at"] else ""
        return f"{row['state']} {row['chain_status']}{held}"


Act: TypeAlias = Callable[[Scene], Awaitable[None]]


def execution_ids_of(nonce: Any) -> tuple[bytes, bytes]:
    order: Any = type("Named", (), {"nonce": nonce})
    return execution_ids(order)


@pytest.fixture
async def scene(dsn: str, indexer_pool: Pool, invocator_pool: Pool) -> Any:
    """A request that is claimed and frozen, in a block that a reorg can still take."""
    genesis = await pin_chain(indexer_pool)
    await following.commit(indexer_pool, CHAIN, batch(ONE, on=genesis), RULES)
    made = with_finality(batch(TWO, on=ONE, requests=(ASKED,)), Finality(finalized=-1, safe=-1, trigger=2, complete=-1))
    await following.commit(indexer_pool, CHAIN, made, RULES)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    worker = Worker(pool=invocator_pool)
    order = await worker.claimed(1)
    await worker.freeze(order)
    owner = await asyncpg.connect(dsn)
    async with await open_pool(dsn, Role.OPERATOR) as operator:
        yield Scene(indexer=indexer_pool, worker=worker, owner=owner, operator=operator, order=order)
    await owner.close()


async def raced(scene: Scene, *acts: Act) -> str:
    """Let the acts wait for the request's row, one behind the other, and then go on; the state afterwards.

    One that finds without waiting that the row is no longer its own has ended before the next one begins.
    """
    waiting: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as tasks, scene.owner.transaction():
        await scene.owner.execute("SELECT FROM mint_request WHERE id = 1 FOR UPDATE")
        for act in acts:
            waiting.append(tasks.create_task(as_coroutine(act(scene))))
            while await scene.owner.fetchval(WAITS) < sum(not task.done() for task in waiting):
                await scene.owner.execute("SELECT pg_stat_clear_snapshot()")
    return await scene.state()


async def as_coroutine(act: Awaitable[None]) -> None:
    await act


async def sent(scene: Scene, outcome: str | None = None) -> None:
    assert scene.order is not None
    assert await scene.worker.begin(scene.order) == 1
    if outcome is not None:
        await scene.worker.answer(scene.order, 1, outcome)


begin: Act = Scene.begin
sweep: Act = Scene.sweep
give_back: Act = Scene.give_back
hold: Act = Scene.hold
orphan: Act = Scene.orphan
deliver: Act = Scene.deliver


async def accept(scene: Scene) -> None:
    await scene.answer("accepted")


async def refuse(scene: Scene) -> None:
    await scene.answer("refused_now")


async def refuse_for_good(scene: Scene) -> None:
    await scene.answer("refused_for_good")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # A lease that is over: whatever the worker still wants, nothing is sent.
        (begin, sweep, "confirmed canonical"),
        (sweep, begin, "confirmed canonical"),
        (give_back, sweep, "confirmed canonical"),
        (sweep, give_back, "confirmed canonical"),
    ],
)
async def test_a_claim_whose_lease_is_over(scene: Scene, first: Act, second: Act, expected: str) -> None:
    """Hard cases 67 and 69."""
    await let_pass(scene.indexer, 1, lease_ends_at=61)
    assert await raced(scene, first, second) == expected
    assert await scene.indexer.fetchval("SELECT count(*) FROM attempt") == 0


@pytest.mark.parametrize(
    ("first", "second", "expected", "attempts"),
    [
        # Hard cases 72 and 100: an orphaned request is not sent; one that was sent keeps its state.
        (begin, orphan, "in_doubt orphaned", 1),
        (orphan, begin, "seen orphaned", 0),
        (begin, hold, "in_doubt canonical held", 1),
        (hold, begin, "claimed canonical held", 0),
        (begin, give_back, "in_doubt canonical", 1),
        (give_back, begin, "confirmed canonical", 0),
        (give_back, orphan, "seen orphaned", 0),
        (orphan, give_back, "seen orphaned", 0),
        (begin, begin, "in_doubt canonical", 1),
        (begin, deliver, "executed canonical", 1),
        (deliver, begin, "executed canonical", 0),
    ],
)
async def test_a_claim(scene: Scene, first: Act, second: Act, expected: str, attempts: int) -> None:
    assert await raced(scene, first, second) == expected
    assert await scene.indexer.fetchval("SELECT count(*) FROM attempt") == attempts


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Time gives it up; the answer is welcome before, and recorded after.
        (accept, sweep, "accepted canonical"),
        (sweep, accept, "review canonical"),
        (refuse, sweep, "confirmed canonical"),
        (sweep, refuse, "review canonical"),
        (sweep, deliver, "executed canonical"),
        (deliver, sweep, "executed canonical"),
    ],
)
async def test_a_doubt_that_is_overdue(scene: Scene, first: Act, second: Act, expected: str) -> None:
    """Hard case 69."""
    await sent(scene)
    await let_pass(scene.indexer, 1, state_changed_at=4_000, next_attempt_at=4_000)
    assert await raced(scene, first, second) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (accept, deliver, "executed canonical"),
        (deliver, accept, "executed canonical"),
        (accept, orphan, "accepted orphaned"),
        (orphan, accept, "accepted orphaned"),
        (refuse, orphan, "seen orphaned"),
        (orphan, refuse, "seen orphaned"),
        (refuse, deliver, "executed canonical"),
        (deliver, refuse, "executed canonical"),
        (refuse_for_good, deliver, "executed canonical"),
        (deliver, refuse_for_good, "executed canonical"),
    ],
)
async def test_an_answer(scene: Scene, first: Act, second: Act, expected: str) -> None:
    """Hard case 93."""
    await sent(scene)
    assert await raced(scene, first, second) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (deliver, sweep, "executed canonical"),
        (sweep, deliver, "executed canonical"),
        (orphan, sweep, "failed orphaned"),
        (sweep, orphan, "failed orphaned"),
    ],
)
async def test_a_deadline_that_has_passed(scene: Scene, first: Act, second: Act, expected: str) -> None:
    await sent(scene, "accepted")
    await let_pass(scene.indexer, 1, deadline_at=2_401)
    assert await raced(scene, first, second) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (deliver, sweep, "executed canonical"),
        (sweep, deliver, "executed canonical"),
        (orphan, sweep, "failed orphaned"),
        (sweep, orphan, "in_doubt orphaned"),
        (hold, sweep, "failed canonical held"),
    ],
)
async def test_a_resend_that_is_due(scene: Scene, first: Act, second: Act, expected: str) -> None:
    await sent(scene, "accepted")
    await let_pass(scene.indexer, 1, deadline_at=2_401)
    await scene.worker.sweep()
    await let_pass(scene.indexer, 1, state_changed_at=200)
    assert await raced(scene, first, second) == expected


async def test_a_stale_worker_and_the_one_that_has_the_claim_now(scene: Scene) -> None:
    """Hard case 67: the claim's number decides, not who is first."""
    stale = scene.order
    await let_pass(scene.indexer, 1, lease_ends_at=61)
    await scene.worker.sweep()
    assert stale is not None
    fresh = await scene.worker.claimed(1)
    begun: list[int | None] = []

    async def by_stale(_: Scene) -> None:
        begun.append(await scene.worker.begin(stale))

    async def by_fresh(_: Scene) -> None:
        begun.append(await scene.worker.begin(fresh))

    assert await raced(scene, by_stale, by_fresh) == "in_doubt canonical"
    assert begun == [None, 1]


@pytest.mark.parametrize("act", ["freeze", "give back", "hold", "refuse"])
async def test_a_claim_that_is_lost_at_this_moment_is_neither_frozen_nor_ended(scene: Scene, act: str) -> None:
    """Hard case 67."""
    order, pool = scene.order, scene.worker.pool
    assert order is not None
    await scene.owner.execute("SET session_replication_role = replica")
    await scene.owner.execute("DELETE FROM frozen_request")
    why = {"reason": "not_a_minter", "detail": "No."}
    acts = {
        "freeze": lambda: scene.worker.freeze(order),
        "give back": lambda: claims.give_back(pool, order, reason="no_slot"),
        "hold": lambda: claims.hold(pool, CHAIN, order, seconds=60, **why),
        "refuse": lambda: claims.refuse(pool, order, **why),
    }
    async with asyncio.TaskGroup() as tasks, scene.owner.transaction():
        # Another worker has it since, under the next number, and has not committed yet.
        await scene.owner.execute("UPDATE mint_request SET claim_no = claim_no + 1 WHERE id = 1")
        was_ours = tasks.create_task(acts[act]())
        while await scene.owner.fetchval(WAITS) == 0 and not was_ours.done():
            await scene.owner.execute("SELECT pg_stat_clear_snapshot()")
    assert not was_ours.result()
    assert await scene.state() == "claimed canonical"
    assert await scene.indexer.fetchval("SELECT count(*) FROM frozen_request") == 0


HOLDS_NOTHING = {State.REJECTED, State.DROPPED, State.CANCELLED}
LATE = sorted(set(State) - {State.IN_DOUBT, State.CLAIMED})


async def test_a_late_answer_is_recorded_and_moves_nothing_that_has_gone_further(scene: Scene) -> None:
    """Hard cases 67 and 69: a worker wakes with an answer after everything has moved on."""
    await sent(scene)
    assert scene.order is not None
    await scene.owner.execute("SET session_replication_role = replica")
    for state, outcome in itertools.product(LATE, ("accepted", "refused_now", "refused_for_good", "unknown")):
        forced = "UPDATE mint_request SET state = $1, holds_reference = $2"
        await scene.owner.execute(forced, state, state not in HOLDS_NOTHING)
        await scene.owner.execute("UPDATE attempt SET outcome = NULL, answered_at = NULL")
        assert await scene.worker.answer(scene.order, 1, outcome) == state
        assert await scene.state() == f"{state} canonical"
        assert await scene.indexer.fetchval("SELECT outcome FROM attempt") == outcome


async def test_an_answer_that_was_recorded_is_not_overwritten(scene: Scene) -> None:
    await sent(scene, "accepted")
    assert scene.order is not None
    await scene.worker.answer(scene.order, 1, "refused_for_good")
    assert await scene.indexer.fetchval("SELECT outcome FROM attempt") == "accepted"
    assert await scene.state() == "accepted canonical"


ADA = Person(name="ada", reason="an incident")
ATTEMPTS = "SELECT count(*) FROM attempt"


async def throw(operator: Pool, switch: Switch) -> tuple[int, tuple[str, ...]]:
    """Throw a switch: the attempts that there were when it was answered, and what the answer warns of."""
    answer = await operators.throw(operator, CHAIN, switch, ADA, deadline_seconds=2_400)
    assert isinstance(answer.verdict, Will)
    return await operator.fetchval(ATTEMPTS), answer.verdict.warnings


@pytest.mark.parametrize("is_begun", [True, False])
async def test_a_pause_is_answered_when_no_attempt_can_begin_any_more(scene: Scene, *, is_begun: bool) -> None:
    answered: list[tuple[int, tuple[str, ...]]] = []

    async def pause(scene: Scene) -> None:
        answered.append(await throw(scene.operator, Switch.PAUSE))

    await raced(scene, *((begin, pause) if is_begun else (pause, begin)))
    # One that had looked at the pause before is waited for, and named.
    under_way = ("Attempts that are still under way: 1.",) if is_begun else ()
    assert answered == [(int(is_begun), under_way)]
    assert await scene.indexer.fetchval(ATTEMPTS) == int(is_begun)


async def test_no_attempt_begins_after_a_pause_was_answered_in_two_hundred_races(scene: Scene) -> None:
    chance = random.Random(20_261_125)  # noqa: S311 - a sample, no secret
    assert scene.order is not None
    wins = 0

    async def delayed(turns: int, act: Awaitable[Any]) -> Any:
        for _ in range(turns):
            await scene.owner.fetchval("SELECT 1")
        return await act

    for _ in range(200):
        begun, answered = scene.worker.begin(scene.order), throw(scene.operator, Switch.PAUSE)
        if chance.random() < 0.5:
            number, (at_answer, _warnings) = await asyncio.gather(begun, delayed(chance.randrange(9), answered))
        else:
            (at_answer, _warnings), number = await asyncio.gather(answered, delayed(chance.randrange(9), begun))
        wins += number is not None
        assert await scene.indexer.fetchval(ATTEMPTS) == at_answer
        await throw(scene.operator, Switch.RESUME)
        await let_pass(scene.indexer, 1, next_attempt_at=91)
        (scene.order,) = await claims.due(scene.worker.pool, CHAIN, limit=9) or [scene.order]
    assert 0 < wins < 200


@pytest.mark.parametrize("act", [give_back, begin])
async def test_two_followers_and_a_worker_do_not_deadlock(scene: Scene, act: Act) -> None:
    """Hard case 57: whoever waits for a row holds nothing that another one of them wants."""
    expected = {give_back: "seen orphaned", begin: "in_doubt orphaned"}[act]
    assert await raced(scene, act, orphan, sweep) == expected


async def test_a_worker_s_id_is_random_for_each_process_start() -> None:
    """Hard case 71."""
    from invocator.invocation import Invocator  # noqa: PLC0415 - only here
    from tests.invocator.staging import TERMS, Cre  # noqa: PLC0415 - only here

    nobody: Any = None
    made = [
        Invocator(pool=nobody, chain_id=CHAIN, gateway=Cre(), signer=None, terms=TERMS, clock=lambda: 0.0)
        for _ in range(2)
    ]
    assert made[0]._worker_id != made[1]._worker_id
