"""Let days pass in a database: its sessions find another ``clock_timestamp()`` first, which may be moved ahead."""

import asyncpg

from datastore.connection import Connection

# Whoever names a function without its schema finds ours, for pg_catalog is only searched first if it is not named.
# Defaults and the trigger keep Postgres' own clock; the only one that is compared with ours is an attempt's start.
INSTALL = """
CREATE SCHEMA virtual;
CREATE TABLE virtual.passed (seconds double precision NOT NULL);
INSERT INTO virtual.passed VALUES (0);
CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    $$ SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM virtual.passed $$;
CREATE FUNCTION virtual.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
    $$ SELECT pg_catalog.statement_timestamp() + make_interval(secs => seconds) FROM virtual.passed $$;
ALTER TABLE attempt ALTER started_at SET DEFAULT virtual.clock_timestamp();
GRANT USAGE ON SCHEMA virtual TO PUBLIC;
GRANT SELECT ON virtual.passed TO PUBLIC;
"""


class VirtualTime:
    """The offset of one database's clock; sessions that were opened before `install` keep the real one."""

    def __init__(self, owner: Connection) -> None:
        self._owner = owner

    @classmethod
    async def install(cls, dsn: str) -> "VirtualTime":
        owner = await asyncpg.connect(dsn)
        await owner.execute(INSTALL)
        name = await owner.fetchval("SELECT current_database()")
        await owner.execute(f"ALTER DATABASE {name} SET search_path = virtual, pg_catalog, public")
        return cls(owner)

    async def advance(self, seconds: float) -> None:
        await self._owner.execute("UPDATE virtual.passed SET seconds = seconds + $1", seconds)

    async def tidy(self) -> None:
        """What autovacuum does on a server that is up for days."""
        await self._owner.execute("VACUUM ANALYZE")

    async def close(self) -> None:
        await self._owner.close()
