"""Connections to Postgres: one pool a part, under that part's role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg

from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Quoted: asyncpg's classes are generic for the type checker only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

MINIMUM_SERVER_MAJOR: Final = 15

# Hard case 59: an operator's forgotten lock must not hang the daemon for ever.  No transaction of ours waits for anything
# but Postgres: one that idles belongs to a process that was stopped, and must not keep its replica from working.
_SESSION: Final = {
    "TimeZone": "UTC",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
}
# From Postgres 17 on.  A process that is stopped between preparing a statement and executing it does not count as idle.
_TRANSACTION: Final = {"transaction_timeout": "60s"}

# SQLSTATE classes and codes after which the same unit may succeed: connection, resources, shutdown, serialisation,
# deadlock, lock and statement timeouts (hard cases 56 to 59).
_TRANSIENT_CLASSES: Final = ("08", "53", "58")
_TRANSIENT_CODES: Final = frozenset(
    {"25006", "25P03", "25P04", "40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"}
)

_NO_POOLER: Final = "connect to the server itself: behind a pooler, sessions lose their role, time-outs and LISTEN"


class Role(StrEnum):
    """The database role that a pool acts as (grants in ``schema.sql``)."""

    INDEXER = "bskt_indexer"
    INVOCATOR = "bskt_invocator"
    OPERATOR = "bskt_operator"
    READER = "bskt_reader"


def is_transient(error: BaseException) -> bool:
    """Whether repeating the whole unit later can help."""
    if isinstance(error, asyncpg.UniqueViolationError):
        # Two chains that share this database judged one bank reference at the same moment: the second judges again.
        return error.constraint_name == "bank_reference_is_held_once"
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        return code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES
    return isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError)


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn what Postgres or the network did into the errors of this package; let bugs through as they are."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        if is_transient(error):
            # The class and the SQLSTATE say enough; the text may carry the connection's address.
            code = getattr(error, "sqlstate", None)
            message = f"postgres: {type(error).__name__}" + (f" ({code})" if code else "")
            raise DatastoreUnavailable(message) from error
        raise


async def open_pool(dsn: str, role: Role, *, max_size: int = 4) -> Pool:
    """A pool whose sessions act as ``role``.

    Raises:
        DatastoreUnavailable: The server cannot be reached now.
        DatastoreUnsuitable: The server refuses these credentials or this role, or is unsafe or too old.
    """
    session = {**_SESSION, "role": role.value, "application_name": role.value}
    try:
        if role is Role.READER:  # reads everything, and locks nothing that anybody waits for
            return await _pool(dsn, session, max_size)
        try:
            return await _pool(dsn, session | _TRANSACTION, max_size)
        except asyncpg.UndefinedObjectError:
            return await _pool(dsn, session, max_size)
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise DatastoreUnsuitable(f"postgres refuses the connection: {error}; check BSKT_DATABASE_URL") from error
    except (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError) as error:
        raise DatastoreUnsuitable(
            f"postgres does not let this user act as {role.value}: {error}; run `bskt schema apply`"
        ) from error
    except DatastoreUnavailable as error:
        # What a pooler says to the session's settings: no weather, it would refuse them for ever.
        if isinstance(error.__cause__, asyncpg.ProtocolViolationError):
            raise DatastoreUnsuitable(f"{error.__cause__}; {_NO_POOLER}") from error
        raise


async def _pool(dsn: str, session: dict[str, str], max_size: int) -> Pool:
    async with translated():
        # No connection is kept on stock: asyncpg would restore it by a task that repeats and logs on its own.
        pool = await asyncpg.create_pool(
            dsn, min_size=0, max_size=max_size, timeout=10, command_timeout=90, server_settings=session
        )
        async with pool.acquire():
            pass  # what is wrong with the server is said at the start
    return pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Weakness:
    """What a server does not promise although it could; it is used all the same."""

    sentence: str
    remedy: str
    is_declared: bool = False  # by the server itself: whoever runs it means it


# Whoever runs a server for tests says there that its data may be lost; no setting of the daemon says it for a server.
_DURABILITY: Final = """
SELECT
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('fsync') = 'on' AS fsync,
    current_setting('full_page_writes') = 'on' AS full_page_writes,
    coalesce(current_setting('bskt.disposable', true), '') = 'on' AS is_disposable
"""


async def check_server(pool: Pool) -> tuple[Weakness, ...]:
    """Refuse a server on which a commit may be lost, that is too old, or that is reached through a pooler.

    Raises:
        DatastoreUnsuitable: With the remedy in its message.
    """
    async with translated(), pool.acquire() as connection:
        durability = await connection.fetchrow(_DURABILITY)
        if durability is None:
            raise AssertionError("a SELECT without FROM has one row")
        if durability["synchronous_commit"] in {"off", "local"}:
            raise DatastoreUnsuitable(
                f"postgres runs with synchronous_commit = {durability['synchronous_commit']}: a crash or failover could "
                "lose a claim that was already sent; set it to on"
            )
        if not durability["fsync"] and not durability["is_disposable"]:
            raise DatastoreUnsuitable(
                "postgres runs with fsync = off: a power cut could lose a claim that was already sent, or all of the data; "
                "set it to on, and restore a server that ever lost power without it"
            )
        major = int(await connection.fetchval("SELECT current_setting('server_version_num')")) // 10_000
        if major < MINIMUM_SERVER_MAJOR:
            raise DatastoreUnsuitable(f"postgres {major} is too old; {MINIMUM_SERVER_MAJOR} or newer is needed")
        # The greeting of a pooler names no server process, or another one than answers (hard case 60).
        if connection.get_server_pid() != await connection.fetchval("SELECT pg_backend_pid()"):
            raise DatastoreUnsuitable(f"postgres is reached through a pooler; {_NO_POOLER}")
    if durability["is_disposable"]:
        return (
            Weakness(
                sentence="The server says that its data may be lost (bskt.disposable = on): it is one for tests.",
                remedy="use another server for anything that counts",
                is_declared=True,
            ),
        )
    if not durability["full_page_writes"]:
        return (
            Weakness(
                sentence="full_page_writes is off: after a power cut, pages may be half old and half new.",
                remedy="set it to on, unless the server's file system writes whole pages (as ZFS does)",
            ),
        )
    return ()


@asynccontextmanager
async def unit(pool: Pool) -> AsyncIterator[Connection]:
    """One unit of work: a connection in one READ COMMITTED transaction, its errors translated.

    Raises:
        DatastoreUnavailable: Nothing is known to be written; read again before repeating.
    """
    async with translated(), pool.acquire() as connection, connection.transaction():
        yield connection


# $1 chain
_LOCK_CHAIN: Final = "SELECT block_number, block_hash FROM cursor WHERE chain_id = $1 FOR UPDATE"


async def lock_chain(connection: Connection, chain_id: int) -> asyncpg.Record | None:
    """Let nobody else work on several requests of this chain until this unit ends; first of all locks.

    Returns:
        The cursor; ``None`` of a chain that was not pinned.
    """
    return await connection.fetchrow(_LOCK_CHAIN, chain_id)
