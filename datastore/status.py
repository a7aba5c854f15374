"""One look at everything that ``/status``, ``/readyz`` and ``bskt status`` tell.  Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from datastore import breakers
from datastore.alarms import AlarmKind
from datastore.breakers import Breaker
from datastore.connection import Pool, unit
from datastore.lifecycle import State

# The cursor's block is always stored; its time is 0 only before the first block was indexed.
# $1 chain
_POSITION: Final = """
SELECT
    c.head_number, c.safe_number, c.finalized_number, c.block_number, c.block_hash, c.indexed_at,
    coalesce(w.block_number, h.start_block_number - 1) AS swept, coalesce(w.swept_at, h.created_at) AS swept_at,
    clock_timestamp() AS read_at,
    nullif(b.timestamp, 0) AS block_timestamp,
    k.paused_at, k.paused_reason, k.quarantined_at, k.quarantined_reason, k.quarantined_until, k.halted_at, k.halted_reason,
    is_this_server(k.server_identifier, k.server_timeline) AS is_home,
    (SELECT max(version) FROM schema_version) AS schema_version
FROM cursor c
JOIN chain h ON h.chain_id = c.chain_id
JOIN control k ON k.chain_id = c.chain_id
LEFT JOIN sweep w ON w.chain_id = c.chain_id
LEFT JOIN block b ON b.chain_id = c.chain_id AND b.hash = c.block_hash
WHERE c.chain_id = $1
"""
# $1 chain
_LAST_REORG: Final = """
SELECT at, ancestor_number, orphaned_blocks, orphaned_requests FROM reorg WHERE chain_id = $1 ORDER BY id DESC LIMIT 1
"""
# $1 chain
_BY_STATE: Final = """
SELECT labels[1] AS state, sum(times)::bigint AS requests FROM counted WHERE chain_id = $1 AND what = 'requests' GROUP BY 1
"""
_QUEUE: Final = """
SELECT count(*) AS waiting, extract(epoch FROM clock_timestamp() - min(state_changed_at)) AS oldest_seconds
FROM mint_request
WHERE chain_id = $1 AND state = 'confirmed' AND held_at IS NULL AND chain_status <> 'orphaned'
"""
# As the claim counts them: one whose deadline has passed no longer keeps others waiting.
_IN_FLIGHT: Final = """
SELECT count(*) FROM mint_request
WHERE chain_id = $1 AND state IN ('in_doubt', 'accepted') AND deadline_at > settled_time($1)
"""
_SLOTS: Final = """
SELECT w.workflow_id, s.earliest_next_at
FROM workflow w LEFT JOIN workflow_slot s USING (chain_id, workflow_id)
WHERE w.chain_id = $1
ORDER BY w.listed_at, w.workflow_id
"""
# $1 chain
_BASKETS: Final = "SELECT times FROM counted WHERE chain_id = $1 AND what = 'baskets' AND labels = '{true}'"
_BASKETS_PAUSED: Final = """
SELECT count(*) FROM basket_pause p
JOIN basket b ON b.chain_id = p.chain_id AND b.stablecoin = p.stablecoin AND b.canonical
WHERE p.chain_id = $1
"""

# Requests that nothing moves but a person.
# $1 chain
_FOR_A_PERSON: Final = """
SELECT g.state, g.reason, g.requests, oldest.id AS example, oldest.state_changed_at AS since
FROM (
    SELECT labels[1] AS state, labels[2] AS reason, sum(times)::bigint AS requests
    FROM counted
    WHERE chain_id = $1 AND what = 'requests' AND labels[1] IN ('review', 'failed')
    GROUP BY 1, 2
    HAVING sum(times) > 0
) g
CROSS JOIN LATERAL (
    SELECT id, state_changed_at FROM mint_request
    WHERE chain_id = $1 AND state = g.state AND state IN ('review', 'failed', 'rejected')
      AND coalesce(state_reason, '') = coalesce(g.reason, '')
    ORDER BY chain_id, state, coalesce(state_reason, ''), state_changed_at, id
    LIMIT 1
) oldest
ORDER BY g.state = 'failed', oldest.state_changed_at
"""
# $1 chain
_HELD: Final = """
SELECT g.reason, g.requests, oldest.id AS example, oldest.held_at AS since
FROM (
    SELECT labels[3] AS reason, sum(times)::bigint AS requests
    FROM counted
    WHERE chain_id = $1 AND what = 'requests' AND labels[1] IN ('seen', 'confirmed', 'in_doubt') AND labels[3] IS NOT NULL
    GROUP BY 1
    HAVING sum(times) > 0
) g
CROSS JOIN LATERAL (
    SELECT id, held_at FROM mint_request
    WHERE chain_id = $1 AND held_reason = g.reason AND held_at IS NOT NULL AND state IN ('seen', 'confirmed', 'in_doubt')
    ORDER BY chain_id, held_reason, held_at, id
    LIMIT 1
) oldest
ORDER BY oldest.held_at
"""
# What concerns one basket is apart from what concerns another, so that no storm about the one hides the other.  What
# strangers cause is a row an hour, so the rows of a day are few.  $1 chain, $2 hours, $3 kinds, $4 limit
_ALARMS: Final = """
SELECT g.kind, g.served, g.times, g.last_at, a.request_id, a.sentence
FROM (
    SELECT kind, served, stablecoin, sum(times)::bigint AS times, max(last_at) AS last_at, max(id) AS id
    FROM alarm
    WHERE chain_id = $1 AND kind = ANY($3::text[]) AND at > now() - make_interval(hours => $2)
    GROUP BY kind, served, stablecoin
    ORDER BY served DESC, max(last_at) DESC
    LIMIT $4
) g
JOIN alarm a USING (id)
ORDER BY g.served DESC, g.last_at DESC
"""
# $1 chain
_GATE: Final = """
SELECT
    (SELECT clock_offset_seconds FROM trigger_gate WHERE chain_id = $1) AS clock_offset_seconds,
    count(*) FILTER (WHERE workflow_id IS NULL) > 0 AS refuses_instance, count(workflow_id) AS refused_workflows
