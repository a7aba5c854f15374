"""The indexer's commit: one transaction that leaves the rows as if the chain had always been so.

Order inside: the cursor by compare-and-swap, orphanings, requests, reports, mints, judgement, finality; last of all, what
waits for a paused basket is held.
Every insert is idempotent by the key that the chain gives; a block that comes back (A→B→A) becomes canonical again.

A commit's work is bounded by its own logs, whatever strangers have stored: of all requests for one reference it touches
the one that holds it, for nothing can be sent for any other.  What an event means for the others is left, in the same
transaction, as a row of ``unsettled_reference``; ``settle_references`` works these off in bounded steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import asyncpg

from datastore import basket_pauses, quarantine
from datastore.alarms import AlarmKind, Concern, raise_about_baskets, raise_alarms, served_baskets
from datastore.connection import Connection, Pool, lock_chain, translated, unit
from datastore.errors import BlockMisplaced, CursorMoved, FinalityViolated
from datastore.judgement import Allowed, Candidate, ForReview, Holder, Refused, Undecided, Verdict, judge
from datastore.lifecycle import Event, Facts, State
from datastore.reference import folded_reference, reference_text
from datastore.rows import Basket, Batch, Block, BlockRef, Finality, LogRow, Mint, Place, Report, Request
from datastore.settlement import Horizon, Known, Move, Settled, fed_later, leave, move, settle

Policy: TypeAlias = Callable[[Candidate], Refused | None]
"""What the indexer refuses whatever the reference says; pure."""

JUDGED_A_COMMIT: Final = 5_000
"""Bounds what a commit judges and calls final after a long stall; ``Committed.more_to_judge`` asks for another commit."""

REFERENCES_A_STEP: Final = 50
JUDGED_OF_A_REFERENCE: Final = 10
REQUESTS_A_STEP: Final = 500
"""Bound a step of ``settle_references``: it takes some 0.1 s, so that a new block need not wait."""

CONFIRMED_CHANNEL: Final = "bskt_confirmed"
"""NOTIFY channel that shortens the invocator's pause; polling stays the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the settings say about recording and judging."""

    policy: Policy
    contest: bool
    first_trigger_block_number: int
    # In quarantine: how long a send may take to show on chain, and how to find one of a lost generation.
    completion_deadline_seconds: float = 2_400.0
    nonce_of: quarantine.NonceOf | None = None


@dataclass(slots=True, kw_only=True)
class Committed:
    """What one commit changed, for logs and metrics."""

    cursor: BlockRef
    orphaned_blocks: int = 0
    orphaned_requests: int = 0
    recorded: Counter[State] = field(default_factory=Counter)
    settled: list[Settled] = field(default_factory=list)
    alarms: Counter[str] = field(default_factory=Counter)
    more_to_judge: bool = False
    quarantine_entered: quarantine.Quarantine | None = None
    quarantine_ended: bool = False

    @property
    def recorded_requests(self) -> int:
        """New rows; ``recorded`` has the states in which they begin."""
        return self.recorded.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where the follower stands: its cursor and the highest finality that it believed.

    ``baskets_version`` tells whether baskets that were read before are still all there are.
    """

    cursor: BlockRef
    finalized: int
    safe: int
    head: int
    baskets_version: int = 0


# $1 chain
_POSITION: Final = """
SELECT block_number, block_hash, finalized_number, safe_number, head_number, baskets_version FROM cursor WHERE chain_id = $1
"""

# $1 chain, $2 lowest number
_HELD: Final = """
SELECT number, hash, parent_hash, timestamp FROM block
WHERE chain_id = $1 AND canonical AND number >= $2
ORDER BY number
"""

# $1 chain, $2 expected number, $3 expected hash, $4 new number, $5 new hash, $6 head, $7 finalized, $8 safe, $9 ancestor,
# $10 the version of the baskets that the batch was made with, or NULL
_MOVE_CURSOR: Final = """
UPDATE cursor SET
    block_number = $4,
    block_hash = $5,
    head_number = $6,
    finalized_number = greatest(finalized_number, $7),
    safe_number = greatest(safe_number, finalized_number, $7, $8),
    indexed_at = clock_timestamp()
WHERE chain_id = $1 AND block_number = $2 AND block_hash = $3 AND finalized_number <= $9
  AND ($10::bigint IS NULL OR baskets_version = $10)
"""

# Not while somebody else moves the cursor: that commit tells a head of its own.
# $1 chain, $2 number and $3 hash of the cursor, $4 head
_TELL_HEAD: Final = """
UPDATE cursor SET head_number = $4 WHERE chain_id = $1 AND block_number = $2 AND block_hash = $3
"""

# The time of the block before the first one was not known at the first start.
# $1 chain, $2 numbers, $3 hashes, $4 parents, $5 timestamps
_INSERT_BLOCKS: Final = """
INSERT INTO block (chain_id, number, hash, parent_hash, timestamp)
SELECT $1, * FROM unnest($2::bigint[], $3::bytea[], $4::bytea[], $5::bigint[])
ON CONFLICT (chain_id, hash) DO UPDATE
SET canonical = true, parent_hash = coalesce(excluded.parent_hash, block.parent_hash),
    timestamp = coalesce(nullif(block.timestamp, 0), excluded.timestamp)
"""

# Of the batch's blocks and requests, which were recorded before.  $1 chain, $2 hashes
_KNOWN_BLOCKS: Final = "SELECT hash, number FROM block WHERE chain_id = $1 AND hash = ANY($2::bytea[])"
# $1 identities
_KNOWN_REQUESTS: Final = "SELECT identity FROM mint_request WHERE identity = ANY($1::bytea[])"

# Of the known blocks' rows, which are there.  $1 chain, $2 hashes of the known blocks
_KNOWN_ROWS: Final = {
    table: f"SELECT block_hash, log_index, canonical FROM {table} WHERE chain_id = $1 AND block_hash = ANY($2::bytea[])"  # noqa: S608 - our own names
    for table in ("log", "basket", "report", "mint_execution")
}
# What came back with its block is canonical again (A→B→A).  $1 chain, $2 block hashes, $3 log indexes
_RESTORE: Final = {
    table: f"""
        UPDATE {table} t SET canonical = true FROM unnest($2::bytea[], $3::integer[]) AS n (block_hash, log_index)
        WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index
    """  # noqa: S608 - our own names
    for table in ("log", "basket", "report", "mint_execution")
}

# Whether a log could be decoded depends on the baskets, and some of those may have been missing when it was recorded.
# $1 chain, $2 block hashes, $3 log indexes, $4 why the log cannot be decoded
_EXPLAIN_LOGS: Final = """
UPDATE log t SET undecodable = n.undecodable
FROM unnest($2::bytea[], $3::integer[], $4::text[]) AS n (block_hash, log_index, undecodable)
WHERE t.chain_id = $1 AND t.block_hash = n.block_hash AND t.log_index = n.log_index
  AND (t.undecodable IS NULL) <> (n.undecodable IS NULL)
