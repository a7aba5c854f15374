"""Whose fault a refusal or an outage is: only what it is about waits, no request pays, and no answer is lost."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest

from datastore import breakers, claims, following, operators
from datastore.connection import Pool, Role, open_pool
from datastore.errors import DatastoreUnavailable
from datastore.identity import execution_id_candidates
from datastore.operators import Person
from invocator.classification import NeverConnected, NoAnswer, Reply
from invocator.workflow_pool import resends_within, workflow_of
from tests.datastore.builders import CHAIN, RULES, batch, block, mint, report, request
from tests.datastore.workers import let_pass, let_probe, look_again, states
from tests.invocator.staging import (
    RIGHT,
    TERMS,
    WORKFLOW_ID,
    Ask,
    Chain,
    Cre,
    Make,
    accepted,
    asked_for,
    gateway_error,
    run,
)

DEAD, ALIVE = WORKFLOW_ID, bytes(range(1, 33))
TWO = replace(TERMS, workflow_ids=(DEAD, ALIVE))
NOT_FOUND = gateway_error(-32600, "Workflow not found. Ensure that the workflow exists")
CLOSED = gateway_error(-32600, "workflow is closed, cannot send trigger", status=200)
MALFORMED = gateway_error(-32602, "unsupported DON")


def workflow_in(body: bytes) -> bytes:
    return bytes.fromhex(orjson.loads(body)["params"]["workflow"]["workflowID"])


def dead(refusal: Callable[[bytes], Reply]) -> Callable[[bytes], Reply]:
    """One of the two workflows is refused, the other accepts."""
    return lambda body: (refusal if workflow_in(body) == DEAD else accepted)(body)


def names_for(workflow_id: bytes, count: int) -> list[str]:
    """Names of requests that the pool of two gives to this workflow."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        name = f"w{number}"
        if workflow_of(request(name, block(1)).nonce, TWO.workflow_ids) == workflow_id:
            found.append(name)
        number += 1
    return found


