"""The rows against the modelled chain, in both directions: nothing missing, nothing extra, nothing that changed.

``Oracle.wrong`` gives a sentence for each row that is not what a perfect indexer would hold.  It remembers what it saw
at earlier looks, because some promises are about time: a request keeps its row and its nonce, a finalized row stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from uuid import UUID

from asyncpg import Record

from bench.aged import MISCOUNTED
from datastore.connection import Connection
from datastore.lifecycle import allowed_transitions
from tests.chain_model.chain import ROLE_EVENTS, Block, RequestKey, Row, Said, said_by

_HOLDING_LOGS: Final = "SELECT DISTINCT block_hash FROM log WHERE chain_id = $1"
_BLOCKS: Final = "SELECT number, hash, parent_hash, timestamp, canonical FROM block WHERE chain_id = $1"
_LOGS: Final = """
SELECT block_hash, log_index, block_number, tx_hash, tx_index, address, topics, data, event, undecodable IS NULL,
    canonical
FROM log WHERE chain_id = $1
"""
_BASKETS: Final = """
SELECT block_hash, log_index, stablecoin, consumer, creator, admin, name_raw, symbol_raw, canonical
FROM basket WHERE chain_id = $1
"""
_MINTS: Final = """
SELECT block_hash, log_index, tx_hash, consumer, recipient, amount::text, bank_reference, request_id, canonical
FROM mint_execution WHERE chain_id = $1
"""
_REPORTS: Final = """
SELECT block_hash, log_index, tx_hash, receiver, execution_id, report_id, result, canonical
FROM report WHERE chain_id = $1
"""
_REQUESTS: Final = """
SELECT
    id, identity, nonce, chain_status, orphaned_for_good, state, state_reason, holds_reference, is_sent(id) AS sent,
    block_number, block_hash, log_index, block_timestamp, emitter, tx_hash, stablecoin, consumer, requester,
    beneficiary, amount::text AS amount, bank_reference
FROM mint_request WHERE chain_id = $1 ORDER BY id
"""
_PLACE: Final = (
    "block_hash",
    "log_index",
    "block_number",
    "block_timestamp",
    "emitter",
    "tx_hash",
    "stablecoin",
    "consumer",
)
_TRANSITIONS: Final = """
SELECT t.request_id, t.from_state, t.to_state, t.actor FROM mint_transition t
JOIN mint_request r ON r.id = t.request_id WHERE r.chain_id = $1 ORDER BY t.id
"""
_STORY: Final = """
SELECT t.request_id, t.from_state, t.to_state, t.reason, t.at, r.beneficiary, r.bank_reference
FROM mint_transition t JOIN mint_request r ON r.id = t.request_id ORDER BY t.id
"""
_REORGS: Final = "SELECT at FROM reorg"
_ROLE_CHANGES: Final = """
SELECT address, count(*) AS changes FROM log
WHERE chain_id = $1 AND event = ANY($2::text[]) GROUP BY address
"""
_PAUSED: Final = "SELECT stablecoin FROM basket_pause WHERE chain_id = $1"
_ROLE_ALARMS: Final = "SELECT sum(times) FROM alarm WHERE chain_id = $1 AND kind = 'basket_role_changed'"
_HOLDS: Final = """
SELECT id, stablecoin, held_reason,
    state IN ('seen', 'confirmed', 'claimed', 'in_doubt') AND chain_status <> 'orphaned' AS open
