"""What strangers cause for gas hides no alarm that must be seen, and what is counted instead of written is exact."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from datastore import following, status, tally
from datastore.alarms import AlarmKind, raise_hourly
from datastore.connection import Pool, unit
from datastore.following import Committed
from datastore.rows import Block
from tests.datastore.builders import (
    CHAIN,
    RULES,
    TOKEN,
    basket,
    batch,
    block,
    mint,
    pin_chain,
    request,
    role_change,
)

STRANGERS_TOKEN, STRANGERS_CONSUMER = b"\x66" * 20, b"\x67" * 20
STORM = 1_000
SERVE = "INSERT INTO basket_standing (chain_id, stablecoin, completed_at) VALUES ($1, $2, now())"


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def one(indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record]) -> Block:
    """A block with a basket that has completed a mint, and one that has not."""
    genesis, first = await pin_chain(indexer_pool), block(1)
    made = batch(
        first,
        on=genesis,
        final=1,
        baskets=(
            basket(first),
            basket(first, log_index=92, token=STRANGERS_TOKEN, symbol="BAD")._replace(consumer=STRANGERS_CONSUMER),
        ),
        requests=(
            request("minted", first),
            request("waits", first, log_index=1),
            request("strange", first, log_index=2, stablecoin=STRANGERS_TOKEN, consumer=STRANGERS_CONSUMER),
        ),
    )
    await following.commit(indexer_pool, CHAIN, made, RULES)
    await owner.execute("SET session_replication_role = replica")
    await owner.execute(SERVE, CHAIN, TOKEN)
    return first


async def rows(pool: Pool) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await pool.fetch("SELECT kind, served, times FROM alarm ORDER BY id")]


async def raised(pool: Pool) -> dict[tuple[str, bool], int]:
    return {key: times for key, times in (await tally.read(pool, CHAIN)).alarms.items() if times}


async def stormed(pool: Pool, on: Block, number: int, **more: object) -> Committed:
    """A block of a thousand changes of roles of the stranger's basket, and as many mints of 1 wei by its consumer."""
    at = block(number)
    strange = request("of nobody", at, stablecoin=STRANGERS_TOKEN, consumer=STRANGERS_CONSUMER)
    changes = tuple(role_change(at, log_index=100 + n, token=STRANGERS_TOKEN) for n in range(STORM))
    mints = tuple(mint(at, of=strange, log_index=10_000 + n, amount=1) for n in range(STORM))
    more = {name: (*given, *more.get(name, ())) for name, given in {"role_changes": changes, "mints": mints}.items()}  # type: ignore[misc]
    return await following.commit(pool, CHAIN, batch(at, on=on, **more), RULES)  # type: ignore[arg-type]


async def test_a_storm_about_a_basket_that_is_not_served_is_a_row_a_kind_and_hour_that_counts_it_exactly(
    indexer_pool: Pool, one: Block
) -> None:
    for on, number in ((one, 2), (block(2), 3)):
        committed = await stormed(indexer_pool, on, number)
        assert committed.alarms[AlarmKind.BASKET_ROLE_CHANGED] == STORM
    assert await rows(indexer_pool) == [
        ("basket_role_changed", False, 2 * STORM),
        ("unattributed_mint", False, 2 * STORM),
    ]
    counts = {("basket_role_changed", False): 2 * STORM, ("unattributed_mint", False): 2 * STORM}
    assert await raised(indexer_pool) == counts
    shown = (await status.attention(indexer_pool, CHAIN)).alarms
    assert [(alarm.kind, alarm.served, alarm.times) for alarm in shown] == [
        ("unattributed_mint", False, 2 * STORM),
        ("basket_role_changed", False, 2 * STORM),
    ]
    # The basket is paused all the same, and a person who resumes it is told of every change.
    assert await indexer_pool.fetchval("SELECT role_changes FROM basket_pause") == 2 * STORM


