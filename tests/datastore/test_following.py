from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest

from datastore import claims, following
from datastore.claims import Answered, Frozen, Pacing
from datastore.connection import Pool
from datastore.errors import CursorMoved, FinalityViolated
from datastore.judgement import Refused
from datastore.lifecycle import State
from datastore.rows import Block, BlockRef, Finality, Request
from tests.datastore.builders import (
    ALICE,
    BOB,
    CHAIN,
    ETHER,
    RULES,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    report,
    request,
    with_finality,
)

PACING = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5)
WORKFLOW = hash_of("workflow")
EXECUTION_IDS = (hash_of("legacy"), hash_of("trigger index"))
FROZEN = Frozen(
    mode="gateway", workflow_id=WORKFLOW, receiver=b"\xc0" * 20, gateway="https://x/", signer=ALICE, body=b"{}"
)


async def states(pool: Pool) -> dict[str, str]:
    rows = await pool.fetch("SELECT id, state, chain_status FROM mint_request ORDER BY id")
    return {str(row["id"]): f"{row['state']} {row['chain_status']}" for row in rows}


async def alarms(pool: Pool) -> list[str]:
    return [row["kind"] for row in await pool.fetch("SELECT kind FROM alarm ORDER BY id")]


async def send(pool: Pool, outcome: str | None = "accepted") -> int:
    """Claim the next waiting request, begin its attempt, and record an answer unless the worker dies before it."""
    await claims.list_workflows(pool, CHAIN, [WORKFLOW])
    (order, *_) = await claims.waiting(pool, CHAIN, limit=1)
    worker = uuid4()
    claimed = await claims.claim(pool, CHAIN, order.request_id, worker_id=worker, lease_seconds=60, pacing=PACING)
    assert claimed is not None
    assert await claims.freeze(pool, CHAIN, claimed, FROZEN, EXECUTION_IDS)
    number = await claims.begin_attempt(
        pool,
        CHAIN,
        claimed,
        FROZEN,
        jti=uuid4(),
        worker_id=worker,
        pacing=PACING,
        retry_seconds=lambda _: 90,
        deadline_seconds=2400,
    )
    assert number == 1
    if outcome is not None:
        answered = Answered(outcome=outcome, http_status=200, sentence=None, answer=None, deadline_seconds=2400)
        await claims.record_answer(pool, CHAIN, claimed, FROZEN, number, answered)
    return claimed.request_id


async def asked_and_sent(indexer_pool: Pool, invocator_pool: Pool, genesis: Block, at: Block) -> Request:
    """A request in this block, which is final, for which CRE has answered ACCEPTED."""
    asked = request("deposit-1", at)
    await following.commit(indexer_pool, CHAIN, batch(at, on=genesis, requests=(asked,), final=at.number), RULES)
    await send(invocator_pool)
    return asked


@pytest.fixture
async def genesis(indexer_pool: Pool) -> Block:
    return await pin_chain(indexer_pool)


async def test_a_request_is_recorded_judged_sent_minted_and_completed(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one, two, three = block(1), block(2), block(3)
    asked = request("deposit-1", one)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked,)), RULES)
    assert await states(indexer_pool) == {"1": "seen canonical"}
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, final=1), RULES)
    assert await states(indexer_pool) == {"1": "confirmed finalized"}
    await send(invocator_pool)
    assert await states(indexer_pool) == {"1": "accepted finalized"}
    minted = batch(
        three, on=two, mints=(mint(three, of=asked),), reports=(report(three, execution_id=EXECUTION_IDS[1]),), final=1
    )
    await following.commit(indexer_pool, CHAIN, minted, RULES)
    assert await states(indexer_pool) == {"1": "executed finalized"}
    await following.commit(indexer_pool, CHAIN, batch(block(4), on=three, final=3), RULES)
    assert await states(indexer_pool) == {"1": "completed finalized"}
    story = await indexer_pool.fetch("SELECT to_state, actor FROM mint_transition ORDER BY id")
    assert [tuple(row) for row in story] == [
        ("seen", "indexer"),
        ("confirmed", "indexer"),
        ("claimed", "invocator"),
        ("in_doubt", "invocator"),
        ("accepted", "invocator"),
        ("executed", "indexer"),
        ("completed", "indexer"),
    ]


