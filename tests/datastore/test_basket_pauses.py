"""A change of a token's roles pauses its basket: what it holds, what ends it, and that nothing is sent meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from datastore import basket_pauses, claims, following, operators
from datastore.claims import Answered, Frozen, Pacing
from datastore.connection import Pool, Role, lock_chain, open_pool, unit
from datastore.following import Rules
from datastore.instructions import AlreadySo, Hold, Refused, Release, Retry, Will
from datastore.operators import BasketSwitch, BasketUnknown, Person
from datastore.rows import Block, BlockRef
from tests.datastore.builders import (
    ALICE,
    CHAIN,
    CONSUMER,
    RULES,
    TOKEN,
    basket,
    batch,
    block,
    hash_of,
    pin_chain,
    request,
    role_change,
)
from tests.datastore.test_operators import instruct, owner, waiting
from tests.datastore.workers import ahead, look_again

PACING = Pacing(seconds_per_trigger=0, burst=1, max_in_flight=5)
PERSON = Person(name="alice", reason="ticket 7")
OTHER = b"\x71" * 20
FROZEN = Frozen(
    mode="gateway", workflow_id=hash_of("workflow"), receiver=CONSUMER, gateway="https://x/", signer=ALICE, body=b"{}"
)


@pytest.fixture
async def operator_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        yield pool


@pytest.fixture
async def one(indexer_pool: Pool, invocator_pool: Pool) -> Block:
    """A first block with the baskets AUD and NZD, and a request of each; both are confirmed."""
    genesis, first = await pin_chain(indexer_pool), block(1)
    made = batch(
        ahead(first),
        on=genesis,
        final=1,
        baskets=(basket(first), basket(first, log_index=92, token=OTHER, symbol="NZD")),
        requests=(request("a", first), request("b", first, log_index=1, stablecoin=OTHER)),
    )
    await following.commit(indexer_pool, CHAIN, made, RULES)
    await claims.list_workflows(invocator_pool, CHAIN, [FROZEN.workflow_id])
    return first


async def holds(pool: Pool) -> list[tuple[str, str | None]]:
    rows = await pool.fetch("SELECT state, held_reason FROM mint_request ORDER BY id")
    return [tuple(row) for row in rows]


async def alarms(pool: Pool) -> list[str]:
    rows = await pool.fetch("SELECT sentence FROM alarm WHERE kind = 'basket_role_changed' ORDER BY id")
    return [row["sentence"] for row in rows]


async def pauses(pool: Pool) -> dict[bytes, str]:
    rows = await pool.fetch("SELECT stablecoin, paused_reason FROM basket_pause")
    return {row["stablecoin"]: row["paused_reason"] for row in rows}


async def turn(pool: Pool, switch: BasketSwitch, token: bytes = TOKEN) -> operators.Answer:
    return await operators.turn_basket(pool, CHAIN, token, switch, PERSON)


async def claimed(pool: Pool) -> claims.Order:
    (order, *_) = await claims.waiting(pool, CHAIN, limit=1)
    taken = await claims.claim(pool, CHAIN, order.request_id, worker_id=uuid4(), lease_seconds=60, pacing=PACING)
    assert taken is not None
    return taken


async def begun(pool: Pool, order: claims.Order) -> int | None:
    await claims.freeze(pool, CHAIN, order, FROZEN, ())
    return await claims.begin_attempt(
        pool,
        CHAIN,
        order,
        FROZEN,
        jti=uuid4(),
        worker_id=uuid4(),
        pacing=PACING,
        retry_seconds=lambda _: 0,
        deadline_seconds=2400,
    )


async def test_a_change_of_roles_calls_a_person_pauses_its_basket_and_no_other(indexer_pool: Pool, one: Block) -> None:
    two = block(2)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=(role_change(two),)), RULES)
    token, what = f"0x{TOKEN.hex()}", f"MintRoleRevoked(minter=0x{CONSUMER.hex()}) in block 2"
    assert await alarms(indexer_pool) == [
        (
            f"The token of basket AUD ({token}) says {what}.  Nothing is sent for the basket until "
            f"`bskt baskets resume {token} --reason …`."
        )
    ]
    assert await pauses(indexer_pool) == {TOKEN: what}
    assert await holds(indexer_pool) == [("confirmed", "basket_paused"), ("confirmed", None)]


async def test_each_change_is_counted_and_the_oldest_pause_stays(indexer_pool: Pool, one: Block) -> None:
    two, three = block(2), block(3)
    changes = (role_change(two), role_change(two, log_index=95, event="OwnershipTransferred"))
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=changes), RULES)
    await following.commit(
        indexer_pool,
        CHAIN,
        batch(three, on=two, role_changes=(role_change(three, event="MintRoleGranted"),)),
        RULES,
    )
    assert await indexer_pool.fetchval("SELECT sum(times) FROM alarm") == 3
    assert await indexer_pool.fetchval("SELECT role_changes FROM basket_pause") == 3
    assert (await pauses(indexer_pool))[TOKEN].startswith("MintRoleRevoked")


async def test_a_change_before_the_first_trigger_block_is_history(indexer_pool: Pool, one: Block) -> None:
    two = block(2)
    later = Rules(policy=lambda _: None, contest=True, first_trigger_block_number=3)
    made = batch(two, on=one, role_changes=(role_change(two),))
    await following.commit(indexer_pool, CHAIN, made, later)
    assert (await alarms(indexer_pool), await pauses(indexer_pool)) == ([], {})
    # Nor does it become news when it is read again under other settings.
    await following.record_range(indexer_pool, CHAIN, made, RULES, hold_reason=None)
    assert (await alarms(indexer_pool), await pauses(indexer_pool)) == ([], {})


async def test_a_branch_that_comes_back_does_not_undo_a_resume(
    indexer_pool: Pool, operator_pool: Pool, one: Block
) -> None:
    """Hard case 1: A→B→A.  The change was seen by a person; only another one is news."""
    two, fork = block(2), block(2, fork="b", parent_fork="a")
    changes = (role_change(two),)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=changes), RULES)
    await turn(operator_pool, BasketSwitch.RESUME)
    await following.commit(indexer_pool, CHAIN, batch(fork, on=one, leaving=two), RULES)
    again = batch(two, on=one, leaving=fork, role_changes=changes)
    await following.commit(indexer_pool, CHAIN, again, RULES)
    assert (len(await alarms(indexer_pool)), await pauses(indexer_pool)) == (1, {})
    assert await holds(indexer_pool) == [("confirmed", None), ("confirmed", None)]


async def test_a_reorg_takes_the_change_away_and_leaves_the_pause(indexer_pool: Pool, one: Block) -> None:
    two, fork = block(2), block(2, fork="b", parent_fork="a")
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=(role_change(two),)), RULES)
    await following.commit(indexer_pool, CHAIN, batch(fork, on=one, leaving=two), RULES)
    assert list(await pauses(indexer_pool)) == [TOKEN]


async def test_a_basket_that_is_announced_in_another_block_stays_paused(indexer_pool: Pool) -> None:
    """Its row is another one then: the pause is its token's."""
    genesis, first, fork = await pin_chain(indexer_pool), block(1), block(1, fork="b", parent_fork="a")
    made = batch(first, on=genesis, baskets=(basket(first),), role_changes=(role_change(first),))
    await following.commit(indexer_pool, CHAIN, made, RULES)
    again = batch(fork, on=genesis, leaving=first, baskets=(basket(fork),), requests=(request("a", fork),))
    await following.commit(indexer_pool, CHAIN, again, RULES)
    assert await indexer_pool.fetchval("SELECT count(*) FROM basket") == 2
    assert await holds(indexer_pool) == [("seen", "basket_paused")]