FROM breaker WHERE chain_id = $1
"""

ALARM_HOURS: Final = 24
SHOWN_ALARMS: Final = 100
"""At most so many kinds and baskets are shown; those of served baskets first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastReorg:
    """The latest time that the followed branch was left, above ``ancestor_number``."""

    at: datetime
    ancestor_number: int
    orphaned_blocks: int
    orphaned_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """When a workflow may be triggered next; ``None`` for at once."""

    workflow_id: bytes
    next_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The daemon's rows at one moment; block numbers are -1 where a node does not know a tag.

    ``indexed_timestamp`` is the indexed block's own time, ``None`` before the first one.  ``slots`` holds every workflow that
    was ever configured.  ``swept_at`` is when the verifier got on last, or when the chain was pinned.  ``is_home``: the rows
    were written on this very server; after a restore or a failover nothing is sent before the quarantine.
    """

    chain_id: int
    read_at: datetime
    schema_version: int
    head: int
    safe: int
    finalized: int
    indexed: int
    swept: int
    swept_at: datetime
    indexed_hash: bytes
    indexed_at: datetime
    indexed_timestamp: int | None
    last_reorg: LastReorg | None
    requests: dict[str, int]
    waiting: int
    oldest_seconds: float
    in_flight: int
    baskets: int
    baskets_paused: int
    slots: tuple[Slot, ...]
    paused: str | None
    paused_at: datetime | None
    quarantined: str | None
    quarantined_at: datetime | None
    quarantined_until: datetime | None
    is_home: bool
    halted: str | None
    halted_at: datetime | None
    sends_fail: bool = False
    refused_workflows: int = 0
    clock_offset_seconds: float | None = None

    @property
    def lag_blocks(self) -> int:
        """Blocks between the head, as the follower told it last, and the index."""
        return max(0, self.head - self.indexed)

    @property
    def verifier_lag_seconds(self) -> float:
        """How long the verifier has not got on while final blocks wait for it; 0 where none waits."""
        if self.swept >= self.finalized:
            return 0.0
        return max(0.0, (self.read_at - self.swept_at).total_seconds())

    @property
    def lag_seconds(self) -> float:
        """How old the last indexed block is, by its own time, while the head is known to be above it; else 0."""
        if self.lag_blocks == 0 or self.indexed_timestamp is None:
            return 0.0
        return max(0.0, self.read_at.timestamp() - self.indexed_timestamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests that wait for a person for one reason; ``example`` is the id of the one that waits longest.

    ``state`` is ``None`` for held ones.
    """

    state: State | None
    reason: str | None
    requests: int
    example: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Alarms of one kind, about one basket or none, within the last ``ALARM_HOURS``; sentence and request are of the latest row.

    Not ``served``: about baskets that are not, all together.
    """

    kind: str
    served: bool
    times: int
    last_at: datetime
    request_id: int | None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What needs a person.

    ``sends_fail``: CRE refuses this instance or cannot be reached, so nothing is sent but probes.  ``refused_workflows``:
    nothing is sent for these but probes; the others go on.
    """

    groups: tuple[Group, ...]
    alarms: tuple[Alarm, ...]
    sends_fail: Breaker | None
    refused_workflows: tuple[Breaker, ...] = ()


