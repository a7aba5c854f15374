"""Read what is final a second time, and make the rows right where they are not (design §5, hard case 19).

A node may give an answer that is short, or of another block, and look in order: near the head a bloom may tell, in the
final zone nothing does.  So each final block is read again and compared with the rows, from two endpoints where there
are several: which of them the rows are from nobody knows by now, but not from both.  A difference is believed only if
one more reading, by the receipts of the block itself and from another endpoint where there is one, says the same.  Then
the rows are repaired; where the readings differ, the rows stay as they are and a person is told.  An endpoint that is
alone may add to the rows, but what it told us once and denies now is not taken from them: that needs two endpoints, or
a person.

A request that is found late was final before it was found: it is judged at once, as any other, and held where the start
was told to hold blocks of its age.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from datastore import factories, following, pinning, sweeping
from datastore.connection import Pool
from datastore.errors import CursorMoved, FinalityViolated
from datastore.following import Position, Rules
from datastore.rows import Batch, Block, Difference, Finality, Kind, LogRow, Place
from indexer.differences import compare, is_confirmed, of_places
from indexer.final_zone import FinalRange, FinalZone
from indexer.follower import BLOCKS_A_COMMIT, MOST_UNFINALIZED_BLOCKS, FinalityRule, Reached, report
from indexer.observation import Observation, Observed, Sources
from indexer.standstill import Standstill
from node.blocks import Log
from node.errors import BlockUnknown, EndpointChanged, HistoryPruned
from node.node import Node

log = structlog.get_logger(__name__)

MOST_DIFFERING_BLOCKS = 32
"""Looked at again in one go; a range with more of them is cut before the next one."""


class NoSecondReading(Exception):
    """Of several endpoints only one can be asked, and the rows may be its own.  Call again."""


class SourcesUnsettled(Exception):
    """Rows cannot be compared while the history of a late factory is recorded.  Call again when it is live."""

    def __init__(self, factory: bytes, filled_up_to: int) -> None:
        super().__init__(f"the history of factory 0x{factory.hex()} is recorded up to block {filled_up_to} only")
        self.filled_up_to = filled_up_to


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """The blocks from ``first`` to ``last``, read and compared with the rows.

    ``repair`` is what the chain says of every difference; ``None`` where the readings do not agree on one.  ``readers``
    are the names of the endpoints that told of the differences and that was asked about them.
    """

    first: int
    last: int
    differences: tuple[Difference, ...]
    repair: Batch | None
    readers: tuple[str, str | None]

    @property
    def sentence(self) -> str:
        """Who said what, for the alarm."""
        first, second = self.readers
        if self.repair is not None:
            return f"Endpoints {first} and {second} agree; the rows were repaired."
        if first == second:
            return (
                f"Endpoint {first} said otherwise before, and there is no other to ask; the rows stay as they are.  "
                f"Add an endpoint to BSKT_RPC_URL, then run `bskt verify --blocks {self.first}:{self.last} --repair`."
            )
        return (
            f"Endpoint {first} says so, endpoint {second} does not; the rows stay as they are.  Take the one that "
            f"is wrong out of BSKT_RPC_URL, then run `bskt verify --blocks {self.first}:{self.last} --repair`."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One reading of a range, and in what the rows are not as it says."""

    reader: str
    read: FinalRange
    hash_by_number: Mapping[int, bytes]
    observed: Observed
    found: Sequence[Difference]

    @property
    def last(self) -> int:
        return self.read.blocks[-1].number

    def up_to(self, last: int) -> _Reading:
        return replace(self, found=[difference for difference in self.found if difference.block_number <= last])


