"""Several requests for one deposit, as rows: nobody passes another by, and no commit works for strangers' rows."""

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from datastore import claims, following, operators
from datastore.connection import Pool, Role, open_pool
from datastore.instructions import Cancel
from datastore.judgement import Refused
from datastore.operators import Person
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Batch, Block, Request
from datastore.settlement import Horizon
from tests.datastore.builders import (
    BOB,
    CHAIN,
    CONSUMER,
    RULES,
    TOKEN,
    batch,
    block,
    hash_of,
    mint,
    pin_chain,
    reference,
    report,
    request,
)
from tests.datastore.workers import WORKFLOW, Worker, execution_ids, states

FIRST_WINS = replace(RULES, contest=False)


@pytest.fixture
async def genesis(indexer_pool: Pool) -> Block:
    return await pin_chain(indexer_pool)


def finality_only(at: Block, *, final: int) -> Batch:
    """Nothing new, but the chain is final up to here."""
    return replace(batch(at, on=at, final=final), blocks=())


async def reasons(pool: Pool) -> list[str | None]:
    return [row["state_reason"] for row in await pool.fetch("SELECT state_reason FROM mint_request ORDER BY id")]


async def settled(pool: Pool) -> int:
    """Do all that commits have left; the number of steps."""
    steps = 0
    while await following.settle_references(pool, CHAIN, RULES) is not None:
        steps += 1
    return steps


@pytest.fixture
async def operator_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        yield pool


async def cancel(pool: Pool, request_id: int) -> None:
    await operators.instruct(
        pool,
        CHAIN,
        request_id,
        Cancel(),
        Person(name="test", reason="a test"),
        finality=lambda position: Horizon(complete=position.finalized, trigger=position.finalized),
        nonce_of=lambda *_: pytest.fail("nothing new is sent"),
        deadline_seconds=2_400,
    )


# -- the thief --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("spelling", ["DEPOSIT-1", "deposit 1"])
async def test_a_copied_reference_in_an_earlier_block_sends_nothing_while_the_owners_request_is_not_final(
    indexer_pool: Pool, genesis: Block, together: bool, spelling: str
) -> None:
    one, two, three = block(1), block(2), block(3)
    thief = request("thief", one, bank=spelling, requester=BOB, beneficiary=BOB)
    owner = request("owner", two, bank="DEPOSIT-1")
    if together:
        asked = batch(one, two, on=genesis, requests=(thief, owner), final=1)
        await following.commit(indexer_pool, CHAIN, asked, RULES)
    else:
        await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(thief,)), RULES)
        await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=(owner,), final=1), RULES)
    assert await states(indexer_pool) == ["review", "seen"]
    await following.commit(indexer_pool, CHAIN, batch(three, on=two, final=2), RULES)
    assert await states(indexer_pool) == ["review", "review"]
    code = "contested_bank_reference" if spelling == "DEPOSIT-1" else "look_alike_reference"
    assert await reasons(indexer_pool) == [code, code]


async def test_where_the_first_shall_win_a_request_that_is_not_final_contests_nothing(
    indexer_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    first, later = request("first", one, bank="D1"), request("later", two, bank="D1", beneficiary=BOB)
    await following.commit(indexer_pool, CHAIN, batch(one, two, on=genesis, requests=(first, later)), FIRST_WINS)
    await following.commit(indexer_pool, CHAIN, finality_only(two, final=1), FIRST_WINS)
    assert await states(indexer_pool) == ["confirmed", "seen"]


async def test_an_orphaned_rival_contests_nothing_and_what_it_contested_before_stays_with_a_person(
    indexer_pool: Pool, genesis: Block
) -> None:
    one, two, other = block(1), block(2), block(2, fork="b", parent_fork="a")
    asked = (request("first", one, bank="D1"), request("untouched", one, log_index=1, bank="D2"))
    rivals = tuple(request(f"rival of {n}", two, log_index=n, bank=f"D{n}", beneficiary=BOB) for n in (1, 2))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked), RULES)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=rivals[1:]), RULES)
    await following.commit(indexer_pool, CHAIN, batch(other, on=one, leaving=two, requests=()), RULES)
    again = block(2, fork="c", parent_fork="a")
    moved = rivals[0]._replace(block_hash=again.hash)
    await following.commit(indexer_pool, CHAIN, batch(again, on=one, leaving=other, requests=(moved,), final=1), RULES)
    assert await states(indexer_pool) == ["review", "confirmed", "seen", "seen"]
    last = block(2, fork="d", parent_fork="a")
    await following.commit(indexer_pool, CHAIN, batch(last, on=one, leaving=again, final=2), RULES)
    assert await states(indexer_pool) == ["review", "confirmed", "dropped", "dropped"]