async def test_an_alarm_of_a_served_basket_in_the_middle_of_a_storm_is_a_row_and_comes_first(
    indexer_pool: Pool, one: Block
) -> None:
    await stormed(indexer_pool, one, 2)
    three = block(3)
    forged = mint(three, of=request("of nobody else", three), log_index=9)
    await stormed(indexer_pool, block(2), 3, role_changes=(role_change(three),), mints=(forged,))
    served = [row for row in await rows(indexer_pool) if row[1]]
    assert served == [("basket_role_changed", True, 1), ("unattributed_mint", True, 1)]
    assert (await raised(indexer_pool))["basket_role_changed", True] == 1
    (first, second, *_) = (await status.attention(indexer_pool, CHAIN)).alarms
    assert {first.kind, second.kind} == {"basket_role_changed", "unattributed_mint"}
    assert (first.served, second.served) == (True, True)
    assert TOKEN.hex() in next(alarm.sentence for alarm in (first, second) if alarm.kind == "basket_role_changed")


@pytest.mark.parametrize(("bank", "is_ours"), [("waits", True), ("strange", False), ("nobody's", False)])
async def test_a_mint_with_a_reference_that_a_request_of_a_served_basket_holds_is_never_limited(
    indexer_pool: Pool, one: Block, bank: str, is_ours: bool
) -> None:
    """Through whichever basket it came."""
    two = block(2)
    copied = request("copied", two, bank=bank, stablecoin=STRANGERS_TOKEN, consumer=STRANGERS_CONSUMER)
    mints = tuple(mint(two, of=copied, log_index=n, amount=1) for n in range(3))
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, mints=mints), RULES)
    expected = [("unattributed_mint", True, 1)] * 3 if is_ours else [("unattributed_mint", False, 3)]
    assert await rows(indexer_pool) == expected


async def test_a_mint_with_the_reference_of_a_request_that_was_sent_is_never_limited(
    indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record], one: Block
) -> None:
    await owner.execute(
        "INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti)"
        " VALUES (3, 1, 0, 1, gen_random_uuid(), gen_random_uuid())"
    )
    two = block(2)
    sent = request("strange", two, stablecoin=STRANGERS_TOKEN, consumer=STRANGERS_CONSUMER)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, mints=(mint(two, of=sent, amount=1),)), RULES)
    assert await rows(indexer_pool) == [("unattributed_mint", True, 1)]


async def test_storms_about_one_served_basket_do_not_hide_another_one(
    indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record], one: Block
) -> None:
    await owner.execute(SERVE, CHAIN, STRANGERS_TOKEN)
    two = block(2)
    await following.commit(indexer_pool, CHAIN, batch(two, on=one, role_changes=(role_change(two),)), RULES)
    await stormed(indexer_pool, two, 3)
    assert len(await rows(indexer_pool)) == 1 + 2 * STORM
    shown = (await status.attention(indexer_pool, CHAIN)).alarms
    assert sorted((alarm.kind, alarm.times) for alarm in shown) == [
        ("basket_role_changed", 1),
        ("basket_role_changed", STORM),
        ("unattributed_mint", STORM),
    ]


@pytest.mark.usefixtures("one")
async def test_what_happens_again_and_again_is_counted_in_the_row_of_its_hour(
    indexer_pool: Pool, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    async def disagree(sentence: str) -> None:
        async with unit(indexer_pool) as connection:
            await raise_hourly(connection, CHAIN, AlarmKind.ENDPOINTS_DISAGREE, sentence)

    for sentence in ("first", "second", "third"):
        await disagree(sentence)
    await owner.execute("UPDATE alarm SET hour = hour - interval '1 hour'")  # as if it were an hour later
    await disagree("fourth")
    told = await indexer_pool.fetch("SELECT sentence, times FROM alarm ORDER BY id")
    assert [tuple(row) for row in told] == [("first", 3), ("fourth", 1)]
    assert await raised(indexer_pool) == {("endpoints_disagree", True): 4}


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize(
    "broken",
    [
        "(chain_id, kind, sentence, times) VALUES (31337, 'x', '', 2)",
        "(chain_id, kind, sentence, served) VALUES (31337, 'x', '', false)",
    ],
)
async def test_a_row_that_stands_for_several_or_is_about_strangers_has_its_hour(
    owner: asyncpg.Connection[asyncpg.Record], broken: str
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(f"INSERT INTO alarm {broken}")
