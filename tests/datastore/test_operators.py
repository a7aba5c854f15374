"""Every instruction in every state, sent and unsent, generated from the lifecycle's own table; and the races."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest

from datastore import claims, following, operators, quarantine
from datastore.claims import Answered, Frozen, Order, Pacing
from datastore.connection import Connection, Pool, Role, open_pool
from datastore.identity import derive_nonce, execution_id_candidates
from datastore.instructions import (
    AlreadySo,
    Cancel,
    ConsumerAnswer,
    Evidence,
    Hold,
    Instruction,
    NewGeneration,
    Refused,
    Release,
    Resolve,
    Retry,
    Unproven,
    Will,
)
from datastore.judgement import DUPLICATE_BANK_REFERENCE
from datastore.lifecycle import RULES as LIFECYCLE
from datastore.lifecycle import Actor, Event, Facts, State, allowed_transitions, decide
from datastore.operators import Answer, Person, RequestUnknown, Switch, Unexplained
from datastore.rows import Block
from datastore.settlement import Horizon, known
from tests.datastore.builders import (
    ALICE,
    BOB,
    CHAIN,
    CONSUMER,
    RULES,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    report,
    request,
)
from tests.datastore.workers import ahead, look_again

T = TypeVar("T")
U = TypeVar("U")

PACING = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5)
WORKFLOW = hash_of("workflow")
PERSON = Person(name="alice", reason="ticket 7")
SECRET = bytes(range(32))
FINAL = 5
ONCE = ConsumerAnswer(
    code_hash=hash_of("code"), implementation=None, contract="MintingConsumerOnce", reference_is_used=False
)
EVIDENCE = Evidence(
    block_number=FINAL,
    block_hash=block(FINAL).hash,
    consumer=CONSUMER,
    reference=bytes(32),  # of the request: see `instruct`
    answers=(("0", ONCE), ("1", ONCE)),
)
DEADLINE_SECONDS = 2400.0
SENT_AGO_SECONDS = 2 * DEADLINE_SECONDS
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
    judged: bool = True
    mint: str | None = None  # "proven", "wrong", "young" (not final), "foreign"
    rival: str | None = None  # the state of a request that holds the reference
    rival_sent: bool = False
    rival_mint: str | None = None
    held: bool = False


VARIANTS: Final = {
    "unsent": Variant(),
    "unsent, never frozen": Variant(frozen=False),
    "unsent, held": Variant(held=True),
    "unsent, not final enough": Variant(chain_status="canonical", block=FINAL + 1),
    "unsent, never judged": Variant(judged=False, frozen=False),
    "unsent, orphaned": Variant(chain_status="orphaned"),
    "unsent, orphaned for good": Variant(chain_status="orphaned", orphaned_for_good=True),
    "unsent, foreign mint": Variant(mint="foreign"),
    "unsent, unsent rival": Variant(rival="review"),
    "unsent, sent rival": Variant(rival="failed", rival_sent=True),
    "unsent, minted rival": Variant(rival="completed", rival_sent=True, rival_mint="proven"),
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
    evidence = operators.evidence_of(instruction)
    if isinstance(instruction, NewGeneration | Release) and evidence is not None and evidence.reference == bytes(32):
        reference = await pool.fetchval("SELECT expected_reference FROM mint_request WHERE id = $1", request_id)
        instruction = replace(instruction, evidence=replace(evidence, reference=reference))
    return await operators.instruct(
        pool,
        CHAIN,
        request_id,
        instruction,
        PERSON,
        finality=finality,
        nonce_of=nonce_of,
        deadline_seconds=DEADLINE_SECONDS,
        dry_run=dry_run,
        confirmed=confirmed,
    )


# -- the matrix -------------------------------------------------------------------------------------------------------
async def place_all(
    dsn: str, pool: Pool, genesis: Block, cells: Sequence[tuple[State, str]] = CELLS
) -> dict[tuple[State, str], int]:
    """One request for each cell, written as if it had come to be so; its id."""
    one = block(1)
    requests = [
        request(f"{state} {name}", one, log_index=number, bank=f"D{number}")
        for number, (state, name) in enumerate(cells)
    ]
    rivals = [
        request(f"rival of {state} {name}", one, log_index=1_000 + number, bank=f"D{number}")
        for number, (state, name) in enumerate(cells)
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
        await connection.execute("UPDATE block SET timestamp = extract(epoch FROM now())::bigint")
        ids = {row["identity"]: row["id"] for row in await connection.fetch("SELECT id, identity FROM mint_request")}
        placed = {}
        for number, (state, name) in enumerate(cells):
            variant = VARIANTS[name]
            request_id = ids[requests[number].identity]
            if variant.rival:
                rival = ids[hash_of("identity", f"rival of {state} {name}")]
                of_rival = Variant(sent=variant.rival_sent, mint=variant.rival_mint)
                await put(connection, rival, State(variant.rival), of_rival, holds=True)
            if is_possible(state, variant):
                await put(connection, request_id, state, variant, holds=not variant.rival and state not in ENDED_UNSENT)
                placed[state, name] = request_id
    return placed


async def place(dsn: str, pool: Pool, genesis: Block, state: State, variant: str) -> int:
    """One request alone; its id."""
    return (await place_all(dsn, pool, genesis, [(state, variant)]))[state, variant]


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
    reason = "allowed" if variant.judged else "reference_minted"
    await connection.execute(
        """
        INSERT INTO mint_transition (request_id, from_state, to_state, actor, reason)
        VALUES ($1, 'seen', $2, 'indexer', $3)
        """,
        request_id,
        "confirmed" if variant.judged else "review",
        reason,
    )
    if variant.frozen:
        await connection.execute(
            """
            INSERT INTO frozen_request (
                request_id, generation, nonce, mode, workflow_id, receiver, gateway, signer, body, body_sha256
            )
            SELECT id, 0, nonce, 'gateway', $2, consumer, 'https://x/', requester, '{}', sha256('{}')
            FROM mint_request WHERE id = $1
            """,
            request_id,
            WORKFLOW,
        )
    if variant.sent:
        await connection.execute(
            """
            INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti, started_at)
            VALUES ($1, 1, 0, 1, gen_random_uuid(), gen_random_uuid(), now() - make_interval(secs => $2))
            """,
            request_id,
            SENT_AGO_SECONDS,
        )
    if variant.mint:
        await connection.execute(
            """
            INSERT INTO mint_execution (
                chain_id, block_hash, log_index, block_number, tx_hash, consumer, recipient, amount, bank_reference,
                request_id, proof
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
        """
        SELECT
            (SELECT count(*) FROM mint_transition), (SELECT count(*) FROM operator_action), (SELECT count(*) FROM alarm)
        """
    )
    assert row is not None
    return tuple(row)