"""

# Bank references that somebody else asked for, ever, or that are held or undecided in another spelling.
# $1 bank references
_ASKED_FOR: Final = """
SELECT n.bank_reference
FROM unnest($1::bytea[]) AS n (bank_reference)
CROSS JOIN LATERAL (
    (SELECT FROM mint_request r WHERE r.bank_reference = n.bank_reference LIMIT 1)
    UNION ALL
    (
        SELECT FROM mint_request r
        WHERE folded_reference(r.bank_reference) = folded_reference(n.bank_reference) AND r.holds_reference
        LIMIT 1
    )
    UNION ALL
    (
        SELECT FROM mint_request r
        WHERE folded_reference(r.bank_reference) = folded_reference(n.bank_reference)
          AND r.state IN ('seen', 'review') AND NOT r.holds_reference AND r.chain_status <> 'orphaned'
        LIMIT 1
    )
) r
"""
# Decimals that were read from the token.  $1 chain, $2 tokens
_DECIMALS: Final = """
SELECT stablecoin, decimals FROM basket
WHERE chain_id = $1 AND canonical AND stablecoin = ANY($2::bytea[]) AND decimals IS NOT NULL
"""
# Whether _LOOK_ALIKES could find anything.  $1 chain
_MAY_HAVE_LOOK_ALIKES: Final = """
SELECT EXISTS (
    SELECT FROM mint_request
    WHERE chain_id = $1 AND chain_status = 'orphaned'
      AND state IN ('in_doubt', 'accepted', 'failed', 'executed', 'completed', 'review')
      AND (NOT orphaned_for_good OR state = 'review')
)
"""
# $1 references that mints carry
_MINTED: Final = """
SELECT n.bank_reference
FROM unnest($1::bytea[]) AS n (bank_reference)
CROSS JOIN LATERAL (
    SELECT FROM mint_execution e WHERE e.canonical AND e.bank_reference = n.bank_reference LIMIT 1
) e
"""

# A token keeps the consumer that it was announced with first; what was taken for that while the first one was missing
# is none any more.  $1 chain, $2 stablecoins, $3 block numbers, $4 log indexes
_DISPLACE_BASKETS: Final = """
UPDATE basket b SET canonical = false
FROM unnest($2::bytea[], $3::bigint[], $4::integer[]) AS n (stablecoin, block_number, log_index)
WHERE b.chain_id = $1 AND b.stablecoin = n.stablecoin AND b.canonical
  AND (b.block_number, b.log_index) > (n.block_number, n.log_index)
"""

# A request that was recorded before and stands in a new place now: it keeps its row, its nonce and its state.
# $1 identities, $2 block numbers, $3 block hashes, $4 timestamps, $5 log indexes, $6 stablecoins, $7 consumers
_RE_ATTACH_REQUESTS: Final = """
UPDATE mint_request r SET
    block_number = n.block_number,
    block_hash = n.block_hash,
    block_timestamp = n.block_timestamp,
    log_index = n.log_index,
    stablecoin = n.stablecoin,
    consumer = n.consumer,
    chain_status = 'canonical',
    orphaned_for_good = false
FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bigint[], $5::integer[], $6::bytea[], $7::bytea[])
    AS n (identity, block_number, block_hash, block_timestamp, log_index, stablecoin, consumer)
WHERE r.identity = n.identity
  AND (
    r.chain_status = 'orphaned'
    OR (r.block_hash, r.log_index, r.stablecoin, r.consumer) <> (n.block_hash, n.log_index, n.stablecoin, n.consumer)
  )
RETURNING r.id
"""

# Orphaning, by $1 chain and $2 hashes of the blocks that were left; they are above $3, the ancestor.
_ORPHAN_BLOCKS: Final = """
UPDATE block SET canonical = false WHERE chain_id = $1 AND canonical AND number > $2 RETURNING hash
"""
_ORPHAN_LOGS: Final = """
UPDATE log SET canonical = false WHERE chain_id = $1 AND canonical AND block_hash = ANY($2::bytea[])
"""
_ORPHAN_BASKETS: Final = """
UPDATE basket SET canonical = false WHERE chain_id = $1 AND canonical AND block_hash = ANY($2::bytea[])
"""
_ORPHAN_REPORTS: Final = """
UPDATE report SET canonical = false WHERE chain_id = $1 AND canonical AND block_hash = ANY($2::bytea[])
RETURNING execution_id
"""
_ORPHAN_MINTS: Final = """
UPDATE mint_execution SET canonical = false WHERE chain_id = $1 AND canonical AND block_hash = ANY($2::bytea[])
RETURNING request_id
"""
_ORPHAN_REQUESTS: Final = """
UPDATE mint_request SET chain_status = 'orphaned'
WHERE chain_id = $1 AND chain_status = 'canonical' AND block_number > $3 AND block_hash = ANY($2::bytea[])
RETURNING id
"""
# $1 request ids
_SENT_AMONG: Final = "SELECT id FROM mint_request WHERE id = ANY($1::bigint[]) AND is_sent(id)"

# $1 chain, $2 ancestor number, $3 ancestor hash, $4 old tip number, $5 old tip hash, $6 blocks, $7 requests
_INSERT_REORG: Final = """
INSERT INTO reorg (chain_id, ancestor_number, ancestor_hash, old_tip_number, old_tip_hash, orphaned_blocks, orphaned_requests)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""

# Requests that failed by a false report which no block of this branch holds any more.  $1 chain, $2 execution ids
_FAILED_BY_A_LOST_REPORT: Final = """
SELECT DISTINCT r.id
FROM execution_id x
JOIN mint_request r ON r.id = x.request_id
WHERE x.chain_id = $1 AND x.execution_id = ANY($2::bytea[])
  AND r.state = 'failed' AND r.state_reason = 'delivery_failed'
  AND NOT EXISTS (
      SELECT FROM execution_id y
      JOIN report p ON p.chain_id = y.chain_id AND p.execution_id = y.execution_id
      WHERE y.request_id = r.id AND p.canonical AND NOT p.result
  )
"""

# Reports that concern our requests: those of the new blocks, and those of the few ids that only an answer taught us.
# $1 chain, $2 hashes of the new blocks
_OUR_REPORTS: Final = """
SELECT p.block_hash, p.log_index, p.tx_hash, p.receiver, p.result, x.request_id
FROM report p
JOIN execution_id x ON x.chain_id = p.chain_id AND x.execution_id = p.execution_id
WHERE p.chain_id = $1 AND p.canonical AND p.block_hash = ANY($2::bytea[])
UNION
SELECT p.block_hash, p.log_index, p.tx_hash, p.receiver, p.result, x.request_id
FROM execution_id x
JOIN mint_request r ON r.id = x.request_id AND r.state IN ('in_doubt', 'accepted')
JOIN report p ON p.chain_id = x.chain_id AND p.execution_id = x.execution_id AND p.canonical
WHERE x.chain_id = $1 AND x.source = 'returned'
"""

# The proof (design §4, note 1): in one transaction the mint of the request's consumer with our reference, and after it
# the forwarder's true report of our execution id.  A report proves one mint, the nearest before it: a mint that
# somebody forged earlier in that transaction stays unproven.
# $1 chain, $2 block hashes, $3 log indexes of true reports, $4 their requests
_PROVE_BY_REPORT: Final = """
UPDATE mint_execution e SET request_id = p.request_id, proof = 'report'
FROM (
    SELECT DISTINCT ON (n.block_hash, n.log_index) m.block_hash, m.log_index, n.request_id
    FROM unnest($2::bytea[], $3::integer[], $4::bigint[]) AS n (block_hash, log_index, request_id)
    JOIN report r ON r.chain_id = $1 AND r.block_hash = n.block_hash AND r.log_index = n.log_index
    JOIN mint_request q ON q.id = n.request_id AND q.consumer = r.receiver
    JOIN mint_execution m
        ON m.chain_id = $1 AND m.block_hash = n.block_hash AND m.tx_hash = r.tx_hash
        AND m.consumer = r.receiver AND m.bank_reference = q.expected_reference AND m.log_index < r.log_index
    ORDER BY n.block_hash, n.log_index, m.log_index DESC
) p
WHERE e.chain_id = $1 AND e.block_hash = p.block_hash AND e.log_index = p.log_index AND e.request_id IS NULL
RETURNING e.request_id
"""

# Mode simulate has no execution ids of ours: the transaction that the workflow returned is the proof.  It may have been
# indexed before the command returned it, so the request may be in review by then.
# $1 chain
_PROVE_BY_SIMULATION: Final = """
UPDATE mint_execution e SET request_id = q.id, proof = 'simulated'
FROM attempt a
JOIN mint_request q ON q.id = a.request_id
WHERE a.simulated_tx_hash IS NOT NULL AND q.chain_id = $1 AND q.state IN ('in_doubt', 'review')
  AND e.chain_id = $1 AND e.tx_hash = a.simulated_tx_hash AND e.canonical AND e.request_id IS NULL
  AND e.consumer = q.consumer AND e.bank_reference = q.expected_reference
RETURNING e.request_id
"""