async def test_a_request_of_another_chain_that_is_not_final_contests_as_well(
    indexer_pool: Pool, genesis: Block
) -> None:
    elsewhere = await another_chain(indexer_pool)
    pending = batch(block(1), on=elsewhere, requests=(request("elsewhere", block(1), bank="D1", beneficiary=BOB),))
    await following.commit(indexer_pool, CHAIN + 1, pending, RULES)
    here = batch(block(1), on=genesis, requests=(request("here", block(1), bank="D1"),), final=1)
    await following.commit(indexer_pool, CHAIN, here, RULES)
    assert await states(indexer_pool) == ["seen", "review"]


async def test_a_holder_that_another_chains_commit_is_moving_lets_its_rivals_wait_for_the_next_commit(
    dsn: str, indexer_pool: Pool, genesis: Block
) -> None:
    one = block(1)
    elsewhere = await another_chain(indexer_pool)
    first = batch(one, on=elsewhere, requests=(request("elsewhere", one, bank="D1"),), final=1)
    await following.commit(indexer_pool, CHAIN + 1, first, RULES)
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        await connection.execute("SELECT FROM mint_request WHERE id = 1 FOR UPDATE")
        here = batch(one, on=genesis, requests=(request("here", one, bank="D1"),), final=1)
        assert (await following.commit(indexer_pool, CHAIN, here, RULES)).more_to_judge
        assert await states(indexer_pool) == ["confirmed", "seen"]
    await connection.close()
    assert not (await following.commit(indexer_pool, CHAIN, finality_only(one, final=1), RULES)).more_to_judge
    assert await states(indexer_pool) == ["confirmed", "rejected"]


async def another_chain(pool: Pool) -> Block:
    pin = Pin(
        chain_id=CHAIN + 1,
        genesis_hash=hash_of("genesis"),
        factory_address=bytes(20),
        factory_code_hash=hash_of("code"),
        forwarder_address=bytes(20),
        secret_check=b"check",
    )
    await pin_first_start(pool, pin, start=block(1), first_trigger_block_number=0)
    return block(0)


async def test_what_the_policy_refuses_contests_nothing(indexer_pool: Pool, genesis: Block) -> None:
    one = block(1)
    rules = replace(RULES, policy=lambda c: Refused(code="no", sentence="No.") if c.amount == 1 else None)
    asked = (
        request("first", one, bank="D1"),
        request("refused", one, log_index=1, bank="D1", beneficiary=BOB, amount=1),
    )
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked, final=1), rules)
    assert await states(indexer_pool) == ["confirmed", "rejected"]


async def test_of_references_that_read_alike_the_later_one_waits_for_a_person(
    indexer_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    first = batch(one, on=genesis, requests=(request("first", one, bank="INV-7"),), final=1)
    await following.commit(indexer_pool, CHAIN, first, RULES)
    later = (request("later", two, bank="inv 7"), request("unlike", two, log_index=1, bank="INV-77"))
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=later, final=2), RULES)
    assert await states(indexer_pool) == ["confirmed", "review", "confirmed"]
    assert (await reasons(indexer_pool))[1] == "look_alike_reference"


