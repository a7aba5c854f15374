"""Requests and mints whose blocks leave the chain, on a real chain."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datastore.connection import Pool
from service.demo.cre_stand_in import faults
from tests.end_to_end.world import AMOUNT, USER, World, open_world, reference

pytestmark = pytest.mark.end_to_end

FINAL_AFTER = 2 * 8  # blocks
CONFIRMED_AT = 4  # linked blocks, the request's own included


@pytest.fixture
async def world(anvil_binary: Path, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[World]:
    async with open_world(
        anvil_binary=anvil_binary,
        indexer_pool=indexer_pool,
        invocator_pool=invocator_pool,
        slots_in_an_epoch=FINAL_AFTER // 2,
        trigger_depth_blocks=CONFIRMED_AT,
        timeout_seconds=0.5,
        resend_margin_seconds=0.5,
    ) as world:
        yield world


async def pass_blocks(world: World, blocks: int) -> None:
    await world.chain.mine(blocks)
    await world.follow()


async def send_one_whose_answer_is_lost(world: World) -> bytes:
    """A request that CRE took and holds, in doubt for us; gives the signed transaction."""
    world.cre.hold_deliveries()
    world.cre.faults.next(faults.answer_lost())
    receipt = await world.request("DEPOSIT-1")
    await pass_blocks(world, CONFIRMED_AT - 1)
    await world.send()
    assert await world.standing() == ("in_doubt", "attempt_started", "canonical")
    return await world.chain.raw_transaction(receipt.tx_hash)


async def let_a_resend_fall_due(world: World) -> None:
    while not await world.pool.fetchval("SELECT next_attempt_at <= clock_timestamp() FROM mint_request"):
        await world.send()
    await world.send()


async def test_a_request_that_vanishes_before_it_is_confirmed_is_never_sent(world: World) -> None:
    """Hard case 97."""
    await world.request("DEPOSIT-1")
    await pass_blocks(world, CONFIRMED_AT - 2)
    await world.send()
    assert await world.standing() == ("seen", None, "canonical")
    await world.chain.reorg(CONFIRMED_AT - 1)
    await world.follow()
    assert await world.standing() == ("seen", None, "orphaned")
    await pass_blocks(world, FINAL_AFTER)
    await world.send()
    assert await world.standing() == ("dropped", "orphaned_for_good", "orphaned")
    assert world.cre.ledger.attempts == []
    assert await world.minted() == []


async def test_a_request_that_is_re_mined_before_it_is_confirmed_waits_for_its_new_block(world: World) -> None:
    """Hard cases 4 and 11."""
    receipt = await world.request("DEPOSIT-1")
    raw = await world.chain.raw_transaction(receipt.tx_hash)
    await pass_blocks(world, CONFIRMED_AT - 2)
    await world.chain.reorg(CONFIRMED_AT - 1, [(raw, CONFIRMED_AT - 2)])
    await pass_blocks(world, CONFIRMED_AT - 2)
    await world.send()
    # By the number of its first block it would be confirmed by now.
    assert await world.chain.head_number() - receipt.block_number + 1 > CONFIRMED_AT
    assert await world.standing() == ("seen", None, "canonical")
    assert world.cre.ledger.attempts == []
    await pass_blocks(world, 1)
    assert await world.standing() == ("confirmed", "allowed", "canonical")
    await world.invoke()
    await pass_blocks(world, FINAL_AFTER + 1)
    assert await world.states() == ["completed"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert len(world.cre.ledger.attempts) == 1


async def test_a_request_that_is_orphaned_after_it_was_sent_waits_and_completes_once_when_it_is_re_mined(
    world: World,
) -> None:
    """Hard case 97."""
    raw = await send_one_whose_answer_is_lost(world)
    await world.chain.reorg(CONFIRMED_AT)
    await world.follow()
    assert await world.standing() == ("in_doubt", "attempt_started", "orphaned")
    assert await world.alarms() == ["orphaned_after_send"]
    await let_a_resend_fall_due(world)
    assert len(world.cre.ledger.attempts) == 1

    await world.chain.rpc("eth_sendRawTransaction", "0x" + raw.hex())
    await pass_blocks(world, CONFIRMED_AT)
    await world.send_until_states("accepted")
    assert [attempt.outcome for attempt in world.cre.ledger.attempts] == ["fault:answer_lost", "cached"]
    await world.cre.release_deliveries()
    await world.cre.idle()
    await pass_blocks(world, FINAL_AFTER + 1)
    assert await world.standing() == ("completed", "mint_final", "finalized")
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert len(world.cre.ledger.request_ids()) == 1


async def test_a_request_that_is_orphaned_for_good_after_it_was_sent_is_for_a_person(world: World) -> None:
    """Hard case 97: it may still be minted, and then nothing on chain backs the mint."""
    await send_one_whose_answer_is_lost(world)
    await world.chain.reorg(CONFIRMED_AT)
    await pass_blocks(world, FINAL_AFTER)
    assert await world.standing() == ("review", "unbacked", "orphaned")
    assert await world.alarms() == ["orphaned_after_send", "unbacked_mint"]
    await let_a_resend_fall_due(world)
    assert len(world.cre.ledger.attempts) == 1

    await world.cre.release_deliveries()
    await world.cre.idle()
    await pass_blocks(world, FINAL_AFTER + 1)
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert await world.standing() == ("review", "unbacked", "orphaned")
    assert await world.alarms() == ["orphaned_after_send", "unbacked_mint", "unbacked_mint"]


async def test_a_mint_that_a_reorg_takes_away_is_delivered_again_by_cre_and_counts_once(world: World) -> None:
    """Hard case 94."""
    await world.request("DEPOSIT-1")
    await pass_blocks(world, CONFIRMED_AT - 1)
    await world.invoke()
    await pass_blocks(world, 1)
    assert await world.standing() == ("executed", "mint_proven", "canonical")
    world.cre.hold_deliveries()
    await world.chain.reorg(2)
    await world.follow()
    assert await world.standing() == ("accepted", "mint_orphaned", "canonical")
    assert await world.minted() == []
    await world.cre.release_deliveries()
    while not await world.minted():
        await world.cre.check_deliveries()
    await world.send()
    await pass_blocks(world, FINAL_AFTER + 1)
    assert await world.states() == ["completed"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert len(world.cre.ledger.attempts) == 1