# $1 chain, $2 hashes of the new blocks
_MINTED_REQUESTS: Final = """
SELECT DISTINCT request_id FROM mint_execution
WHERE chain_id = $1 AND block_hash = ANY($2::bytea[]) AND request_id IS NOT NULL
"""

# $1 request ids: before the event, so that the alarm can say what surprised us
_BEFORE_MINT: Final = """
SELECT r.id, r.state, r.bank_reference, r.orphaned_for_good,
    (SELECT count(*) FROM mint_execution e WHERE e.request_id = r.id AND e.canonical) AS mints
FROM mint_request r WHERE r.id = ANY($1::bigint[])
"""

# Of others with these references, those that something may be sent for.  $1 bank references, $2 the requests that were minted
_RIVALS: Final = """
SELECT id FROM mint_request WHERE bank_reference = ANY($1::bytea[]) AND holds_reference AND id <> ALL($2::bigint[])
"""

# Mints of the new blocks that no request of ours accounts for.  One that a simulation of ours may just have made is left
# until the command returns its transaction, or the request is given up.  $1 chain, $2 hashes of the new blocks
_UNATTRIBUTED: Final = """
SELECT
    e.block_hash, e.log_index, e.bank_reference,
    (SELECT b.stablecoin FROM basket b WHERE b.chain_id = $1 AND b.consumer = e.consumer AND b.canonical LIMIT 1) AS stablecoin
FROM mint_execution e
WHERE e.chain_id = $1 AND e.block_hash = ANY($2::bytea[]) AND e.request_id IS NULL
  AND NOT EXISTS (
      SELECT FROM mint_request q
      JOIN frozen_request f ON f.request_id = q.id AND f.generation = q.generation AND f.mode = 'simulate'
      JOIN attempt a ON a.request_id = q.id AND a.outcome IS NULL
      WHERE q.chain_id = $1 AND q.expected_reference = e.bank_reference AND q.consumer = e.consumer AND q.state = 'in_doubt'
  )
"""
# Of references that mints carry, those of a request that was sent or whose basket is served: a mint with one of them that is
# not ours concerns our promise, through whichever basket it came.  Two look-ups each.  $1 references
_OURS: Final = """
SELECT r.expected_reference AS bank_reference
FROM (
    SELECT id, chain_id, stablecoin, expected_reference FROM mint_request
    WHERE bank_reference = ANY($1::bytea[]) AND holds_reference AND expected_reference = bank_reference
    UNION ALL
    SELECT id, chain_id, stablecoin, expected_reference FROM mint_request
    WHERE expected_reference = ANY($1::bytea[]) AND expected_reference <> bank_reference
) r
WHERE is_served_basket(r.chain_id, r.stablecoin) OR is_sent(r.id)
"""
# Requests that something may be sent for.  Those that are known on chain by their nonce have it alone.  $1 references
_REQUESTS_WITH_REFERENCE: Final = """
SELECT id FROM mint_request
WHERE bank_reference = ANY($1::bytea[]) AND holds_reference AND expected_reference = bank_reference
UNION ALL
SELECT id FROM mint_request WHERE expected_reference = ANY($1::bytea[]) AND expected_reference <> bank_reference
"""

# $1 chain, $2 trigger height, $3 limit
_LOCK_CANDIDATES: Final = """
SELECT id FROM mint_request
WHERE id IN (
    SELECT id FROM mint_request
    WHERE chain_id = $1 AND state = 'seen' AND chain_status <> 'orphaned' AND block_number <= $2
    ORDER BY block_number, log_index
    LIMIT $3
)
ORDER BY bank_reference, id
FOR UPDATE
"""
# $1 ids, in chain order
_CANDIDATES: Final = """
SELECT
    r.id, r.bank_reference, r.expected_reference, r.stablecoin, r.consumer, r.requester, r.beneficiary, r.amount,
    r.predicted_amount, b.decimals
FROM mint_request r
LEFT JOIN basket b ON b.chain_id = r.chain_id AND b.stablecoin = r.stablecoin AND b.canonical
WHERE r.id = ANY($1::bigint[]) AND r.state = 'seen'
ORDER BY r.block_number, r.log_index
"""
# Requests that were sent, lost their block, and are not settled: a replaced transaction asks a second time.  Whoever has a
# hundred such requests under review, sent or not, waits for a person.  $1 chain, $2 candidates
_LOOK_ALIKES: Final = """
SELECT c.id, o.id AS look_alike
FROM (
    SELECT DISTINCT requester, stablecoin, beneficiary FROM mint_request WHERE id = ANY($2::bigint[])
) t
CROSS JOIN LATERAL (
    SELECT m.id
    FROM (
        SELECT o.id, row_number() OVER (ORDER BY o.id) AS nth FROM mint_request o
        WHERE o.chain_id = $1 AND o.requester = t.requester AND o.stablecoin = t.stablecoin AND o.beneficiary = t.beneficiary
          AND o.chain_status = 'orphaned' AND o.state IN ('in_doubt', 'accepted', 'failed', 'executed', 'completed', 'review')
          AND (NOT o.orphaned_for_good OR o.state = 'review')
        ORDER BY o.id
        LIMIT 100
    ) m
    WHERE m.nth = 100 OR is_sent(m.id)
    ORDER BY m.id
    LIMIT 1
) o
JOIN mint_request c ON c.requester = t.requester AND c.stablecoin = t.stablecoin AND c.beneficiary = t.beneficiary
WHERE c.id = ANY($2::bigint[])
"""
# Of all that ask for a reference or a look-alike of it and have no verdict, on any chain, those with the lowest and the
# highest beneficiary: if anyone's is another than a candidate's, one of these is.  Refused duplicates have none if the
# reference is held by nobody.  $1 bank references
_UNDECIDED: Final = """
SELECT n.bank_reference AS asked, r.id, r.bank_reference, r.beneficiary
FROM unnest($1::bytea[]) AS n (bank_reference)
CROSS JOIN LATERAL (
    (
        SELECT r.id, r.bank_reference, r.beneficiary FROM mint_request r
        WHERE folded_reference(r.bank_reference) = folded_reference(n.bank_reference)
          AND r.state IN ('seen', 'review') AND NOT r.holds_reference AND r.chain_status <> 'orphaned'
        ORDER BY r.beneficiary
        LIMIT 1
    )
    UNION ALL
    (
        SELECT r.id, r.bank_reference, r.beneficiary FROM mint_request r
        WHERE folded_reference(r.bank_reference) = folded_reference(n.bank_reference)
          AND r.state IN ('seen', 'review') AND NOT r.holds_reference AND r.chain_status <> 'orphaned'
        ORDER BY r.beneficiary DESC
        LIMIT 1
    )
    UNION ALL
    (
        SELECT r.id, r.bank_reference, r.beneficiary FROM mint_request r
        WHERE r.bank_reference = n.bank_reference
          AND r.state = 'rejected' AND r.state_reason = 'duplicate_bank_reference'
        ORDER BY r.beneficiary
        LIMIT 1
    )
    UNION ALL
    (
        SELECT r.id, r.bank_reference, r.beneficiary FROM mint_request r
        WHERE r.bank_reference = n.bank_reference
          AND r.state = 'rejected' AND r.state_reason = 'duplicate_bank_reference'
        ORDER BY r.beneficiary DESC
        LIMIT 1
    )
) r
"""
# Candidates that come after a refused duplicate of the same reference.  $1 chain, $2 candidates
_IN_LINE: Final = """
SELECT c.id, f.id AS earlier
FROM mint_request c
CROSS JOIN LATERAL (
    SELECT d.id, d.block_number, d.log_index FROM mint_request d
    WHERE d.bank_reference = c.bank_reference AND d.chain_id = $1
      AND d.state = 'rejected' AND d.state_reason = 'duplicate_bank_reference'
    ORDER BY d.block_number, d.log_index
    LIMIT 1
) f
WHERE c.id = ANY($2::bigint[]) AND (f.block_number, f.log_index) < (c.block_number, c.log_index)
"""
# Holders of look-alikes of the candidates' references.  $1 candidates
_SPELLED_ALIKE: Final = """
SELECT c.id, h.id AS holder
FROM mint_request c
CROSS JOIN LATERAL (
    SELECT h.id FROM mint_request h
    WHERE folded_reference(h.bank_reference) = folded_reference(c.bank_reference) AND h.holds_reference
      AND h.bank_reference <> c.bank_reference
    LIMIT 1
) h
WHERE c.id = ANY($1::bigint[])
"""
# $1 bank references, $2 chain
_LOCK_HOLDERS: Final = """
SELECT id FROM mint_request WHERE bank_reference = ANY($1::bytea[]) AND holds_reference AND chain_id = $2
ORDER BY bank_reference, id
FOR UPDATE
"""
# Another chain's commit may hold these and wait for ours.  $1 bank references, $2 chain
_LOCK_HOLDERS_ELSEWHERE: Final = """
SELECT id FROM mint_request WHERE bank_reference = ANY($1::bytea[]) AND holds_reference AND chain_id <> $2
FOR UPDATE SKIP LOCKED
"""
# $1 bank references
_HOLDERS: Final = """
SELECT id, chain_id, bank_reference, beneficiary, state, is_sent(id) AS sent
FROM mint_request WHERE bank_reference = ANY($1::bytea[]) AND holds_reference
"""
# $1 references that mints carry
_MINTED_BY_NOBODY: Final = """
SELECT n.bank_reference
FROM unnest($1::bytea[]) AS n (bank_reference)
CROSS JOIN LATERAL (
    SELECT FROM mint_execution e WHERE e.canonical AND e.request_id IS NULL AND e.bank_reference = n.bank_reference LIMIT 1
) e
"""

