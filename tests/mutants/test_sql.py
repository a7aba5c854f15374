"""The mutants that we make of SQL: which there are, and that Postgres understands each of them."""

import asyncpg
import pytest

from datastore import claims
from tests.mutants import sql

SELECT = """
SELECT a.id FROM attempt a JOIN mint_request r ON r.id = a.request_id
WHERE (a.outcome IS NULL OR r.state = 'claimed') AND a.started_at < $1 AND r.lease_ends_at > clock_timestamp()
ORDER BY a.id LIMIT $2 FOR UPDATE OF a SKIP LOCKED
"""


def mutated(text: str) -> list[str]:
    return [edit.applied(text) for edit in sql.edits(text)]


@pytest.mark.parametrize(
    "changed",
    [
        SELECT.replace("r.id = a.request_id", "((r.id = a.request_id) OR TRUE)"),
        SELECT.replace("a.outcome IS NULL", "((a.outcome IS NULL) AND FALSE)"),
        SELECT.replace("r.state = 'claimed'", "((r.state = 'claimed') AND FALSE)"),
        SELECT.replace("a.started_at < $1", "((a.started_at < $1) OR TRUE)"),
        SELECT.replace("r.lease_ends_at > clock_timestamp()", "((r.lease_ends_at > clock_timestamp()) OR TRUE)"),
        SELECT.replace("'claimed'", "'nothing'"),
        SELECT.replace("< $1", "<= $1"),
        SELECT.replace("ORDER BY a.id", "ORDER BY a.id DESC"),
        SELECT.replace("LIMIT $2", "LIMIT $2 + 1"),
        SELECT.replace("FOR UPDATE OF a SKIP LOCKED", ""),
        SELECT.replace(" SKIP LOCKED", ""),
    ],
)
def test_one_thing_changes_at_a_time(changed: str) -> None:
    assert changed in mutated(SELECT)


def test_a_boundary_at_the_clock_is_left_alone() -> None:
    assert SELECT.replace("> clock", ">= clock") not in mutated(SELECT)


def test_a_column_is_left_as_it_was() -> None:
    text = (
        "INSERT INTO slot AS s (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = greatest(s.n, 1), at = $2 WHERE TRUE"
    )
    assert text.replace("greatest(s.n, 1)", "CASE WHEN FALSE THEN greatest(s.n, 1) ELSE s.n END") in mutated(text)
    assert text.replace("$2", "CASE WHEN FALSE THEN $2 ELSE s.at END") in mutated(text)


async def test_postgres_understands_each_mutant_of_the_claims(dsn: str) -> None:
    """One that it refuses would count as killed by whatever runs it."""
    statements = {
        name: text for name, text in vars(claims).items() if isinstance(text, str) and sql.STATEMENT.match(text)
    }
    assert len(statements) > 30
    connection = await asyncpg.connect(dsn)
    refused = {}
    for name, text in statements.items():
        for changed in mutated(text):
            try:
                await connection.prepare(changed)
            except asyncpg.PostgresError as error:
                refused[changed] = f"{name}: {error}"
    await connection.close()
    assert refused == {}
