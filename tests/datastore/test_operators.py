"""Every instruction in every state, sent and unsent, generated from the lifecycle's own table; and the races."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from datastore import claims, following, operators, quarantine
from datastore.claims import Answered, Frozen, Order, Pacing
from datastore.connection import Connection, Pool, Role, open_pool
from datastore.identity import derive_nonce
from datastore.instructions import (
    AlreadySo,
    Cancel,
    Evidence,
    Hold,
    Instruction,
    NewGeneration,
    Refused,
    Release,
    Resolve,
    Retry,
    Will,
)
from datastore.judgement import DUPLICATE_BANK_REFERENCE
from datastore.lifecycle import RULES as LIFECYCLE
from datastore.lifecycle import Actor, Event, Facts, State, decide
from datastore.operators import Answer, Person, RequestUnknown, Switch, Unexplained
from datastore.rows import Block
from datastore.settlement import Horizon, known
from tests.datastore.builders import ALICE, CHAIN, RULES, batch, block, hash_of, mint, pin_chain, report, request

PACING = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5)
WORKFLOW = hash_of("workflow")
PERSON = Person(name="alice", reason="ticket 7")
SECRET = bytes(range(32))
FINAL = 5
EVIDENCE = Evidence(final_block=FINAL, consumer_refuses_used_references=True)
UNDERWAY = {State.CONFIRMED, State.CLAIMED, State.IN_DOUBT, State.ACCEPTED}
ENDED_UNSENT = {State.DROPPED, State.CANCELLED}

INSTRUCTIONS: Final[dict[str, tuple[Instruction, Event | None]]] = {
    "retry": (Retry(), Event.RETRY),
    "new generation": (NewGeneration(EVIDENCE), Event.NEW_GENERATION),
    "hold": (Hold(), None),
    "release": (Release(), Event.RELEASE),
    "release with evidence": (Release(EVIDENCE), Event.RELEASE),
    "cancel": (Cancel(), Event.CANCEL),
    "resolve as completed": (Resolve("completed"), Event.RESOLVE_COMPLETED),
    "resolve as failed": (Resolve("failed"), Event.RESOLVE_FAILED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is so of a request besides its state."""

    sent: bool = False
    frozen: bool = True
    chain_status: str = "finalized"
    orphaned_for_good: bool = False
    block: int = 1
    mint: str | None = None  # "proven", "wrong", "young" (not final), "foreign"
    rival: str | None = None  # the state of a request that holds the reference
    rival_sent: bool = False
    held: bool = False


VARIANTS: Final = {
    "unsent": Variant(),
    "unsent, never frozen": Variant(frozen=False),
    "unsent, held": Variant(held=True),
    "unsent, not final enough": Variant(chain_status="canonical", block=FINAL + 1),
    "unsent, orphaned": Variant(chain_status="orphaned"),
    "unsent, orphaned for good": Variant(chain_status="orphaned", orphaned_for_good=True),
    "unsent, foreign mint": Variant(mint="foreign"),
    "unsent, unsent rival": Variant(rival="review"),
    "unsent, sent rival": Variant(rival="failed", rival_sent=True),
    "sent": Variant(sent=True),
    "sent, held": Variant(sent=True, held=True),
    "sent, orphaned": Variant(sent=True, chain_status="orphaned"),
    "sent, unbacked": Variant(sent=True, chain_status="orphaned", orphaned_for_good=True, mint="proven"),
    "sent, proven mint": Variant(sent=True, mint="proven"),
    "sent, wrong mint": Variant(sent=True, mint="wrong"),
    "sent, young mint": Variant(sent=True, mint="young"),
    "sent, foreign mint": Variant(sent=True, mint="foreign"),
}
CELLS: Final = list(itertools.product(State, VARIANTS))


def finality(position: following.Position) -> Horizon:
    return Horizon(complete=position.finalized, trigger=position.finalized)


def nonce_of(identity: bytes, generation: int) -> UUID:
    return derive_nonce(SECRET, identity, generation)