async def snapshot(pool: Pool, chain_id: int) -> Snapshot | None:
    """Read the rows; ``None`` before the chain is pinned."""
    async with unit(pool) as connection:
        position = await connection.fetchrow(_POSITION, chain_id)
        if position is None:
            return None
        reorg = await connection.fetchrow(_LAST_REORG, chain_id)
        by_state = await connection.fetch(_BY_STATE, chain_id)
        (queue,) = await connection.fetch(_QUEUE, chain_id)
        in_flight: int = await connection.fetchval(_IN_FLIGHT, chain_id)
        baskets: int = await connection.fetchval(_BASKETS, chain_id) or 0
        baskets_paused: int = await connection.fetchval(_BASKETS_PAUSED, chain_id)
        slots = await connection.fetch(_SLOTS, chain_id)
        (gate,) = await connection.fetch(_GATE, chain_id)
    return Snapshot(
        chain_id=chain_id,
        read_at=position["read_at"],
        schema_version=position["schema_version"],
        head=position["head_number"],
        safe=position["safe_number"],
        finalized=position["finalized_number"],
        indexed=position["block_number"],
        swept=position["swept"],
        swept_at=position["swept_at"],
        indexed_hash=position["block_hash"],
        indexed_at=position["indexed_at"],
        indexed_timestamp=position["block_timestamp"],
        last_reorg=LastReorg(**reorg) if reorg else None,
        requests={state.value: 0 for state in State} | {row["state"]: row["requests"] for row in by_state},
        waiting=queue["waiting"],
        oldest_seconds=float(queue["oldest_seconds"] or 0),
        in_flight=in_flight,
        baskets=baskets,
        baskets_paused=baskets_paused,
        slots=tuple(Slot(workflow_id=row["workflow_id"], next_at=row["earliest_next_at"]) for row in slots),
        paused=position["paused_reason"],
        paused_at=position["paused_at"],
        quarantined=position["quarantined_reason"],
        quarantined_at=position["quarantined_at"],
        quarantined_until=position["quarantined_until"],
        is_home=position["is_home"],
        halted=position["halted_reason"],
        halted_at=position["halted_at"],
        sends_fail=gate["refuses_instance"],
        refused_workflows=gate["refused_workflows"],
        clock_offset_seconds=gate["clock_offset_seconds"],
    )


async def attention(pool: Pool, chain_id: int) -> Attention:
    """Read what needs a person."""
    async with unit(pool) as connection:
        waiting = await connection.fetch(_FOR_A_PERSON, chain_id)
        held = await connection.fetch(_HELD, chain_id)
        kinds = [kind.value for kind in AlarmKind]
        alarms = await connection.fetch(_ALARMS, chain_id, ALARM_HOURS, kinds, SHOWN_ALARMS)
        opened = await breakers.opened(connection, chain_id)
    groups = [Group(**{**row, "state": State(row["state"])}) for row in waiting]
    groups += [Group(state=None, **row) for row in held]
    return Attention(
        groups=tuple(groups),
        alarms=tuple(Alarm(**row) for row in alarms),
        sends_fail=next((each for each in opened if each.workflow_id is None), None),
        refused_workflows=tuple(each for each in opened if each.workflow_id is not None),
    )