FROM mint_request WHERE chain_id = $1
"""
_CURSOR: Final = "SELECT block_number, block_hash, finalized_number, safe_number FROM cursor WHERE chain_id = $1"
_EXECUTION_IDS: Final = "SELECT execution_id, request_id FROM execution_id WHERE chain_id = $1"

_ALLOWED: Final = {(before.value, after.value, actor.value) for actor, before, after in allowed_transitions()}
_MINTED_STATES: Final = {"executed", "completed"}


class Oracle:
    """Looks at one chain's rows again and again."""

    def __init__(self, *, chain_id: int, blocks_by_hash: Mapping[bytes, Block]) -> None:
        self._chain_id = chain_id
        self._blocks_by_hash = blocks_by_hash
        self.known: dict[RequestKey, tuple[int, bytes, UUID]] = {}
        self._final_rows: dict[str, set[Row]] = {}
        self._changes_at_resume: dict[bytes, int] = {}

    async def resumed(self, connection: Connection, token: bytes) -> None:
        """A person has seen every change of roles that was recorded of this token."""
        self._changes_at_resume[token] = (await self._role_changes(connection)).get(token, 0)

    async def _role_changes(self, connection: Connection) -> dict[bytes, int]:
        rows = await connection.fetch(_ROLE_CHANGES, self._chain_id, list(ROLE_EVENTS))
        return {row["address"]: row["changes"] for row in rows}

    def forget_final_rows(self) -> None:
        """Rows that were wrong were repaired; from here on what is final stays again."""
        self._final_rows.clear()

    async def wrong_stories(self, connection: Connection) -> list[str]:
        """What is wrong whatever the daemon was told."""
        rows = [dict(row) for row in await connection.fetch(_REQUESTS, self._chain_id)]
        transitions = [dict(row) for row in await connection.fetch(_TRANSITIONS, self._chain_id)]
        miscounted = [f"the tally is {tuple(row)}" for row in await connection.fetch(MISCOUNTED)]
        return [*_told_story(rows, transitions), *miscounted]

    async def wrong(
        self,
        connection: Connection,
        *,
        tip: Block,
        finalized: tuple[int, int],
        trigger: int,
        exact_trigger: bool,
        is_swept_clean: bool,
    ) -> list[str]:
        """What is wrong with the rows once the follower has settled on ``tip``.

        Args:
            connection: May read everything.
            tip: The head of the chain.
            finalized: The highest number that the chain called final, -1 for none; and that anybody called so.
            trigger: Up to which number a request has to be judged by now.
            exact_trigger: Whether a request above that may not have been judged.
            is_swept_clean: Whether the second sweep may not have found anything.
        """
        cursor = await connection.fetchrow(_CURSOR, self._chain_id)
        if cursor is None:
            return ["there is no cursor"]
        at = self._blocks_by_hash.get(cursor["block_hash"])
        if at is None or at.number != cursor["block_number"]:
            return [f"the cursor {cursor['block_number']} names a block that never was"]
        # A head that went back on our own branch is no reorg (hard case 7): the cursor stays ahead of it.
        if at is not tip and not at.descends_from(tip):
            return [f"the cursor is at {_name(at)}, the chain at {_name(tip)}"]
        branch = list(at.branch())[::-1]
        said = said_by(branch[1:])
        found: list[str] = []
        final = cursor["finalized_number"]
        if not min(finalized[0], at.number) <= final <= finalized[1]:
            found.append(f"finalized_number is {final}, not {finalized}")
        if is_swept_clean and await connection.fetchval("SELECT count(*) FROM sweep_difference"):
            found.append("the second sweep found something where there was nothing")
        found += await self._blocks(connection, branch, final)
        found += await self._told(connection, said, branch, final)
        if is_swept_clean:
            found += await self._pauses(connection)
            found += await self._thefts(connection)
        found += await self._requests(
            connection, said, at, final=final, trigger=min(trigger, at.number), exact_trigger=exact_trigger
        )
        return found

    async def _blocks(self, connection: Connection, branch: list[Block], final: int) -> list[str]:
        rows = [tuple(row) for row in await connection.fetch(_BLOCKS, self._chain_id)]
        on_branch = {block.number: block for block in branch}
        canonical = {row[0]: row for row in rows if row[4]}
        found = [f"two canonical blocks {number}" for number in _twice(row[0] for row in rows if row[4])]
        for number, row in canonical.items():
            block = on_branch.get(number)
            if block is None or row[1] != block.hash:
                found.append(f"canonical block {number} is not of the branch")
            elif row[2] not in {None, block.parent_hash} or (row[2] is None and number > max(final, 0)):
                found.append(f"block {number} has another parent")
            elif row[3] != block.timestamp and number > 0:
                found.append(f"block {number} has another time")
        found += [
            f"block {n} is missing" for n in range(max(final, 0) + 1, branch[-1].number + 1) if n not in canonical
        ]
        found += [f"block {row[0]} was never mined" for row in rows if row[1] not in self._blocks_by_hash]
        holding_logs = {row["block_hash"] for row in await connection.fetch(_HOLDING_LOGS, self._chain_id)}
        found += [f"the block {each.hex()[:8]} of a log has no row" for each in holding_logs - {row[1] for row in rows}]
        # An empty one that is final may be pruned.
        final_rows = ((row[0], row[1]) for row in rows if row[4] and row[0] <= final and row[1] in holding_logs)
        return found + self._unchanged("block", final_rows)

    async def _told(self, connection: Connection, said: Said, branch: list[Block], final: int) -> list[str]:
        final_hashes = {block.hash for block in branch if block.number <= final}
        found: list[str] = []
        for table, statement, expected in (
            ("log", _LOGS, said.logs),
            ("basket", _BASKETS, said.baskets),
            ("report", _REPORTS, said.reports),
        ):
            rows = [tuple(row) for row in await connection.fetch(statement, self._chain_id)]
            canonical = [row[:-1] for row in rows if row[-1]]
            found += _compared(table, canonical, expected)
            found += self._unchanged(table, (row for row in canonical if row[0] in final_hashes))
        mints = [tuple(row) for row in await connection.fetch(_MINTS, self._chain_id)]
        found += _compared("mint", [(*r[:5], int(r[5]), r[6]) for r in mints if r[-1]], said.mints)
        return found + await self._proofs(connection, mints)

    async def _pauses(self, connection: Connection) -> list[str]:
        """Each change of roles, on whatever branch, has called a person and paused its basket until one resumed it."""
        changes = await self._role_changes(connection)
        paused = {row["stablecoin"] for row in await connection.fetch(_PAUSED, self._chain_id)}
        expected = {token for token, count in changes.items() if count > self._changes_at_resume.get(token, 0)}
        found = [f"paused is {token.hex()}: {token in paused}" for token in paused ^ expected]
        alarms = await connection.fetchval(_ROLE_ALARMS, self._chain_id) or 0
        if alarms != sum(changes.values()):
            found.append(f"{alarms} alarms of {changes} changes of roles")
        for row in await connection.fetch(_HOLDS, self._chain_id):
            is_paused = row["stablecoin"] in paused
            if (row["held_reason"] is not None) != is_paused and (row["open"] or not is_paused):
                found.append(f"request {row['id']} is held for {row['held_reason']}; is its basket paused? {is_paused}")
        return found

    async def _thefts(self, connection: Connection) -> list[str]:
        """No request went on while another for the same deposit, for somebody else, was on the branch and undecided.

        Where the branch was left in between, it is not known any more what was on it, so nothing is said.
        """
        reorgs = [row["at"] for row in await connection.fetch(_REORGS)]
        story = await connection.fetch(_STORY)
        found: list[str] = []
        state: dict[int, str] = {}
        recorded: dict[int, Record] = {}
        for step in story:
            request = step["request_id"]
            if (step["from_state"], step["to_state"], step["reason"]) == ("seen", "confirmed", "allowed"):
                found += [
                    f"request {request} went on although {other} asked for the same deposit for somebody else"
                    for other, asked in recorded.items()
                    if state[other] in {"seen", "review"}
                    and asked["beneficiary"] != step["beneficiary"]
                    and _as_read(asked["bank_reference"]) == _as_read(step["bank_reference"])
                    and not any(asked["at"] <= at <= step["at"] for at in reorgs)
                ]
            state[request] = step["to_state"]
            recorded.setdefault(request, step)
        return found

    async def _proofs(self, connection: Connection, mints: list[Row]) -> list[str]:
        """A mint belongs to a request only by a true report of its execution id, later in the same transaction."""
        ours = {
            row["execution_id"]: row["request_id"] for row in await connection.fetch(_EXECUTION_IDS, self._chain_id)
        }
        found: list[str] = []
        for block_hash, log_index, tx_hash, consumer, *_, request_id, _canonical in mints:
            block = self._blocks_by_hash.get(block_hash)  # type: ignore[call-overload]
            if block is None:
                found.append(f"mint of block {block_hash!r} that never was")
                continue
            claims = [
                ours[execution_id]
                for _, at, tx, receiver, execution_id, _, result in block.said.reports
                if result and tx == tx_hash and receiver == consumer and at > log_index and execution_id in ours
            ]
            if request_id is not None and request_id not in claims:
                found.append(f"mint {log_index} of block {block.number} is ascribed to {request_id} without a proof")
        return found

    async def _requests(
        self,
        connection: Connection,
        said: Said,
        at: Block,
        *,
        final: int,
        trigger: int,
        exact_trigger: bool,
    ) -> list[str]:
        rows = [dict(row) for row in await connection.fetch(_REQUESTS, self._chain_id)]
        transitions = [dict(row) for row in await connection.fetch(_TRANSITIONS, self._chain_id)]
        minted = await connection.fetch(
            "SELECT request_id, bank_reference FROM mint_execution WHERE chain_id = $1 AND canonical", self._chain_id
        )
        proven = Counter(row["request_id"] for row in minted)
        expected_by_place = {row[:2]: (key, row) for key, row in said.requests.items()}
        canonical = [row for row in rows if row["chain_status"] != "orphaned"]
        found = _compared("request", [_place(row) for row in canonical], list(said.requests.values()))
        for row in canonical:
            key, _ = expected_by_place.get((row["block_hash"], row["log_index"]), (None, None))
            if key is not None:
                found += self._same(key, row["id"], row["identity"], row["nonce"])
        ids = {row["id"] for row in rows}
        found += [f"request {known[0]} is gone" for known in self.known.values() if known[0] not in ids]
        for row in rows:
            found += _standing(row, at, final=final, trigger=trigger, exact_trigger=exact_trigger)
            if row["state"] in _MINTED_STATES and not proven[row["id"]]:
                found.append(f"request {row['id']} is {row['state']} without a mint on this branch")
        holders = {row["bank_reference"] for row in rows if row["holds_reference"]}
        found += [
            f"request {row['id']} is refused as a duplicate of nobody"
            for row in rows
            if row["state"] == "rejected"
            and row["state_reason"] == "duplicate_bank_reference"
            and row["bank_reference"] not in holders
        ]
        miscounted = [f"the tally is {tuple(row)}" for row in await connection.fetch(MISCOUNTED)]
        return [*found, *_told_story(rows, transitions), *miscounted]

    def _same(self, key: RequestKey, *identity: object) -> Iterator[str]:
        known = self.known.setdefault(key, identity)  # type: ignore[arg-type]
        if known != identity:
            yield f"request {identity[0]} was {known[0]} before: its row, identity or nonce changed"

    def _unchanged(self, table: str, rows: Iterable[Row]) -> list[str]:
        final = set(rows)
        before = self._final_rows.get(table, set())
        self._final_rows[table] = final
        return [f"a final row of {table} changed or went away: {_short(row)}" for row in before - final]