def is_possible(state: State, variant: Variant) -> bool:
    """Whether the constraints of the schema allow it at all."""
    return not (variant.rival and state in UNDERWAY)


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[Connection]:
    """A session that may write any row as it likes: the triggers sleep."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET session_replication_role = replica")
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def operator_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        yield pool


@pytest.fixture
async def genesis(indexer_pool: Pool, invocator_pool: Pool) -> Block:
    made = await pin_chain(indexer_pool)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    return made


async def instruct(
    pool: Pool,
    request_id: int,
    instruction: Instruction,
    *,
    dry_run: bool = False,
    confirmed: Will | None = None,
) -> Answer:
    return await operators.instruct(
        pool,
        CHAIN,
        request_id,
        instruction,
        PERSON,
        finality=finality,
        nonce_of=nonce_of,
        dry_run=dry_run,
        confirmed=confirmed,
    )


# -- the matrix -------------------------------------------------------------------------------------------------------
async def place_all(dsn: str, pool: Pool, genesis: Block) -> dict[tuple[State, str], int]:
    """One request for each cell, written as if it had come to be so; its id."""
    one = block(1)
    requests = [
        request(f"{state} {name}", one, log_index=number, bank=f"D{number}")
        for number, (state, name) in enumerate(CELLS)
    ]
    rivals = [
        request(f"rival of {state} {name}", one, log_index=1_000 + number, bank=f"D{number}")
        for number, (state, name) in enumerate(CELLS)
        if VARIANTS[name].rival
    ]
    await following.commit(pool, CHAIN, batch(one, on=genesis, requests=(*requests, *rivals)), RULES)
    below, chain = one, []
    for number in range(2, FINAL + 2):
        below = block(number)
        chain.append(below)
    await following.commit(pool, CHAIN, batch(*chain, on=one, final=-1), RULES)
    async with owner(dsn) as connection, connection.transaction():
        await connection.execute("UPDATE cursor SET finalized_number = $1, safe_number = $1", FINAL)
        ids = {row["identity"]: row["id"] for row in await connection.fetch("SELECT id, identity FROM mint_request")}
        placed = {}
        for number, (state, name) in enumerate(CELLS):
            variant = VARIANTS[name]
            request_id = ids[requests[number].identity]
            if variant.rival:
                rival = ids[hash_of("identity", f"rival of {state} {name}")]
                await put(connection, rival, State(variant.rival), Variant(sent=variant.rival_sent), holds=True)
            if is_possible(state, variant):
                await put(connection, request_id, state, variant, holds=not variant.rival and state not in ENDED_UNSENT)
                placed[state, name] = request_id
    return placed


async def put(connection: Connection, request_id: int, state: State, variant: Variant, *, holds: bool) -> None:
    await connection.execute(
        """
        UPDATE mint_request SET
            state = $2, holds_reference = $3, chain_status = $4, orphaned_for_good = $5, block_number = $6,
            state_reason = CASE $2 WHEN 'rejected' THEN $7 END,
            lease_ends_at = CASE $2 WHEN 'claimed' THEN clock_timestamp() + interval '1 minute' END,
            worker_id = CASE $2 WHEN 'claimed' THEN gen_random_uuid() END,
            deadline_at = CASE $2 WHEN 'accepted' THEN clock_timestamp() END,
            held_at = CASE WHEN $8 THEN clock_timestamp() END, held_reason = CASE WHEN $8 THEN 'backfill' END
        WHERE id = $1
        """,
        request_id,
        state.value,
        holds,
        variant.chain_status,
        variant.orphaned_for_good,
        variant.block,
        DUPLICATE_BANK_REFERENCE,
        variant.held,
    )
    if variant.frozen:
        await connection.execute(
            """
            INSERT INTO frozen_request (request_id, generation, nonce, mode, workflow_id, receiver, gateway, signer, body, body_sha256)
            SELECT id, 0, nonce, 'gateway', $2, consumer, 'https://x/', requester, '{}', sha256('{}') FROM mint_request WHERE id = $1
            """,
            request_id,
            WORKFLOW,
        )
    if variant.sent:
        await connection.execute(
            """
            INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)
            VALUES ($1, 1, 0, 1, gen_random_uuid(), gen_random_uuid())
            """,
            request_id,
        )
    if variant.mint:
        await connection.execute(
            """
            INSERT INTO mint_execution (
                chain_id, block_hash, log_index, block_number, tx_hash, consumer, recipient, amount, bank_reference, request_id, proof
            )
            SELECT $2, $3, id, $4, sha256('tx'), consumer, beneficiary, amount + $5, expected_reference,
                CASE WHEN $6 THEN id END, CASE WHEN $6 THEN 'report' END
            FROM mint_request WHERE id = $1
            """,
            request_id,
            CHAIN,
            block(2).hash,
            FINAL + 1 if variant.mint == "young" else 2,
            1 if variant.mint == "wrong" else 0,
            variant.mint != "foreign",
        )


async def rows_of(pool: Pool) -> dict[int, asyncpg.Record]:
    return {row["id"]: row for row in await pool.fetch("SELECT * FROM mint_request ORDER BY id")}


async def written(pool: Pool) -> tuple[int, int, int]:
    """How many rows were ever appended."""
    row = await pool.fetchrow(
        "SELECT (SELECT count(*) FROM mint_transition), (SELECT count(*) FROM operator_action), (SELECT count(*) FROM alarm)"
    )
    assert row is not None
    return tuple(row)


async def facts_of(pool: Pool, ids: Iterable[int]) -> dict[int, Facts]:
    async with pool.acquire() as connection, connection.transaction():
        found = await known(connection, ids, Horizon(complete=FINAL, trigger=FINAL))
    return {request_id: each.facts for request_id, each in found.items()}


def expected(name: str, event: Event, state: State, variant: Variant, facts: Facts) -> State | None:
    """The lifecycle's word, with what it leaves to the instruction: the evidence, and that new bytes need old ones."""
    if name == "new generation":
        if not (variant.frozen or variant.sent):
            return None
        facts = replace(facts, evidence=True)
    if name == "release with evidence" and variant.rival_sent:
        facts = replace(facts, evidence=True)
    return decide(event, state, facts)


