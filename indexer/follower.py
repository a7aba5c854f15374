"""The shell that follows the chain: read the rows, ask the node, judge, commit."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, Literal, TypeAlias

import structlog

from datastore import factories, following
from datastore.connection import Pool
from datastore.errors import BlockMisplaced, CursorMoved, FinalityViolated
from datastore.following import Committed, Position, Rules
from datastore.rows import Batch, Block, BlockRef, Finality
from indexer.continuity import AlreadyHeld, Extends, LeavesFinality, NeedsParent, Reorg, Verdict, is_linked, judge
from indexer.final_zone import FinalZone, ObservedRange, contradiction, overlapped, stored
from indexer.forks import denial
from indexer.observation import Observation, Sources
from node.blocks import Header
from node.errors import BlockUnknown, BudgetSpent, EndpointChanged, EndpointLags
from node.inconsistency import Inconsistency
from node.node import FinalityTags, Node

log = structlog.get_logger(__name__)

Reached: TypeAlias = Callable[[str], None]
"""Called with the name of each boundary around a commit; tests end the process there."""

LOGGED_ONE_BY_ONE: Final = 100
"""A commit that moves more requests than this is logged as counts."""

BLOCKS_A_COMMIT: Final = 64
"""Near the head: bounds a commit after a pause; the rest is read by the next tick."""

READING_SECONDS: Final = 60.0
"""Near the head: what was read is committed after so long, whatever is still to be read."""

MOST_UNFINALIZED_SECONDS: Final = 129_600.0
"""Indexed above the chain's finalized block, by the blocks' times: a day and a half in which a person can look."""

MOST_UNFINALIZED_BLOCKS: Final = 1_000_000
"""The same where times say nothing: what a chain with wrong times may make of rows."""

ALWAYS_INDEXED_BLOCKS: Final = 64
"""Above the finalized block, whatever the times of blocks: after a chain stood still they jump, and a node may lie."""

DEEPEST_FORK_BLOCKS: Final = 10_000
"""A fork is searched no deeper on a chain that names no finalized block."""

FORK_SEARCH_BLOCKS: Final = 1_000
"""A fork is searched in so many blocks first, then in eight times as many: only a deep one reads the whole window."""

STUCK_SECONDS: Final = 60.0
"""A node may be so long without the blocks that it announces: that it is about to have them is the usual case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalityRule:
    """Which finality is enough: a tag of the chain, or a number of linked blocks (``depth``, at least 1)."""

    tag: Literal["finalized", "safe", "depth"]
    depth: int = 0

    def height(self, *, tip: int, finalized: int, safe: int) -> int:
        """The highest block number that is final enough, seen from an indexed tip; -1 for none."""
        if self.tag == "depth":
            return tip - self.depth + 1
        return min(tip, finalized if self.tag == "finalized" else safe)


_NOT_ASKED: Final[tuple[str, float, FinalityTags]] = ("", -math.inf, FinalityTags(finalized=-1, safe=-1))
"""Which endpoint told when what about finality."""


