"""A database that was put back to an older state, while the chain and CRE went on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from datastore import operators
from datastore.connection import Connection, Role, open_pool
from datastore.identity import derive_nonce
from datastore.instructions import Retry, Will
from datastore.operators import Person, Switch
from datastore.settlement import Horizon
from service.demo.contracts import call
from tests.end_to_end.world import AMOUNT, CHAIN_ID, SECRET, USER, WORKFLOW_ID, World, reference

pytestmark = pytest.mark.end_to_end

PERSON = Person(name="alice", reason="restored the backup of last night")


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET session_replication_role = replica")  # as pg_restore --disable-triggers
        yield connection
    finally:
        await connection.close()


class Backup:
    """All rows at one moment."""

    def __init__(self, rows: dict[str, list[asyncpg.Record]]) -> None:
        self._rows = rows

    @classmethod
    async def take(cls, dsn: str) -> "Backup":
        async with owner(dsn) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return cls({row[0]: await connection.fetch(f"TABLE {row[0]}") for row in tables})

    async def restore(self, dsn: str) -> None:
        """Everything that came later is gone; the server is the same, so nobody can notice it."""
        async with owner(dsn) as connection, connection.transaction():
            await connection.execute(f"TRUNCATE {', '.join(self._rows)}")
            for table, rows in self._rows.items():
                if rows:
                    await connection.copy_records_to_table(
                        table, records=map(tuple, rows), columns=list(rows[0].keys())
                    )


async def quarantine(dsn: str) -> None:
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        answer = await operators.throw(pool, CHAIN_ID, Switch.QUARANTINE, PERSON, deadline_seconds=2400)
    assert isinstance(answer.verdict, Will)


async def let_the_quarantine_end(world: World, dsn: str) -> None:
    """Its time passes, and a block that is younger becomes final."""
    async with owner(dsn) as connection:
        await connection.execute("UPDATE control SET quarantined_until = to_timestamp(0)")
    await world.chain.mine(3)
    await world.follow()
    assert await world.pool.fetchval("SELECT quarantined_at FROM control") is None


async def test_a_send_that_a_restore_lost_is_found_on_chain_and_never_repeated(world: World, dsn: str) -> None:
    """Hard case 55."""
    await world.request("DEPOSIT-1")
    await world.follow()
    backup = await Backup.take(dsn)
    await world.invoke()
    await backup.restore(dsn)
    assert await world.states() == ["confirmed"]
    await quarantine(dsn)
    await world.invoke()  # nothing may be sent
    assert await world.pool.fetchval("SELECT count(*) FROM attempt") == 0
    await world.follow()
    assert await world.states() == ["executed"]
    assert "lost_send_found" in await world.alarms()
    await let_the_quarantine_end(world, dsn)
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.minted() == [(USER, AMOUNT, reference("DEPOSIT-1"))]
    assert await world.pool.fetchval("SELECT count(*) FROM attempt") == 0


async def test_what_was_never_sent_is_sent_once_when_the_quarantine_is_over(world: World, dsn: str) -> None:
    await world.request("DEPOSIT-1")
    await world.follow()
    await quarantine(dsn)
    await world.settle()
    assert await world.states() == ["confirmed"]
    assert world.cre.ledger.request_ids() == frozenset()
    await let_the_quarantine_end(world, dsn)
    await world.settle()
    assert await world.states() == ["completed"]
    assert await world.supply() == AMOUNT


async def test_a_lost_send_that_failed_is_retried_with_the_same_bytes_under_the_same_id(world: World, dsn: str) -> None:
    await world.chain.transact(call(world.basket.consumer, "setPolicyRejects(bool)", True))
    await world.request("DEPOSIT-1")
    await world.follow()
    backup = await Backup.take(dsn)
    await world.invoke()
    body = await world.pool.fetchval("SELECT body FROM frozen_request")
    await backup.restore(dsn)
    await quarantine(dsn)
    await world.send()  # nothing is; but the workflow, whose row was lost too, is known again
    await world.follow()
    assert await world.standing() == ("failed", "lost_send_found", "canonical")
    await let_the_quarantine_end(world, dsn)
    async with await open_pool(dsn, Role.OPERATOR) as pool:
        answer = await operators.instruct(
            pool,
            CHAIN_ID,
            1,
            Retry(),
            PERSON,
            finality=lambda position: Horizon(trigger=position.cursor.number, complete=position.finalized),
            nonce_of=lambda identity, generation: derive_nonce(SECRET, identity, generation),
            deadline_seconds=2_400,
        )
    assert isinstance(answer.verdict, Will)
    await world.invoke()
    # CRE knows the id and the bytes, so it took the second call for the first one: no conflict, no second run.
    assert await world.states() == ["accepted"]
    row = await world.pool.fetchrow("SELECT workflow_id, body FROM frozen_request")
    assert row is not None
    assert (row["workflow_id"], row["body"]) == (WORKFLOW_ID, body)
    assert len(world.cre.ledger.request_ids()) == 1
    assert await world.supply() == 0