# $1 chain
_ANY_UNSETTLED: Final = "SELECT EXISTS (SELECT FROM unsettled_reference WHERE chain_id = $1)"
# $1 chain, $2 limit
_UNSETTLED: Final = """
SELECT id, bank_reference, event, cause FROM unsettled_reference WHERE chain_id = $1 ORDER BY id LIMIT $2
"""
# $1 chain, $2 bank references, $3 causes, $4 states, $5 limit
_STILL_TO_FEED: Final = """
SELECT id FROM mint_request
WHERE bank_reference = ANY($2::bytea[]) AND chain_id = $1
  AND state IN ('seen', 'rejected', 'failed') AND state = ANY($4::text[]) AND id <> ALL($3::bigint[])
LIMIT $5
"""
# The first refused duplicates of each reference that nobody holds.  $1 chain, $2 bank references, $3 limit
_FIRST_IN_LINE: Final = """
SELECT f.id
FROM unnest($2::bytea[]) AS n (bank_reference)
CROSS JOIN LATERAL (
    SELECT d.id FROM mint_request d
    WHERE d.bank_reference = n.bank_reference AND d.chain_id = $1
      AND d.state = 'rejected' AND d.state_reason = 'duplicate_bank_reference'
    ORDER BY d.block_number, d.log_index
    LIMIT $3
) f
WHERE NOT EXISTS (SELECT FROM mint_request h WHERE h.bank_reference = n.bank_reference AND h.holds_reference)
"""
# $1 chain, $2 ids
_SETTLED: Final = "DELETE FROM unsettled_reference WHERE chain_id = $1 AND id = ANY($2::bigint[])"
# Somebody holds the reference, or there is nobody left to judge.  $1 chain, $2 ids
_NO_LINE_LEFT: Final = """
DELETE FROM unsettled_reference u
WHERE u.chain_id = $1 AND u.id = ANY($2::bigint[]) AND (
    EXISTS (SELECT FROM mint_request h WHERE h.bank_reference = u.bank_reference AND h.holds_reference)
    OR NOT EXISTS (
        SELECT FROM mint_request d
        WHERE d.bank_reference = u.bank_reference AND d.chain_id = $1
          AND d.state = 'rejected' AND d.state_reason = 'duplicate_bank_reference'
    )
)
"""

# $1 chain, $2 finalized number, $3 limit
_FINALIZE_REQUESTS: Final = """
UPDATE mint_request SET chain_status = 'finalized'
WHERE id IN (
    SELECT id FROM mint_request WHERE chain_id = $1 AND chain_status = 'canonical' AND block_number <= $2
    ORDER BY block_number
    LIMIT $3
)
"""
_ORPHAN_FOR_GOOD: Final = """
UPDATE mint_request SET orphaned_for_good = true
WHERE id IN (
    SELECT id FROM mint_request
    WHERE chain_id = $1 AND chain_status = 'orphaned' AND NOT orphaned_for_good AND block_number <= $2
    ORDER BY block_number
    LIMIT $3
)
RETURNING id
"""
# $1 chain
_EXECUTED: Final = "SELECT id FROM mint_request WHERE chain_id = $1 AND state = 'executed'"


async def position(pool: Pool, chain_id: int) -> Position:
    """Where the follower stands; the chain must have been pinned."""
    async with translated(), pool.acquire() as connection:
        row = await connection.fetchrow(_POSITION, chain_id)
    if row is None:
        raise LookupError(f"chain {chain_id} was not pinned")
    return Position(
        cursor=BlockRef(number=row["block_number"], hash=row["block_hash"]),
        finalized=row["finalized_number"],
        safe=row["safe_number"],
        head=row["head_number"],
        baskets_version=row["baskets_version"],
    )


async def held_blocks(pool: Pool, chain_id: int, *, lowest: int) -> tuple[Block, ...]:
    """The canonical blocks from number ``lowest`` on, ascending."""
    async with translated(), pool.acquire() as connection:
        rows = await connection.fetch(_HELD, chain_id, lowest)
    return tuple(
        Block(number=row["number"], hash=row["hash"], parent_hash=row["parent_hash"], timestamp=row["timestamp"])
        for row in rows
    )


async def tell_head(pool: Pool, chain_id: int, cursor: BlockRef, head_number: int) -> None:
    """Record the newest block while nothing is committed, so that the lag is told as it is."""
    async with translated(), pool.acquire() as connection:
        await connection.execute(_TELL_HEAD, chain_id, cursor.number, cursor.hash, head_number)


async def canonical_hash(pool: Pool, chain_id: int, number: int) -> bytes | None:
    """The hash of the canonical block with that number, if it is stored."""
    async with translated(), pool.acquire() as connection:
        block_hash: bytes | None = await connection.fetchval(
            # $1 chain, $2 number
            "SELECT hash FROM block WHERE chain_id = $1 AND canonical AND number = $2",
            chain_id,
            number,
        )
    return block_hash


async def known_baskets(pool: Pool, chain_id: int, *, up_to: int) -> list[tuple[bytes, bytes]]:
    """``(stablecoin, consumer)`` of each canonical basket at or below block ``up_to``."""
    async with translated(), pool.acquire() as connection:
        rows = await connection.fetch(
            # $1 chain, $2 number
            "SELECT stablecoin, consumer FROM basket WHERE chain_id = $1 AND canonical AND block_number <= $2",
            chain_id,
            up_to,
        )
    return [(row["stablecoin"], row["consumer"]) for row in rows]


async def recorded_requests(pool: Pool, identities: Sequence[bytes]) -> int:
    """How many of these different requests have a row."""
    async with translated(), pool.acquire() as connection:
        # $1 identities
        count: int = await connection.fetchval(
            "SELECT count(*) FROM mint_request WHERE identity = ANY($1::bytea[])", identities
        )
    return count