async def test_of_two_followers_on_one_cursor_one_gets_nothing(indexer_pool: Pool, genesis: Block) -> None:
    """Hard cases 3 and 54."""
    await following.commit(indexer_pool, CHAIN, batch(block(1), on=genesis), RULES)
    with pytest.raises(CursorMoved):
        await following.commit(indexer_pool, CHAIN, batch(block(1, fork="b"), on=genesis), RULES)
    assert (await following.position(indexer_pool, CHAIN)).cursor.hash == block(1).hash


async def test_a_transaction_that_is_re_mined_elsewhere_stays_one_request_with_one_nonce(
    indexer_pool: Pool, genesis: Block
) -> None:
    """Hard case 4."""
    one, other = block(1), block(1, fork="b", parent_fork="a")
    first = request("deposit-1", one)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(first,)), RULES)
    again = request("deposit-1", other, log_index=7)
    await following.commit(indexer_pool, CHAIN, batch(other, on=genesis, leaving=one, requests=(again,)), RULES)
    rows = await indexer_pool.fetch("SELECT nonce, block_hash, log_index, chain_status FROM mint_request")
    assert [tuple(row) for row in rows] == [(first.nonce, other.hash, 7, "canonical")]
    assert await indexer_pool.fetchval("SELECT orphaned_blocks FROM reorg") == 1


async def test_a_branch_that_comes_back_is_canonical_again(indexer_pool: Pool, genesis: Block) -> None:
    """Hard case 1."""
    one, other = block(1), block(1, fork="b", parent_fork="a")
    asked = request("deposit-1", one)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked,)), RULES)
    await following.commit(indexer_pool, CHAIN, batch(other, on=genesis, leaving=one), RULES)
    assert await states(indexer_pool) == {"1": "seen orphaned"}
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, leaving=other, requests=(asked,)), RULES)
    assert await states(indexer_pool) == {"1": "seen canonical"}
    held = await following.held_blocks(indexer_pool, CHAIN, lowest=0)
    assert [b.hash for b in held] == [genesis.hash, one.hash]


async def test_a_reorg_below_finality_is_refused_and_changes_nothing(indexer_pool: Pool, genesis: Block) -> None:
    """Hard case 5."""
    one, two = block(1), block(2)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis), RULES)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, final=1), RULES)
    with pytest.raises(FinalityViolated):
        await following.commit(
            indexer_pool, CHAIN, batch(block(1, fork="b", parent_fork="a"), on=genesis, leaving=two), RULES
        )
    assert [b.hash for b in await following.held_blocks(indexer_pool, CHAIN, lowest=1)] == [one.hash, two.hash]