@pytest.mark.parametrize("quarantined", [False, True], ids=["", "in quarantine"])
@pytest.mark.parametrize("name", [name for name, (_, event) in INSTRUCTIONS.items() if event is not None])
async def test_an_instruction_does_in_every_state_what_the_lifecycle_says_and_otherwise_nothing(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block, name: str, quarantined: bool
) -> None:
    """Hard case 104."""
    instruction, event = INSTRUCTIONS[name]
    assert event is not None
    placed = await place_all(dsn, indexer_pool, genesis)
    if quarantined:
        async with indexer_pool.acquire() as connection, connection.transaction():
            await quarantine.enter(connection, CHAIN, reason="restored", deadline_seconds=2400)
    facts = await facts_of(operator_pool, placed.values())
    before, appended = await rows_of(operator_pool), await written(operator_pool)
    fired = set()
    for (state, variant), request_id in placed.items():
        target = expected(name, event, state, VARIANTS[variant], facts[request_id])
        told = await instruct(operator_pool, request_id, instruction, dry_run=True)
        moves = isinstance(told.verdict, Will) and told.verdict.after is not None
        assert (told.verdict.after if isinstance(told.verdict, Will) else None) == target, (
            state,
            variant,
            told.verdict,
        )
        if isinstance(told.verdict, Refused):
            assert f"Request {request_id}: " in told.verdict.sentence
            assert told.verdict.remedy.endswith(".")
        if target is not None:
            fired.add((event, state, target))
        if moves:
            continue
        # Refused, or so already, or only taken from its hold: the real thing says the same.
        done = await instruct(operator_pool, request_id, instruction)
        assert done.verdict == told.verdict
        if not isinstance(told.verdict, Will):
            assert done.action_id is None
    after_refusals = await rows_of(operator_pool)
    released = {i for i in before if before[i]["held_reason"] != after_refusals[i]["held_reason"]}
    assert released == set() or name.startswith("release")
    assert {i: r for i, r in after_refusals.items() if i not in released} == {
        i: r for i, r in before.items() if i not in released
    }
    assert (await written(operator_pool))[1] == appended[1] + len(released)
    for (state, variant), request_id in placed.items():
        target = expected(name, event, state, VARIANTS[variant], facts[request_id])
        if target is None:
            continue
        done = await instruct(operator_pool, request_id, instruction)
        assert isinstance(done.verdict, Will)
        row = await operator_pool.fetchrow("SELECT * FROM mint_request WHERE id = $1", request_id)
        assert row is not None
        assert row["state"] == target
        assert row["holds_reference"] is (target in UNDERWAY or (target not in {State.SEEN, State.CANCELLED}))
        action = await operator_pool.fetchrow("SELECT * FROM operator_action WHERE id = $1", done.action_id)
        assert action is not None
        assert (action["operator"], action["reason"], action["request_id"]) == ("alice", "ticket 7", request_id)
        assert (done.before["state"], done.after["state"]) == (state, target)
        story = await operator_pool.fetchrow(
            "SELECT * FROM mint_transition WHERE request_id = $1 AND actor = 'operator' ORDER BY id LIMIT 1", request_id
        )
        assert story is not None
        assert (story["from_state"], story["to_state"], story["detail"]) == (state, target, "alice: ticket 7")
        again = await instruct(operator_pool, request_id, instruction)
        assert isinstance(again.verdict, AlreadySo), (state, variant, again.verdict)
    if not quarantined:
        may = {
            (rule.event, source, rule.target)
            for rule in LIFECYCLE
            if rule.event is event and Actor.OPERATOR in rule.actors
            for source in rule.sources
        }
        # The reason of a rejection decides whether it may be released, so the table's cell is reached by duplicates.
        assert fired == may


async def test_a_hold_is_refused_exactly_where_nothing_is_left_to_send(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    placed = await place_all(dsn, indexer_pool, genesis)
    done = {State.ACCEPTED, State.EXECUTED, State.COMPLETED, State.CANCELLED}
    for (state, variant), request_id in placed.items():
        answer = await instruct(operator_pool, request_id, Hold())
        if VARIANTS[variant].held:
            assert isinstance(answer.verdict, AlreadySo)
            continue
        assert isinstance(answer.verdict, Refused if state in done else Will), (state, variant)
        reason = await operator_pool.fetchval("SELECT held_reason FROM mint_request WHERE id = $1", request_id)
        assert reason == (None if state in done else "operator")
        if state not in done:
            assert isinstance((await instruct(operator_pool, request_id, Hold())).verdict, AlreadySo)


async def test_only_a_duplicate_is_released_from_a_rejection(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    placed = await place_all(dsn, indexer_pool, genesis)
    request_id = placed[State.REJECTED, "unsent"]
    async with owner(dsn) as connection:
        await connection.execute("UPDATE mint_request SET state_reason = 'amount_above_cap' WHERE id = $1", request_id)
    answer = await instruct(operator_pool, request_id, Release(EVIDENCE))
    assert isinstance(answer.verdict, Refused)
    assert "rejected by policy (amount_above_cap)" in answer.verdict.sentence