def shown(row: asyncpg.Record) -> dict[str, object]:
    names = ("state", "state_reason", "chain_status", "held_reason", "holds_reference", "generation")
    return {name: row[name] for name in names} | {"nonce": str(row["nonce"])}


async def facts_of(pool: Pool, ids: Iterable[int]) -> dict[int, Facts]:
    async with pool.acquire() as connection, connection.transaction():
        found = await known(connection, ids, Horizon(complete=FINAL, trigger=FINAL))
    return {request_id: each.facts for request_id, each in found.items()}


def expected(name: str, event: Event, state: State, variant: Variant, facts: Facts) -> State | None:
    """The lifecycle's word, with what it leaves to the instruction: evidence, judgement, and bytes to replace."""
    facts = replace(facts, final_enough=facts.final_enough and variant.judged)
    if name == "new generation":
        if not (variant.frozen or variant.sent):
            return None
        facts = replace(facts, evidence=True)
    if name == "release with evidence" and variant.rival_sent:
        facts = replace(facts, evidence=True)
    return decide(event, state, facts)


async def do_and_do_again(
    pool: Pool, request_id: int, instruction: Instruction, target: State, held_before: bool
) -> None:
    """It is done, recorded in every place, and the second time it is so already."""
    done = await instruct(pool, request_id, instruction)
    assert isinstance(done.verdict, Will)
    row = await pool.fetchrow("SELECT * FROM mint_request WHERE id = $1", request_id)
    assert row is not None
    assert row["state"] == done.after["state"] == target
    may_hold = target not in {State.SEEN, State.CANCELLED}
    assert row["holds_reference"] is (target in UNDERWAY or (held_before and may_hold))
    action = await pool.fetchrow("SELECT * FROM operator_action WHERE id = $1", done.action_id)
    assert action is not None
    assert (action["operator"], action["reason"], action["request_id"]) == ("alice", "ticket 7", request_id)
    assert json.loads(action["before"]) == done.before
    assert json.loads(action["after"]) == done.after
    story = await pool.fetchrow(
        "SELECT * FROM mint_transition WHERE request_id = $1 AND actor = 'operator' ORDER BY id LIMIT 1", request_id
    )
    assert story is not None
    assert (story["from_state"], story["to_state"]) == (done.before["state"], target)
    assert story["detail"] == "alice: ticket 7"
    again = await instruct(pool, request_id, instruction)
    assert isinstance(again.verdict, AlreadySo)
    assert again.action_id is None


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
    targets = {
        cell: target
        for cell, request_id in placed.items()
        if (target := expected(name, event, cell[0], VARIANTS[cell[1]], facts[request_id])) is not None
    }
    for cell, request_id in placed.items():
        told = (await instruct(operator_pool, request_id, instruction, dry_run=True)).verdict
        assert (told.after if isinstance(told, Will) else None) == targets.get(cell), (cell, told)
        if isinstance(told, Will):
            continue
        if isinstance(told, Refused):
            assert f"Request {request_id}: " in told.sentence
            assert told.remedy.endswith(".")
        assert await instruct(operator_pool, request_id, instruction) == Answer(
            verdict=told, before=shown(before[request_id]), after=shown(before[request_id])
        )
    # Dry runs, refusals and what is so already wrote nothing at all.
    assert await rows_of(operator_pool) == before
    assert await written(operator_pool) == appended
    for cell, target in targets.items():
        request_id = placed[cell]
        await do_and_do_again(operator_pool, request_id, instruction, target, before[request_id]["holds_reference"])
    if not quarantined:
        may = {
            (source, rule.target)
            for rule in LIFECYCLE
            if rule.event is event and Actor.OPERATOR in rule.actors
            for source in rule.sources
        }
        assert {(state, target) for (state, _), target in targets.items()} == may