async def test_what_arrives_or_is_mined_again_while_its_basket_is_paused_is_held(indexer_pool: Pool) -> None:
    genesis = await pin_chain(indexer_pool)
    first, fork, second = block(1), block(1, fork="b", parent_fork="a"), block(2, fork="b")
    early = request("early", first)
    await following.commit(indexer_pool, CHAIN, batch(first, on=genesis, requests=(early,)), RULES)
    made = batch(fork, on=genesis, leaving=first, baskets=(basket(fork),), role_changes=(role_change(fork),))
    await following.commit(indexer_pool, CHAIN, made, RULES)
    assert await holds(indexer_pool) == [("seen", None)]  # on no branch: nothing could send it
    mined_again = early._replace(block_number=2, block_hash=second.hash, log_index=1)
    both = (mined_again, request("late", second))
    await following.commit(indexer_pool, CHAIN, batch(second, on=fork, final=2, requests=both), RULES)
    assert await holds(indexer_pool) == [("confirmed", "basket_paused")] * 2


@pytest.mark.usefixtures("one")
async def test_a_hold_for_another_reason_stays_as_it_is(indexer_pool: Pool, operator_pool: Pool) -> None:
    await instruct(operator_pool, 1, Hold())
    await turn(operator_pool, BasketSwitch.PAUSE)
    assert (await holds(indexer_pool))[0] == ("confirmed", "operator")
    await turn(operator_pool, BasketSwitch.RESUME)
    assert (await holds(indexer_pool))[0] == ("confirmed", "operator")


