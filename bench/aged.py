"""Years of history in seconds: 5 million logs, a million completed requests and all that belongs to them."""

from __future__ import annotations

from typing import Final

import asyncpg

REQUESTS: Final = 1_000_000
LOGS: Final = 5_000_000
_CHAIN: Final = 31337

# Below block 0, so that the measured chain follows upon it.  Triggers and foreign keys are off: the rows are consistent.
_FILL: Final = """
SET session_replication_role = replica;
INSERT INTO block (chain_id, hash, number, timestamp)
SELECT {chain}, sha256(('block' || g)::bytea), g - {blocks} - 1, g + 1 FROM generate_series(0, {blocks} - 1) g;
INSERT INTO log (chain_id, block_hash, log_index, block_number, tx_hash, tx_index, address, topics, data, event)
SELECT {chain}, sha256(('block' || g / 10)::bytea), g % 10, g / 10 - {blocks} - 1, sha256(('tx' || g / 10)::bytea), 0,
    substr(sha256(('token' || g % 50)::bytea), 1, 20), sha256('a') || sha256('b') || sha256(g::text::bytea) || sha256('d'),
    sha256('e'), 'MintRequested'
FROM generate_series(0, {logs} - 1) g;
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, chain_status, stablecoin,
    consumer, requester, beneficiary, amount, predicted_amount, bank_reference, expected_reference, state, state_reason,
    holds_reference
)
SELECT {chain}, sha256(('identity' || g)::bytea), md5('nonce' || g)::uuid, substr(sha256(('token' || g % 50)::bytea), 1, 20),
    sha256(('tx' || g / 2)::bytea), sha256(('block' || g / 2)::bytea), g / 2 - {blocks} - 1, g, g % 2, 'finalized',
    substr(sha256(('token' || g % 50)::bytea), 1, 20), substr(sha256(('consumer' || g % 50)::bytea), 1, 20),
    substr(sha256('requester'), 1, 20), substr(sha256(g::text::bytea), 1, 20), 1e18, 1e18,
    rpad('AGED-' || g, 32, ' ')::bytea, rpad('AGED-' || g, 32, ' ')::bytea, 'completed', 'mint_final', true
FROM generate_series(0, {requests} - 1) g;
INSERT INTO mint_transition (request_id, from_state, to_state, actor)
SELECT r.id, s.before, s.after, 'indexer'
FROM mint_request r,
    (VALUES (NULL, 'seen'), ('seen', 'confirmed'), ('accepted', 'executed'), ('executed', 'completed')) s (before, after);
INSERT INTO mint_execution (
    chain_id, block_hash, log_index, block_number, tx_hash, consumer, recipient, amount, bank_reference, request_id, proof
)
SELECT chain_id, block_hash, 100 + log_index, block_number, tx_hash, consumer, beneficiary, amount, expected_reference, id, 'report'
FROM mint_request;
INSERT INTO report (chain_id, block_hash, log_index, block_number, tx_hash, receiver, execution_id, report_id, result)
SELECT chain_id, block_hash, 200 + log_index, block_number, tx_hash, consumer, sha256(identity), 'ab', true FROM mint_request;
INSERT INTO execution_id (chain_id, execution_id, request_id, source, generation)
SELECT chain_id, sha256(identity), id, 'legacy', 0 FROM mint_request;
INSERT INTO attempt (request_id, attempt_no, generation, claim_no, worker_id, jti, answered_at, outcome)
SELECT id, 1, 0, 1, nonce, nonce, now(), 'accepted' FROM mint_request;
"""


async def fill(dsn: str, *, requests: int = REQUESTS, logs: int = LOGS) -> None:
    """Write the history into an empty database with the schema, as autovacuum would leave it."""
    script = _FILL.format(chain=_CHAIN, requests=requests, logs=logs, blocks=logs // 10)
    connection = await asyncpg.connect(dsn)
    try:
        for statement in filter(str.strip, script.split(";\n")):
            await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