class Examiner:
    """Reads and compares; writes nothing."""

    def __init__(
        self,
        *,
        pool: Pool,
        node: Node,
        sources: Sources,
        trigger_finality: FinalityRule,
        complete_finality: FinalityRule,
        max_range_blocks: int,
    ) -> None:
        """Begin; nothing is asked yet.  The arguments are those of ``Follower``."""
        self._pool = pool
        self._node = node
        self._sources = sources
        self._trigger = trigger_finality
        self._complete = complete_finality
        self._zone = FinalZone(max_range_blocks=max_range_blocks)

    async def examine(self, after: int, up_to: int, *, by_hand: bool = False) -> Examined:
        """Compare the blocks that follow block ``after``, up to ``up_to`` at the latest, which must be final.

        ``by_hand`` lets the only endpoint that there is take something from the rows.

        Raises:
            NodeUnavailable: Call again; nothing is known.
            EndpointChanged, BlockUnknown: Call again; nothing is known.
            NoSecondReading: Call again when another endpoint answers.
            SourcesUnsettled: Call again when the late factory is live.
            DatastoreUnavailable: Call again.
            FinalityViolated: The chain is not the one that was indexed; do not call again.
        """
        position = await following.position(self._pool, self._sources.chain_id)
        reading = await self._read(position, after, up_to, than=None)
        readings, last = [reading], reading.last
        second = await self._second_reading(position, after, last, than=reading.reader, by_hand=by_hand)
        if second is not None:
            readings, last = _first_to_settle(reading, second)
        first, telling = after + 1, [each for each in readings if each.found]
        if not telling:
            return Examined(first=first, last=last, differences=(), repair=None, readers=(reading.reader, None))
        examined = [await self._confirmed(position, each, first, last, by_hand=by_hand) for each in telling]
        if len(readings) > 1 and not by_hand and any(each.readers[0] == each.readers[1] for each in examined):
            # The other one, which just said otherwise, is gone: nobody is confirmed by himself then.
            raise NoSecondReading(f"endpoint {examined[0].readers[1]} is the only one that still answers")
        if (settled := believed(examined)) is not None:
            return settled
        both = tuple(dict.fromkeys(difference for each in telling for difference in each.found))
        return Examined(
            first=first, last=last, differences=both, repair=None, readers=(telling[0].reader, telling[1].reader)
        )

    async def require_final(self) -> None:
        """Let two endpoints, where so many answer, show the newest final block as it is stored: so are all before it.

        Raises:
            NodeUnavailable, BlockUnknown: Call again; nothing is known.
            DatastoreUnavailable: Call again.
            FinalityViolated: The chain is not the one that was indexed; do not call again.
        """
        position = await following.position(self._pool, self._sources.chain_id)
        asked = None
        for _ in range(2):
            final = max(position.finalized, 0)
            async with self._node.second_opinion(than=asked, reaching=final, from_block=final) as session:
                if session.node.endpoint_name == asked:
                    break
                asked = session.node.endpoint_name
                await self._require_final(session.node, position)

    async def _second_reading(
        self, position: Position, after: int, up_to: int, *, than: str, by_hand: bool
    ) -> _Reading | None:
        """``None`` where there is one endpoint, or the others have thrown these blocks away."""
        if not self._node.has_another(than, from_block=after + 1):
            return None
        try:
            second = await self._read(position, after, up_to, than=than)
        except HistoryPruned:
            return None
        if second.reader != than:
            return second
        if by_hand:
            return None
        raise NoSecondReading(f"endpoint {than} is the only one that answers")

    async def _read(self, position: Position, after: int, up_to: int, *, than: str | None) -> _Reading:
        known = dict(await following.known_baskets(self._pool, self._sources.chain_id, up_to=after))
        sources = await self._settled_sources()
        async with self._node.second_opinion(than=than, reaching=up_to, from_block=after + 1) as session:
            read = await self._zone.read(
                session.node, sources, after, up_to, head=session.head, consumer_by_token=known
            )
            # The rows are read after the node: what is final does not change any more, except by a repair.
            stored = await sweeping.stored_range(self._pool, self._sources.chain_id, read.first, read.blocks[-1].number)
            if more := (await self._settled_sources()).factories - sources.factories:
                raise SourcesUnsettled(min(more), after)  # rows of a factory that was not asked about
            told = await _hashes(session.node, read, stored.hash_by_number)
            if any(told[number] != block_hash for number, block_hash in stored.hash_by_number.items()):
                await self._require_final(session.node, position)
            reader = session.node.endpoint_name
        observation = Observation(sources, known)
        observation.read(read.logs, read.timestamp_by_block())
        observed = observation.observed
        return _Reading(
            reader=reader,
            read=read,
            hash_by_number={**told, **{block.number: block.hash for block in read.blocks}},
            observed=observed,
            found=compare(stored, told, observed),
        )

    async def _settled_sources(self) -> Sources:
        """Who is believed, as of rows that were read before; not while the history of a factory is half recorded."""
        chain_id = self._sources.chain_id
        live, late = await factories.live(self._pool, chain_id), await factories.pending(self._pool, chain_id)
        if late is not None:
            raise SourcesUnsettled(late.address, late.filled_up_to)
        return replace(self._sources, more_factories=live)

    async def _require_final(self, node: Node, position: Position) -> None:
        """One block of ours may be a node's mistake; if the newest final one is not on the chain either, all are."""
        final = max(position.finalized, position.cursor.number - MOST_UNFINALIZED_BLOCKS)  # as the follower sees it
        newest = await sweeping.newest_block(self._pool, self._sources.chain_id, up_to=final)
        if newest is not None and (found := await node.header_by_number(newest.number)).hash != newest.hash:
            raise FinalityViolated(
                f"block {newest.number}, which is final, has another hash 0x{found.hash.hex()} on the node's chain; "
                "nothing was changed"
            )

    async def _confirmed(
        self, position: Position, reading: _Reading, first: int, last: int, *, by_hand: bool
    ) -> Examined:
        found, reader = reading.found, reading.reader
        numbers = sorted({difference.block_number for difference in found})
        if len(numbers) > MOST_DIFFERING_BLOCKS:
            last = numbers[MOST_DIFFERING_BLOCKS] - 1
        rows = {(row.block_hash, row.log_index): row for row in reading.observed.logs}
        async with self._node.second_opinion(than=reader, reaching=last, from_block=first) as session:
            disputed = await _disputed(
                session.node, [d for d in found if d.block_number <= last], rows, reading.hash_by_number
            )
            second = session.node.endpoint_name
        if second == reader and not by_hand:
            taken = [d.block_number for d in found if d.kind is not Kind.MISSING and d.block_number <= last]
            disputed = min([*taken, *([] if disputed is None else [disputed])], default=None)
        if disputed is not None and disputed > first:
            last = disputed - 1  # what is before it is beyond dispute; the next look begins with it
        elif disputed is not None:
            last = disputed
        differences = tuple(difference for difference in found if difference.block_number <= last)
        is_repairable = disputed is None or last < disputed
        batch = self._batch(position, reading.read.blocks, of_places(reading.observed, differences), differences)
        return Examined(
            first=first,
            last=last,
            differences=differences,
            repair=batch if differences and is_repairable else None,
            readers=(reader, second),
        )

    def _batch(
        self, position: Position, blocks: Iterable[Block], observed: Observed, differences: Sequence[Difference]
    ) -> Batch:
        numbers = {difference.block_number for difference in differences}
        final = position.finalized
        return Batch(
            expected=position.cursor,
            ancestor=position.cursor,
            blocks=tuple(block for block in blocks if block.number in numbers),
            head_number=position.head,
            # What is above the final blocks is the follower's to judge.
            finality=Finality(
                finalized=final,
                safe=final,
                trigger=min(final, _height(self._trigger, position)),
                complete=min(final, _height(self._complete, position)),
            ),
            logs=tuple(observed.logs),
            baskets=tuple(observed.baskets),
            requests=tuple(observed.requests),
            mints=tuple(observed.mints),
            reports=tuple(observed.reports),
            role_changes=tuple(observed.role_changes),
        )