async def test_an_orphan_that_was_sent_keeps_its_row_and_its_reference_and_alarms(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    """Hard case 97."""
    one, two = block(1), block(2)
    depth_one = batch(one, on=genesis, requests=(request("deposit-1", one),))
    finality = Finality(finalized=-1, safe=-1, trigger=1, complete=-1)
    await following.commit(indexer_pool, CHAIN, with_finality(depth_one, finality), RULES)
    await send(invocator_pool, outcome=None)
    other = block(1, fork="b", parent_fork="a")
    await following.commit(indexer_pool, CHAIN, batch(other, on=genesis, leaving=one), RULES)
    assert await states(indexer_pool) == {"1": "in_doubt orphaned"}
    assert await indexer_pool.fetchval("SELECT kind FROM alarm") == "orphaned_after_send"
    two = block(2, fork="b")
    await following.commit(indexer_pool, CHAIN, batch(two, on=other, final=1), RULES)
    assert await states(indexer_pool) == {"1": "review orphaned"}
    assert await indexer_pool.fetchval("SELECT holds_reference FROM mint_request")


async def test_a_second_request_for_one_deposit_never_mints_by_itself(indexer_pool: Pool, genesis: Block) -> None:
    one = block(1)
    requests = (request("first", one, bank="D1"), request("second", one, log_index=1, bank="D1"))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    assert await states(indexer_pool) == {"1": "confirmed finalized", "2": "rejected finalized"}


async def test_unsent_requests_of_different_beneficiaries_for_one_deposit_wait_for_a_person(
    indexer_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    requests = (
        request("first", one, bank="D1"),
        request("second", one, log_index=1, bank="D1", beneficiary=BOB),
    )
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    assert await states(indexer_pool) == {"1": "review finalized", "2": "review finalized"}


async def test_a_refused_duplicate_is_judged_again_when_the_holder_is_orphaned(
    indexer_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    finality = Finality(finalized=-1, safe=-1, trigger=2, complete=-1)
    first = with_finality(batch(one, on=genesis, requests=(request("second", one, bank="D1"),)), finality)
    await following.commit(indexer_pool, CHAIN, first, RULES)
    late = with_finality(batch(two, on=one, requests=(request("first", two, bank="D1"),)), finality)
    await following.commit(indexer_pool, CHAIN, late, RULES)
    assert await states(indexer_pool) == {"1": "confirmed canonical", "2": "rejected canonical"}
    other, next_one = block(1, fork="b", parent_fork="a"), block(2, fork="b")
    moved = request("first", next_one, bank="D1")
    swap = with_finality(batch(other, next_one, on=genesis, leaving=two, requests=(moved,)), finality)
    await following.commit(indexer_pool, CHAIN, swap, RULES)
    assert await states(indexer_pool) == {"1": "seen orphaned", "2": "confirmed canonical"}


async def test_a_forged_mint_without_a_report_completes_nothing_and_stops_the_request(
    indexer_pool: Pool, genesis: Block
) -> None:
    """Hard cases 91 and 118."""
    one, two = block(1), block(2)
    asked = request("deposit-1", one)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked,), final=1), RULES)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, mints=(mint(two, of=asked),)), RULES)
    assert await states(indexer_pool) == {"1": "review finalized"}
    assert await indexer_pool.fetchval("SELECT kind FROM alarm") == "unattributed_mint"


async def test_a_mint_forged_earlier_in_the_delivering_transaction_is_not_the_proven_one(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    asked = await asked_and_sent(indexer_pool, invocator_pool, genesis, one)
    mints = (mint(two, of=asked, log_index=0), mint(two, of=asked, log_index=3))
    reports = (report(two, execution_id=EXECUTION_IDS[0], log_index=4),)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, mints=mints, reports=reports), RULES)
    proofs = await indexer_pool.fetch("SELECT log_index, proof FROM mint_execution ORDER BY log_index")
    assert [tuple(row) for row in proofs] == [(0, None), (3, "report")]


async def test_a_false_report_fails_the_request_and_a_late_true_one_still_executes_it(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    """Hard case 79."""
    one, two, three = block(1), block(2), block(3)
    asked = await asked_and_sent(indexer_pool, invocator_pool, genesis, one)
    refused = (report(two, execution_id=EXECUTION_IDS[0], result=False),)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, reports=refused), RULES)
    assert await states(indexer_pool) == {"1": "failed finalized"}
    minted = batch(
        three, on=two, mints=(mint(three, of=asked),), reports=(report(three, execution_id=EXECUTION_IDS[0]),)
    )
    await following.commit(indexer_pool, CHAIN, minted, RULES)
    assert await states(indexer_pool) == {"1": "executed finalized"}
    assert await indexer_pool.fetchval("SELECT kind FROM alarm") == "unexpected_mint"


async def test_a_delivery_without_a_mint_is_for_a_person(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    await asked_and_sent(indexer_pool, invocator_pool, genesis, one)
    reports = (report(two, execution_id=EXECUTION_IDS[0]),)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, reports=reports), RULES)
    row = await indexer_pool.fetchrow("SELECT state, state_reason FROM mint_request")
    assert row is not None
    assert tuple(row) == ("review", "delivered_without_mint")
    assert await alarms(indexer_pool) == ["delivered_without_mint"]


