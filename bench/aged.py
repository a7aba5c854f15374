"""Years of history in seconds: 5 million logs, a million requests that ended, 300,000 alarms and all that belongs to them."""

from __future__ import annotations

from typing import Final

import asyncpg

REQUESTS: Final = 1_000_000
LOGS: Final = 5_000_000
ALARMS: Final = 300_000
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
    rpad('AGED-' || g, 32, ' ')::bytea, rpad('AGED-' || g, 32, ' ')::bytea,
    CASE g % 100 WHEN 0 THEN 'failed' ELSE 'completed' END, CASE g % 100 WHEN 0 THEN 'delivery_failed' ELSE 'mint_final' END, true
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
INSERT INTO alarm (chain_id, kind, sentence, at, last_at)
SELECT {chain}, (ARRAY['unattributed_mint', 'basket_role_changed', 'gave_up'])[g % 3 + 1], 'An alarm of long ago.', t.at, t.at
FROM generate_series(1, {alarms}) g
CROSS JOIN LATERAL (SELECT clock_timestamp() - g * interval '9 minutes' AS at) t;
INSERT INTO sweep_difference (chain_id, kind, event, block_number, block_hash, repaired)
SELECT {chain}, 'missing', 'MintRequested', g, sha256(('block' || g)::bytea), true FROM generate_series(1, {alarms} / 10) g;
INSERT INTO reorg (chain_id, ancestor_number, ancestor_hash, old_tip_number, old_tip_hash, orphaned_blocks, orphaned_requests)
SELECT {chain}, g, sha256('a'), g + 1, sha256('b'), 1, 0 FROM generate_series(1, {alarms} / 10) g;
"""


# What the triggers would have counted, from the rows themselves: chain_id, what, labels, bucket, times, total.
FROM_ROWS: Final = """
SELECT chain_id, 'requests' AS what, ARRAY[state, state_reason, held_reason] AS labels, 0 AS bucket, count(*) AS times, 0.0 AS total
FROM mint_request GROUP BY 1, 3
UNION ALL
SELECT r.chain_id, 'transitions', ARRAY[t.from_state, t.to_state, t.reason], seconds_bucket(s.seconds), count(*), sum(s.seconds)
FROM mint_transition t
JOIN mint_request r ON r.id = t.request_id
CROSS JOIN LATERAL (SELECT extract(epoch FROM coalesce(t.stayed, '0'))::float8 AS seconds) s
WHERE t.from_state IS NOT NULL
GROUP BY 1, 3, 4
UNION ALL
SELECT r.chain_id, 'completions', '{}', seconds_bucket(s.seconds), count(*), sum(s.seconds)
FROM mint_transition t
JOIN mint_request r ON r.id = t.request_id
CROSS JOIN LATERAL (SELECT greatest(0, extract(epoch FROM t.at) - r.block_timestamp)::float8 AS seconds) s
WHERE t.to_state = 'completed'
GROUP BY 1, 4
UNION ALL
SELECT r.chain_id, 'attempts', ARRAY[a.outcome], seconds_bucket(s.seconds), count(*), sum(s.seconds)
FROM attempt a
JOIN mint_request r ON r.id = a.request_id
CROSS JOIN LATERAL (SELECT extract(epoch FROM a.answered_at - a.started_at)::float8 AS seconds) s
WHERE a.outcome IS NOT NULL
GROUP BY 1, 3, 4
UNION ALL
SELECT chain_id, 'logs', ARRAY[event, (undecodable IS NOT NULL)::text], 0, count(*), 0 FROM log GROUP BY 1, 3
UNION ALL
SELECT chain_id, 'reports', ARRAY[result::text], 0, count(*), 0 FROM report GROUP BY 1, 3
UNION ALL
SELECT chain_id, 'baskets', ARRAY[canonical::text], 0, count(*), 0 FROM basket GROUP BY 1, 3
UNION ALL
SELECT chain_id, 'alarms', ARRAY[kind, served::text], 0, sum(times), 0 FROM alarm GROUP BY 1, 3
UNION ALL
SELECT chain_id, 'differences', ARRAY[kind], 0, count(*), 0 FROM sweep_difference GROUP BY 1, 3
UNION ALL
SELECT chain_id, 'reorgs', '{}', blocks_bucket(orphaned_blocks), count(*), sum(orphaned_blocks) FROM reorg GROUP BY 1, 4
"""
# Nothing, while what is counted is what is there.  Sums of seconds are rounded in the order in which they are added.
MISCOUNTED: Final = f"""
SELECT chain_id, what, labels, bucket, c.times AS counted, r.times AS there, c.total AS counted_total, r.total AS total_there
FROM (SELECT * FROM counted WHERE times <> 0) c
FULL JOIN ({FROM_ROWS}) r USING (chain_id, what, labels, bucket)
WHERE c.times IS DISTINCT FROM r.times OR abs(c.total - r.total) > 1e-3
"""  # noqa: S608 - our own statement


async def fill(dsn: str, *, requests: int = REQUESTS, logs: int = LOGS, alarms: int = ALARMS) -> None:
    """Write the history into an empty database with the schema, as autovacuum would leave it."""
    script = _FILL.format(chain=_CHAIN, requests=requests, logs=logs, alarms=alarms, blocks=logs // 10)
    connection = await asyncpg.connect(dsn)
    try:
        for statement in filter(str.strip, script.split(";\n")):
            await connection.execute(statement)
        await connection.execute(f"INSERT INTO tally {FROM_ROWS}")
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