def _first_to_settle(one: _Reading, other: _Reading) -> tuple[list[_Reading], int]:
    """Of two readings of a range, those whose differences are looked at now, and up to which block.

    What both say is taken together.  Otherwise what comes before the first block about which only one of them differs
    from the rows, or as the other does not; or that block alone, by both.
    """
    last = min(one.last, other.last)
    one, other = one.up_to(last), other.up_to(last)
    apart = min((difference.block_number for difference in {*one.found} ^ {*other.found}), default=None)
    if apart is None:
        return [one], last
    if any(difference.block_number < apart for difference in one.found):
        return [one.up_to(apart - 1)], apart - 1
    return [one.up_to(apart), other.up_to(apart)], apart


def believed(examined: Sequence[Examined]) -> Examined | None:
    """Of what came of each reading of one block that tells of differences, that which counts; ``None`` for neither.

    One that was confirmed may still have left out a part of what another one tells, so it must tell of all that was
    confirmed.
    """
    if len(examined) == 1:
        return examined[0]
    confirmed = [each for each in examined if each.repair is not None]
    most = max(confirmed, key=lambda each: len(each.differences), default=None)
    if most is None or any(not set(each.differences) <= set(most.differences) for each in confirmed):
        return None
    return most


def _height(rule: FinalityRule, position: Position) -> int:
    return rule.height(tip=position.cursor.number, finalized=position.finalized, safe=position.safe)