@pytest.mark.parametrize(
    ("amounts", "told"), [((2 * ETHER,), ["mint_mismatch"]), ((ETHER, ETHER), ["double_mint", "mint_mismatch"])]
)
async def test_mints_that_are_not_the_one_of_the_request_are_alarmed_and_never_complete_it(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block, amounts: tuple[int, ...], told: list[str]
) -> None:
    """Hard cases 90 and 92."""
    one, two = block(1), block(2)
    asked = await asked_and_sent(indexer_pool, invocator_pool, genesis, one)
    deliveries = list(enumerate(amounts))
    mints = tuple(mint(two, of=asked, log_index=2 * n, tx=f"tx {n}", amount=amount) for n, amount in deliveries)
    reports = tuple(
        report(two, execution_id=EXECUTION_IDS[n], log_index=2 * n + 1, tx=f"tx {n}") for n, _ in deliveries
    )
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, mints=mints, reports=reports), RULES)
    assert await states(indexer_pool) == {"1": "executed finalized"}
    await following.commit(indexer_pool, CHAIN, batch(block(3), on=two, final=2), RULES)
    assert await states(indexer_pool) == {"1": "review finalized"}
    assert await alarms(indexer_pool) == told


async def test_a_request_older_than_the_first_trigger_block_is_recorded_but_held(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    rules = following.Rules(policy=RULES.policy, contest=True, first_trigger_block_number=2)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=1), rules)
    assert await indexer_pool.fetchval("SELECT held_reason FROM mint_request") == "before_first_trigger_block"
    assert await claims.waiting(invocator_pool, CHAIN, limit=9) == []


async def test_no_hand_written_update_moves_a_request(dsn: str, indexer_pool: Pool, genesis: Block) -> None:
    """Hard case 105."""
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),)), RULES)
    connection = await asyncpg.connect(dsn)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="use the bskt command"):
        await connection.execute("UPDATE mint_request SET state = 'rejected'")
    await connection.close()
    with pytest.raises(asyncpg.CheckViolationError, match="may not go from seen to completed"):
        await indexer_pool.execute("UPDATE mint_request SET state = 'completed'")


async def test_an_attempt_refused_before_forwarding_costs_nothing_and_an_unknown_one_stays_in_doubt(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    requests = (request("a", one), request("b", one, log_index=1))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=requests, final=1), RULES)
    first = await send(invocator_pool, outcome="refused_now")
    assert (await states(indexer_pool))[str(first)] == "confirmed finalized"
    assert await indexer_pool.fetchval("SELECT is_sent($1)", first) is False


async def test_a_lease_that_ended_returns_the_claim_and_its_late_writes_are_refused(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    """Hard cases 67 and 70."""
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=1), RULES)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    asleep = await claims.claim(invocator_pool, CHAIN, 1, worker_id=uuid4(), lease_seconds=0, pacing=PACING)
    assert asleep is not None
    swept = await claims.sweep(invocator_pool, CHAIN, give_up_seconds=3600, deadline_seconds=2400)
    assert (swept.leases, await states(indexer_pool)) == (1, {"1": "confirmed finalized"})
    await send(invocator_pool)
    assert await claims.freeze(invocator_pool, CHAIN, asleep, FROZEN, EXECUTION_IDS) is False
    late = await claims.begin_attempt(
        invocator_pool,
        CHAIN,
        asleep,
        FROZEN,
        jti=UUID(int=1),
        worker_id=uuid4(),
        pacing=PACING,
        retry_seconds=lambda _: 90,
        deadline_seconds=2400,
    )
    assert late is None


async def test_a_range_that_is_recorded_again_changes_nothing_and_new_requests_of_it_are_held(
    indexer_pool: Pool, genesis: Block
) -> None:
    """Hard case 106."""
    one, two = block(1), block(2)
    known, missed = request("known", one), request("missed", one, log_index=1)
    await following.commit(indexer_pool, CHAIN, batch(one, two, on=genesis, requests=(known,), final=2), RULES)
    before = await following.position(indexer_pool, CHAIN)
    whole = batch(one, two, on=genesis, requests=(known, missed), final=2)
    for expected in (1, 0):
        recorded = await following.record_range(indexer_pool, CHAIN, whole, RULES, hold_reason="backfill")
        assert recorded.recorded_requests == expected
    held = await indexer_pool.fetch("SELECT held_reason, state FROM mint_request ORDER BY id")
    assert [tuple(row) for row in held] == [(None, "confirmed"), ("backfill", "confirmed")]
    assert await following.position(indexer_pool, CHAIN) == before


