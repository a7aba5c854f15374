"""Fixtures that every part needs: one real Postgres a session, a database of its own for each test, and anvil."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from datastore import schema
from datastore.connection import Pool, Role, open_pool
from service.embedded_postgres import EmbeddedPostgres
from tests import development_chain

TEMPLATE = "bskt_template"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", metavar="DSN", help="use this server, which has the template, instead of a new one")


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    return development_chain.binary()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    given: str | None = request.config.getoption("--postgres")
    if given is not None:
        yield given
        return
    with running_postgres() as dsn:
        yield dsn


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server of our own that has the template; its DSN."""
    # Not pytest's own folder: as root its parents are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="bskt-test-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder / "postgres", durable=False, options={"max_connections": "100"})
    asyncio.run(server.start())
    try:
        asyncio.run(_make_template(server.dsn))
        yield server.dsn
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


async def _make_template(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {TEMPLATE}")
    await connection.close()
    await schema.apply(_named(dsn, TEMPLATE))


def _named(dsn: str, database: str) -> str:
    return dsn.rpartition("/")[0] + "/" + database


async def _created(postgres: str, template: str) -> str:
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    await connection.close()
    return _named(postgres, name)


async def _dropped(postgres: str, dsn: str) -> None:
    """At once: hundreds of databases would take minutes to delete at the end, on the last test's time."""
    connection = await asyncpg.connect(postgres)
    await connection.execute(f"DROP DATABASE {dsn.rpartition('/')[2]} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def empty_dsn(postgres: str) -> AsyncIterator[str]:
    """A database without any table."""
    made = await _created(postgres, "template0")
    yield made
    await _dropped(postgres, made)


@pytest.fixture
async def dsn(postgres: str) -> AsyncIterator[str]:
    """A database with the schema."""
    made = await _created(postgres, TEMPLATE)
    yield made
    await _dropped(postgres, made)


@pytest.fixture
async def indexer_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.INDEXER) as pool:
        yield pool


@pytest.fixture
async def invocator_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.INVOCATOR) as pool:
        yield pool
