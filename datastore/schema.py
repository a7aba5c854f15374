"""Apply and check ``schema.sql``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import asyncpg

from datastore.connection import translated
from datastore.errors import SchemaMismatch

SCHEMA_VERSION: Final = 2
"""Raised with each numbered file in ``datastore/migrations``; ``schema.sql`` is always the whole of this version."""

_LOCK_KEY: Final = 0x62736B74  # "bskt": eight starters at once take turns


def sql() -> str:
    """The text of ``schema.sql``: beside this package when installed, at the top of a checkout."""
    here = Path(__file__).parent
    for candidate in (here / "schema.sql", here.parent / "schema.sql"):
        if candidate.exists():
            return candidate.read_text(encoding="utf-8")
    raise FileNotFoundError("schema.sql is neither in the datastore package nor at the top of the checkout")


def checksum() -> bytes:
    """sha256 of the schema's text, stored when it is applied."""
    return hashlib.sha256(sql().encode()).digest()


async def apply(dsn: str) -> bool:
    """Create the schema if the database has none; ``True`` if this call made it.  Safe with many starters at once.

    Raises:
        SchemaMismatch: The database holds another version; the message says what to do.
        DatastoreUnavailable: Nothing was changed; call again.
    """
    async with translated():
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
                version = await _version(connection)
                if version is None:
                    await connection.execute(sql())
                    await connection.execute(
                        "INSERT INTO schema_version (version, checksum) VALUES ($1, $2)", SCHEMA_VERSION, checksum()
                    )
                    return True
                _require_version(version)
                return False
        finally:
            await connection.close()


async def check(dsn: str) -> None:
    """Refuse to run on another schema.

    Raises:
        SchemaMismatch: With a sentence that says which side is older and what to do.
        DatastoreUnavailable: Call again.
    """
    async with translated():
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            version = await _version(connection)
        finally:
            await connection.close()
    if version is None:
        raise SchemaMismatch("the database has no schema yet; run `bskt schema apply`")
    _require_version(version)


async def _version(connection: asyncpg.Connection[asyncpg.Record]) -> int | None:
    if await connection.fetchval("SELECT to_regclass('public.schema_version')") is None:
        return None
    version: int | None = await connection.fetchval("SELECT max(version) FROM schema_version")
    return version


def _require_version(version: int) -> None:
    if version < SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema version {version}, this program needs {SCHEMA_VERSION} and cannot change it; "
            "run the program that made it, or begin with an empty database and the same BSKT_INSTANCE_SECRET"
        )
    if version > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema version {version}, this program knows only {SCHEMA_VERSION}; "
            "install the newer program"
        )