async def commit(pool: Pool, chain_id: int, batch: Batch, rules: Rules) -> Committed:
    """Write one batch.

    Raises:
        CursorMoved: Somebody else committed on this cursor; nothing was written.
        BlockMisplaced: One of the blocks is held at another number; nothing was written.
        FinalityViolated: The batch would leave finalized blocks; nothing was written.
        DatastoreUnavailable: Nothing is known to be written; read the position again.
    """
    async with unit(pool) as connection:
        committed = await _move_cursor(connection, chain_id, batch)
        # Before any request is locked: operators and quarantine.notice lock this row first, too.
        in_force = await quarantine.current(connection, chain_id, deadline_seconds=rules.completion_deadline_seconds)
        if batch.ancestor != batch.expected:
            await _orphan(connection, chain_id, batch, committed)
        hashes = [block.hash for block in batch.blocks]
        await _insert_observations(connection, chain_id, batch, rules, committed)
        await _insert_requests(connection, chain_id, batch, rules, None, committed, judge_before=in_force is None)
        again = await _search_in_quarantine(connection, chain_id, in_force, batch, rules, committed)
        await _settle_outcomes(connection, chain_id, hashes, committed, again=again)
        await _judge(connection, chain_id, batch.finality.trigger, rules, committed)
        await _settle_finality(connection, chain_id, batch.finality, committed)
        committed.more_to_judge |= await basket_pauses.hold_requests(connection, chain_id)
        await _announce(connection, chain_id, committed)
    return committed


async def record_range(pool: Pool, chain_id: int, batch: Batch, rules: Rules, *, hold_reason: str | None) -> Committed:
    """Write a range of final history without moving the cursor (``bskt backfill``); what is there already stays as it is.

    Raises:
        BlockMisplaced: One of the blocks is held at another number; nothing was written.
        FinalityViolated: Another block is canonical at one of these numbers; nothing was written.
        DatastoreUnavailable: Nothing is known to be written; repeat the range.
    """
    committed = Committed(cursor=batch.expected)
    async with unit(pool) as connection:
        await lock_chain(connection, chain_id)
        await record(connection, chain_id, batch, rules, committed, hold_reason=hold_reason)
    return committed


async def record(
    connection: Connection,
    chain_id: int,
    batch: Batch,
    rules: Rules,
    committed: Committed,
    *,
    hold_reason: str | None,
) -> None:
    """Add what a batch of history says to the rows, and settle what follows; the cursor's row must be locked.

    Raises:
        BlockMisplaced: One of the blocks is held at another number; the transaction must not commit.
        FinalityViolated: Another block is canonical at one of these numbers; the transaction must not commit.
    """
    conflict = await connection.fetchval(
        # $1 chain, $2 numbers, $3 hashes
        """
        SELECT b.number FROM unnest($2::bigint[], $3::bytea[]) AS n (number, hash)
        JOIN block b ON b.chain_id = $1 AND b.number = n.number AND b.canonical AND b.hash <> n.hash
        LIMIT 1
        """,
        chain_id,
        [block.number for block in batch.blocks],
        [block.hash for block in batch.blocks],
    )
    if conflict is not None:
        raise FinalityViolated(
            f"block {conflict} is stored with another hash than the node gives; check the node with `bskt check`"
        )
    await connection.execute(_DISPLACE_BASKETS, chain_id, *_columns(batch.baskets, _ANNOUNCEMENT))
    if await _insert_observations(connection, chain_id, batch, rules, committed):
        await baskets_changed(connection, chain_id)
    await _insert_requests(connection, chain_id, batch, rules, hold_reason, committed)
    await _settle_outcomes(connection, chain_id, [block.hash for block in batch.blocks], committed)
    await _judge(connection, chain_id, batch.finality.trigger, rules, committed)
    await _settle_finality(connection, chain_id, batch.finality, committed)
    committed.more_to_judge |= await basket_pauses.hold_requests(connection, chain_id)
    await _announce(connection, chain_id, committed)


async def baskets_changed(connection: Connection, chain_id: int) -> None:
    """Tell whoever follows that the baskets below the cursor are others than before."""
    await connection.execute(
        # $1 chain
        "UPDATE cursor SET baskets_version = baskets_version + 1 WHERE chain_id = $1",
        chain_id,
    )


async def _announce(connection: Connection, chain_id: int, committed: Committed) -> None:
    if committed.recorded[State.CONFIRMED] or any(s.after is State.CONFIRMED for s in committed.settled):
        await connection.execute("SELECT pg_notify($1, $2)", CONFIRMED_CHANNEL, str(chain_id))


async def _move_cursor(connection: Connection, chain_id: int, batch: Batch) -> Committed:
    tip = batch.blocks[-1] if batch.blocks else None
    cursor = BlockRef(number=tip.number, hash=tip.hash) if tip else batch.ancestor
    finality = batch.finality
    status = await connection.execute(
        _MOVE_CURSOR,
        chain_id,
        batch.expected.number,
        batch.expected.hash,
        cursor.number,
        cursor.hash,
        batch.head_number,
        min(finality.finalized, cursor.number),
        min(finality.safe, cursor.number),
        batch.ancestor.number,
        batch.baskets_version,
    )
    if status != "UPDATE 1":
        row = await connection.fetchrow(_POSITION, chain_id)
        at_cursor = row is not None and row["block_hash"] == batch.expected.hash
        if row is not None and at_cursor and row["finalized_number"] > batch.ancestor.number:
            raise FinalityViolated(
                f"the node's chain leaves ours at block {batch.ancestor.number}, below the finalized block "
                f"{row['finalized_number']}; nothing was changed"
            )
        raise CursorMoved(f"the cursor is no longer at block {batch.expected.number}")
    return Committed(cursor=cursor)


async def _orphan(connection: Connection, chain_id: int, batch: Batch, committed: Committed) -> None:
    left = [row["hash"] for row in await connection.fetch(_ORPHAN_BLOCKS, chain_id, batch.ancestor.number)]
    await connection.execute(_ORPHAN_LOGS, chain_id, left)
    await connection.execute(_ORPHAN_BASKETS, chain_id, left)
    lost_reports = [row["execution_id"] for row in await connection.fetch(_ORPHAN_REPORTS, chain_id, left)]
    lost_mints = [row["request_id"] for row in await connection.fetch(_ORPHAN_MINTS, chain_id, left)]
    requests = [row["id"] for row in await connection.fetch(_ORPHAN_REQUESTS, chain_id, left, batch.ancestor.number)]
    committed.orphaned_blocks = batch.expected.number - batch.ancestor.number
    committed.orphaned_requests = len(requests)
    await connection.execute(
        _INSERT_REORG,
        chain_id,
        batch.ancestor.number,
        batch.ancestor.hash,
        batch.expected.number,
        batch.expected.hash,
        committed.orphaned_blocks,
        len(requests),
    )
    await lose(connection, chain_id, committed, requests=requests, reports=lost_reports, mints=lost_mints)


async def lose(
    connection: Connection,
    chain_id: int,
    committed: Committed,
    *,
    requests: Sequence[int],
    reports: Sequence[bytes],
    mints: Sequence[int | None],
) -> None:
    """Settle what follows for requests once rows were marked as no longer on the chain.

    Args:
        connection: In the transaction that marked them.
        chain_id: The chain.
        committed: Added to.
        requests: Ids whose own log is gone.
        reports: Execution ids of reports that are gone.
        mints: Ids that mints which are gone were proven for.
    """
    committed.settled += await settle(connection, Event.BLOCK_ORPHANED, requests)
    sent = [row["id"] for row in await connection.fetch(_SENT_AMONG, requests)] if requests else []
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.ORPHANED_AFTER_SEND,
        dict.fromkeys(sent, "Its block was orphaned after it was sent to CRE; it may still be minted."),
    )
    if reports:
        failed = await connection.fetch(_FAILED_BY_A_LOST_REPORT, chain_id, reports)
        committed.settled += await settle(connection, Event.REPORT_ORPHANED, [row["id"] for row in failed])
    committed.settled += await settle(
        connection, Event.MINT_ORPHANED, [request for request in mints if request is not None]
    )