async def test_a_range_whose_blocks_contradict_the_stored_ones_is_refused(indexer_pool: Pool, genesis: Block) -> None:
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, final=1), RULES)
    other = batch(block(1, fork="b", parent_fork="a"), on=genesis, final=1)
    with pytest.raises(FinalityViolated, match="block 1 is stored with another hash"):
        await following.record_range(indexer_pool, CHAIN, other, RULES, hold_reason="backfill")


async def test_a_refused_resend_of_a_request_in_doubt_keeps_its_back_off(
    indexer_pool: Pool, invocator_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(request("a", one),), final=1), RULES)
    sent = await send(invocator_pool, outcome="unknown")
    await indexer_pool.execute("UPDATE mint_request SET next_attempt_at = clock_timestamp() WHERE id = $1", sent)
    (due,) = await claims.due(invocator_pool, CHAIN, limit=9)
    number = await claims.begin_attempt(
        invocator_pool,
        CHAIN,
        due,
        FROZEN,
        jti=uuid4(),
        worker_id=uuid4(),
        pacing=PACING,
        retry_seconds=lambda _: 900,
        deadline_seconds=2400,
    )
    assert number == 2
    refused = Answered(outcome="never_connected", http_status=None, sentence=None, answer=None)
    assert await claims.record_answer(invocator_pool, CHAIN, due, FROZEN, number, refused) == "in_doubt"
    assert await claims.due(invocator_pool, CHAIN, limit=9) == []


def ref(of: Block) -> BlockRef:
    return BlockRef(number=of.number, hash=of.hash)


async def transitions(pool: Pool) -> list[tuple[object, ...]]:
    rows = await pool.fetch(
        "SELECT request_id, from_state, to_state, actor, reason FROM mint_transition ORDER BY request_id, id"
    )
    return [tuple(row) for row in rows]


async def test_a_final_request_without_a_rival_is_written_once_and_has_its_whole_history(
    indexer_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    asked = (request("a", one), request("b", one, log_index=1), request("later", two))
    committed = await following.commit(indexer_pool, CHAIN, batch(one, two, on=genesis, requests=asked, final=1), RULES)
    assert committed.recorded == {State.CONFIRMED: 2, State.SEEN: 1}
    assert await states(indexer_pool) == {"1": "confirmed finalized", "2": "confirmed finalized", "3": "seen canonical"}
    assert await transitions(indexer_pool) == [
        (1, None, "seen", "indexer", None),
        (1, "seen", "confirmed", "indexer", "allowed"),
        (2, None, "seen", "indexer", None),
        (2, "seen", "confirmed", "indexer", "allowed"),
        (3, None, "seen", "indexer", None),
    ]


async def test_what_the_policy_refuses_is_recorded_as_rejected_with_the_reason(
    indexer_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    rules = replace(RULES, policy=lambda asked: Refused(code="no", sentence="No.") if asked.amount > ETHER else None)
    asked = (request("a", one), request("b", one, log_index=1, amount=2 * ETHER))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked, final=1), rules)
    rows = await indexer_pool.fetch(
        "SELECT state, state_reason, state_detail, holds_reference FROM mint_request ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [("confirmed", "allowed", None, True), ("rejected", "no", "No.", False)]


@pytest.mark.parametrize("recorded_before", [True, False])
async def test_rivals_for_one_deposit_are_judged_in_chain_order_whether_they_come_together_or_not(
    indexer_pool: Pool, genesis: Block, recorded_before: bool
) -> None:
    one, two = block(1), block(2)
    first, second = request("a", one, bank="deposit"), request("b", two, bank="deposit")
    if recorded_before:
        await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(first,)), RULES)
        await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=(second,), final=2), RULES)
    else:
        await following.commit(
            indexer_pool, CHAIN, batch(one, two, on=genesis, requests=(first, second), final=2), RULES
        )
    rows = await indexer_pool.fetch("SELECT state, state_reason FROM mint_request ORDER BY id")
    assert [tuple(row) for row in rows] == [("confirmed", "allowed"), ("rejected", "duplicate_bank_reference")]


