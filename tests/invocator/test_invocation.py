"""The invocator driven tick by tick over real rows; what CRE answers is planned."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastore import claims, following, operators, pinning
from datastore.connection import Pool, Role, open_pool
from datastore.identity import execution_id_candidates
from datastore.operators import BasketSwitch, Person
from datastore.rows import Finality, LogRow
from indexer.policy import Policy
from invocator.classification import Broadcast, HttpReply, NeverConnected, NoAnswer, Reply
from invocator.dry_run import DryRun
from invocator.invocation import Invocator
from invocator.preflight import Contracts
from invocator.signing import Signer
from invocator.workflow_pool import in_turns
from tests.datastore.builders import (
    ALICE,
    BOB,
    CHAIN,
    RULES,
    TOKEN,
    batch,
    block,
    mint,
    pin_chain,
    report,
    request,
    with_finality,
)
from tests.datastore.workers import let_pass, let_probe, states
from tests.invocator.staging import (
    EXPIRED,
    RIGHT,
    SIGNER,
    SIMULATING,
    TERMS,
    WORKFLOW_ID,
    Ask,
    Chain,
    Cre,
    Make,
    accepted,
    announced,
    asked_for,
    gateway_error,
    run,
)

# -- pre-flight ------------------------------------------------------------------------------------------------------


async def test_a_request_that_passes_is_sent_and_its_token_s_decimals_are_remembered(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    await ask("d1", "d2")
    await run(make())
    assert await states(indexer_pool) == ["accepted", "accepted"]
    assert len(cre.bodies) == 2
    assert await indexer_pool.fetchval("SELECT decimals FROM basket") == 18


async def test_not_now_is_a_hold_with_a_reason_that_ends_when_it_is_put_right(
    ask: Ask, make: Make, cre: Cre, chain: Chain, indexer_pool: Pool
) -> None:
    """Hard case 41."""
    await ask("d1")
    chain.contracts = replace(RIGHT, is_minter=False)
    invocator = make()
    await run(invocator)
    assert (await states(indexer_pool), cre.bodies) == (["confirmed"], [])
    assert await indexer_pool.fetchval("SELECT held_reason FROM mint_request") == "not_a_minter"
    # Nothing was claimed, so nothing had to be given back.
    assert await indexer_pool.fetchval("SELECT claim_no FROM mint_request") == 0
    chain.contracts = RIGHT
    await let_pass(indexer_pool, 1, next_attempt_at=601)
    await run(invocator)
    assert await states(indexer_pool) == ["accepted"]


async def test_never_goes_to_a_person_and_nothing_is_frozen(
    ask: Ask, make: Make, cre: Cre, chain: Chain, indexer_pool: Pool
) -> None:
    """Hard case 52."""
    await ask("d1")
    chain.contracts = replace(RIGHT, decimals=6)
    await run(make())
    assert (await states(indexer_pool), cre.bodies) == (["review"], [])
    assert await indexer_pool.fetchval("SELECT state_reason FROM mint_request") == "decimals_not_supported"
    assert await indexer_pool.fetchval("SELECT count(*) FROM frozen_request") == 0
    assert await indexer_pool.fetchval("SELECT decimals FROM basket") == 6
    # From now on the policy knows it too.
    two = block(2)
    judging = replace(RULES, policy=Policy(max_mint_wei=None))
    later = batch(two, on=block(1), requests=(asked_for("d2", two),), final=2)
    await following.commit(indexer_pool, CHAIN, later, judging)
    assert await states(indexer_pool) == ["review", "rejected"]


@pytest.mark.parametrize(("witnessed", "reason"), [(False, "not_witnessed"), (None, "node_unavailable")])
async def test_a_request_that_nobody_else_has_seen_is_not_sent_until_somebody_has(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, witnessed: bool | None, reason: str
) -> None:
    """Hard case 20."""
    said, asked = witnessed, []

    async def is_witnessed(row: LogRow) -> bool | None:
        asked.append(row.tx_hash)
        return said

    one = await ask("d1")
    invocator = make()
    invocator._is_witnessed = is_witnessed
    await run(invocator)
    held = await indexer_pool.fetchrow("SELECT held_reason, state FROM mint_request")
    assert held is not None
    # Without a raw log on this branch there is nothing to ask for.
    assert (tuple(held), asked, cre.bodies) == (("node_unavailable", "confirmed"), [], [])
    await indexer_pool.execute(
        """
        INSERT INTO log (chain_id, block_number, block_hash, log_index, tx_hash, tx_index, address, topics, data, event)
        SELECT chain_id, block_number, block_hash, log_index, tx_hash, 0, emitter, '', '', 'MintRequested'
        FROM mint_request
        """
    )
    await let_pass(indexer_pool, 1, next_attempt_at=601)
    await run(invocator)
    assert await indexer_pool.fetchval("SELECT held_reason FROM mint_request") == reason
    alarms = [row["kind"] for row in await indexer_pool.fetch("SELECT kind FROM alarm")]
    assert (len(asked), cre.bodies, alarms) == (1, [], ["endpoints_disagree"] if witnessed is False else [])
    said = True
    await let_pass(indexer_pool, 1, next_attempt_at=601)
    await run(invocator)
    assert (await states(indexer_pool), one.number) == (["accepted"], 1)


async def test_a_basket_that_no_branch_announces_is_waited_for(make: Make, cre: Cre, indexer_pool: Pool) -> None:
    """Hard case 38."""
    genesis, one = await pin_chain(indexer_pool), block(1)
    await following.commit(
        indexer_pool, CHAIN, batch(one, on=genesis, requests=(asked_for("d1", one),), final=1), RULES
    )
    await run(make())
    assert await indexer_pool.fetchval("SELECT held_reason FROM mint_request") == "basket_not_canonical"
    assert cre.bodies == []


async def test_what_the_chain_shows_as_reported_is_not_sent(ask: Ask, make: Make, cre: Cre, indexer_pool: Pool) -> None:
    """After a failover that lost what we wrote, the chain still has it."""
    one = await ask("d1")
    nonce = await indexer_pool.fetchval("SELECT nonce FROM mint_request")
    two = block(2)
    reported = report(two, execution_id=execution_id_candidates(WORKFLOW_ID, nonce.hex)[1])
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, reports=(reported,), final=1), RULES)
    await run(make())
    row = await indexer_pool.fetchrow("SELECT state, state_reason FROM mint_request")
    assert row is not None
    assert (tuple(row), cre.bodies) == (("review", "already_reported"), [])


async def test_what_is_frozen_for_another_consumer_than_the_basket_has_now_is_not_sent(
    make: Make, cre: Cre, chain: Chain, indexer_pool: Pool
) -> None:
    genesis, one, other = await pin_chain(indexer_pool), block(1), block(1, fork="b", parent_fork="a")
    trigger = Finality(finalized=-1, safe=-1, trigger=1, complete=-1)
    first = replace(
        with_finality(batch(one, on=genesis, requests=(asked_for("d1", one),)), trigger), baskets=(announced(one),)
    )
    await following.commit(indexer_pool, CHAIN, first, RULES)
    cre.planned = [gateway_error(-32002, "rate limit exceeded", status=429)]
    assert await make().tick()
    assert (await states(indexer_pool), len(cre.bodies)) == (["confirmed"], 1)
    # A reorg: another branch creates the basket with another consumer.
    moved = replace(
        with_finality(
            batch(other, on=genesis, leaving=one, requests=(asked_for("d1", other)._replace(consumer=ALICE),)), trigger
        ),
        baskets=(announced(other)._replace(consumer=ALICE),),
    )
    await following.commit(indexer_pool, CHAIN, moved, RULES)
    await let_pass(indexer_pool, 1, next_attempt_at=601)
    chain.consumer = ALICE
    await run(make())
    row = await indexer_pool.fetchrow("SELECT state, state_reason FROM mint_request")
    assert row is not None
    assert (tuple(row), len(cre.bodies)) == (("review", "consumer_changed"), 1)


# -- mode simulate ---------------------------------------------------------------------------------------------------


async def test_a_simulation_is_run_once_and_ends_proven_by_its_transaction(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    one = await ask("d1")
    two = block(2)
    minted = mint(two, of=asked_for("d1", one), tx="broadcast")
    cre.planned = [Broadcast(tx_hash=minted.tx_hash)]
    invocator = make(SIMULATING)
    await run(invocator)
    assert (await states(indexer_pool), cre.tokens) == (["in_doubt"], [""])
    assert await indexer_pool.fetchval("SELECT count(*) FROM execution_id") == 0
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, mints=(minted,), final=2), RULES)
    await following.commit(indexer_pool, CHAIN, batch(block(3), on=two, final=3), RULES)
    assert await states(indexer_pool) == ["completed"]


async def test_a_simulation_without_a_result_is_never_run_again(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    """Hard case 77."""
    await ask("d1")
    cre.planned = [NoAnswer(reason="cre was ended")]
    invocator = make(replace(SIMULATING, resend_after_seconds=1))
    await run(invocator)
    await let_pass(indexer_pool, 1, next_attempt_at=5_000, state_changed_at=2_000)
    await run(invocator)
    # Nor by an invocator of the other mode, over the same rows.
    await run(make())
    assert (await states(indexer_pool), len(cre.bodies)) == (["in_doubt"], 1)
    await let_pass(indexer_pool, 1, state_changed_at=401)
    await run(invocator)
    assert (await states(indexer_pool), len(cre.bodies)) == (["review"], 1)


async def test_a_command_that_did_not_start_sent_nothing(ask: Ask, make: Make, cre: Cre, indexer_pool: Pool) -> None:
    await ask("d1")
    cre.planned = [NeverConnected(reason="cre did not start: FileNotFoundError")]
    await run(make(SIMULATING))
    assert await states(indexer_pool) == ["confirmed"]
    assert await indexer_pool.fetchval("SELECT outcome FROM attempt") == "never_connected"


async def test_what_one_mode_left_in_doubt_the_other_does_not_touch(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    await ask("d1")
    cre.planned = [NoAnswer(reason="timed out")]
    await run(make())
    await let_pass(indexer_pool, 1, next_attempt_at=10_000)
    await run(make(SIMULATING))
    assert (await states(indexer_pool), len(cre.bodies)) == (["in_doubt"], 1)
    await run(make())
    assert (await states(indexer_pool), len(cre.bodies)) == (["accepted"], 2)


# -- mode dry-run ----------------------------------------------------------------------------------------------------


async def test_a_dry_run_shows_each_request_once_with_its_very_bytes_and_writes_nothing(
    ask: Ask, make: Make, cre: Cre, dsn: str, indexer_pool: Pool
) -> None:
    one = await ask("d1", "d2")
    shown: list[str] = []
    async with await open_pool(dsn, Role.READER) as reader:
        dry = DryRun(pool=reader, chain_id=CHAIN, workflow_ids=(WORKFLOW_ID,), currency="USD", show=shown.append)
        assert await dry.tick() is False
        assert await dry.tick() is False
        written = "SELECT (SELECT count(*) FROM workflow) + (SELECT count(*) FROM frozen_request) + max(claim_no)"
        assert await indexer_pool.fetchval(f"{written} FROM mint_request") == 0
        two = block(2)
        late = batch(two, on=one, requests=(asked_for("d3", two),), final=2)
        await following.commit(indexer_pool, CHAIN, late, RULES)
        await dry.tick()
    assert [orjson.loads(line)["request_id"] for line in shown] == [1, 2, 3]
    await run(make())
    bodies = {orjson.loads(body)["id"]: orjson.loads(body) for body in cre.bodies}
    assert {orjson.loads(line)["body"]["id"]: orjson.loads(line)["body"] for line in shown} == bodies


async def test_a_dry_run_says_what_would_be_refused(ask: Ask, dsn: str, indexer_pool: Pool) -> None:
    await ask("d1")
    shown: list[str] = []
    async with await open_pool(dsn, Role.INVOCATOR) as pool:
        await claims.pin_decimals(pool, CHAIN, TOKEN, 6)
    async with await open_pool(dsn, Role.READER) as reader:
        dry = DryRun(pool=reader, chain_id=CHAIN, workflow_ids=(WORKFLOW_ID,), currency="USD", show=shown.append)
        await dry.tick()
    assert orjson.loads(shown[0])["refused"] == "decimals_not_supported"
    assert await states(indexer_pool) == ["confirmed"]


# -- what this instance may not send -----------------------------------------------------------------------------------

OTHER_ID = bytes(range(1, 33))
OTHER_KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"  # the second well-known anvil key


def with_another_key(invocator: Invocator) -> Invocator:
    invocator._signer = Signer.from_text(OTHER_KEY)
    return invocator


REDEPLOYED: dict[str, Callable[[Make], Invocator]] = {
    "workflow_retired": lambda make: make(replace(TERMS, workflow_ids=(OTHER_ID,))),
    "mode_changed": lambda make: make(SIMULATING),
    "signer_changed": lambda make: with_another_key(make()),
}


@pytest.mark.parametrize(("answer", "state"), [("refused", "confirmed"), ("lost", "in_doubt")])
@pytest.mark.parametrize("reason", REDEPLOYED)
async def test_what_is_frozen_for_another_configuration_goes_to_a_person_and_is_in_nobody_s_way(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, reason: str, answer: str, state: str
) -> None:
    await ask("d1", "d2")
    full = gateway_error(-32002, "rate limit exceeded", status=429)
    cre.planned = [full if answer == "refused" else NoAnswer(reason="timed out")]
    assert await make().tick()
    assert await states(indexer_pool) == [state, "confirmed"]
    cre.bodies.clear()
    await let_pass(indexer_pool, 1, next_attempt_at=10_000)
    # Others may still be configured as before: it is left to them for a while.
    redeployed = REDEPLOYED[reason](make)
    await redeployed.tick()
    assert (await states(indexer_pool))[0] == state
    await let_pass(indexer_pool, 1, state_changed_at=121)
    await redeployed.tick()
    row = await indexer_pool.fetchrow("SELECT state, state_reason FROM mint_request WHERE id = 1")
    assert tuple(row) == ("review", reason)  # type: ignore[arg-type]
    assert [orjson.loads(body)["id"] for body in cre.bodies] == [
        (await indexer_pool.fetchval("SELECT nonce FROM mint_request WHERE id = 2")).hex
    ]
    alarms = await indexer_pool.fetch("SELECT kind, request_id FROM alarm")
    assert [tuple(row) for row in alarms] == ([("gave_up", 1)] if state == "in_doubt" else [])


async def test_nothing_is_sent_while_the_indexer_has_halted(
    ask: Ask, make: Make, cre: Cre, invocator_pool: Pool, indexer_pool: Pool
) -> None:
    await ask("d1")
    await pinning.halt(indexer_pool, CHAIN, "block 7, which is final, has another hash")
    order = (await claims.waiting(invocator_pool, CHAIN, limit=1))[0]
    pacing = TERMS.pacing
    assert await claims.claim(invocator_pool, CHAIN, 1, worker_id=uuid4(), lease_seconds=9, pacing=pacing) is None
    await run(make())
    assert (cre.bodies, await states(indexer_pool)) == ([], ["confirmed"])
    # Also what was claimed before.
    halted_at = await pinning.halted_at(indexer_pool, CHAIN)
    assert halted_at is not None
    await pinning.clear_halt(indexer_pool, CHAIN, halted_at)
    claimed = await claims.claim(invocator_pool, CHAIN, 1, worker_id=uuid4(), lease_seconds=9, pacing=pacing)
    assert claimed is not None
    frozen = await make()._freeze(claimed)
    assert frozen is not None
    await pinning.halt(indexer_pool, CHAIN, "again")
    assert not await make()._attempt(claimed, frozen)
    assert (cre.bodies, order.request_id) == ([], 1)


async def test_refusals_cost_a_request_nothing_of_its_back_off(
    ask: Ask, make: Make, cre: Cre, invocator_pool: Pool, indexer_pool: Pool
) -> None:
    await ask("d1")
    refusal = gateway_error(-32600, "Auth failure: signer '0x1' is not authorized for workflow '0x2'")
    cre.planned = [*[refusal] * 6, NoAnswer(reason="timed out")]
    for _ in range(7):
        await run(make())
        await let_probe(invocator_pool)
    assert (await states(indexer_pool), len(cre.bodies)) == (["in_doubt"], 7)
    pause = "SELECT extract(epoch FROM next_attempt_at - clock_timestamp()) FROM mint_request"
    assert 60 < await indexer_pool.fetchval(pause) <= 95


async def test_a_refusal_after_an_outage_is_alarmed_too(
    ask: Ask, make: Make, cre: Cre, invocator_pool: Pool, indexer_pool: Pool
) -> None:
    await ask("d1")
    refusal = gateway_error(-32600, "Auth failure: signer '0x1' is not authorized for workflow '0x2'")
    cre.planned = [NeverConnected(reason="refused"), refusal, refusal]
    for _ in range(3):
        await run(make())
        await let_probe(invocator_pool)
    assert len(cre.bodies) == 3
    alarms = {row["kind"] for row in await indexer_pool.fetch("SELECT kind FROM alarm")}
    assert alarms == {"workflow_refused"}


async def test_more_than_a_whole_day_lets_through_is_held_for_that(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    await ask("d1")
    await run(make(replace(TERMS, pacing=replace(TERMS.pacing, daily_cap_wei=10**18 - 1))))
    assert (cre.bodies, await states(indexer_pool)) == ([], ["confirmed"])
    assert await indexer_pool.fetchval("SELECT held_reason FROM mint_request") == "amount_above_cap"
    await let_pass(indexer_pool, 1, next_attempt_at=601)
    await run(make(replace(TERMS, pacing=replace(TERMS.pacing, daily_cap_wei=10**18))))
    assert await states(indexer_pool) == ["accepted"]


# -- the breaker and the clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Auth failure: signer '0x1' is not authorized for workflow '0x2'", "signer_not_authorized"),
        ("Workflow not found. Ensure that the workflow exists", "workflow_not_found"),
        (EXPIRED, "clock_off"),
        ("Auth failure: issuedAt (iat) is too far in the future", "clock_off"),
        ("Service name not found: workflows", "wrong_gateway"),
    ],
)
async def test_refusals_of_key_workflow_and_clock_pause_what_they_are_about_for_every_worker(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool, message: str, code: str
) -> None:
    """Hard case 85."""
    await ask("d1", "d2")
    cre.planned = [gateway_error(-32600, message)]
    await run(make())
    await run(make())
    assert len(cre.bodies) == 1
    breakers = await invocator_pool.fetch("SELECT code, workflow_id FROM breaker")
    of_workflow = code in {"signer_not_authorized", "workflow_not_found"}
    assert [tuple(row) for row in breakers] == [(code, WORKFLOW_ID if of_workflow else None)]
    assert await states(indexer_pool) == ["confirmed", "confirmed"]
    await let_probe(invocator_pool)
    await run(make())
    assert await states(indexer_pool) == ["accepted", "accepted"]


async def test_an_answer_of_something_in_between_does_not_end_the_pause(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    await ask("d1", "d2")
    cre.planned = [NeverConnected(reason="refused"), HttpReply(status=502, body=b"<html>Bad Gateway</html>")]
    invocator = make()
    await run(invocator)
    await let_probe(invocator_pool)
    await run(invocator)
    # The probe may have been forwarded, so its request is in doubt; the other one was not touched.
    assert (sorted(await states(indexer_pool)), len(cre.bodies)) == (["confirmed", "in_doubt"], 2)
    assert await invocator_pool.fetchval("SELECT count(*) FROM breaker") == 1


def issued_at(token: str) -> int:
    payload = token.split(".")[1]
    claims_of_it: dict[str, int] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims_of_it["iat"]


async def test_a_clock_that_is_off_is_corrected_by_the_gateway_s_own(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    """Hard case 82."""
    await ask("d1")
    ours, theirs = 1_700_000_000, 1_700_000_900
    cre.planned = [gateway_error(-32600, EXPIRED, date=theirs)]
    invocator = make(clock=lambda: float(ours))
    await run(invocator)
    await let_probe(invocator_pool)
    await run(invocator)
    assert [issued_at(token) for token in cre.tokens] == [ours, theirs]
    assert await states(indexer_pool) == ["accepted"]
    assert await indexer_pool.fetchval("SELECT array_agg(kind ORDER BY kind) FROM alarm") == [
        "clock_off",
        "instance_refused",
    ]


async def test_the_clock_of_something_in_between_is_not_the_gateway_s(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool
) -> None:
    await ask("d1", "d2")
    page = HttpReply(status=403, body=b"<html>Forbidden", server_date=1_700_009_000)
    cre.planned = [page, page]
    await run(make())
    assert [row["kind"] for row in await indexer_pool.fetch("SELECT kind FROM alarm")] == ["gateway_forbids"]
    assert await states(indexer_pool) == ["in_doubt", "in_doubt"]
    assert await indexer_pool.fetchval("SELECT clock_offset_seconds FROM trigger_gate") is None


async def test_a_slow_answer_makes_no_clock_late(ask: Ask, make: Make, cre: Cre, indexer_pool: Pool) -> None:
    await ask("d1")

    def slow(body: bytes) -> Reply:
        reply = accepted(body)
        assert isinstance(reply, HttpReply)
        return replace(reply, server_date=1_699_999_940, read_seconds=60.0)

    cre.planned = [slow]
    await run(make())
    assert await indexer_pool.fetchval("SELECT clock_offset_seconds FROM trigger_gate") == 0


async def test_a_date_that_is_a_few_seconds_off_is_the_network_s_and_not_corrected(
    ask: Ask, make: Make, cre: Cre
) -> None:
    await ask("d1", "d2")
    cre.planned = [gateway_error(-32002, "rate limit exceeded", status=429, date=1_700_000_004)]
    await run(make())
    assert [issued_at(token) for token in cre.tokens] == [1_700_000_000] * len(cre.tokens)


# -- secrets ---------------------------------------------------------------------------------------------------------


async def test_a_token_that_the_gateway_repeats_is_neither_stored_nor_shown(
    ask: Ask, make: Make, cre: Cre, indexer_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard case 110."""
    await ask("d1")
    post = cre.post

    async def repeats(body: bytes, token: str, timeout_seconds: float) -> Reply:
        cre.planned = [gateway_error(-32600, f"Auth failure: malformed {token}")]
        return await post(body, token, timeout_seconds)

    monkeypatch.setattr(cre, "post", repeats)
    await make().tick()
    (token,) = cre.tokens
    rows = await indexer_pool.fetch("SELECT sentence, convert_from(answer, 'UTF8') AS answer FROM attempt")
    breakers = await indexer_pool.fetch("SELECT sentence AS refusal FROM breaker")
    told = " ".join(str(value) for row in (*rows, *breakers) for value in row.values())
    assert "malformed ***" in told
    assert token not in told
    assert token.split(".")[2][:20] not in told