async def _insert_observations(
    connection: Connection, chain_id: int, batch: Batch, rules: Rules, committed: Committed
) -> bool:
    """Blocks and what their logs say; whether that added or restored baskets.

    The cursor's row is locked, so nobody else writes this chain's rows: what is not found is new, and is copied.
    """
    known = await _known_blocks(connection, chain_id, batch.blocks)
    role_changes = await basket_pauses.new_role_changes(
        connection, chain_id, batch.role_changes, first_block_number=rules.first_trigger_block_number
    )
    await connection.execute(_INSERT_BLOCKS, chain_id, *_columns(batch.blocks, _BLOCK))
    await _insert_new(connection, chain_id, "log", LogRow._fields, batch.logs, known)
    if known:
        await connection.execute(_EXPLAIN_LOGS, chain_id, *_columns(batch.logs, _EXPLANATION))
    baskets = await _insert_new(connection, chain_id, "basket", Basket._fields, batch.baskets, known)
    await _insert_new(connection, chain_id, "report", Report._fields, batch.reports, known)
    await _insert_new(connection, chain_id, "mint_execution", Mint._fields, batch.mints, known)
    await basket_pauses.pause_for(connection, chain_id, role_changes)
    committed.alarms[AlarmKind.BASKET_ROLE_CHANGED] += len(role_changes)
    return baskets


async def _known_blocks(connection: Connection, chain_id: int, blocks: Sequence[Block]) -> list[bytes]:
    """The hashes of those that were recorded before, each at the number that it has now."""
    rows = await connection.fetch(_KNOWN_BLOCKS, chain_id, [block.hash for block in blocks])
    if rows:
        number_by_hash = {block.hash: block.number for block in blocks}
        for row in rows:
            if row["number"] != number_by_hash[row["hash"]]:
                # The row would keep its number, and the number that was told would have none.
                raise BlockMisplaced(
                    f"block {number_by_hash[row['hash']]} has the hash 0x{row['hash'].hex()} "
                    f"of block {row['number']}, which is held; nothing was changed"
                )
    return [row["hash"] for row in rows]


async def _insert_new(
    connection: Connection,
    chain_id: int,
    table: str,
    columns: Sequence[str],
    rows: Sequence[LogRow | Basket | Report | Mint],
    known_blocks: list[bytes],
) -> bool:
    """Copy the rows that are not there, and restore those that are not canonical any more; whether there were any."""
    if not rows:
        return False
    there: dict[Place, bool] = {}
    if known_blocks:
        found = await connection.fetch(_KNOWN_ROWS[table], chain_id, known_blocks)
        there = {(row["block_hash"], row["log_index"]): row["canonical"] for row in found}
    back: list[Place] = []
    if there:
        back = [place for row in rows if there.get(place := (row.block_hash, row.log_index)) is False]
        rows = [row for row in rows if (row.block_hash, row.log_index) not in there]
    if back:
        hashes, indexes = zip(*back, strict=True)
        await connection.execute(_RESTORE[table], chain_id, hashes, indexes)
    if rows:
        records = [(chain_id, *row) for row in rows]
        await connection.copy_records_to_table(table, columns=("chain_id", *columns), records=records)
    return bool(back or rows)


async def _insert_requests(
    connection: Connection,
    chain_id: int,
    batch: Batch,
    rules: Rules,
    hold_reason: str | None,
    committed: Committed,
    *,
    judge_before: bool = True,
) -> None:
    """Record the new ones and re-attach the others.

    ``judge_before``: those whose verdict is beyond doubt are judged at once; not while lost sends are searched.
    """
    if not batch.requests:
        return
    rows = await connection.fetch(_KNOWN_REQUESTS, [request.identity for request in batch.requests])
    known = {row["identity"] for row in rows}
    new: dict[bytes, Request] = {}
    again: list[Request] = []
    for request in batch.requests:
        if request.identity in known or request.identity in new:
            again.append(request)
        else:
            new[request.identity] = request
    if new:
        requests, height = list(new.values()), batch.finality.trigger
        verdicts = await _verdicts_beyond_doubt(connection, chain_id, requests, height, rules) if judge_before else {}
        await _copy_requests(connection, chain_id, requests, verdicts, batch.finality, rules, hold_reason, committed)
    if again:
        attached = await connection.fetch(_RE_ATTACH_REQUESTS, *_columns(again, _PLACE))
        committed.settled += await settle(connection, Event.RE_MINED, [row["id"] for row in attached])


async def _copy_requests(
    connection: Connection,
    chain_id: int,
    requests: Sequence[Request],
    verdicts: Mapping[bytes, Allowed | Refused],
    finality: Finality,
    rules: Rules,
    hold_reason: str | None,
    committed: Committed,
) -> None:
    finalized = min(finality.finalized, committed.cursor.number)
    first_trigger = rules.first_trigger_block_number
    now = await connection.fetchval("SELECT clock_timestamp()")
    records: list[tuple[object, ...]] = []
    states: list[State] = []
    outcome: tuple[State, str | None, str | None, bool]
    for request in requests:
        number = request.block_number
        verdict = verdicts.get(request.identity)
        if verdict is None:
            outcome = (State.SEEN, None, None, False)
        elif isinstance(verdict, Refused):
            outcome = (State.REJECTED, verdict.code, verdict.sentence, False)
        else:
            outcome = _CONFIRMED
        states.append(outcome[0])
        hold = hold_reason or ("before_first_trigger_block" if number < first_trigger else None)
        records.append(
            (
                chain_id,
                *request,
                "finalized" if number <= finalized else "canonical",
                *outcome,
                now if hold else None,
                hold,
            )
        )
    committed.recorded.update(states)
    await connection.copy_records_to_table("mint_request", columns=_RECORDED, records=records)


async def _verdicts_beyond_doubt(
    connection: Connection, chain_id: int, requests: Sequence[Request], height: int, rules: Rules
) -> dict[bytes, Allowed | Refused]:
    """Verdicts, by identity, on new requests that are final enough and whose deposit nobody else ever touched.

    Nothing but the policy can refuse these, so they are recorded as what they are about to become: one write instead
    of three.  All others are recorded as seen, and judged among their rivals.
    """
    final = [request for request in requests if request.block_number <= height]
    if not final or await connection.fetchval(_MAY_HAVE_LOOK_ALIKES, chain_id):
        return {}
    asked = Counter(folded_reference(request.bank_reference) for request in requests)
    references = {request.bank_reference for request in final}
    touched = {reference for reference in references if asked[folded_reference(reference)] > 1}
    touched |= {row["bank_reference"] for row in await connection.fetch(_ASKED_FOR, list(references - touched))}
    expected = [request.expected_reference for request in final]
    minted = {row["bank_reference"] for row in await connection.fetch(_MINTED, expected)}
    tokens = list({request.stablecoin for request in final})
    decimals = {row["stablecoin"]: row["decimals"] for row in await connection.fetch(_DECIMALS, chain_id, tokens)}
    return {
        request.identity: rules.policy(
            Candidate(
                0,  # it has no row yet
                request.bank_reference,
                request.expected_reference,
                request.stablecoin,
                request.consumer,
                request.requester,
                request.beneficiary,
                request.amount,
                request.predicted_amount,
                decimals.get(request.stablecoin),
            )
        )
        or _ALLOWED
        for request in final
        if request.bank_reference not in touched and request.expected_reference not in minted
    }


async def _search_in_quarantine(
    connection: Connection,
    chain_id: int,
    in_force: quarantine.Quarantine | None,
    batch: Batch,
    rules: Rules,
    committed: Committed,
) -> list[bytes]:
    """Find sends that a restore lost; the blocks of their reports.  Ends the quarantine when nothing can be missing."""
    if in_force is None:
        return []
    committed.quarantine_entered = in_force if in_force.entered else None
    committed.quarantine_ended = await quarantine.is_over(
        connection, chain_id, in_force, final_number=batch.finality.complete
    )
    searched = None if committed.quarantine_ended else [block.hash for block in batch.blocks]
    found = await quarantine.find_lost_sends(connection, chain_id, searched, rules.nonce_of)
    committed.settled += found.settled
    committed.alarms[AlarmKind.LOST_SEND_FOUND] += len({send.request_id for send in found.sends})
    if committed.quarantine_ended:
        await quarantine.end(connection, chain_id)
    return list(found.block_hashes)


