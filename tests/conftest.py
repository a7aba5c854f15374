"""Fixtures that every part needs: one real Postgres a session, a database of its own for each test, and anvil."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from datastore import schema
from datastore.connection import Pool, Role, open_pool
from service.embedded_postgres import EmbeddedPostgres
from tests import databases, development_chain

# In memory where the machine has such a folder: nothing of a test needs to outlive it.
_MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes the folder
_GIGABYTE = 10**9


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", metavar="DSN", help="use this server, which has the template, instead of a new one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


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


def _memory_or_disk() -> Path | None:
    """Where a test's cluster lies; ``None`` for the usual folder on disk."""
    roomy = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * _GIGABYTE
    return _MEMORY if roomy else None


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server of our own that has the template; its DSN."""
    # Not pytest's own folder: as root its parents are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="bskt-test-", dir=_memory_or_disk()))
    folder.chmod(0o755)
    server = EmbeddedPostgres(
        folder / "postgres", durable=False, options={"max_connections": "100", "autovacuum": "off"}
    )
    asyncio.run(server.start())
    try:
        asyncio.run(_make_template(server.dsn))
        yield server.dsn
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


async def _make_template(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {databases.TEMPLATE}")
    await connection.close()
    await schema.apply(databases.named(dsn, databases.TEMPLATE))


@dataclass
class Reusable:
    """Databases with the schema that no test uses at the moment, and what their catalogue must be."""

    catalogue: str | None = None
    idle: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def reusable() -> Reusable:
    return Reusable()


@pytest.fixture
async def empty_dsn(postgres: str) -> AsyncIterator[str]:
    """A database without any table."""
    made = await databases.create(postgres, f"test_{uuid4().hex}", template="template0")
    yield made
    await databases.drop(postgres, made)


@pytest.fixture
async def dsn(postgres: str, reusable: Reusable) -> AsyncIterator[str]:
    """A database with the schema and without any row."""
    if reusable.idle:
        made = reusable.idle.pop()
    else:
        made = await databases.create(postgres, f"test_{uuid4().hex}", template=databases.TEMPLATE)
        reusable.catalogue = reusable.catalogue or await databases.catalogue(made)
    yield made
    assert reusable.catalogue is not None
    if await databases.reset(made, wanted=reusable.catalogue):
        reusable.idle.append(made)
    else:
        await databases.drop(postgres, made)


@pytest.fixture
async def indexer_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.INDEXER) as pool:
        yield pool


@pytest.fixture
async def invocator_pool(dsn: str) -> AsyncIterator[Pool]:
    async with await open_pool(dsn, Role.INVOCATOR) as pool:
        yield pool