async def test_a_release_from_a_hold_changes_no_state_and_is_done_once(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    placed = await place_all(dsn, indexer_pool, genesis)
    for (state, variant), request_id in placed.items():
        if not VARIANTS[variant].held or state is State.REJECTED:
            continue
        answer = await instruct(operator_pool, request_id, Release())
        assert isinstance(answer.verdict, Will)
        assert answer.after == dict(answer.before) | {"held_reason": None}
        assert answer.after["state"] == state
        assert isinstance((await instruct(operator_pool, request_id, Release())).verdict, AlreadySo)


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


# -- what a person must bring -----------------------------------------------------------------------------------------
async def test_nobody_acts_without_a_name_and_a_reason_or_on_a_request_that_is_not_there(operator_pool: Pool) -> None:
    for name, reason in (("", "why"), ("alice", " ")):
        with pytest.raises(Unexplained):
            Person(name=name, reason=reason)
    with pytest.raises(RequestUnknown, match="no request 7"):
        await instruct(operator_pool, 7, Cancel())


def answered(*answers: ConsumerAnswer, failures: tuple[tuple[str, str], ...] = ()) -> Evidence:
    return replace(EVIDENCE, answers=tuple((str(n), each) for n, each in enumerate(answers)), failures=failures)


SILENT = (("1", "no answer"),)
NOT_PROVEN: Final[dict[str, tuple[Evidence | None, str, Unproven]]] = {
    "no evidence": (None, "", Unproven.NO_EVIDENCE),
    "block above finality": (
        replace(EVIDENCE, block_number=FINAL + 1, block_hash=block(FINAL + 1).hash),
        "",
        Unproven.BLOCK_NOT_HELD,
    ),
    "block that the index lacks": (
        EVIDENCE,
        "UPDATE block SET number = -1 WHERE number = 5",
        Unproven.BLOCK_NOT_HELD,
    ),
    "block of another branch": (
        EVIDENCE,
        "UPDATE block SET canonical = false WHERE number = 5",
        Unproven.BLOCK_NOT_HELD,
    ),
    "another block of that number": (replace(EVIDENCE, block_hash=block(1).hash), "", Unproven.CHANGED),
    "another consumer asked": (replace(EVIDENCE, consumer=ALICE), "", Unproven.CHANGED),
    "another reference asked": (replace(EVIDENCE, reference=hash_of("reference")), "", Unproven.CHANGED),
    "before the deadline": (
        EVIDENCE,
        "UPDATE attempt SET started_at = now() - interval '2401 s'",  # its token lived 300 s
        Unproven.BLOCK_TOO_EARLY,
    ),
    "block before the deadline": (
        EVIDENCE,
        "UPDATE block SET timestamp = timestamp - 2101 WHERE number = 5",
        Unproven.BLOCK_TOO_EARLY,
    ),
    "a chain from the future": (
        EVIDENCE,
        "UPDATE block SET timestamp = 9223372036854775807; UPDATE attempt SET started_at = now()",
        Unproven.BLOCK_TOO_EARLY,
    ),
    "a restore since then": (
        EVIDENCE,
        "INSERT INTO alarm (chain_id, kind, sentence) VALUES (31337, 'quarantine_entered', 'restored')",
        Unproven.BLOCK_TOO_EARLY,
    ),
    "sent to another consumer": (
        EVIDENCE,
        "UPDATE frozen_request SET receiver = substring(sha256('x'), 1, 20)",
        Unproven.OTHER_CONSUMER,
    ),
    "no endpoint": (answered(), "", Unproven.TOO_FEW_ENDPOINTS),
    "one of two endpoints": (answered(ONCE, failures=SILENT), "", Unproven.TOO_FEW_ENDPOINTS),
    "endpoints disagree": (
        answered(ONCE, replace(ONCE, reference_is_used=True)),
        "",
        Unproven.ENDPOINTS_DISAGREE,
    ),
    "a proxy": (answered(replace(ONCE, implementation=ALICE)), "", Unproven.CONSUMER_UPGRADEABLE),
    "unknown code": (answered(replace(ONCE, contract=None, reference_is_used=None)), "", Unproven.CONSUMER_UNKNOWN),
    "no code": (
        answered(ConsumerAnswer(code_hash=None, implementation=None, contract=None, reference_is_used=None)),
        "",
        Unproven.CONSUMER_UNKNOWN,
    ),
    "used reference": (answered(replace(ONCE, reference_is_used=True)), "", Unproven.REFERENCE_USED),
}


@pytest.mark.parametrize("kind", [NewGeneration, Release])
@pytest.mark.parametrize("name", NOT_PROVEN)
async def test_what_was_sent_gets_no_second_id_and_no_second_request_without_the_whole_evidence(
    dsn: str,
    indexer_pool: Pool,
    operator_pool: Pool,
    genesis: Block,
    name: str,
    kind: type[NewGeneration | Release],
) -> None:
    evidence, change, unproven = NOT_PROVEN[name]
    cell = (State.FAILED, "sent") if kind is NewGeneration else (State.REJECTED, "unsent, sent rival")
    request_id = await place(dsn, indexer_pool, genesis, *cell)
    async with owner(dsn) as connection:
        await connection.execute(change or "SELECT")
    answer = await instruct(operator_pool, request_id, kind(evidence))
    assert isinstance(answer.verdict, Refused)
    assert answer.verdict.unproven is unproven
    assert await operator_pool.fetchval("SELECT count(*) FROM operator_action") == 0


@pytest.mark.parametrize(
    "evidence",
    [EVIDENCE, answered(ONCE), answered(ONCE, ONCE, failures=(("2", "no answer"),))],
    ids=["two endpoints", "the only one", "two of three"],
)
async def test_evidence_of_two_endpoints_or_of_the_only_one_is_whole(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block, evidence: Evidence
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.FAILED, "sent")
    assert isinstance((await instruct(operator_pool, request_id, NewGeneration(evidence))).verdict, Will)


async def test_an_attempt_that_proves_undelivered_does_not_count_as_the_last_send(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.FAILED, "sent")
    async with owner(dsn) as connection:
        await connection.execute(
            """
            INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti, answered_at, outcome)
            VALUES ($1, 2, 0, 1, gen_random_uuid(), gen_random_uuid(), now(), 'refused_now')
            """,
            request_id,
        )
    assert isinstance((await instruct(operator_pool, request_id, NewGeneration(EVIDENCE))).verdict, Will)


async def test_no_duplicate_takes_the_reference_from_a_sent_rival_in_quarantine(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REJECTED, "unsent, sent rival")
    await throw(operator_pool, Switch.QUARANTINE)
    answer = await instruct(operator_pool, request_id, Release(EVIDENCE))
    assert isinstance(answer.verdict, Refused)
    assert answer.verdict.unproven is Unproven.QUARANTINED


async def test_what_was_never_sent_gets_a_new_id_without_evidence(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REVIEW, "unsent")
    assert isinstance((await instruct(operator_pool, request_id, NewGeneration())).verdict, Will)


async def test_the_question_to_the_chain_is_about_the_block_that_the_index_holds(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.FAILED, "sent")
    reference = await operator_pool.fetchval("SELECT expected_reference FROM mint_request WHERE id = $1", request_id)
    asked = await operators.question(operator_pool, CHAIN, request_id, FINAL)
    assert asked == replace(EVIDENCE, reference=reference, answers=())
    young = await operators.question(operator_pool, CHAIN, request_id, FINAL + 1)
    assert (young.block_number, young.block_hash) == (FINAL + 1, None)
    with pytest.raises(RequestUnknown):
        await operators.question(operator_pool, CHAIN, 10**9, FINAL)


async def test_a_new_generation_has_the_derived_id_and_its_evidence_is_kept(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.FAILED, "sent")
    before = await operator_pool.fetchrow("SELECT * FROM mint_request WHERE id = $1", request_id)
    await instruct(operator_pool, request_id, NewGeneration(answered(ONCE, ONCE, failures=(("2", "no answer"),))))
    after = await operator_pool.fetchrow("SELECT * FROM mint_request WHERE id = $1", request_id)
    assert before is not None
    assert after is not None
    assert (after["generation"], after["nonce"]) == (1, nonce_of(before["identity"], 1))
    # What appears on chain stays the same: that is what makes the consumer refuse the second mint.
    assert after["expected_reference"] == before["expected_reference"]
    kept = json.loads(await operator_pool.fetchval("SELECT evidence FROM operator_action"))
    until, block_at = (datetime.fromisoformat(kept.pop(name)) for name in ("delivered_until", "block_at"))
    started_at = await operator_pool.fetchval("SELECT started_at FROM attempt WHERE request_id = $1", request_id)
    timestamp = await operator_pool.fetchval("SELECT timestamp FROM block WHERE number = $1", FINAL)
    assert (until - started_at).total_seconds() == DEADLINE_SECONDS + quarantine.TOKEN_SECONDS
    assert block_at.timestamp() == timestamp
    answer = {
        "code_hash": f"0x{hash_of('code').hex()}",
        "implementation": None,
        "contract": "MintingConsumerOnce",
        "reference_is_used": False,
    }
    assert kept == {
        "block_number": FINAL,
        "block_hash": f"0x{block(FINAL).hash.hex()}",
        "newest_final_block": FINAL,
        "consumer": f"0x{CONSUMER.hex()}",
        "reference": f"0x{before['expected_reference'].hex()}",
        "answers": {"0": answer, "1": answer},
        "failures": {"2": "no answer"},
        "sent": request_id,
        "attempts": [{"attempt_no": 1, "generation": 0, "outcome": None}],
    }


@pytest.mark.parametrize(
    ("state", "variant", "instruction"),
    [(State.REVIEW, "unsent", NewGeneration(EVIDENCE)), (State.FAILED, "sent, held", Release(EVIDENCE))],
)
async def test_evidence_that_nothing_rests_on_is_not_kept(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block, state: State, variant: str, instruction: Release
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, state, variant)
    assert isinstance((await instruct(operator_pool, request_id, instruction)).verdict, Will)
    assert await operator_pool.fetchval("SELECT count(*) FROM operator_action WHERE evidence IS NULL") == 1


async def test_the_record_of_an_action_takes_no_evidence_that_the_chain_did_not_give(operator_pool: Pool) -> None:
    for action, evidence in (
        ("new_generation", {"final_block": 0, "consumer_refuses_used_references": True}),
        ("pause", {"block_hash": "", "consumer": "", "reference": "", "answers": {}}),
    ):
        with pytest.raises(asyncpg.CheckViolationError, match="evidence_is_what_the_chain_said"):
            await operator_pool.execute(
                """
                INSERT INTO operator_action (chain_id, operator, action, request_id, reason, evidence, before, after)
                VALUES ($1, 'alice', $2, $3, 'why', $4, '{}', '{}')
                """,
                CHAIN,
                action,
                None if action == "pause" else 1,
                json.dumps(evidence),
            )


@pytest.mark.parametrize(
    "change", ["chain_id", "consumer", "expected_reference"], ids=["another chain", "another consumer", "as the nonce"]
)
async def test_no_evidence_releases_a_duplicate_that_the_chain_could_not_tell_from_its_sent_rival(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block, change: str
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REJECTED, "unsent, sent rival")
    value = "chain_id + 1" if change == "chain_id" else f"substring(sha256({change}), 1, length({change}))"
    async with owner(dsn) as connection:
        await connection.execute(
            f"""
            UPDATE mint_request SET {change} = {value}
            WHERE holds_reference AND bank_reference = (SELECT bank_reference FROM mint_request WHERE id = $1)
            """,  # noqa: S608 - both are written here
            request_id,
        )
    answer = await instruct(operator_pool, request_id, Release(EVIDENCE))
    assert isinstance(answer.verdict, Refused)
    assert answer.verdict.unproven is Unproven.OTHER_REFERENCE


async def test_a_released_duplicate_takes_the_reference_from_its_sent_rival(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REJECTED, "unsent, sent rival")
    await instruct(operator_pool, request_id, Release(EVIDENCE))
    sent = await operator_pool.fetchval("SELECT evidence -> 'sent' FROM operator_action")
    assert await operator_pool.fetchval("SELECT is_sent($1)", int(sent))
    rows = await operator_pool.fetch(
        """
        SELECT state, holds_reference FROM mint_request
        WHERE bank_reference = (SELECT bank_reference FROM mint_request WHERE id = $1) ORDER BY id
        """,
        request_id,
    )
    assert [tuple(row) for row in rows] == [("confirmed", True), ("failed", False)]
    # The rival may still mint: it is not sent again beside the released one.
    rival = await operator_pool.fetchval(
        """
        SELECT id FROM mint_request
        WHERE NOT holds_reference AND bank_reference = (SELECT bank_reference FROM mint_request WHERE id = $1)
        """,
        request_id,
    )
    answer = await instruct(operator_pool, rival, Retry())
    assert isinstance(answer.verdict, Refused)
    assert f"Request {request_id} (confirmed) holds its bank reference" in answer.verdict.sentence


@pytest.mark.parametrize(
    ("variant", "is_done"), [("sent, proven mint", True), ("sent, wrong mint", False), ("sent, young mint", False)]
)
async def test_a_request_is_resolved_as_completed_only_if_its_final_mint_is_right(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block, variant: str, is_done: bool
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REVIEW, variant)
    answer = await instruct(operator_pool, request_id, Resolve("completed"))
    assert isinstance(answer.verdict, Will if is_done else Refused)


@pytest.mark.parametrize(("recipient", "amount"), [(ALICE, 1), (BOB, 0)], ids=["another amount", "another recipient"])
async def test_of_several_mints_each_must_be_right_for_a_completion(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block, recipient: bytes, amount: int
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REVIEW, "sent, proven mint")
    again = """
        INSERT INTO mint_execution (
            chain_id, block_hash, log_index, block_number, tx_hash, consumer, recipient, amount, bank_reference,
            request_id, proof
        )
        SELECT chain_id, block_hash, log_index + $2, block_number, tx_hash, consumer, $3, amount + $4, bank_reference,
            request_id, proof
        FROM mint_execution WHERE request_id = $1 LIMIT 1
    """
    async with owner(dsn) as connection:
        await connection.execute(again, request_id, 10_000, ALICE, 0)
        twice = (await instruct(operator_pool, request_id, Resolve("completed"), dry_run=True)).verdict
        assert isinstance(twice, Will)
        assert len(twice.warnings) == 1
        await connection.execute(again, request_id, 20_000, recipient, amount)
    answer = await instruct(operator_pool, request_id, Resolve("completed"))
    assert isinstance(answer.verdict, Refused)


async def test_of_two_contested_requests_a_person_chooses_one_and_the_other_is_refused_from_then_on(
    indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    requests = (
        request("first", one, bank="D1"),
        request("second", one, log_index=1, bank="D1", beneficiary=BOB),
    )
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    await instruct(operator_pool, 2, Retry())
    answer = await instruct(operator_pool, 1, Retry())
    assert isinstance(answer.verdict, Refused)
    assert "`bskt requests cancel 2` first" in answer.verdict.remedy
    assert await states(operator_pool) == ["review", "confirmed"]


async def test_a_cancelled_holder_lets_its_duplicates_be_judged_again(
    indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    requests = (request("first", one, bank="D1"), request("second", one, log_index=1, bank="D1"))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    await instruct(operator_pool, 1, Cancel())
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, final=1), RULES)
    assert await following.settle_references(indexer_pool, CHAIN, RULES) is not None
    assert await states(operator_pool) == ["cancelled", "confirmed"]
    assert await following.settle_references(indexer_pool, CHAIN, RULES) is None


async def test_what_was_run_in_mode_simulate_is_never_run_again(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    request_id = await place(dsn, indexer_pool, genesis, State.REVIEW, "sent")
    async with owner(dsn) as connection:
        await connection.execute("UPDATE frozen_request SET mode = 'simulate' WHERE request_id = $1", request_id)
    answer = await instruct(operator_pool, request_id, Retry())
    assert isinstance(answer.verdict, Refused)
    assert "a second run could mint a second time" in answer.verdict.sentence


async def test_a_report_of_another_generation_forbids_a_retry_unless_the_consumer_refuses_used_references(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    placed = await place_all(dsn, indexer_pool, genesis)
    stray, proven = placed[State.FAILED, "sent"], placed[State.REVIEW, "sent"]
    await instruct(operator_pool, proven, NewGeneration(EVIDENCE))
    async with owner(dsn) as connection:
        for request_id, generation in ((stray, 1), (proven, 0)):
            await connection.execute(
                """
                INSERT INTO execution_id (chain_id, execution_id, request_id, source, generation)
                VALUES ($1, $2, $3, 'legacy', $4)
                """,
                CHAIN,
                hash_of("execution", request_id),
                request_id,
                generation,
            )
            await connection.execute(
                """
                INSERT INTO report (
                    chain_id, block_hash, log_index, block_number, tx_hash, receiver, execution_id, report_id, result
                )
                SELECT $1, $2, id, 2, sha256('tx'), consumer, $4, '', false FROM mint_request WHERE id = $3
                """,
                CHAIN,
                block(2).hash,
                request_id,
                hash_of("execution", request_id),
            )
        await connection.execute("UPDATE mint_request SET state = 'failed' WHERE id = $1", proven)
    refused = await instruct(operator_pool, stray, Retry())
    assert isinstance(refused.verdict, Refused)
    assert "a report of another generation" in refused.verdict.sentence
    assert isinstance((await instruct(operator_pool, proven, Retry())).verdict, Will)


async def test_what_was_confirmed_is_what_is_done_or_nothing_is(
    indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=-1), RULES)
    shown_first = (await instruct(operator_pool, 1, Cancel(), dry_run=True)).verdict
    assert isinstance(shown_first, Will)
    await following.commit(indexer_pool, CHAIN, batch(block(2), on=one, final=1), RULES)
    answer = await instruct(operator_pool, 1, Cancel(), confirmed=shown_first)
    assert isinstance(answer.verdict, Refused)
    assert "It has changed since you were asked" in answer.verdict.sentence
    assert await states(operator_pool) == ["confirmed"]


async def test_a_retried_doubt_gets_its_whole_time_again(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    """A sweep that counted from the first attempt would give up before the retry could send."""
    request_id = await place(dsn, indexer_pool, genesis, State.REVIEW, "sent")
    async with owner(dsn) as connection:
        await connection.execute("UPDATE attempt SET started_at = started_at - interval '10 days'")
        await connection.execute("UPDATE mint_request SET state_changed_at = state_changed_at - interval '9 days'")
        await connection.execute("DELETE FROM mint_request WHERE id <> $1", request_id)
    await instruct(operator_pool, request_id, Retry())
    swept = await claims.sweep(invocator_pool, CHAIN, give_up_seconds=3600, deadline_seconds=2400)
    assert swept.doubts == 0
    (due,) = await claims.due(invocator_pool, CHAIN, limit=9)
    assert (due.request_id, due.frozen is not None) == (request_id, True)


async def test_a_hold_of_a_person_replaces_one_that_ends_by_itself_and_is_never_replaced_by_one(
    indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    requests = (request("a", one), request("b", one, log_index=1))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    for request_id, first in ((1, "worker"), (2, "person")):
        order = await claim(invocator_pool, request_id)
        assert order is not None
        if first == "person":
            await instruct(operator_pool, request_id, Hold())
        await claims.hold(invocator_pool, CHAIN, order, reason="node_unavailable", detail="no answer", seconds=0)
        await instruct(operator_pool, request_id, Hold())
    await claims.sweep(invocator_pool, CHAIN, give_up_seconds=3600, deadline_seconds=2400)
    reasons = await operator_pool.fetch("SELECT held_reason FROM mint_request ORDER BY id")
    assert [row["held_reason"] for row in reasons] == ["operator", "operator"]


# -- the switches -----------------------------------------------------------------------------------------------------
async def throw(pool: Pool, switch: Switch, *, dry_run: bool = False) -> Answer:
    return await operators.throw(pool, CHAIN, switch, PERSON, deadline_seconds=2400, dry_run=dry_run)


async def test_a_pause_stops_the_next_claim_and_the_next_attempt_until_it_is_lifted(
    indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    """Hard case 109."""
    one = block(1)
    requests = (request("a", one), request("b", one, log_index=1))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    order = await claim_to_send(invocator_pool, 1)
    assert order is not None
    assert isinstance((await throw(operator_pool, Switch.PAUSE, dry_run=True)).verdict, Will)
    assert isinstance((await throw(operator_pool, Switch.PAUSE)).verdict, Will)
    assert isinstance((await throw(operator_pool, Switch.PAUSE)).verdict, AlreadySo)
    assert await claim(invocator_pool, 2) is None
    assert await begin(invocator_pool, order) is None
    assert isinstance((await throw(operator_pool, Switch.RESUME)).verdict, Will)
    assert isinstance((await throw(operator_pool, Switch.RESUME)).verdict, AlreadySo)
    assert await begin(invocator_pool, order) == 1
    actions = await operator_pool.fetch("SELECT action, operator, reason FROM operator_action ORDER BY id")
    assert [tuple(row) for row in actions] == [("pause", "alice", "ticket 7"), ("resume", "alice", "ticket 7")]


async def test_a_quarantine_by_hand_stops_everything_and_no_resume_ends_it(
    indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=1), RULES)
    assert isinstance((await throw(operator_pool, Switch.QUARANTINE)).verdict, Will)
    again = await throw(operator_pool, Switch.QUARANTINE)
    assert isinstance(again.verdict, AlreadySo)
    assert "alice: ticket 7" in again.verdict.sentence
    await throw(operator_pool, Switch.RESUME)
    assert await claim(invocator_pool, 1) is None
    answer = await instruct(operator_pool, 1, Cancel())
    assert isinstance(answer.verdict, Refused)
    assert "cre execution status" in answer.verdict.remedy


async def test_after_a_restore_a_person_is_told_to_ask_cre_before_a_cancel(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    asked = request("a", one)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked,), final=1), RULES)
    await throw(operator_pool, Switch.QUARANTINE)
    async with owner(dsn) as connection:
        await connection.execute(
            "UPDATE control SET quarantined_at = NULL, quarantined_reason = NULL, quarantined_until = NULL"
        )
    verdict = (await instruct(operator_pool, 1, Cancel(), dry_run=True)).verdict
    assert isinstance(verdict, Will)
    assert all(each.hex() in verdict.warnings[0] for each in execution_id_candidates(WORKFLOW, asked.nonce.hex))


# -- races: who is first is decided by the row's lock, and the other one sees what was done ---------------------------
FROZEN: Final = Frozen(
    mode="gateway", workflow_id=WORKFLOW, receiver=b"\xc0" * 20, gateway="https://x/", signer=ALICE, body=b"{}"
)
PACED: Final = replace(PACING, seconds_per_trigger=1)


async def claim(pool: Pool, request_id: int) -> Order | None:
    return await claims.claim(pool, CHAIN, request_id, worker_id=uuid4(), lease_seconds=60, pacing=PACING)


async def claim_to_send(pool: Pool, request_id: int) -> Order | None:
    """A claim whose bytes are frozen: only such ones are sent."""
    order = await claim(pool, request_id)
    if order is not None:
        assert await claims.freeze(pool, CHAIN, order, FROZEN, execution_id_candidates(WORKFLOW, order.nonce.hex))
    return order


async def begin(pool: Pool, order: Order, *, pacing: Pacing = PACING) -> int | None:
    return await claims.begin_attempt(
        pool,
        CHAIN,
        order,
        FROZEN,
        jti=uuid4(),
        worker_id=uuid4(),
        pacing=pacing,
        retry_seconds=lambda _: 90,
        deadline_seconds=2400,
    )


async def states(pool: Pool) -> list[str]:
    return [row["state"] for row in await pool.fetch("SELECT state FROM mint_request ORDER BY id")]


async def race(
    dsn: str, blocking: str, *values: object, first: Coroutine[object, object, T], second: Coroutine[object, object, U]
) -> tuple[T, U]:
    """Let ``first`` run into the lock that ``blocking`` takes, its own locks held; then ``second``; then both go on."""
    async with owner(dsn) as blocker, owner(dsn) as watcher, asyncio.TaskGroup() as tasks:  # noqa: SIM117 - the inner one ends while tasks go on
        async with blocker.transaction():
            await blocker.execute(blocking, *values)
            ahead = tasks.create_task(first)
            await waiting(watcher, 1)
            behind = tasks.create_task(second)
            await waiting(watcher, 2)
    return ahead.result(), behind.result()


async def waiting(watcher: Connection, sessions: int) -> None:
    """Return when so many sessions of this database wait for a lock."""
    while (
        await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        < sessions
    ):
        pass


async def test_a_cancel_that_meets_a_claim_is_refused_and_a_claim_that_meets_a_cancel_gets_nothing(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    requests = (request("a", one), request("b", one, log_index=1))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    order, answer = await race(
        dsn,
        "INSERT INTO basket_turn VALUES ($1, $2, now())",
        CHAIN,
        requests[0].stablecoin,
        first=claim(invocator_pool, 1),
        second=instruct(operator_pool, 1, Cancel()),
    )
    assert order is not None
    assert isinstance(answer.verdict, Refused)
    assert "A worker holds it until" in answer.verdict.sentence
    async with owner(dsn) as busy, busy.transaction():
        await busy.execute("SELECT FROM mint_request WHERE id = 2 FOR UPDATE")  # as a cancel does
        assert await claim(invocator_pool, 2) is None
    assert isinstance((await instruct(operator_pool, 2, Cancel())).verdict, Will)
    assert await claim(invocator_pool, 2) is None
    assert await states(operator_pool) == ["claimed", "cancelled"]


async def test_a_cancel_that_meets_an_attempt_is_refused_for_it_was_sent(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    """The cancel waited while the attempt was committed: ``sent`` must be read after the lock."""
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=1), RULES)
    order = await claim_to_send(invocator_pool, 1)
    assert order is not None
    number, answer = await race(
        dsn,
        "INSERT INTO workflow_slot VALUES ($1, $2, now() - interval '1 hour')",
        CHAIN,
        WORKFLOW,
        first=begin(invocator_pool, order, pacing=PACED),
        second=instruct(operator_pool, 1, Cancel()),
    )
    assert number == 1
    assert isinstance(answer.verdict, Refused)
    assert "It was sent, and nothing can call it back" in answer.verdict.sentence
    assert await states(operator_pool) == ["in_doubt"]


async def test_an_attempt_of_a_worker_whose_request_was_cancelled_meanwhile_does_not_begin(
    indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    """Hard case 67."""
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=1), RULES)
    asleep = await claims.claim(invocator_pool, CHAIN, 1, worker_id=uuid4(), lease_seconds=0, pacing=PACING)
    assert asleep is not None
    await claims.sweep(invocator_pool, CHAIN, give_up_seconds=3600, deadline_seconds=2400)
    assert isinstance((await instruct(operator_pool, 1, Cancel())).verdict, Will)
    assert await begin(invocator_pool, asleep) is None
    assert await operator_pool.fetchval("SELECT count(*) FROM attempt") == 0


async def test_an_attempt_that_meets_a_hold_does_not_begin(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    requests = (request("a", one, bank="D1"), request("b", one, log_index=1, bank="D1"))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    order = await claim_to_send(invocator_pool, 1)
    assert order is not None
    # The record of an instruction comes after its locks.
    answer, number = await race(
        dsn,
        "LOCK TABLE operator_action IN EXCLUSIVE MODE",
        first=instruct(operator_pool, 1, Hold()),
        second=begin(invocator_pool, order),
    )
    assert isinstance(answer.verdict, Will)
    assert number is None


@pytest.mark.parametrize("first", ["mint", "retry"])
async def test_a_retry_that_meets_a_late_mint_sends_nothing_new_and_the_mint_counts(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, genesis: Block, first: str
) -> None:
    """Hard case 79."""
    one, two = block(1), block(2)
    asked = request("a", one, bank="D1")
    duplicate = request("b", one, log_index=1, bank="D1")
    await following.commit(
        indexer_pool, CHAIN, batch(ahead(one), on=genesis, requests=(asked, duplicate), final=1), RULES
    )
    order = await claim_to_send(invocator_pool, 1)
    assert order is not None
    execution_ids = execution_id_candidates(WORKFLOW, asked.nonce.hex)
    assert await begin(invocator_pool, order) == 1
    accepted = Answered(outcome="accepted", http_status=200, sentence=None, answer=None)
    await claims.record_answer(invocator_pool, CHAIN, order, FROZEN, 1, accepted)
    await look_again(indexer_pool)
    await claims.sweep(invocator_pool, CHAIN, give_up_seconds=3600, deadline_seconds=2400)
    assert await states(operator_pool) == ["failed", "rejected"]

    reports = (report(two, execution_id=execution_ids[0]),)
    minted = batch(two, on=one, mints=(mint(two, of=asked),), reports=reports, final=1)
    commit = following.commit(indexer_pool, CHAIN, minted, RULES)
    retry = instruct(operator_pool, 1, Retry())
    if first == "retry":
        answer, _ = await race(dsn, "LOCK TABLE operator_action IN EXCLUSIVE MODE", first=retry, second=commit)
        assert isinstance(answer.verdict, Will)
    else:
        # The alarm of the unexpected mint comes after the mint's own lock.
        _, answer = await race(dsn, "LOCK TABLE alarm IN EXCLUSIVE MODE", first=commit, second=retry)
        assert isinstance(answer.verdict, Refused)
        assert "It is minted" in answer.verdict.sentence
    assert (await states(operator_pool))[0] == "executed"
    assert await operator_pool.fetchval("SELECT count(*) FROM attempt") == 1


# -- what the role may not --------------------------------------------------------------------------------------------
FORBIDDEN: Final = (
    "DELETE FROM mint_request",
    "DELETE FROM mint_transition",
    "DELETE FROM operator_action",
    "DELETE FROM alarm",
    "INSERT INTO attempt (request_id, attempt_no) VALUES (1, 1)",
    "INSERT INTO execution_id VALUES (31337, sha256('x'), 1, 'legacy', 0, NULL)",
    "INSERT INTO frozen_request (request_id, generation) VALUES (1, 1)",
    "INSERT INTO mint_transition (request_id, to_state, actor) VALUES (1, 'completed', 'operator')",
    "INSERT INTO mint_execution (chain_id) VALUES (1)",
    "INSERT INTO mint_request (chain_id) VALUES (1)",
    "INSERT INTO report (chain_id) VALUES (1)",
    "UPDATE attempt SET outcome = 'never_connected', answered_at = now()",
    "UPDATE breaker SET probe_at = now()",
    "UPDATE chain SET secret_check = ''",
    "UPDATE control SET server_timeline = 9",
    "UPDATE control SET halted_at = NULL, halted_reason = NULL",
    "UPDATE cursor SET finalized_number = 9",
    "UPDATE execution_id SET request_id = 2",
    "UPDATE frozen_request SET body = ''",
    "UPDATE mint_execution SET request_id = 1, proof = 'report'",
    "UPDATE mint_request SET amount = 1",
    "UPDATE mint_request SET beneficiary = requester",
    "UPDATE mint_request SET bank_reference = sha256('x')",
    "UPDATE mint_request SET chain_status = 'finalized'",
    "UPDATE mint_request SET claim_no = 0",
    "UPDATE mint_request SET expected_reference = sha256('x')",
    "UPDATE mint_request SET identity = sha256('x')",
    "UPDATE operator_action SET reason = 'another'",
    "UPDATE workflow_slot SET workflow_id = sha256('x')",
    "TRUNCATE operator_action",
)


async def test_the_operator_cannot_write_what_is_not_a_persons(operator_pool: Pool) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await operator_pool.execute(statement)


async def test_no_transition_that_is_not_a_persons_passes_the_trigger(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    placed = await place_all(dsn, indexer_pool, genesis)
    allowed = {(source, target) for actor, source, target in allowed_transitions() if actor is Actor.OPERATOR}
    for (state, variant), request_id in placed.items():
        if variant != "sent":
            continue
        for target in State:
            if target is state or (state, target) in allowed:
                continue
            with pytest.raises(asyncpg.CheckViolationError):
                await operator_pool.execute(
                    "UPDATE mint_request SET state = $2 WHERE id = $1", request_id, target.value
                )