async def _settle_outcomes(
    connection: Connection, chain_id: int, hashes: list[bytes], committed: Committed, *, again: Sequence[bytes] = ()
) -> None:
    """Reports, then mints: what the new blocks say about requests that we sent, and about those that we did not.

    ``again`` are older blocks whose reports have only now been found to be ours.
    """
    new_hashes, hashes = hashes, sorted({*hashes, *again})
    reports = await connection.fetch(_OUR_REPORTS, chain_id, hashes)
    delivered = [row for row in reports if row["result"]]
    if delivered:
        await connection.execute(
            _PROVE_BY_REPORT,
            chain_id,
            [row["block_hash"] for row in delivered],
            [row["log_index"] for row in delivered],
            [row["request_id"] for row in delivered],
        )
    simulated = await connection.fetch(_PROVE_BY_SIMULATION, chain_id)
    minted = {row["request_id"] for row in await connection.fetch(_MINTED_REQUESTS, chain_id, hashes)}
    minted |= {row["request_id"] for row in simulated}
    # Reports of ids that CRE taught us late prove mints of older blocks.
    minted |= await _minted_among(connection, {row["request_id"] for row in delivered})

    refused = {row["request_id"] for row in reports if not row["result"]}
    committed.settled += await settle(connection, Event.DELIVERY_FAILED, refused)
    empty = {row["request_id"] for row in delivered} - minted
    committed.settled += await settle(connection, Event.DELIVERED_WITHOUT_MINT, empty)
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.DELIVERED_WITHOUT_MINT,
        dict.fromkeys(empty, "The forwarder reports a delivery, but its transaction holds no mint of this request."),
    )
    if minted:
        await _settle_mints(connection, chain_id, minted, committed)
    await _settle_unattributed(connection, chain_id, new_hashes, committed)


async def _minted_among(connection: Connection, requests: set[int]) -> set[int]:
    if not requests:
        return set()
    rows = await connection.fetch(
        # $1 requests
        "SELECT DISTINCT request_id FROM mint_execution WHERE canonical AND request_id = ANY($1::bigint[])",
        sorted(requests),
    )
    return {row["request_id"] for row in rows}


async def _settle_mints(connection: Connection, chain_id: int, minted: set[int], committed: Committed) -> None:
    before = await connection.fetch(_BEFORE_MINT, sorted(minted))
    settled = await settle(connection, Event.MINT_PROVEN, minted)
    committed.settled += settled
    expected = {State.IN_DOUBT, State.ACCEPTED, State.EXECUTED, State.COMPLETED}
    moved = {s.request_id: s for s in settled}
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.UNEXPECTED_MINT,
        {
            s.request_id: f"A proven mint arrived while the request was {s.before}."
            for s in moved.values()
            if s.before not in expected
        },
    )
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.DOUBLE_MINT,
        {row["id"]: f"{row['mints']} proven mints of this request are on chain." for row in before if row["mints"] > 1},
    )
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.UNBACKED_MINT,
        {row["id"]: "Minted, but its request is orphaned for good." for row in before if row["orphaned_for_good"]},
    )
    rivals = await connection.fetch(_RIVALS, [row["bank_reference"] for row in before], sorted(minted))
    committed.settled += await settle(
        connection,
        Event.RIVAL_MINTED,
        [row["id"] for row in rivals],
        detail=_DETAIL[Event.RIVAL_MINTED],
    )
    await leave(connection, Event.RIVAL_MINTED, {row["bank_reference"]: row["id"] for row in before})


async def _settle_unattributed(
    connection: Connection, chain_id: int, hashes: list[bytes], committed: Committed
) -> None:
    foreign = await connection.fetch(_UNATTRIBUTED, chain_id, hashes)
    if not foreign:
        return
    references = sorted({row["bank_reference"] for row in foreign})
    # Before the settlement, by which a request may lose its reference.
    ours = {row["bank_reference"] for row in await connection.fetch(_OURS, references)}
    served = await served_baskets(connection, chain_id, {row["stablecoin"] for row in foreign} - {None})
    requests = await connection.fetch(_REQUESTS_WITH_REFERENCE, references)
    committed.settled += await settle(
        connection,
        Event.REFERENCE_MINTED,
        [row["id"] for row in requests],
        detail=_DETAIL[Event.REFERENCE_MINTED],
    )
    # The others with a reference that the chain shows in another form are known by their nonces.
    shown = [reference for reference in references if reference_text(reference) is not None]
    await leave(connection, Event.REFERENCE_MINTED, dict.fromkeys(shown))
    committed.alarms[AlarmKind.UNATTRIBUTED_MINT] += len(foreign)
    concerns = [
        Concern(
            stablecoin=row["stablecoin"],
            served=row["stablecoin"] in served or row["bank_reference"] in ours,
            sentence=f"MintExecuted {row['log_index']} of block 0x{row['block_hash'].hex()} with reference "
            f"0x{row['bank_reference'].hex()} is proven for none of our requests.",
        )
        for row in foreign
    ]
    await raise_about_baskets(connection, chain_id, AlarmKind.UNATTRIBUTED_MINT, concerns)


def _candidate(row: asyncpg.Record) -> Candidate:
    # The driver's decimals are rounded by arithmetic; wei are integers.
    amounts = {name: None if row[name] is None else int(row[name]) for name in ("amount", "predicted_amount")}
    return Candidate(**{**row, **amounts})


async def settle_references(pool: Pool, chain_id: int, rules: Rules) -> Committed | None:
    """One bounded step of what commits have left; call again until there is nothing (``None``).

    Each row is looked at as things are now, and deleted by the transaction that has done the last of it.

    Raises:
        DatastoreUnavailable: Nothing is known to be written; call again.
    """
    async with unit(pool) as connection:
        if not await connection.fetchval(_ANY_UNSETTLED, chain_id):
            return None
        cursor = await lock_chain(connection, chain_id)
        rows = await connection.fetch(_UNSETTLED, chain_id, REFERENCES_A_STEP)
        if cursor is None or not rows:
            return None
        committed = Committed(cursor=BlockRef(number=cursor["block_number"], hash=cursor["block_hash"]))
        event = Event(rows[0]["event"])
        rows = [row for row in rows if row["event"] == event]
        if event is Event.RIVAL_GAVE_UP:
            await _judge_the_first_in_line(connection, chain_id, rows, rules, committed)
        else:
            await _feed(connection, chain_id, event, rows, committed)
        committed.more_to_judge |= await basket_pauses.hold_requests(connection, chain_id)
        await _announce(connection, chain_id, committed)
    return committed


async def _judge_the_first_in_line(
    connection: Connection, chain_id: int, rows: Sequence[asyncpg.Record], rules: Rules, committed: Committed
) -> None:
    """Whoever takes the reference is the one that all behind it are refused for, now as before."""
    references = list({row["bank_reference"] for row in rows})
    rows_in_line = await connection.fetch(_FIRST_IN_LINE, chain_id, references, JUDGED_OF_A_REFERENCE)
    first = [row["id"] for row in rows_in_line]
    committed.settled += await settle(connection, Event.RIVAL_GAVE_UP, first)
    await _judge_among_rivals(connection, chain_id, first, rules, committed)
    # Those that are left, behind one that holds nothing, are for the next step.
    await connection.execute(_NO_LINE_LEFT, chain_id, [row["id"] for row in rows])