async def transitions(pool: Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM mint_transition")
    return count


async def index(pool: Pool, number: int, timestamp: int, **contents: object) -> None:
    """One more block with its own time."""
    made = replace(block(number), timestamp=timestamp)
    await following.commit(pool, CHAIN, batch(made, on=block(number - 1), final=number, **contents), RULES)  # type: ignore[arg-type]


async def now(pool: Pool) -> int:
    seconds: int = await pool.fetchval("SELECT extract(epoch FROM clock_timestamp())::bigint")
    return seconds


# -- one workflow is dead --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [NOT_FOUND, CLOSED, MALFORMED])
async def test_a_dead_workflow_waits_alone_and_hides_no_request_of_a_healthy_one(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, refusal: Callable[[bytes], Reply]
) -> None:
    # More than are looked at in a tick stand before each of the healthy one.
    names = [*names_for(DEAD, 120), *names_for(ALIVE, 10)]
    await ask(*names)
    cre.planned = [dead(refusal)] * 500
    await run(make(TWO))
    found = await states(indexer_pool)
    assert found[120:] == ["accepted"] * 10
    sent_to_dead = [body for body in cre.bodies if workflow_in(body) == DEAD]
    tolerated = breakers.REFUSALS_IN_A_ROW if refusal is MALFORMED else 1
    assert len(sent_to_dead) == tolerated
    assert found[:120].count("confirmed") == {NOT_FOUND: 120, CLOSED: 119, MALFORMED: 118}[refusal]
    assert [row["workflow_id"] for row in await indexer_pool.fetch("SELECT workflow_id FROM breaker")] == [DEAD]
    # Whoever waits for it costs nothing: no tick writes a row of theirs.
    before = await transitions(indexer_pool)
    for _ in range(5):
        await run(make(TWO))
    assert (await transitions(indexer_pool), len(cre.bodies)) == (before, tolerated + 10)


async def test_a_workflow_that_leaves_requests_in_doubt_takes_one_place_in_flight_however_often_it_is_probed(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    await ask(*names_for(DEAD, 9))
    cre.planned = [CLOSED] * 9
    narrow = replace(TWO, pacing=replace(TWO.pacing, max_in_flight=3))
    for probes in range(1, 6):
        await run(make(narrow))
        assert (len(cre.bodies), (await states(indexer_pool)).count("in_doubt")) == (probes, 1)
        assert len({orjson.loads(body)["id"] for body in cre.bodies}) == 1
        await let_probe(invocator_pool)
        await let_pass(indexer_pool, 1, next_attempt_at=2_000)
    cre.planned = []
    await run(make(narrow))
    assert (await states(indexer_pool)).count("accepted") == 3


async def test_a_workflow_that_works_again_is_found_by_one_probe_and_goes_on_at_once(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    await ask(*names_for(DEAD, 5))
    cre.planned = [NOT_FOUND] * 3
    for _ in range(3):
        await run(make(TWO))
        await let_probe(invocator_pool)
    assert (len(cre.bodies), await states(indexer_pool)) == (3, ["confirmed"] * 5)
    await run(make(TWO))
    assert await states(indexer_pool) == ["accepted"] * 5
    assert await indexer_pool.fetch("SELECT FROM breaker") == []


async def test_a_refused_request_goes_behind_the_others_so_each_probe_is_another_one_s(
    ask: Ask, make: Make, cre: Cre, invocator_pool: Pool
) -> None:
    await ask(*names_for(DEAD, 3))
    cre.planned = [NOT_FOUND] * 9
    for _ in range(3):
        await run(make(TWO))
        await invocator_pool.execute("UPDATE breaker SET probe_at = clock_timestamp()")
    assert len({orjson.loads(body)["id"] for body in cre.bodies}) == 3


async def test_a_streak_of_refusals_for_good_does_not_drain_the_queue_into_review(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    await ask(*[f"d{number}" for number in range(12)])
    cre.planned = [MALFORMED] * 40
    for _ in range(20):
        await run(make())
        await let_probe(invocator_pool)
    found = await states(indexer_pool)
    assert (found.count("review"), found.count("confirmed")) == (breakers.REFUSALS_IN_A_ROW - 1, 10)
    assert [row["kind"] for row in await indexer_pool.fetch("SELECT kind FROM alarm")] == ["workflow_refused"]
    cre.planned = []
    await run(make())
    found = await states(indexer_pool)
    assert (found.count("review"), found.count("accepted")) == (2, 10)


async def test_a_refusal_for_good_between_others_is_that_request_s_own(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    await ask(*[f"d{number}" for number in range(7)])
    cre.planned = [MALFORMED, MALFORMED, accepted, MALFORMED, MALFORMED, accepted, MALFORMED]
    await run(make())
    assert sorted(await states(indexer_pool)) == ["accepted"] * 2 + ["review"] * 5
    assert await indexer_pool.fetch("SELECT FROM breaker") == []


async def test_a_workflow_that_leaves_the_pool_takes_its_breaker_along(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    await ask(*names_for(DEAD, 1))
    cre.planned = [NOT_FOUND]
    await run(make(TWO))
    await run(make(replace(TWO, workflow_ids=(ALIVE,))))
    assert await indexer_pool.fetch("SELECT FROM breaker") == []


async def test_an_operator_s_reset_sends_at_once_and_is_recorded(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, dsn: str
) -> None:
    await ask(*names_for(DEAD, 2))
    cre.planned = [NOT_FOUND]
    paced = replace(TWO, pacing=replace(TWO.pacing, seconds_per_trigger=3_600))
    await run(make(paced))
    (listed, other) = sorted(
        await breakers.workflows(indexer_pool, CHAIN, TWO.workflow_ids), key=lambda each: each.workflow_id != DEAD
    )
    assert (listed.waiting, listed.in_flight, other.waiting, other.breaker) == (2, 0, 0, None)
    assert listed.breaker is not None
    assert listed.breaker.code == "workflow_not_found"
    async with await open_pool(dsn, Role.OPERATOR) as operator:
        answer = await operators.reset_workflow(operator, CHAIN, DEAD, Person(name="ada", reason="it is deployed"))
    assert answer.action_id is not None
    await run(make(paced))
    assert (await states(indexer_pool)).count("accepted") == 1
    row = await indexer_pool.fetchrow("SELECT action, operator, reason, before ->> 'workflow_id' FROM operator_action")
    assert tuple(row or ()) == ("reset_workflow", "ada", "it is deployed", "0x" + DEAD.hex())


async def test_the_database_chooses_the_workflow_that_the_invocator_chooses(indexer_pool: Pool) -> None:
    pool = [uuid4().bytes + uuid4().bytes for _ in range(7)]
    nonces = [UUID(bytes=uuid4().bytes) for _ in range(300)]
    rows = await indexer_pool.fetch(
        "SELECT n, w.workflow_id AS chosen FROM unnest($1::uuid[]) n, workflow_of(0, 0, n, $2::bytea[]) w", nonces, pool
    )
    assert {row["n"]: row["chosen"] for row in rows} == {nonce: workflow_of(nonce, pool) for nonce in nonces}


# -- an outage -------------------------------------------------------------------------------------------------------


async def test_a_day_without_a_node_writes_no_row_of_those_that_wait_and_sending_begins_at_once_after_it(
    ask: Ask, make: Make, chain: Chain, indexer_pool: Pool
) -> None:
    await ask(*[f"d{number}" for number in range(50)])
    before = await transitions(indexer_pool)
    chain.contracts = None
    invocator = make()
    for _ in range(300):
        assert not await invocator.tick()
    assert await transitions(indexer_pool) == before
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE held_at IS NOT NULL") == 0
    chain.contracts = RIGHT
    await run(invocator)
    assert await states(indexer_pool) == ["accepted"] * 50


async def test_a_day_without_witnesses_holds_one_request_a_look_and_claims_none(
    ask: Ask, make: Make, indexer_pool: Pool
) -> None:
    await ask(*[f"d{number}" for number in range(50)])
    before = await transitions(indexer_pool)
    invocator = make()
    invocator._is_witnessed = nobody_answers
    for looks in range(1, 6):
        assert not await invocator.tick()
        assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE held_at IS NOT NULL") == looks
    assert await transitions(indexer_pool) == before


async def nobody_answers(_: object) -> bool | None:
    return None


async def test_a_day_without_a_gateway_costs_the_same_rows_whether_one_waits_or_fifty(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    await ask(*[f"d{number}" for number in range(50)])
    cre.planned = [NeverConnected(reason="refused")] * 40
    invocator, before = make(), await transitions(indexer_pool)
    for _ in range(40):
        await run(invocator)
        await let_probe(invocator_pool)
    # To claimed, in doubt and back again, of one request a probe.
    assert (len(cre.bodies), await transitions(indexer_pool) - before) == (40, 120)
    pause = await indexer_pool.fetchval("SELECT pause_seconds FROM breaker")
    assert pause == breakers.LONGEST_UNREACHED_SECONDS
    await run(invocator)
    assert await states(indexer_pool) == ["accepted"] * 50


# -- what only time decides ------------------------------------------------------------------------------------------


async def test_forty_minutes_without_a_node_or_a_daemon_call_nothing_undelivered(
    ask: Ask, make: Make, indexer_pool: Pool
) -> None:
    one = await ask("d1")
    await run(make())
    nonce = await indexer_pool.fetchval("SELECT nonce FROM mint_request")
    # Sent when this block was the last one; then the index sees nothing for 41 minutes.
    await index(indexer_pool, 2, await now(indexer_pool) - 2_460)
    await let_pass(indexer_pool, 1, deadline_at=2_460)
    for _ in range(3):
        await run(make())
    assert await states(indexer_pool) == ["accepted"]
    # It still takes its place: nothing is known of it that was not known before.
    assert (await claims.gate(indexer_pool, CHAIN)).in_flight == 1
    three = block(3)
    delivered = report(three, execution_id=execution_id_candidates(WORKFLOW_ID, nonce.hex)[1])
    delivery = {"mints": (mint(three, of=asked_for("d1", one)),), "reports": (delivered,)}
    await index(indexer_pool, 3, await now(indexer_pool), **delivery)
    await run(make())
    assert await states(indexer_pool) == ["completed"]
    assert await indexer_pool.fetch("SELECT FROM alarm") == []


async def test_a_chain_whose_clock_is_ahead_does_not_make_an_index_that_stands_still_look_further(
    ask: Ask, make: Make, indexer_pool: Pool
) -> None:
    await ask("d1")
    await run(make())
    await index(indexer_pool, 2, await now(indexer_pool) + 1_000_000)
    await let_pass(indexer_pool, 1, deadline_at=2_460)
    await indexer_pool.execute("UPDATE cursor SET indexed_at = indexed_at - interval '41 minutes'")
    await run(make())
    assert await states(indexer_pool) == ["accepted"]
    await look_again(indexer_pool)
    await run(make())
    assert await states(indexer_pool) == ["failed"]


async def test_a_deadline_passes_when_the_clock_and_the_index_have_both_reached_it(
    ask: Ask, make: Make, indexer_pool: Pool
) -> None:
    await ask("d1")
    await run(make())
    at = await now(indexer_pool)
    # The chain is far ahead: our clock decides.
    await index(indexer_pool, 2, at + 1_000_000)
    await run(make())
    assert await states(indexer_pool) == ["accepted"]
    await let_pass(indexer_pool, 1, deadline_at=2_460)
    # And here it is behind: the last indexed block decides.
    await index(indexer_pool, 3, at - 120)
    await run(make())
    assert await states(indexer_pool) == ["accepted"]
    await index(indexer_pool, 4, at - 1)
    await run(make())
    assert await states(indexer_pool) == ["failed"]
    assert (await claims.gate(indexer_pool, CHAIN)).in_flight == 0


@pytest.mark.parametrize("timestamp", [1, 2**63 - 1])
async def test_a_block_time_that_no_calendar_holds_stops_nothing(
    ask: Ask, make: Make, indexer_pool: Pool, timestamp: int
) -> None:
    await ask("d1", "d2")
    await index(indexer_pool, 2, timestamp)
    await run(make())
    assert await states(indexer_pool) == ["accepted", "accepted"]


async def test_a_doubt_is_given_up_only_after_its_attempts_whatever_the_clock_says(
    ask: Ask, make: Make, cre: Cre, dsn: str, indexer_pool: Pool
) -> None:
    await ask("d1")
    patient = replace(TERMS, give_up_seconds=300)
    assert resends_within(300, timeout_seconds=90) == 2
    cre.planned = [NoAnswer(reason="timed out")] * 9
    invocator = make(patient)
    await run(invocator)
    # The daemon was away for a day: that is no try.
    await let_pass(indexer_pool, 1, state_changed_at=86_400, next_attempt_at=86_400)
    owner = await asyncpg.connect(dsn)
    await owner.execute("UPDATE attempt SET started_at = started_at - interval '1 day'")
    await owner.close()
    for sent in (2, 3):
        await run(invocator)
        assert (await states(indexer_pool), len(cre.bodies)) == (["in_doubt"], sent)
        await let_pass(indexer_pool, 1, next_attempt_at=86_400)
    await run(invocator)
    assert (await states(indexer_pool), len(cre.bodies)) == (["review"], 3)


# -- an answer that cannot be recorded -------------------------------------------------------------------------------


# The sessions that wait for a row's lock end, as all do when Postgres restarts.
END_SESSIONS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def test_an_answer_that_the_database_was_away_for_is_recorded_before_anything_else_is_sent(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask("d1", "d2")
    cre.planned = [gateway_error(-32002, "rate limit exceeded", status=429)]
    recorded, away = claims.record_answer, 3

    async def unavailable(*arguments: object) -> object:
        nonlocal away
        if away:
            away -= 1
            raise DatastoreUnavailable("postgres: CannotConnectNowError (57P03)")
        return await recorded(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(claims, "record_answer", unavailable)
    invocator = make()
    for _ in range(3):
        with pytest.raises(DatastoreUnavailable):
            await invocator.tick()
        assert (len(cre.bodies), sorted(await states(indexer_pool))) == (1, ["confirmed", "in_doubt"])
    # The proof that nothing was forwarded was not lost.
    await invocator.record()
    assert await states(indexer_pool) == ["confirmed", "confirmed"]
    assert await indexer_pool.fetchval("SELECT array_agg(outcome) FROM attempt") == ["refused_now"]
    await invocator.record()
    assert len(cre.bodies) == 1


async def test_an_answer_survives_a_restart_of_postgres_while_it_is_recorded(
    ask: Ask, make: Make, cre: Cre, dsn: str, indexer_pool: Pool
) -> None:
    await ask("d1")
    post, owner, watcher = cre.post, await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    lock = owner.transaction()

    async def locking(body: bytes, token: str, timeout_seconds: float) -> Reply:
        await lock.start()
        await owner.execute("SELECT FROM mint_request FOR UPDATE")
        return await post(body, token, timeout_seconds)

    cre.planned = [gateway_error(-32600, "Auth failure: token is expired")]
    cre.post = locking  # type: ignore[method-assign]
    invocator = make()

    async def restart() -> None:
        while await watcher.fetchval(END_SESSIONS) == 0:
            pass
        await lock.rollback()

    ended, restarted = await asyncio.gather(invocator.tick(), restart(), return_exceptions=True)
    assert (type(ended), restarted) == (DatastoreUnavailable, None)
    assert await states(indexer_pool) == ["in_doubt"]
    await owner.close()
    await watcher.close()
    await invocator.tick()
    assert (await states(indexer_pool), len(cre.bodies)) == (["confirmed"], 1)
    assert await indexer_pool.fetchval("SELECT outcome FROM attempt") == "instance_refused"