# -- served baskets and the others -----------------------------------------------------------------------------------

OTHER_TOKEN = b"\x71" * 20
SECOND_WORKFLOW = bytes(range(1, 33))


async def asked_in_two_baskets(indexer: Pool, dsn: str, *, served: int, others: int) -> None:
    """Requests of a served basket and of one that is not, all confirmed; the others' are older."""
    genesis, one = await pin_chain(indexer), block(1)
    theirs = [request(f"o{n}", one, log_index=n + 1, stablecoin=OTHER_TOKEN) for n in range(others)]
    ours = [request(f"s{n}", one, log_index=others + n + 1, requester=BOB) for n in range(served)]
    baskets = announced(one), announced(one)._replace(stablecoin=OTHER_TOKEN, log_index=others + served + 1)
    made = replace(batch(one, on=genesis, requests=(*theirs, *ours), final=1), baskets=baskets)
    await following.commit(indexer, CHAIN, made, RULES)
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        await operators.turn_basket(pool, CHAIN, TOKEN, BasketSwitch.ALLOW, Person(name="alice", reason="ours"))


async def sent_tokens(pool: Pool) -> list[tuple[bytes, bytes]]:
    """By attempt, the workflow and whose request it was."""
    rows = await pool.fetch(
        "SELECT f.workflow_id, r.stablecoin FROM attempt a JOIN mint_request r ON r.id = a.request_id"
        " JOIN frozen_request f USING (request_id) ORDER BY a.started_at"
    )
    return [(row["workflow_id"], row["stablecoin"]) for row in rows]


