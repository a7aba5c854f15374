"""Databases for tests: one is used again after a reset, which costs a fiftieth of making another."""

import asyncpg

TEMPLATE = "bskt_template"

# What a test may change beside rows.  A database in which any of it differs from the template is not used again.
_CATALOGUE = """
WITH relation AS (SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace)
SELECT md5(concat_ws('/',
    (SELECT string_agg(concat_ws(',', relname, relkind, relacl, relowner), ';' ORDER BY relname, relkind)
     FROM relation),
    (SELECT string_agg(concat_ws(',', conname, pg_get_constraintdef(oid)), ';' ORDER BY conname, conrelid::text)
     FROM pg_constraint WHERE connamespace = 'public'::regnamespace),
    (SELECT string_agg(
         concat_ws(',', attname, atttypid::regtype, attnotnull, atthasdef, attacl), ';'
         ORDER BY attrelid::regclass::text, attnum)
     FROM pg_attribute WHERE attnum > 0 AND attrelid IN (SELECT oid FROM relation)),
    (SELECT string_agg(concat_ws(',', tgname, tgenabled), ';' ORDER BY tgname, tgrelid::regclass::text)
     FROM pg_trigger WHERE NOT tgisinternal),
    (SELECT string_agg(concat_ws(',', proname, prosrc, proacl), ';' ORDER BY proname, oid::regprocedure::text)
     FROM pg_proc WHERE pronamespace = 'public'::regnamespace),
    (SELECT string_agg(version::text || encode(checksum, 'hex'), ';' ORDER BY version) FROM schema_version),
    (SELECT count(*) FROM pg_statistic WHERE starelid IN (SELECT oid FROM relation)),
    (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_'),
    (SELECT count(*) FROM pg_db_role_setting r JOIN pg_database d ON d.oid = r.setdatabase
     WHERE d.datname = current_database())
))
"""

# A killed test may have left a session that holds locks.
_END_OTHER_SESSIONS = """
SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

_EMPTY = """
DO $$
DECLARE
    t regclass;
    filled boolean;
    tables text[] := '{}';
    s regclass;
BEGIN
    FOR t IN SELECT oid FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'schema_version'
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', t) INTO filled;
        IF filled THEN
            tables := tables || t::text;
        END IF;
    END LOOP;
    IF tables <> '{}' THEN
        EXECUTE 'TRUNCATE ' || array_to_string(tables, ', ') || ' CASCADE';
    END IF;
    FOR s IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S' LOOP
        PERFORM setval(s, 1, false);
    END LOOP;
END
$$
"""


def named(dsn: str, database: str) -> str:
    return dsn.rpartition("/")[0] + "/" + database


async def create(server: str, database: str, *, template: str) -> str:
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {database} TEMPLATE {template}")
    await connection.close()
    return named(server, database)


async def drop(server: str, dsn: str) -> None:
    """At once: hundreds of databases would take minutes to delete at the end, on the last test's time."""
    connection = await asyncpg.connect(server)
    await connection.execute(f"DROP DATABASE {dsn.rpartition('/')[2]} WITH (FORCE)")
    await connection.close()


async def catalogue(dsn: str) -> str:
    """A digest of tables, constraints, functions, triggers and grants."""
    connection = await asyncpg.connect(dsn)
    try:
        digest: str = await connection.fetchval(_CATALOGUE)
    finally:
        await connection.close()
    return digest


async def reset(dsn: str, *, wanted: str) -> bool:
    """Empty every table and restart every sequence; ``False`` where the catalogue is not ``wanted`` any more."""
    try:
        connection = await asyncpg.connect(dsn, server_settings={"lock_timeout": "2000"})
    except (OSError, asyncpg.PostgresError):  # the test stopped its server, or closed its database to connections
        return False
    try:
        await connection.execute(_END_OTHER_SESSIONS)
        if await connection.fetchval(_CATALOGUE) != wanted:
            return False
        await connection.execute(_EMPTY)
    except asyncpg.PostgresError:
        return False
    finally:
        await connection.close()
    return True