async def _hashes(node: Node, read: FinalRange, stored: Mapping[int, bytes]) -> dict[int, bytes]:
    """What the node says of each block that is stored."""
    known = {block.number: block.hash for block in read.blocks}
    headers = await node.headers_by_number(sorted(set(stored) - set(known)))
    known |= {number: header.hash for number, header in headers.items()}
    return {number: known[number] for number in stored}


async def _disputed(
    node: Node, differences: Sequence[Difference], told: Mapping[Place, LogRow], told_hashes: Mapping[int, bytes]
) -> int | None:
    """The first block about which this node does not confirm a difference; ``None`` if it confirms them all."""
    numbers = sorted({difference.block_number for difference in differences})
    headers = await node.headers_by_number(numbers)
    for number in numbers:
        second_hash = headers[number].hash
        logs: list[Log] = []
        if second_hash == told_hashes[number]:
            logs = [entry for receipt in await node.receipts(second_hash) for entry in receipt.logs]
        if not all(
            is_confirmed(difference, told, told_hashes[number], second_hash=second_hash, second_logs=logs)
            for difference in differences
            if difference.block_number == number
        ):
            return number
    return None


class Sweep:
    """Goes over the final blocks with a cursor of its own; ``tick`` does one range."""

    def __init__(
        self,
        *,
        pool: Pool,
        chain_id: int,
        examiner: Examiner,
        rules: Rules,
        halted_at: datetime | None = None,
        reached: Reached = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin; nothing is asked yet.

        Args:
            pool: The indexer's.
            chain_id: The chain.
            examiner: Reads and compares.
            rules: What the settings say about recording and judging.
            halted_at: When a part of the indexer halted before this start; that is over when the chain is in order.
            reached: Told each boundary around a commit.
            clock: Seconds that never go back.
        """
        self._standstill = Standstill("sweep", clock=clock)
        self._pool = pool
        self._chain_id = chain_id
        self._examiner = examiner
        self._rules = rules
        self._halted_at = halted_at
        self._reached = reached

    async def tick(self) -> bool:
        """Sweep the next range of what is final; ``True`` if there is more to do at once.

        While the follower has blocks to catch up with, it has the node for itself.

        Raises:
            NodeUnavailable, BlockUnknown: Nothing was written; call again.
            DatastoreUnavailable: Nothing is known to be written; call again.
            FinalityViolated: Nothing was written; do not call again.
        """
        if self._halted_at is not None:
            await self._examiner.require_final()
            await pinning.clear_halt(self._pool, self._chain_id, self._halted_at)
            self._halted_at = None
        at = await sweeping.position(self._pool, self._chain_id)
        if at.swept >= at.finalized or at.head - at.cursor > BLOCKS_A_COMMIT:
            self._standstill.moved()  # a lag is told as one
            return False
        try:
            examined = await self._examiner.examine(at.swept, at.finalized)
            self._reached("sweep.before_commit")
            committed = await sweeping.conclude(
                self._pool,
                self._chain_id,
                swept=(examined.first, examined.last),
                differences=examined.differences,
                repair=examined.repair,
                rules=self._rules,
                sentence=examined.sentence,
            )
            self._reached("sweep.after_commit")
        except EndpointChanged as error:
            self._standstill.waits(at.swept, str(error))
            log.debug("sweep.tick_repeated", reason=str(error))
            return True
        except SourcesUnsettled as error:
            self._standstill.waits(error.filled_up_to, str(error))
            log.debug("sweep.tick_repeated", reason=str(error))
            return False
        except NoSecondReading as error:
            log.debug("sweep.tick_repeated", reason=str(error))  # which endpoint does not answer is told as such
            return False
        except (BlockUnknown, CursorMoved) as error:
            self._standstill.waits(at.swept, str(error))
            log.debug("sweep.tick_repeated", reason=str(error))
            return False
        self._standstill.moved()
        if examined.differences:
            log.error(
                "sweep.rows_repaired" if committed else "sweep.endpoints_disagree",
                first=examined.first,
                last=examined.last,
                differences=len(examined.differences),
            )
        if committed is not None:
            report(committed, undecodable=0)
        return examined.last < at.finalized

    def troubles(self) -> tuple[str, ...]:
        """That final blocks are not compared though the node answers; a sentence, or none."""
        return self._standstill.troubles()