@pytest.mark.usefixtures("one")
async def test_no_attempt_begins_once_the_pause_is_there_whatever_was_claimed_before(
    indexer_pool: Pool, invocator_pool: Pool
) -> None:
    order = await claimed(invocator_pool)
    # As if no transaction had held it yet.
    async with unit(indexer_pool) as connection:
        await basket_pauses.pause(connection, CHAIN, {order.stablecoin: "a test"})
    assert await begun(invocator_pool, order) is None
    assert await indexer_pool.fetchval("SELECT count(*) FROM attempt") == 0


async def test_what_is_claimed_or_in_doubt_is_held_too_and_goes_on_after_the_resume(
    indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool, one: Block
) -> None:
    order = await claimed(invocator_pool)
    assert await begun(invocator_pool, order) == 1
    two = block(2)
    changes = (role_change(two, token=order.stablecoin),)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=changes), RULES)
    assert ("in_doubt", "basket_paused") in await holds(indexer_pool)
    assert await claims.due(invocator_pool, CHAIN, limit=5) == []
    await turn(operator_pool, BasketSwitch.RESUME, order.stablecoin)
    assert [due.request_id for due in await claims.due(invocator_pool, CHAIN, limit=5)] == [order.request_id]


@pytest.mark.usefixtures("one")
async def test_a_hold_that_ends_by_itself_and_a_resend_end_in_the_pause(
    indexer_pool: Pool, invocator_pool: Pool, operator_pool: Pool
) -> None:
    first = await claimed(invocator_pool)
    assert await claims.hold(invocator_pool, CHAIN, first, reason="not_a_minter", detail="", seconds=0)
    second = await claimed(invocator_pool)
    number = await begun(invocator_pool, second)
    assert number is not None
    accepted = Answered(outcome="accepted", http_status=200, sentence=None, answer=None, deadline_seconds=0)
    await claims.record_answer(invocator_pool, CHAIN, second, FROZEN, number, accepted)
    for token in (TOKEN, OTHER):
        await turn(operator_pool, BasketSwitch.PAUSE, token)
    for _ in range(2):  # the deadline passes, then it is due for a resend
        await look_again(indexer_pool)
        await claims.sweep(
            invocator_pool, CHAIN, give_up_seconds=86_400, deadline_seconds=2_400, resend_after_seconds=0
        )
    states = dict(await holds(indexer_pool))
    assert states == {"confirmed": "basket_paused", "in_doubt": "basket_paused"}