def _as_read(reference: bytes) -> list[int]:
    """The characters of a reference that a bank clerk would compare."""
    letters = [c - 32 if ord("a") <= c <= ord("z") else c for c in reference if c not in {ord(" "), ord("-")}]
    while letters and letters[-1] == 0:
        letters.pop()
    return letters


def _standing(row: Mapping[str, object], at: Block, *, final: int, trigger: int, exact_trigger: bool) -> Iterator[str]:
    """Where the request stands on chain, and what may have been done about it."""
    number, state, status = row["block_number"], row["state"], row["chain_status"]
    if not isinstance(number, int):
        raise TypeError("block_number is a bigint")
    about = (
        f"request {row['id']} ({state}, {status}, block {number}; final {final}, trigger {trigger}, tip {at.number})"
    )
    if status == "orphaned":
        if row["orphaned_for_good"] != (number <= final):
            yield f"{about}: orphaned_for_good is {row['orphaned_for_good']}"
        if state in {"confirmed", "claimed", "rejected"}:
            yield f"{about}: may not be so on no branch"
        if row["orphaned_for_good"] and not row["sent"] and state not in {"dropped", "cancelled", "review"}:
            yield f"{about}: nothing was sent and it is gone for good"
        return
    if (status == "finalized") != (number <= final):
        yield f"{about}: has another standing"
    if state == "dropped":
        yield f"{about}: is on the branch"
    if state == "seen" and number <= trigger:
        yield f"{about}: was not judged"
    if exact_trigger and number > trigger and not row["sent"] and state in {"confirmed", "rejected"}:
        yield f"{about}: was judged too early"