async def test_a_deposit_that_the_chain_shows_as_minted_in_the_same_blocks_is_for_a_person(
    indexer_pool: Pool, genesis: Block
) -> None:
    """Hard case 91."""
    one = block(1)
    asked = request("a", one)
    await following.commit(
        indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked,), mints=(mint(one, of=asked),), final=1), RULES
    )
    assert await states(indexer_pool) == {"1": "review finalized"}


async def test_a_batch_that_names_one_request_twice_records_it_once(indexer_pool: Pool, genesis: Block) -> None:
    one, two = block(1), block(2)
    twice = (request("a", one), request("a", two))
    await following.commit(indexer_pool, CHAIN, batch(one, two, on=genesis, requests=twice, final=2), RULES)
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request") == 1


async def test_a_backlog_of_judgement_is_worked_off_commit_by_commit(
    indexer_pool: Pool, genesis: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "JUDGED_A_COMMIT", 2)
    one = block(1)
    asked = tuple(request(f"r{number}", one, log_index=number) for number in range(5))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked), RULES)
    more, at = [], one
    for _ in range(3):
        again = replace(batch(one, on=genesis, final=1), expected=ref(at), ancestor=ref(at), blocks=())
        more.append((await following.commit(indexer_pool, CHAIN, again, RULES)).more_to_judge)
    assert more == [True, True, False]
    assert set((await states(indexer_pool)).values()) == {"confirmed finalized"}


async def test_the_history_of_many_requests_costs_the_same_for_each(indexer_pool: Pool, genesis: Block) -> None:
    """The trigger once joined its rows by nested loops: 20,000 requests took more than the statement's minute."""
    one, two = block(1), block(2)
    few = tuple(request(f"few{number}", one, log_index=number) for number in range(3))
    many = tuple(request(f"many{number}", two, log_index=number) for number in range(20_000))
    # The pool gives the same session each time, so the plan that was made for the few is there when the many come.
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=few), RULES)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=many, final=1), RULES)
    three = block(3)
    committed = await following.commit(indexer_pool, CHAIN, batch(three, on=two, final=2), RULES)
    while committed.more_to_judge:
        again = replace(batch(three, on=two, final=2), expected=ref(three), ancestor=ref(three), blocks=())
        committed = await following.commit(indexer_pool, CHAIN, again, RULES)
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE chain_status = 'finalized'") == 20_003


async def test_a_state_in_which_no_request_begins_is_refused_by_the_database(
    indexer_pool: Pool, genesis: Block
) -> None:
    await following.commit(indexer_pool, CHAIN, batch(block(1), on=genesis, requests=(request("a", block(1)),)), RULES)
    with pytest.raises(asyncpg.CheckViolationError, match="begins as seen, or judged"):
        await indexer_pool.execute(
            """
            INSERT INTO mint_request (
                chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index,
                stablecoin, consumer, requester, beneficiary, amount, bank_reference, expected_reference, state,
                holds_reference
            )
            SELECT chain_id, sha256(identity), gen_random_uuid(), emitter, tx_hash, block_hash, block_number,
                block_timestamp, log_index, stablecoin, consumer, requester, beneficiary, amount, sha256('r'),
                sha256('r'), 'executed', true
            FROM mint_request
            """
        )


async def test_a_log_that_was_denied_stays_off_the_chain_when_its_block_is_recorded_again(
    indexer_pool: Pool, genesis: Block
) -> None:
    """Hard case 19: the block is canonical, one of its logs is not."""
    one = block(1)
    kept, denied = (mint(one, of=request(name, one), log_index=index) for index, name in enumerate(("kept", "denied")))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, mints=(kept, denied), final=1), RULES)
    await indexer_pool.execute("UPDATE mint_execution SET canonical = false WHERE log_index = 1")
    again = batch(one, on=genesis, mints=(kept,), final=1)
    await following.record_range(indexer_pool, CHAIN, again, RULES, hold_reason="backfill")
    rows = await indexer_pool.fetch("SELECT log_index, canonical FROM mint_execution ORDER BY log_index")
    assert [tuple(row) for row in rows] == [(0, True), (1, False)]
    both = batch(one, on=genesis, mints=(kept, denied), final=1)
    await following.record_range(indexer_pool, CHAIN, both, RULES, hold_reason="backfill")
    assert await indexer_pool.fetchval("SELECT bool_and(canonical) FROM mint_execution")