@pytest.mark.usefixtures("one")
async def test_resume_releases_exactly_what_was_held_for_that_basket_and_records_it(
    indexer_pool: Pool, operator_pool: Pool
) -> None:
    for token in (TOKEN, OTHER):
        await turn(operator_pool, BasketSwitch.PAUSE, token)
    dry = await operators.turn_basket(operator_pool, CHAIN, TOKEN, BasketSwitch.RESUME, PERSON, dry_run=True)
    assert (dry.action_id, len(await pauses(indexer_pool))) == (None, 2)
    assert isinstance(dry.verdict, Will)
    done = await operators.turn_basket(operator_pool, CHAIN, TOKEN, BasketSwitch.RESUME, PERSON, confirmed=dry.verdict)
    assert await holds(indexer_pool) == [("confirmed", None), ("confirmed", "basket_paused")]
    assert list(await pauses(indexer_pool)) == [OTHER]
    assert (done.before["paused_reason"], done.before["held_requests"]) == ("alice: ticket 7", 1)
    assert (done.after["paused_reason"], done.after["held_requests"]) == (None, 0)
    rows = await indexer_pool.fetch("SELECT action, operator, reason, request_id FROM operator_action ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("pause_basket", "alice", "ticket 7", None),
        ("pause_basket", "alice", "ticket 7", None),
        ("resume_basket", "alice", "ticket 7", None),
    ]


@pytest.mark.usefixtures("one")
async def test_what_is_so_already_has_changed_or_does_not_exist_writes_nothing(
    indexer_pool: Pool, operator_pool: Pool
) -> None:
    assert isinstance((await turn(operator_pool, BasketSwitch.RESUME)).verdict, AlreadySo)
    await turn(operator_pool, BasketSwitch.PAUSE)
    assert isinstance((await turn(operator_pool, BasketSwitch.PAUSE)).verdict, AlreadySo)
    other = await operators.turn_basket(
        operator_pool, CHAIN, TOKEN, BasketSwitch.RESUME, PERSON, confirmed=Will(sentence="something else")
    )
    assert isinstance(other.verdict, Refused)
    with pytest.raises(BasketUnknown):
        await turn(operator_pool, BasketSwitch.PAUSE, b"\x72" * 20)
    assert await indexer_pool.fetchval("SELECT count(*) FROM operator_action") == 1


@pytest.mark.usefixtures("one")
async def test_one_request_of_a_paused_basket_is_not_released_and_a_retry_is_held_at_once(
    invocator_pool: Pool, operator_pool: Pool
) -> None:
    order = await claimed(invocator_pool)
    assert await claims.refuse(invocator_pool, order, reason="signer_changed", detail="")
    for token in (TOKEN, OTHER):
        await turn(operator_pool, BasketSwitch.PAUSE, token)
    (waiting_one,) = {1, 2} - {order.request_id}
    refused = (await instruct(operator_pool, waiting_one, Release())).verdict
    assert isinstance(refused, Refused)
    assert refused.sentence == f"Request {waiting_one}: Its basket is paused: it would be held again at once."
    assert "bskt baskets resume" in refused.remedy
    retried = await instruct(operator_pool, order.request_id, Retry())
    assert isinstance(retried.verdict, Will)
    assert any("Its basket is paused" in warning for warning in retried.verdict.warnings)
    assert (retried.after["state"], retried.after["held_reason"]) == ("confirmed", "basket_paused")