def _told_story(rows: Iterable[Mapping[str, object]], transitions: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Each transition is in the table of the lifecycle, begins where the last one ended, and ends in the row."""
    state_by_id: dict[object, object] = {}
    for step in transitions:
        request, before, after = step["request_id"], step["from_state"], step["to_state"]
        if state_by_id.get(request) != before:
            yield f"request {request} went from {before} while it was {state_by_id.get(request)}"
        if before is not None and (before, after, step["actor"]) not in _ALLOWED:
            yield f"request {request}: {step['actor']} may not go from {before} to {after}"
        state_by_id[request] = after
    for row in rows:
        if state_by_id.get(row["id"]) != row["state"]:
            yield f"request {row['id']} is {row['state']}, its history ends in {state_by_id.get(row['id'])}"


def _place(row: Mapping[str, object]) -> Row:
    return (
        *(row[name] for name in _PLACE),
        row["requester"],
        row["beneficiary"],
        int(str(row["amount"])),
        row["bank_reference"],
    )


def _compared(table: str, rows: list[Row], expected: list[Row]) -> list[str]:
    found = [f"{table} is there twice: {_short(row)}" for row in _twice(rows)]
    found += [f"{table} is missing: {_short(row)}" for row in set(expected) - set(rows)]
    return found + [f"{table} is extra: {_short(row)}" for row in set(rows) - set(expected)]


def _twice(items: Iterable[object]) -> list[object]:
    return [item for item, count in Counter(items).items() if count > 1]


def _short(row: object) -> str:
    values = row if isinstance(row, tuple) else (row,)
    return ", ".join(value.hex()[:12] if isinstance(value, bytes) else repr(value) for value in values)


def _name(block: Block) -> str:
    return f"{block.number} {block.hash.hex()[:8]}"