async def test_of_two_workflows_that_are_free_alternately_each_serves_both_kinds(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, cre: Cre
) -> None:
    await asked_in_two_baskets(indexer_pool, dsn, served=30, others=30)

    async def look_at(token: bytes, _: bytes) -> Contracts:
        return replace(RIGHT, stablecoin=token)

    workflows = (WORKFLOW_ID, SECOND_WORKFLOW)
    paced = replace(TERMS.pacing, seconds_per_trigger=60)
    invocator = Invocator(
        pool=invocator_pool,
        chain_id=CHAIN,
        gateway=cre,
        signer=SIGNER,
        terms=replace(TERMS, workflow_ids=workflows, pacing=paced),
        clock=lambda: 1_700_000_000.0,
        look_at=look_at,
    )
    await claims.list_workflows(invocator_pool, CHAIN, workflows)
    for number in range(16):
        # Only one of them is free, the other one the next time.
        await invocator_pool.execute(
            """
            INSERT INTO workflow_slot SELECT $1, w, now() + CASE WHEN w = $3 THEN '0 s' ELSE '1 hour' END::interval
            FROM unnest($2::bytea[]) w
            ON CONFLICT (chain_id, workflow_id) DO UPDATE SET earliest_next_at = excluded.earliest_next_at
            """,
            CHAIN,
            list(workflows),
            workflows[number % 2],
        )
        assert await invocator.tick()
    sent = await sent_tokens(indexer_pool)
    for workflow in workflows:
        assert [token for on, token in sent if on == workflow] == [TOKEN, OTHER_TOKEN] * 4