async def test_a_change_that_came_after_a_person_was_asked_is_not_resumed_unseen(
    indexer_pool: Pool, operator_pool: Pool, one: Block
) -> None:
    two, three = block(2), block(3)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=(role_change(two),)), RULES)
    told = await operators.turn_basket(operator_pool, CHAIN, TOKEN, BasketSwitch.RESUME, PERSON, dry_run=True)
    assert isinstance(told.verdict, Will)
    assert told.verdict.sentence.endswith("since it was paused: 1.")
    await following.commit(indexer_pool, CHAIN, batch(three, on=two, role_changes=(role_change(three),)), RULES)
    answer = await operators.turn_basket(
        operator_pool, CHAIN, TOKEN, BasketSwitch.RESUME, PERSON, confirmed=told.verdict
    )
    assert isinstance(answer.verdict, Refused)
    assert answer.verdict.sentence.endswith("since it was paused: 2.")
    assert list(await pauses(indexer_pool)) == [TOKEN]


async def test_a_change_that_meets_a_resume_pauses_anew(
    dsn: str, indexer_pool: Pool, operator_pool: Pool, one: Block
) -> None:
    two = block(2)
    await turn(operator_pool, BasketSwitch.PAUSE)
    is_resumed = asyncio.Event()

    async def resuming() -> None:
        async with owner(dsn) as watcher, unit(operator_pool) as connection:
            await lock_chain(connection, CHAIN)
            await basket_pauses.resume(connection, CHAIN, TOKEN)
            is_resumed.set()
            await waiting(watcher, 1)

    async def committing() -> None:
        await is_resumed.wait()
        await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=(role_change(two),)), RULES)

    await asyncio.gather(resuming(), committing())
    assert (await pauses(indexer_pool))[TOKEN].startswith("MintRoleRevoked")
    assert (await holds(indexer_pool))[0] == ("confirmed", "basket_paused")


async def test_a_paused_basket_with_many_requests_is_held_commit_by_commit(
    indexer_pool: Pool, one: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basket_pauses, "HELD_AT_ONCE", 2)
    two, more = block(2), tuple(request(f"more {n}", block(2), log_index=n) for n in range(2))
    changed = batch(two, on=one, requests=more, role_changes=(role_change(two),), final=1)
    assert (await following.commit(indexer_pool, CHAIN, changed, RULES)).more_to_judge
    assert not (await following.commit(indexer_pool, CHAIN, batch(block(3), on=two, final=1), RULES)).more_to_judge
    held = "SELECT count(*) FROM mint_request WHERE held_reason = 'basket_paused'"
    assert await indexer_pool.fetchval(held) == 3


@pytest.mark.usefixtures("one")
async def test_a_resume_that_meets_a_commit_releases_what_that_commit_holds(
    dsn: str, indexer_pool: Pool, operator_pool: Pool
) -> None:
    """Otherwise a request would be held for a pause that is over, and nothing would ever release it."""

    is_held = asyncio.Event()

    async def committing() -> None:
        async with owner(dsn) as watcher, unit(indexer_pool) as connection:
            await lock_chain(connection, CHAIN)
            await basket_pauses.hold_requests(connection, CHAIN)
            is_held.set()
            await waiting(watcher, 1)

    async def resuming() -> None:
        await is_held.wait()
        await turn(operator_pool, BasketSwitch.RESUME)

    async with unit(indexer_pool) as connection:
        await basket_pauses.pause(connection, CHAIN, {TOKEN: "a test"})
    await asyncio.gather(committing(), resuming())
    assert (await pauses(indexer_pool), await holds(indexer_pool)) == ({}, [("confirmed", None)] * 2)


async def test_the_sweep_finds_a_change_that_was_left_out_and_says_so(indexer_pool: Pool, one: Block) -> None:
    two = block(2)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, final=2), RULES)
    late = replace(
        batch(two, on=two, role_changes=(role_change(two),)),
        expected=BlockRef(number=2, hash=two.hash),
    )
    committed = await following.record_range(indexer_pool, CHAIN, late, RULES, hold_reason=None)
    assert committed.alarms["basket_role_changed"] == 1
    assert list(await pauses(indexer_pool)) == [TOKEN]
