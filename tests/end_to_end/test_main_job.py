"""The main job: from a request on chain to one mint on chain, and what must not become one."""

from time import perf_counter

import pytest

from service.demo.contracts import (
    batch_call,
    call,
    create_basket_call,
    mint_report,
    next_basket,
    request_mint_call,
    total_supply,
)
from service.demo.cre_stand_in import faults
from tests.end_to_end.world import AMOUNT, OTHER_USER, USER, World, reference

pytestmark = pytest.mark.end_to_end


async def test_a_request_on_chain_becomes_one_mint_on_chain(world: World) -> None:
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert await world.supply() == AMOUNT
    assert len(world.cre.ledger.request_ids()) == 1


async def test_a_basket_that_is_created_and_used_in_one_transaction_is_found(world: World) -> None:
    """Hard case 35."""
    born = await next_basket(world.chain, world.system.factory)
    await world.chain.transact(
        batch_call(
            world.system.batch,
            [
                create_basket_call(world.system.factory, name="New", symbol="NEW"),
                request_mint_call(born.token, beneficiary=USER, amount_wei=AMOUNT, bank_reference=reference("D-NEW")),
            ],
        )
    )
    await world.settle()
    assert await world.states() == ["completed"]
    assert await total_supply(world.chain, born.token) == AMOUNT


async def test_the_same_transaction_re_mined_at_another_log_index_is_one_request_and_one_mint(world: World) -> None:
    """Hard case 4."""
    # Somebody else's transaction with a log of its own, which the reorg puts into the same block, before ours.
    other = (await world.chain.accounts())[3]
    nothing = await world.chain.transact(call(world.basket.token, "transfer(address,uint256)", USER, 0), sender=other)
    receipt = await world.request("DEPOSIT-1")
    await world.follow()
    before = await world.pool.fetchrow("SELECT nonce, log_index, block_hash FROM mint_request")
    raw = [await world.chain.raw_transaction(each.tx_hash) for each in (nothing, receipt)]
    await world.chain.reorg(2, [(each, 1) for each in raw])
    await world.follow()
    after = await world.pool.fetchrow("SELECT nonce, log_index, block_hash FROM mint_request")
    assert before is not None
    assert after is not None
    assert after["nonce"] == before["nonce"]
    assert (before["log_index"], after["log_index"]) == (0, 1)
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.supply() == AMOUNT


async def test_one_deposit_that_is_used_twice_mints_once(world: World) -> None:
    await world.request("DEPOSIT-1")
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["completed", "rejected"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert len(world.cre.ledger.request_ids()) == 1


async def test_a_policy_rejection_on_chain_fails_the_request_with_its_reason(world: World) -> None:
    await world.chain.transact(call(world.basket.consumer, "setPolicyRejects(bool)", True))
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["failed"]
    assert await world.pool.fetchval("SELECT state_reason FROM mint_request") == "delivery_failed"
    # It was delivered: the forwarder's own report says false, and nothing was minted.
    assert [delivery.state for delivery in world.cre.ledger.deliveries] == ["rejected"]
    assert await world.minted() == []
    assert await world.supply() == 0


async def test_a_forged_mint_completes_nothing(world: World) -> None:
    """Hard case 91."""
    await world.request("DEPOSIT-1")
    report = mint_report(recipient=OTHER_USER, amount_wei=1, bank_reference=reference("DEPOSIT-1"))
    await world.chain.transact(call(world.basket.consumer, "processMintReport(bytes)", report))
    await world.settle()
    assert await world.states() == ["review"]
    assert await world.minted() == [(OTHER_USER, 1, reference("DEPOSIT-1"))]
    assert world.cre.ledger.request_ids() == frozenset()


async def test_a_mint_whose_answer_was_lost_completes_its_request_without_another_attempt(world: World) -> None:
    """Hard case 93."""
    world.cre.faults.next(faults.answer_lost())
    await world.request("DEPOSIT-1")
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.supply() == AMOUNT
    assert len(world.cre.ledger.request_ids()) == 1


async def test_two_workers_at_once_send_each_request_once(world: World) -> None:
    """Hard case 54."""
    for number in range(10):
        await world.request(f"DEPOSIT-{number}")
    await world.follow()
    more = True
    while more:
        more = any([await worker.tick() for worker in world.invocators])
    await world.cre.idle()
    await world.chain.mine(3)
    await world.follow()
    assert await world.states() == ["completed"] * 10
    assert await world.supply() == 10 * AMOUNT
    assert len(world.cre.ledger.request_ids()) == 10


@pytest.mark.timeout(300)
async def test_two_hundred_requests_are_all_completed_and_the_supply_is_their_sum(world: World) -> None:
    for number in range(200):
        await world.request(f"DEPOSIT-{number}")
    started = perf_counter()
    await world.follow()
    indexed = perf_counter()
    await world.invoke()
    invoked = perf_counter()
    await world.chain.mine(3)
    await world.follow()
    ended = perf_counter()
    assert await world.states() == ["completed"] * 200
    assert await world.supply() == 200 * AMOUNT
    assert len(world.cre.ledger.request_ids()) == 200
    print(  # noqa: T201 - the measurement, shown by pytest -s
        f"\n200 requests: {200 * 60 / (ended - started):.0f} a minute; index {indexed - started:.1f} s, "
        f"trigger and deliver {invoked - indexed:.1f} s, index and complete {ended - invoked:.1f} s"
    )