async def _feed(
    connection: Connection, chain_id: int, event: Event, rows: Sequence[asyncpg.Record], committed: Committed
) -> None:
    """Feed an event to requests that hold nothing, if it is still so."""
    so: set[bytes] = {row["bank_reference"] for row in rows}
    if event is Event.REFERENCE_MINTED:
        so = {row["bank_reference"] for row in await connection.fetch(_MINTED_BY_NOBODY, sorted(so))}
    elif event is Event.RIVAL_MINTED:
        minted = await _minted_among(connection, {row["cause"] for row in rows})
        so = {row["bank_reference"] for row in rows if row["cause"] in minted}
    causes = [row["cause"] for row in rows if row["cause"] is not None]
    found = await connection.fetch(_STILL_TO_FEED, chain_id, sorted(so), causes, fed_later(event), REQUESTS_A_STEP)
    committed.settled += await settle(connection, event, [row["id"] for row in found], detail=_DETAIL[event])
    if len(found) < REQUESTS_A_STEP:
        await connection.execute(_SETTLED, chain_id, [row["id"] for row in rows])


async def _judge(connection: Connection, chain_id: int, height: int, rules: Rules, committed: Committed) -> None:
    locked = [row["id"] for row in await connection.fetch(_LOCK_CANDIDATES, chain_id, height, JUDGED_A_COMMIT)]
    committed.more_to_judge |= len(locked) == JUDGED_A_COMMIT
    await _judge_among_rivals(connection, chain_id, locked, rules, committed)


async def _judge_among_rivals(
    connection: Connection, chain_id: int, locked: Sequence[int], rules: Rules, committed: Committed
) -> None:
    """Judge locked requests of this chain that are seen and final enough."""
    if not locked:
        return
    candidates = [_candidate(row) for row in await connection.fetch(_CANDIDATES, locked)]
    refusals = {c.id: refusal for c in candidates if (refusal := rules.policy(c)) is not None}
    # First of all, so that what is refused contests nothing.
    committed.settled += await move(connection, [_moved(c, refusals[c.id]) for c in candidates if c.id in refusals])
    candidates = [candidate for candidate in candidates if candidate.id not in refusals]
    references = sorted({candidate.bank_reference for candidate in candidates})
    await connection.execute(_LOCK_HOLDERS, references, chain_id)
    elsewhere = {row["id"] for row in await connection.fetch(_LOCK_HOLDERS_ELSEWHERE, references, chain_id)}
    rows = await connection.fetch(_HOLDERS, references)
    if moving := {row["bank_reference"] for row in rows if row["chain_id"] != chain_id and row["id"] not in elsewhere}:
        candidates = [candidate for candidate in candidates if candidate.bank_reference not in moving]
        committed.more_to_judge = True
    ids = [candidate.id for candidate in candidates]
    minted = await connection.fetch(_MINTED_BY_NOBODY, sorted({c.expected_reference for c in candidates}))
    rivals: dict[bytes, list[Undecided]] = {}
    for row in await connection.fetch(_UNDECIDED, references):
        rival = Undecided(id=row["id"], bank_reference=row["bank_reference"], beneficiary=row["beneficiary"])
        rivals.setdefault(row["asked"], []).append(rival)
    verdicts = judge(
        candidates,
        holders={
            row["bank_reference"]: Holder(
                id=row["id"], beneficiary=row["beneficiary"], state=State(row["state"]), sent=row["sent"]
            )
            for row in rows
        },
        minted={row["bank_reference"] for row in minted},
        contest=rules.contest,
        look_alikes={row["id"]: row["look_alike"] for row in await connection.fetch(_LOOK_ALIKES, chain_id, ids)},
        rivals=rivals,
        in_line={row["id"]: row["earlier"] for row in await connection.fetch(_IN_LINE, chain_id, ids)},
        spelled_alike={row["id"]: row["holder"] for row in await connection.fetch(_SPELLED_ALIKE, ids)},
    )
    moves: list[Move] = []
    contested: set[int] = set()
    for candidate, verdict in verdicts:
        moves.append(_moved(candidate, verdict))
        if isinstance(verdict, ForReview) and verdict.contested_with is not None:
            contested.add(verdict.contested_with)
    committed.settled += await move(connection, moves)
    committed.settled += await settle(
        connection,
        Event.CONTESTED,
        contested,
        reason="contested_bank_reference",
        detail="Another request asks for the same deposit for another beneficiary; neither was sent.",
    )


def _moved(candidate: Candidate, verdict: Verdict) -> Move:
    # A seen request is locked and its rules have no guard: its facts need not be read.
    request = Known(
        request_id=candidate.id,
        state=State.SEEN,
        reason=None,
        holds_reference=False,
        bank_reference=candidate.bank_reference,
        facts=Facts(),
    )
    match verdict:
        case Allowed():
            return Move(request=request, after=State.CONFIRMED, reason="allowed", takes_reference=True)
        case Refused():
            return Move(request=request, after=State.REJECTED, reason=verdict.code, detail=verdict.sentence)
        case ForReview():
            return Move(request=request, after=State.REVIEW, reason=verdict.code, detail=verdict.sentence)


async def _settle_finality(connection: Connection, chain_id: int, finality: Finality, committed: Committed) -> None:
    finalized = min(finality.finalized, committed.cursor.number)
    final = await connection.execute(_FINALIZE_REQUESTS, chain_id, finalized, JUDGED_A_COMMIT)
    gone = [row["id"] for row in await connection.fetch(_ORPHAN_FOR_GOOD, chain_id, finalized, JUDGED_A_COMMIT)]
    committed.more_to_judge |= JUDGED_A_COMMIT in {int(final.removeprefix("UPDATE ")), len(gone)}
    settled = await settle(connection, Event.ORPHANED_FOR_GOOD, gone)
    committed.settled += settled
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.UNBACKED_MINT,
        {
            s.request_id: "Its request is orphaned for good, but it was sent to CRE or minted."
            for s in settled
            if s.after is State.REVIEW
        },
    )
    executed = await connection.fetch(_EXECUTED, chain_id)
    ended = await settle(
        connection,
        Event.MINT_FINAL,
        [row["id"] for row in executed],
        horizon=Horizon(complete=finality.complete, trigger=finality.trigger),
    )
    committed.settled += ended
    await _alarm(
        connection,
        chain_id,
        committed,
        AlarmKind.MINT_MISMATCH,
        {
            s.request_id: "The final mint has another amount or recipient than the request, or there are several."
            for s in ended
            if s.after is State.REVIEW
        },
    )


async def _alarm(
    connection: Connection, chain_id: int, committed: Committed, kind: AlarmKind, sentences: dict[int, str]
) -> None:
    committed.alarms[kind] += len(sentences)
    await raise_alarms(connection, chain_id, kind, sentences)


# What people read of these, whether the commit or a later step settles them.
_DETAIL: Final = {
    Event.RIVAL_MINTED: "Another request for the same deposit was minted.",
    Event.RIVAL_SENT: quarantine.RIVAL_SENT,
    Event.REFERENCE_MINTED: "A mint with this reference is on chain that no delivery of ours accounts for.",
}
_BLOCK: Final = ("number", "hash", "parent_hash", "timestamp")
_ALLOWED: Final = Allowed()
_CONFIRMED: Final[tuple[State, str | None, str | None, bool]] = (State.CONFIRMED, "allowed", None, True)
_RECORDED: Final = (
    "chain_id",
    *Request._fields,
    "chain_status",
    "state",
    "state_reason",
    "state_detail",
    "holds_reference",
    "held_at",
    "held_reason",
)
_ANNOUNCEMENT: Final = ("stablecoin", "block_number", "log_index")
_EXPLANATION: Final = ("block_hash", "log_index", "undecodable")
_PLACE: Final = (
    "identity",
    "block_number",
    "block_hash",
    "block_timestamp",
    "log_index",
    "stablecoin",
    "consumer",
)


def _columns(rows: Sequence[object], names: Sequence[str]) -> list[list[object]]:
    """Rows to the columns that ``unnest`` takes."""
    return [[getattr(row, name) for row in rows] for name in names]