async def test_thousands_that_pre_flight_refuses_keep_no_served_basket_waiting(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, cre: Cre
) -> None:
    """They take no slot and so no turn; after each one, a served basket has its try."""
    await asked_in_two_baskets(indexer_pool, dsn, served=2, others=100)
    looks: list[bytes] = []

    async def look_at(token: bytes, _: bytes) -> Contracts:
        looks.append(token)
        return replace(RIGHT, stablecoin=token, is_minter=token == TOKEN)

    invocator = Invocator(
        pool=invocator_pool,
        chain_id=CHAIN,
        gateway=cre,
        signer=SIGNER,
        terms=TERMS,
        clock=lambda: 1_700_000_000.0,
        look_at=look_at,
    )
    while len(cre.bodies) < 2:
        assert await invocator.tick()
    assert looks == [TOKEN, OTHER_TOKEN, TOKEN]
    assert [token for _, token in await sent_tokens(indexer_pool)] == [TOKEN, TOKEN]


@given(
    st.lists(st.tuples(st.integers(), st.sampled_from([b"a", b"b", b"c"]), st.booleans())),
    st.dictionaries(st.sampled_from([b"a", b"b"]), st.booleans()),
)
def test_in_turns_loses_nothing_keeps_each_kind_s_order_and_alternates_on_each_workflow(
    candidates: list[tuple[int, bytes, bool]], last_turns: dict[bytes, bool]
) -> None:
    numbered = [((n, *each), each[1], each[2]) for n, each in enumerate(candidates)]
    found = in_turns(numbered, last_turns)
    assert sorted(found) == [each for each, _, _ in numbered]
    for workflow in (b"a", b"b", b"c"):
        kinds = [is_served for _, _, on, is_served in found if on == workflow]
        due = not last_turns.get(workflow, False)
        both = 2 * min(kinds.count(True), kinds.count(False))
        assert kinds[:both] == [due, not due] * (both // 2)
        for kind in (True, False):
            places = [n for n, _, on, is_served in found if (on, is_served) == (workflow, kind)]
            assert places == sorted(places)