class Follower:
    """Follows one chain with one cursor; ``tick`` does the work once."""

    def __init__(
        self,
        *,
        pool: Pool,
        node: Node,
        sources: Sources,
        rules: Rules,
        trigger_finality: FinalityRule,
        complete_finality: FinalityRule,
        max_range_blocks: int,
        reached: Reached = lambda _: None,
        finality_pause_seconds: float = 0.0,
        most_unfinalized_seconds: float = MOST_UNFINALIZED_SECONDS,
        most_unfinalized_blocks: int = MOST_UNFINALIZED_BLOCKS,
        deepest_fork_blocks: int = DEEPEST_FORK_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin; nothing is asked yet.

        Args:
            pool: The indexer's.
            node: The chain.
            sources: Who is believed.
            rules: What the settings say about recording and judging.
            trigger_finality: From where on a request may be sent.
            complete_finality: From where on a mint completes its request.
            max_range_blocks: The largest range to ask for at once.
            reached: Told each boundary around a commit.
            finality_pause_seconds: The chain's finality is asked no more often than this; it moves slowly.
            most_unfinalized_seconds: Indexing waits at a block that is so much younger than the finalized one.
            most_unfinalized_blocks: Indexing waits for finality when so many blocks are not final.
            deepest_fork_blocks: How deep a fork is searched on a chain that names no finalized block.
            clock: Seconds that never go back.
        """
        self._pool = pool
        self._nodes = node
        # Within a tick: the one endpoint that this tick asks (why that is safe: ``node.pool``).
        self._node = node
        self._finality_pause_seconds = finality_pause_seconds
        self._most_unfinalized_seconds = most_unfinalized_seconds
        self._most_unfinalized_blocks = most_unfinalized_blocks
        self._deepest_fork_blocks = deepest_fork_blocks
        self._clock = clock
        self._finality = _NOT_ASKED
        self._held_because: str | None = None
        # The cursor above which the node does not know the blocks that it announces, since when, and which one.
        self._stuck: tuple[BlockRef, float, str] | None = None
        self._sources = sources
        self._rules = rules
        self._trigger = trigger_finality
        self._complete = complete_finality
        self._zone = FinalZone(max_range_blocks=max_range_blocks)
        self._reached = reached
        # Whether requests may wait for their judgement though nothing new is on chain; a new process looks once.
        self._more_to_judge = True
        # A cache of rows, believed only while cursor and version are those that it was read at.
        self._baskets: tuple[BlockRef, int, dict[bytes, bytes]] | None = None

    async def tick(self) -> bool:
        """Index what follows the cursor; ``True`` if there is more to do at once.

        Raises:
            NodeUnavailable: Nothing was written; call again.
            DatastoreUnavailable: Nothing is known to be written; call again.
            FinalityViolated: Nothing was written; do not call again.
        """
        # First, so that it goes on while the node is away; a step is short.
        left = await following.settle_references(self._pool, self._sources.chain_id, self._rules)
        if left is not None:
            self._more_to_judge |= left.more_to_judge
        return await self._index() or left is not None

    async def _index(self) -> bool:
        position = await following.position(self._pool, self._sources.chain_id)
        try:
            cursor = position.cursor.number
            async with self._nodes.session(reaching=cursor, from_block=cursor + 1) as session:
                self._node = session.node
                try:
                    is_more = await self._follow(position, session.head)
                except BlockUnknown:
                    await self._get_stuck(position, session.head)
                    raise
                self._stuck = None
                return is_more
        except EndpointChanged as error:
            log.debug("chain.tick_repeated", reason=str(error))
            return True
        except BudgetSpent as error:
            log.debug("chain.tick_waits", reason=str(error))
            return False
        except (BlockUnknown, CursorMoved) as error:
            # The tip moved under our questions, or another follower was faster: the next tick starts from the rows.
            log.debug("chain.tick_repeated", reason=str(error))
            return False

    def troubles(self) -> tuple[str, ...]:
        """Why indexing waits although the node answers; a sentence, or none."""
        found = [] if self._held_because is None else [self._held_because]
        if self._stuck is not None and (seconds := self._clock() - self._stuck[1]) >= STUCK_SECONDS:
            found.append(
                f"node: endpoint {self._stuck[2]} has not known the blocks that it announces for {seconds:.0f} s;"
                f" indexing waits at block {self._stuck[0].number}"
            )
        return tuple(found)

    async def _get_stuck(self, position: Position, head: Header) -> None:
        """Once, the tip has moved under our questions; again and again, nothing is indexed, and the lag is told."""
        now = self._clock()
        if self._stuck is None or self._stuck[0] != position.cursor:
            self._stuck = (position.cursor, now, self._node.endpoint_name)
        if now - self._stuck[1] >= STUCK_SECONDS:
            await self._tell_head(position, head)

    async def _tell_head(self, position: Position, head: Header) -> None:
        if head.number > max(position.head, position.cursor.number):
            await following.tell_head(self._pool, self._sources.chain_id, position.cursor, head.number)

    async def _follow(self, position: Position, head: Header) -> bool:
        if head.number < position.finalized:
            # It cannot even say whether its chain is ours: that is no reorg, however its block is called (hard case 7).
            raise EndpointLags(
                self._node.endpoint_name,
                "eth_getBlockByNumber",
                f"its head {head.number} is below our finalized block {position.finalized}",
            )
        finality = await self._asked_finality(head)
        # The chain went on since its head was told.  What is above that head is for the next tick: in this one nothing
        # is known to stand on it, and it would look like a contradiction.
        tags = _Tags(
            head=head,
            finalized=min(finality.finalized, head.number),
            safe=min(finality.safe, head.number),
            finalized_at=finality.finalized_at,
            hash_by_number=finality.hash_by_number,
        )
        if tags.finalized > position.cursor.number:
            return await self._follow_final(position, tags)
        return await self._follow_head(position, tags)

    async def _asked_finality(self, head: Header) -> FinalityTags:
        """The chain's finality as this tick's endpoint told it last, not longer than the pause ago."""
        endpoint, asked_at, finality = self._finality
        now = self._clock()
        if endpoint != self._node.endpoint_name or now - asked_at >= self._finality_pause_seconds:
            finality = await self._node.finality(head)
            self._finality = (self._node.endpoint_name, now, finality)
        return finality

    async def _follow_final(self, position: Position, tags: _Tags) -> bool:
        cursor = position.cursor
        self._say_whether_held(cursor.number, tags, is_held=False)
        consumers = await self._known_baskets(cursor, position.baskets_version)
        async with self._zone.reading(
            self._node,
            self._sources,
            cursor.number,
            tags.finalized,
            head=tags.head,
            consumer_by_token=consumers,
            up_to_hash=tags.hash_by_number.get(tags.finalized),
        ) as next_range:

            async def commit(observed: ObservedRange) -> None:
                nonlocal cursor
                if observed.read.parent != cursor:
                    raise _NotOurs
                at = replace(position, cursor=cursor)
                await self._commit(at, cursor, observed.read.blocks, observed.observation, tags)
                cursor = observed.read.last

            try:
                await overlapped(next_range, commit)
            except _NotOurs:
                if cursor == position.cursor:
                    return await self._follow_head(position, tags)
                raise contradiction(self._node, f"the block after {cursor.number} has another parent than it") from None
        return True

    async def _follow_head(self, position: Position, tags: _Tags) -> bool:
        branch = deque(await self._branch(position.cursor, tags.head))
        ancestor = await self._ancestor(position, branch)
        headers = [] if ancestor is None else self._in_window(list(branch)[:BLOCKS_A_COMMIT], tags)
        self._say_whether_held(position.cursor.number, tags, is_held=ancestor is not None and not headers)
        if self._held_because is not None:
            await self._tell_head(position, tags.head)
        if ancestor is None or not headers:
            return await self._advance_finality(position, tags)
        if len({header.hash for header in headers}) < len(headers):  # linked in a circle
            raise self._node.contradiction(Inconsistency.OTHER_BLOCK, "one hash is told of blocks at two heights")
        known = await self._known_baskets(ancestor, position.baskets_version)
        observation = Observation(self._sources, known)
        began = self._clock()
        for place, header in enumerate(headers):
            if place and self._clock() - began > READING_SECONDS:
                headers = headers[:place]  # committed now: what a slow endpoint takes longer for would be lost
                break
            known = observation.consumer_by_token
            logs = await self._node.logs_of(
                header,
                self._sources.filters(),
                self._sources.believed(known),
                self._sources.guesses(known),
                by_address=self._sources.by_address(known),
            )
            observation.read(logs, {header.number: header.timestamp})
        blocks = [stored(header) for header in headers]
        tags = await self._believed(position, ancestor, blocks, tags)
        await self._commit(position, ancestor, blocks, observation, tags)
        return headers[-1].number < tags.head.number or self._more_to_judge

    async def _ancestor(self, position: Position, branch: deque[Header]) -> BlockRef | None:
        """The block of ours that ``branch``, prepended down to it, follows; ``None`` if the branch is ours already."""
        cursor = position.cursor
        # Most ticks end here: the cursor's hash is a row; what is below it is read only where a fork is searched.
        if branch[-1].hash == cursor.hash:
            return None
        if branch[0].parent_hash == cursor.hash:
            return cursor
        match await self._judged(position, branch):
            case AlreadyHeld() | NeedsParent():
                return None
            case Extends():
                return cursor
            case Reorg() as reorg:
                return BlockRef(number=reorg.ancestor_number, hash=reorg.ancestor_hash)
            case LeavesFinality() as leaves:
                raise await denial(self._pool, self._sources.chain_id, self._node, up_to=leaves.lowest_number)

    async def _judged(self, position: Position, branch: deque[Header]) -> Verdict:
        """What ``branch`` means, prepended until it meets ours; of a fork, more of ours is read the deeper it is."""
        cursor = position.cursor
        floor = deepest(position, self._deepest_fork_blocks)
        lowest = max(floor, cursor.number - FORK_SEARCH_BLOCKS)
        held = await following.held_blocks(self._pool, self._sources.chain_id, lowest=lowest)
        while isinstance(verdict := judge(held, branch), NeedsParent | LeavesFinality):
            if isinstance(verdict, LeavesFinality):
                if lowest == floor:
                    break
                lowest = max(floor, cursor.number - 8 * (cursor.number - lowest))
                held = await following.held_blocks(self._pool, self._sources.chain_id, lowest=lowest)
                continue
            parent = await self._node.header_by_hash(verdict.block_hash)  # may fail: nothing to undo
            if parent.number != branch[0].number - 1:  # an ancestry without an end would never be left
                raise self._node.contradiction(
                    Inconsistency.OTHER_BLOCK, f"block {parent.number} is the parent of block {branch[0].number}"
                )
            branch.appendleft(parent)
        return verdict

    async def _branch(self, cursor: BlockRef, head: Header) -> Sequence[Header]:
        """The headers from the one after the cursor up to the head, or the head alone if it is not above the cursor."""
        last = min(head.number, cursor.number + min(BLOCKS_A_COMMIT, self._node.blocks_at_once))
        if last <= cursor.number + 1:
            return [head]
        found = await self._node.headers_by_number(range(cursor.number + 1, last + 1))
        headers = [found[number] for number in sorted(found)]
        if not is_linked(headers):
            raise BlockUnknown(self._node.endpoint_name, last)  # the node changed its branch between two answers
        return headers

    def _in_window(self, headers: Sequence[Header], tags: _Tags) -> list[Header]:
        """Those up to the first that is too far above the finalized block: a stalled finality holds the index."""
        if tags.finalized < 0:  # the chain has none, so there is nothing to wait for
            return list(headers)
        last = tags.finalized + self._most_unfinalized_blocks
        # A genesis block may have no time.
        latest = tags.finalized_at + self._most_unfinalized_seconds if tags.finalized_at else math.inf
        always = tags.finalized + min(ALWAYS_INDEXED_BLOCKS, self._most_unfinalized_blocks)

        def is_in_window(header: Header) -> bool:
            return header.number <= always or (header.number <= last and header.timestamp <= latest)

        return list(takewhile(is_in_window, headers))

    def _say_whether_held(self, cursor: int, tags: _Tags, *, is_held: bool) -> None:
        """Where people look: once in the log, and for as long as it lasts in ``troubles``."""
        if is_held and self._held_because is None:
            log.error("index.held", indexed=cursor, finalized=tags.finalized, head=tags.head.number)
        elif not is_held and self._held_because is not None:
            log.info("index.released", indexed=cursor, finalized=tags.finalized)
        self._held_because = (
            f"chain: block {tags.finalized} is the last final one; indexing waits at block {cursor}"
            if is_held
            else None
        )

    async def _advance_finality(self, position: Position, tags: _Tags) -> bool:
        """Nothing new to index: what is final may have grown all the same, or there is still something to judge."""
        if (
            not self._more_to_judge
            and min(tags.finalized, position.cursor.number) <= position.finalized
            and min(tags.safe, position.cursor.number) <= position.safe
        ):
            return False
        tags = await self._believed(position, position.cursor, [], tags)
        observation = Observation(self._sources, {})
        await self._commit(position, position.cursor, [], observation, tags)
        return self._more_to_judge

    async def _believed(self, position: Position, ancestor: BlockRef, blocks: Sequence[Block], tags: _Tags) -> _Tags:
        """The tags as far as they are about the branch that ends with ``blocks``, or with ``ancestor``.

        A tag that is above that branch says nothing about it yet: the tick that reaches it believes it.

        Raises:
            NodeAnswerInvalid: A tag that rose is of another branch; it would make a fork final.
        """
        tip = blocks[-1].number if blocks else ancestor.number
        read = {ancestor.number: ancestor.hash} | {block.number: block.hash for block in blocks}
        for number, before in ((tags.finalized, position.finalized), (tags.safe, position.safe)):
            told = tags.hash_by_number.get(number)
            if told is None or not before < number <= tip:
                continue
            ours = read.get(number) or await following.canonical_hash(self._pool, self._sources.chain_id, number)
            if ours is not None and ours != told:
                self._finality = _NOT_ASKED
                raise self._node.contradiction(
                    Inconsistency.OTHER_BLOCK, f"its final or safe block {number} is not on the branch of its head"
                )
        return replace(
            tags,
            finalized=tags.finalized if tags.finalized <= tip else -1,
            safe=tags.safe if tags.safe <= tip else -1,
        )

    async def _known_baskets(self, at: BlockRef, version: int) -> dict[bytes, bytes]:
        """The baskets up to a block; with them, the factories that are live are read again."""
        if self._baskets is not None and self._baskets[:2] == (at, version):
            return self._baskets[2]
        self._sources = replace(self._sources, more_factories=await factories.live(self._pool, self._sources.chain_id))
        return dict(await following.known_baskets(self._pool, self._sources.chain_id, up_to=at.number))

    async def _commit(
        self, position: Position, ancestor: BlockRef, blocks: Sequence[Block], observation: Observation, tags: _Tags
    ) -> None:
        tip = blocks[-1].number if blocks else ancestor.number
        finalized = max(position.finalized, tags.finalized)
        safe = max(position.safe, tags.safe)
        observed = observation.observed
        batch = Batch(
            expected=position.cursor,
            ancestor=ancestor,
            blocks=blocks,
            head_number=tags.head.number,
            finality=Finality(
                finalized=finalized,
                safe=safe,
                trigger=self._trigger.height(tip=tip, finalized=finalized, safe=safe),
                complete=self._complete.height(tip=tip, finalized=finalized, safe=safe),
            ),
            logs=observed.logs,
            baskets=observed.baskets,
            requests=observed.requests,
            mints=observed.mints,
            reports=observed.reports,
            role_changes=observed.role_changes,
            baskets_version=position.baskets_version,
        )
        self._reached("indexer.before_commit")
        try:
            committed = await following.commit(self._pool, self._sources.chain_id, batch, self._rules)
        except BlockMisplaced as error:
            raise self._node.contradiction(Inconsistency.OTHER_BLOCK, str(error)) from error
        except FinalityViolated as error:
            # More became final since this tick began, by another follower: the branch is judged by what is stored now.
            stored_now = await following.position(self._pool, self._sources.chain_id)
            raise await denial(self._pool, self._sources.chain_id, self._node, up_to=stored_now.finalized) from error
        self._reached("indexer.after_commit")
        self._more_to_judge = committed.more_to_judge
        if blocks:
            self._baskets = (committed.cursor, position.baskets_version, observation.consumer_by_token)
        if committed.orphaned_blocks:
            log.warning(
                "chain.reorg_applied",
                ancestor_number=ancestor.number,
                orphaned_blocks=committed.orphaned_blocks,
                orphaned_requests=committed.orphaned_requests,
            )
        report(committed, undecodable=observed.undecodable)


class _NotOurs(Exception):
    """The node's next block is not the child of our last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tags:
    """The chain's own words at the beginning of a tick; -1 where the node does not know a tag."""

    head: Header
    finalized: int
    safe: int
    finalized_at: int
    hash_by_number: Mapping[int, bytes]


def deepest(position: Position, fork_blocks: int = DEEPEST_FORK_BLOCKS) -> int:
    """The number of the lowest block that a fork may be searched in; what is below it is final."""
    lowest = position.finalized if position.finalized >= 0 else position.cursor.number - fork_blocks
    return max(min(position.cursor.number, lowest), 0)


def report(committed: Committed, *, undecodable: int) -> None:
    """Log what a commit changed."""
    if undecodable:
        log.warning("log.kept_undecoded", logs=undecodable)
    if committed.quarantine_entered:
        log.error("quarantine.entered", sentence=str(committed.quarantine_entered))
    if committed.quarantine_ended:
        log.warning("quarantine.ended", sentence="requests are triggered again")
    for kind, count in committed.alarms.items():
        if count:
            log.error("alarm.raised", kind=kind, requests=count)
    if len(committed.settled) <= LOGGED_ONE_BY_ONE:
        for settled in committed.settled:
            log.info("request.moved", request_id=settled.request_id, from_state=settled.before, to_state=settled.after)
    else:
        for (before, after), count in Counter((s.before, s.after) for s in committed.settled).items():
            log.info("requests.moved", requests=count, from_state=before, to_state=after)
    for state, count in committed.recorded.items():
        log.info("requests.recorded", requests=count, state=state)
    log.debug("chain.block_committed", number=committed.cursor.number, recorded_requests=committed.recorded_requests)