# -- a reference that is given up -------------------------------------------------------------------------------------
async def test_of_refused_duplicates_the_first_on_chain_takes_a_given_up_reference_and_no_later_one_overtakes_it(
    indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    asked = tuple(request(f"r{n}", one, log_index=n, bank="D1") for n in range(4))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked, final=1), RULES)
    assert await states(indexer_pool) == ["confirmed", "rejected", "rejected", "rejected"]
    await cancel(operator_pool, 1)
    late = request("late", two, bank="D1")
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=(late,), final=2), RULES)
    assert (await states(indexer_pool))[4] == "rejected"
    assert await settled(indexer_pool) == 1
    assert await states(indexer_pool) == ["cancelled", "confirmed", "rejected", "rejected", "rejected"]


async def test_a_step_that_is_killed_is_done_again(indexer_pool: Pool, operator_pool: Pool, genesis: Block) -> None:
    one = block(1)
    asked = tuple(request(f"r{n}", one, log_index=n, bank="D1") for n in range(2))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked, final=1), RULES)
    await cancel(operator_pool, 1)
    killed = replace(RULES, policy=lambda _: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception):
        await following.settle_references(indexer_pool, CHAIN, killed)
    assert await states(indexer_pool) == ["cancelled", "rejected"]
    assert await settled(indexer_pool) == 1
    assert await states(indexer_pool) == ["cancelled", "confirmed"]


async def test_a_thief_of_many_copies_takes_nothing_when_a_person_cancels_one_of_them(
    indexer_pool: Pool, operator_pool: Pool, genesis: Block
) -> None:
    one, two = block(1), block(2)
    copies = tuple(request(f"copy {n}", one, log_index=n, bank="D1", beneficiary=BOB) for n in range(30))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=copies, final=1), RULES)
    owner = request("owner", two, bank="D1")
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, requests=(owner,), final=2), RULES)
    assert await states(indexer_pool) == ["review", *["rejected"] * 29, "review"]
    await cancel(operator_pool, 1)
    assert await settled(indexer_pool) > 1
    assert await states(indexer_pool) == ["cancelled", *["review"] * 29, "review"]


# -- without a bound --------------------------------------------------------------------------------------------------
MANY = 1_200


async def store_duplicates(pool: Pool, at: Block, bank: str) -> None:
    """As a stranger would, whose requests were refused long ago."""
    await pool.execute(
        """
        INSERT INTO mint_request (
            chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index,
            chain_status, stablecoin, consumer, requester, beneficiary, amount, predicted_amount, bank_reference,
            expected_reference, state, state_reason
        )
        SELECT $1, sha256(('i' || n)::bytea), gen_random_uuid(), $2, sha256(('t' || n)::bytea), $3, 1, 1, n,
            'finalized', $2, $4, $5, $5, 1e18, 1e18, $6, $6, 'rejected', 'duplicate_bank_reference'
        FROM generate_series(1000, 999 + $7::integer) n
        """,
        CHAIN,
        TOKEN,
        at.hash,
        CONSUMER,
        BOB,
        reference(bank),
        MANY,
    )


@pytest.fixture
async def flooded(indexer_pool: Pool, genesis: Block) -> Request:
    """A request that was sent, and many refused duplicates of it."""
    one = block(1)
    asked = request("asked", one, bank="D1")
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked,), final=1), RULES)
    await store_duplicates(indexer_pool, one, "D1")
    return asked


