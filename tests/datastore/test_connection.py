"""What the daemon refuses to be connected to."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import asyncpg
import pytest

from datastore import connection
from datastore.connection import Role, check_server, is_transient, open_pool, unit
from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable
from service.embedded_postgres import EmbeddedPostgres


@asynccontextmanager
async def greeted_by_a_pooler(dsn: str) -> AsyncIterator[str]:
    """A way to the server whose greeting (BackendKeyData) names another process, as a pooler's does."""
    server = urlsplit(dsn)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, greeting: bool) -> None:
        while chunk := await reader.read(65_536):
            at = chunk.find(b"K" + struct.pack("!i", 12)) if greeting else -1
            if at >= 0:
                chunk, greeting = chunk[: at + 5] + struct.pack("!i", 1) + chunk[at + 9 :], False
            writer.write(chunk)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(server.hostname, server.port)
        await asyncio.gather(
            carry(reader, upstream[1], greeting=False),
            carry(upstream[0], writer, greeting=True),
            return_exceptions=True,
        )

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield server._replace(netloc=f"{server.username}:{server.password}@127.0.0.1:{port}").geturl()


async def test_a_pooler_is_refused_with_the_remedy(dsn: str) -> None:
    """Hard case 60."""
    async with greeted_by_a_pooler(dsn) as through, await open_pool(through, Role.INDEXER) as pool:
        with pytest.raises(DatastoreUnsuitable, match="through a pooler; connect to the server itself"):
            await check_server(pool)


async def test_a_server_that_acknowledges_before_it_wrote_is_refused(dsn: str) -> None:
    """Hard case 55."""
    connection = await asyncpg.connect(dsn)
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    await connection.close()
    async with await open_pool(dsn, Role.INDEXER) as pool:
        with pytest.raises(DatastoreUnsuitable, match="synchronous_commit = off"):
            await check_server(pool)


async def test_a_server_that_does_not_write_through_is_refused_unless_it_says_that_its_data_may_be_lost(
    dsn: str,
) -> None:
    """The server of the tests does not, and says so."""
    connection = await asyncpg.connect(dsn)
    database = await connection.fetchval("SELECT current_database()")
    assert await connection.fetchval("SHOW fsync") == "off"
    async with await open_pool(dsn, Role.INDEXER) as pool:
        assert [each.is_declared for each in await check_server(pool)] == [True]
    for said in ("off", ""):
        await connection.execute(f"ALTER DATABASE {database} SET bskt.disposable = '{said}'")
        async with await open_pool(dsn, Role.INDEXER) as pool:
            with pytest.raises(DatastoreUnsuitable, match="fsync = off"):
                await check_server(pool)
    await connection.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Open to the user that the server runs as, which pytest's own is not."""
    with TemporaryDirectory(prefix="bskt-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def test_a_server_that_may_tear_pages_is_accepted_and_told_of(open_folder: Path) -> None:
    torn = EmbeddedPostgres(open_folder / "postgres", options={"full_page_writes": "off"})
    async with torn, await asyncpg.create_pool(torn.dsn, min_size=0) as pool:
        (weakness,) = await check_server(pool)
    assert (weakness.is_declared, "full_page_writes" in weakness.sentence) == (False, True)


@pytest.mark.parametrize("role", [Role.INDEXER, Role.INVOCATOR, Role.OPERATOR])
async def test_a_transaction_that_lasts_too_long_loses_its_locks(
    dsn: str, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard case 67: its process may have been stopped, and its replica waits."""
    monkeypatch.setitem(connection._TRANSACTION, "transaction_timeout", "50ms")
    async with await open_pool(dsn, role) as pool:
        with pytest.raises(DatastoreUnavailable):
            async with unit(pool) as transaction:
                await transaction.execute("SELECT pg_sleep(5)")


async def test_a_server_that_does_not_know_the_limit_of_a_transaction_is_accepted(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_TRANSACTION", {"a_limit_of_postgres_99": "60s"})
    async with await open_pool(dsn, Role.INDEXER) as pool:
        await check_server(pool)


async def test_a_server_in_order_is_accepted(dsn: str) -> None:
    async with await open_pool(dsn, Role.INDEXER) as pool:
        await check_server(pool)


async def test_a_server_that_is_away_is_weather(dsn: str) -> None:
    away = urlsplit(dsn)._replace(netloc="nobody@127.0.0.1:1").geturl()
    with pytest.raises(DatastoreUnavailable):
        await open_pool(away, Role.INDEXER)


@pytest.mark.parametrize("code", ["08006", "40001", "40P01", "53100", "53300", "57P01", "55P03", "57014", "25006"])
def test_what_may_succeed_later_is_weather(code: str) -> None:
    """Hard cases 56 to 59."""
    assert is_transient(asyncpg.PostgresError.new({"C": code, "M": ""}))


@pytest.mark.parametrize("code", ["22003", "23505", "23514", "42501", "42P01"])
def test_what_is_our_mistake_is_no_weather(code: str) -> None:
    """Hard case 56."""
    assert not is_transient(asyncpg.PostgresError.new({"C": code, "M": ""}))
