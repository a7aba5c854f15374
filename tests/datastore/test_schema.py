import asyncio
import importlib
import pkgutil

import asyncpg
import pytest

import datastore
from datastore import schema
from datastore.connection import Pool, Role, check_server, open_pool
from datastore.errors import DatastoreUnsuitable, SchemaMismatch

STATEMENTS = [
    (f"{module.name}.{name}", text)
    for module in pkgutil.iter_modules(datastore.__path__)
    for name, text in vars(importlib.import_module(f"datastore.{module.name}")).items()
    if isinstance(text, str)
    and text.split()[:1]
    and text.split()[0] in {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}
]


async def test_eight_starters_at_once_make_one_schema(empty_dsn: str) -> None:
    """Hard case 64."""
    made = await asyncio.gather(*(schema.apply(empty_dsn) for _ in range(8)))
    assert sorted(made) == [False] * 7 + [True]
    await schema.check(empty_dsn)


async def test_a_daemon_refuses_a_missing_an_older_and_a_newer_schema_with_a_sentence(empty_dsn: str) -> None:
    with pytest.raises(SchemaMismatch, match="has no schema yet; run `bskt schema apply`"):
        await schema.check(empty_dsn)
    await schema.apply(empty_dsn)
    connection = await asyncpg.connect(empty_dsn)
    for version, sentence in ((0, "this program needs 2 and cannot change it"), (99, "install the newer program")):
        await connection.execute("UPDATE schema_version SET version = $1", version)
        with pytest.raises(SchemaMismatch, match=sentence):
            await schema.check(empty_dsn)
    await connection.close()


def test_there_are_statements_to_prepare() -> None:
    assert len(STATEMENTS) > 50


async def test_every_statement_is_prepared_against_the_schema(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    for name, text in STATEMENTS:
        try:
            await connection.prepare(text)
        except asyncpg.PostgresError as error:
            pytest.fail(f"{name}: {error}")
    await connection.close()


FORBIDDEN = [
    (Role.INVOCATOR, "UPDATE mint_request SET amount = 1"),
    (Role.INVOCATOR, "UPDATE mint_request SET chain_status = 'orphaned'"),
    (Role.INVOCATOR, "UPDATE cursor SET block_number = 0"),
    (Role.INVOCATOR, "UPDATE frozen_request SET body = ''"),
    (Role.INVOCATOR, "INSERT INTO mint_transition (request_id, to_state, actor) VALUES (1, 'seen', 'indexer')"),
    (Role.INDEXER, "UPDATE mint_request SET nonce = gen_random_uuid()"),
    (Role.INDEXER, "INSERT INTO attempt (request_id, attempt_no) VALUES (1, 1)"),
    (Role.INDEXER, "DELETE FROM mint_request"),
    (Role.INDEXER, "DELETE FROM block"),
    (Role.INDEXER, "UPDATE sweep SET pruned_number = 0"),
    (Role.INVOCATOR, "SELECT prune_blocks(1, 1)"),
    (Role.INDEXER, "DELETE FROM basket_pause"),
    (Role.INVOCATOR, "DELETE FROM basket_pause"),
    (Role.INVOCATOR, "UPDATE control SET paused_at = NULL"),
    (Role.INDEXER, "DELETE FROM breaker"),
    (Role.INVOCATOR, "INSERT INTO basket_pause (chain_id, stablecoin, paused_reason) VALUES (1, ''::bytea, '')"),
    (Role.OPERATOR, "UPDATE mint_request SET bank_reference = sha256('x')"),
    (Role.OPERATOR, "DELETE FROM operator_action"),
    (Role.READER, "UPDATE control SET paused_at = NULL"),
]


@pytest.mark.parametrize(("role", "statement"), FORBIDDEN)
async def test_a_part_cannot_write_what_is_not_its_own(dsn: str, role: Role, statement: str) -> None:
    async with await open_pool(dsn, role) as pool:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


async def test_a_server_that_may_lose_commits_is_refused(dsn: str) -> None:
    """Hard case 55."""
    connection = await asyncpg.connect(dsn)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await connection.close()
    async with await open_pool(dsn, Role.INDEXER) as pool:
        with pytest.raises(DatastoreUnsuitable, match="set it to on"):
            await check_server(pool)


async def test_a_safe_server_is_accepted(indexer_pool: Pool) -> None:
    await check_server(indexer_pool)