async def touched(pool: Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM mint_transition WHERE from_state IS NOT NULL")
    return count


async def test_a_commit_with_a_forged_mint_moves_only_the_holder_and_bounded_steps_move_the_others(
    indexer_pool: Pool, flooded: Request
) -> None:
    one, two = block(1), block(2)
    before = await touched(indexer_pool)
    forged = batch(two, on=one, mints=(mint(two, of=flooded, amount=1),), final=1)
    await following.commit(indexer_pool, CHAIN, forged, RULES)
    assert await touched(indexer_pool) == before + 1
    assert await indexer_pool.fetchval("SELECT state FROM mint_request WHERE id = 1") == "review"
    for moved in (following.REQUESTS_A_STEP, following.REQUESTS_A_STEP, MANY % following.REQUESTS_A_STEP):
        before = await touched(indexer_pool)
        assert await following.settle_references(indexer_pool, CHAIN, RULES) is not None
        assert await touched(indexer_pool) == before + moved
    assert await settled(indexer_pool) == 0
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE state <> 'review'") == 0


async def test_a_mint_that_is_gone_before_the_step_moves_nobody(indexer_pool: Pool, flooded: Request) -> None:
    one, two = block(1), block(2)
    forged = batch(two, on=one, mints=(mint(two, of=flooded, amount=1),), final=1)
    await following.commit(indexer_pool, CHAIN, forged, RULES)
    other = batch(block(2, fork="b", parent_fork="a"), on=one, leaving=two, final=1)
    await following.commit(indexer_pool, CHAIN, other, RULES)
    assert await settled(indexer_pool) == 1
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE state = 'rejected'") == MANY


async def test_no_send_begins_for_what_a_step_has_still_to_stop(indexer_pool: Pool, flooded: Request) -> None:
    """The mint is visible to every judgement, whether the step has come or not."""
    one, two = block(1), block(2)
    forged = batch(two, on=one, mints=(mint(two, of=flooded, amount=1),), final=1)
    await following.commit(indexer_pool, CHAIN, forged, RULES)
    await cancelled_by_hand(indexer_pool)
    late = request("late", block(3), bank="D1")
    await following.commit(indexer_pool, CHAIN, batch(block(3), on=two, requests=(late,), final=3), RULES)
    assert await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE holds_reference") == 0
    await settled(indexer_pool)
    assert (
        await indexer_pool.fetchval("SELECT count(*) FROM mint_request WHERE state NOT IN ('review', 'dropped')") == 0
    )


async def cancelled_by_hand(pool: Pool) -> None:
    """The holder leaves the chain for good, unsent."""
    await pool.execute("UPDATE mint_request SET state = 'dropped', holds_reference = false WHERE id = 1")


async def test_a_proven_mint_moves_its_request_alone_and_failed_rivals_in_a_step(
    indexer_pool: Pool, invocator_pool: Pool, flooded: Request
) -> None:
    one, two = block(1), block(2)
    await claims.list_workflows(invocator_pool, CHAIN, [WORKFLOW])
    order = await Worker(pool=invocator_pool).send(1)
    await indexer_pool.execute(
        "UPDATE mint_request SET state = 'failed', state_reason = NULL WHERE log_index IN (1000, 1001)"
    )
    before = await touched(indexer_pool)
    reports = (report(two, execution_id=execution_ids(order)[0]),)
    minted = batch(two, on=one, mints=(mint(two, of=flooded),), reports=reports, final=1)
    await following.commit(indexer_pool, CHAIN, minted, RULES)
    assert await touched(indexer_pool) == before + 1
    assert await settled(indexer_pool) == 1
    counted = await indexer_pool.fetch("SELECT state, count(*) FROM mint_request GROUP BY state ORDER BY state")
    assert [tuple(row) for row in counted] == [("executed", 1), ("rejected", MANY - 2), ("review", 2)]


async def test_a_give_up_by_any_statement_leaves_a_row_for_the_step(indexer_pool: Pool, flooded: Request) -> None:
    await indexer_pool.execute("UPDATE mint_request SET state = 'review', holds_reference = false WHERE id = 1")
    rows = await indexer_pool.fetch("SELECT chain_id, bank_reference, event, cause FROM unsettled_reference")
    assert [tuple(row) for row in rows] == [(CHAIN, flooded.bank_reference, "rival_gave_up", None)]


async def test_finality_that_jumps_is_written_commit_by_commit(
    indexer_pool: Pool, genesis: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "JUDGED_A_COMMIT", 2)
    one = block(1)
    asked = tuple(request(f"r{n}", one, log_index=n) for n in range(3))
    await following.commit(indexer_pool, CHAIN, batch(one, on=genesis, requests=asked), RULES)
    assert (await following.commit(indexer_pool, CHAIN, finality_only(one, final=1), RULES)).more_to_judge
    assert not (await following.commit(indexer_pool, CHAIN, finality_only(one, final=1), RULES)).more_to_judge
    assert await states(indexer_pool) == ["confirmed"] * 3
