"""What CRE does to a request that it took, by the real wire protocol; deadlines are half a second."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datastore.connection import Pool, Role, open_pool, unit
from datastore.lifecycle import Event
from datastore.settlement import settle
from service.demo.cre_stand_in import faults
from tests.end_to_end.world import AMOUNT, USER, World, open_world, reference

pytestmark = pytest.mark.end_to_end

CACHE_SECONDS = 24 * 3600  # how long CRE's nodes answer a repeated id from their memory


@pytest.fixture
async def world(anvil_binary: Path, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[World]:
    async with open_world(
        anvil_binary=anvil_binary,
        indexer_pool=indexer_pool,
        invocator_pool=invocator_pool,
        timeout_seconds=0.5,
        resend_margin_seconds=0.5,
    ) as world:
        yield world


@pytest.fixture
async def hasty_world(anvil_binary: Path, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[World]:
    async with open_world(
        anvil_binary=anvil_binary,
        indexer_pool=indexer_pool,
        invocator_pool=invocator_pool,
        timeout_seconds=0.5,
        resend_margin_seconds=0.1,
        completion_deadline_seconds=0.5,
    ) as world:
        yield world


async def path_of_the_only_request(world: World) -> list[str]:
    rows = await world.pool.fetch("SELECT to_state FROM mint_transition ORDER BY id")
    return [row["to_state"] for row in rows]


async def retry_as_an_operator(dsn: str) -> None:
    async with await open_pool(dsn, Role.OPERATOR) as pool, unit(pool) as connection:
        requests = [row["id"] for row in await connection.fetch("SELECT id FROM mint_request")]
        assert len(await settle(connection, Event.RETRY, requests, reason="retry")) == 1


async def test_what_cre_accepted_and_dropped_fails_at_its_deadline_and_can_be_minted_by_a_retry_with_the_same_id(
    hasty_world: World, dsn: str
) -> None:
    """Hard cases 79 and 104."""
    world = hasty_world
    world.cre.faults.next(faults.accept_then_drop())
    await world.request("DEPOSIT-1")
    await world.follow()
    await world.send_until_failed()
    assert (await world.standing())[:2] == ("failed", "not_delivered")
    assert await path_of_the_only_request(world) == [
        "seen",
        "confirmed",
        "claimed",
        "in_doubt",
        "accepted",
        "failed",
    ]
    assert world.cre.ledger.runs == []

    # The nodes still remember the id: they say ACCEPTED again, and run nothing.
    await retry_as_an_operator(dsn)
    await world.send_until_failed()
    assert [attempt.outcome for attempt in world.cre.ledger.attempts] == ["fault:accept_then_drop", "cached"]
    assert (world.cre.ledger.runs, await world.minted()) == ([], [])

    world.cre.clock.advance(CACHE_SECONDS + 1)
    await retry_as_an_operator(dsn)
    await world.send_until(lambda: len(world.cre.ledger.runs) == 1)
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    (request_id,) = world.cre.ledger.request_ids()
    assert len(world.cre.ledger.bodies_of(request_id)) == 1
    assert (len(world.cre.ledger.attempts), len(world.cre.ledger.jtis())) == (3, 3)


async def test_what_failed_at_its_deadline_is_still_watched_and_completed_by_a_late_mint(
    hasty_world: World,
) -> None:
    """Hard case 79."""
    world = hasty_world
    world.cre.hold_deliveries()
    await world.request("DEPOSIT-1")
    await world.follow()
    await world.send_until_failed()
    assert (await world.standing())[:2] == ("failed", "not_delivered")
    assert await world.minted() == []

    await world.cre.release_deliveries()
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.alarms() == ["unexpected_mint"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert len(world.cre.ledger.attempts) == 1


async def test_a_time_out_after_acceptance_leaves_a_doubt_that_the_same_id_resolves(world: World) -> None:
    """Hard case 75."""
    world.cre.hold_deliveries()
    world.cre.faults.next(faults.time_out())
    await world.request("DEPOSIT-1")
    await world.follow()
    await world.send()
    assert await world.states() == ["in_doubt"]
    await world.send_until(lambda: len(world.cre.ledger.attempts) > 1)
    assert await world.states() == ["accepted"]
    assert [attempt.outcome for attempt in world.cre.ledger.attempts] == ["fault:time_out", "cached"]

    await world.cre.release_deliveries()
    await world.settle()
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert await world.states() == ["completed"]
    (request_id,) = world.cre.ledger.request_ids()
    assert len(world.cre.ledger.runs_of(request_id)) == 1
    assert len(world.cre.ledger.bodies_of(request_id)) == 1
    assert len(world.cre.ledger.jtis()) == 2
