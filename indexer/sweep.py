"""Read what is final a second time, and make the rows right where they are not (ADRs 5 and 11).

A node may give an answer that is short, or of another block, and look in order: near the head a bloom may tell, in the
final zone nothing does.  So each final block is read again and compared with the rows, from two endpoints where there
are several: which of them the rows are from is not known any more, but not from both.

A difference is settled by the receipts of the block itself, from every endpoint that keeps it.  An absence is proven,
never taken from an answer: receipts count only where they are those of all transactions of the header and explain its
bloom.  What is missing is added if one endpoint proves it and none disproves it.  What the rows have too much is taken
from them only if every endpoint proves that it is not there, and there are two.  So one that shows the row has a veto,
and one that cannot prove what it leaves out has one, too.  Otherwise the rows stay as they are, and an alarm says why.

A request that is found late was final before it was found: it is judged at once, as any other, and held where the
settings say to hold blocks of its age.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import structlog

from datastore import factories, following, pinning, sweeping
from datastore.connection import Pool
from datastore.errors import CursorMoved
from datastore.following import Position, Rules
from datastore.rows import Batch, Block, Difference, Finality, Kind
from indexer.differences import Word, compare, is_confirmed, is_settled, of_places
from indexer.final_zone import FinalRange, FinalZone
from indexer.follower import BLOCKS_A_COMMIT, FinalityRule, Reached, deepest, report
from indexer.forks import denial
from indexer.observation import Observation, Observed, Sources
from indexer.standstill import Standstill
from node.blocks import Log
from node.errors import BlockUnknown, EndpointChanged, HistoryPruned
from node.node import Node

log = structlog.get_logger(__name__)

MOST_DIFFERING_BLOCKS = 32
"""Looked at again in one go; a range with more of them is cut before the next one."""

_PROVEN: Final = frozenset({Word.CONFIRMS, Word.DENIES})


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

    ``repair`` is what the chain says of every difference; ``None`` where that is not settled.  ``readers`` are the
    endpoints whose answers differ from the rows, ``words`` what each endpoint says to the last block that differs.
    """

    first: int
    last: int
    differences: tuple[Difference, ...]
    repair: Batch | None
    readers: tuple[str, ...] = ()
    words: Mapping[str, Word] = field(default_factory=dict)

    def saying(self, word: Word) -> tuple[str, ...]:
        """The names of the endpoints that say this."""
        return tuple(sorted(name for name, said in self.words.items() if said is word))

    @property
    def sentence(self) -> str:
        """Which endpoint said what, for the alarm."""
        said = f"Endpoint {' and '.join(self.readers)} says so"
        if self.repair is not None:
            return f"{said}, endpoint {', '.join(self.saying(Word.CONFIRMS))} proves it; the rows were repaired."
        if denying := self.saying(Word.DENIES):
            said += f"; endpoint {', '.join(denying)} does not"
        if unproven := self.saying(Word.PROVES_NOTHING):
            said += f"; endpoint {', '.join(unproven)} cannot prove that it gives all receipts"
        if silent := self.saying(Word.IS_SILENT):
            said += f"; endpoint {', '.join(silent)} cannot be asked"
        if len(self.words) == 1 and not (denying or unproven):
            said += " and said otherwise before, and there is no other to ask"
        return (
            f"{said}; the rows stay as they are.  Leave only endpoints that keep these blocks in BSKT_RPC_URL, "
            f"then run `bskt verify --blocks {self.first}:{self.last} --repair`."
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
            return Examined(first=first, last=last, differences=(), repair=None)
        examined = [await self._weighed(position, each, first, last, by_hand=by_hand) for each in telling]
        silent = {name for each in examined for name in each.saying(Word.IS_SILENT)}
        if not by_hand and any(each.reader in silent for each in readings):
            # It may have said otherwise a moment ago: its silence confirms nothing.
            raise NoSecondReading("an endpoint that was read cannot be asked about the differences any more")
        if (settled := believed(examined)) is not None:
            return settled
        return Examined(
            first=first,
            last=last,
            differences=tuple(dict.fromkeys(difference for each in telling for difference in each.found)),
            repair=None,
            readers=tuple(each.reader for each in telling),
            words={name: word for each in examined for name, word in each.words.items() if word is not Word.CONFIRMS},
        )

    async def require_final(self) -> None:
        """Let two endpoints, where so many answer, show the newest final block as it is stored: so are all before it.

        Raises:
            NodeUnavailable, BlockUnknown: Call again; nothing is known.
            NoSecondReading: An endpoint denied it, and only one shows it.  Call again.
            DatastoreUnavailable: Call again.
            FinalityViolated: The chain is not the one that was indexed; do not call again.
        """
        position = await following.position(self._pool, self._sources.chain_id)
        asked = None
        for _ in range(2):
            final = max(position.finalized, 0)
            async with self._node.second_opinion(than=asked, reaching=final, from_block=final) as session:
                if session.node.endpoint_name == asked:
                    if denied_by := self._node.on_other_fork:
                        raise NoSecondReading(
                            f"endpoint {asked} shows our final block, {', '.join(denied_by)} denies it"
                        )
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
        newest = await sweeping.newest_block(self._pool, self._sources.chain_id, up_to=deepest(position))
        if newest is not None and (await node.header_by_number(newest.number)).hash != newest.hash:
            raise await denial(self._pool, self._sources.chain_id, node, up_to=newest.number)

    async def _weighed(
        self, position: Position, reading: _Reading, first: int, last: int, *, by_hand: bool
    ) -> Examined:
        """The differences of a reading, up to the first block about which the endpoints do not settle them."""
        numbers = sorted({difference.block_number for difference in reading.found})
        if len(numbers) > MOST_DIFFERING_BLOCKS:
            last = numbers[MOST_DIFFERING_BLOCKS] - 1
        found = reading.up_to(last).found
        words = await self._words(reading, found, last)
        taken = {difference.block_number for difference in found if difference.kind is not Kind.MISSING}
        said = {d.block_number: {name: word[d.block_number] for name, word in words.items()} for d in found}
        unsettled = (
            number for number in said if not is_settled(said[number].values(), takes=number in taken, by_hand=by_hand)
        )
        disputed = min(unsettled, default=None)
        if disputed is not None:
            # What is before it is beyond dispute; the next look begins with it.
            last = disputed - 1 if disputed > first else disputed
        differences = tuple(difference for difference in found if difference.block_number <= last)
        is_repairable = disputed is None or last < disputed
        batch = self._batch(position, reading.read.blocks, of_places(reading.observed, differences), differences)
        return Examined(
            first=first,
            last=last,
            differences=differences,
            repair=batch if differences and is_repairable else None,
            readers=(reading.reader,),
            words=said.get(max((d.block_number for d in differences), default=disputed or last), {}),
        )

    async def _words(self, reading: _Reading, found: Sequence[Difference], last: int) -> dict[str, dict[int, Word]]:
        """What each endpoint that keeps these blocks says to the differences of each, by receipts and header.

        The reader itself is asked last, and not where only something is added and another one can prove or refute that.
        """
        numbers = sorted({difference.block_number for difference in found})
        takes = any(difference.kind is not Kind.MISSING for difference in found)
        words: dict[str, dict[int, Word]] = {}
        names = dict.fromkeys((*self._node.keepers(numbers[0]), reading.reader)) if numbers else ()
        for name in sorted(names, key=lambda each: each == reading.reader):
            proven = [all(word[number] in _PROVEN for number in numbers) for word in words.values()]
            if name == reading.reader and not takes and any(proven):
                break
            async with self._node.opinion_of(name, reaching=last, from_block=numbers[0]) as session:
                words[name] = (
                    dict.fromkeys(numbers, Word.IS_SILENT)
                    if session is None
                    else {number: word async for number, word in _said(session.node, reading, found, numbers)}
                )
        return words

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


async def _said(
    node: Node, reading: _Reading, found: Sequence[Difference], numbers: Sequence[int]
) -> AsyncIterator[tuple[int, Word]]:
    """What one endpoint says to the differences of each block."""
    told_logs = {(row.block_hash, row.log_index): row for row in reading.observed.logs}
    times = reading.read.timestamp_by_block()
    headers = await node.headers_by_number(numbers)
    for number in numbers:
        header, differences = headers[number], [d for d in found if d.block_number == number]
        logs: Sequence[Log] | None = ()
        if header.hash == reading.hash_by_number[number] and any(d.log_index is not None for d in differences):
            logs = await node.proven_logs(header)
        if logs is None:
            yield number, Word.PROVES_NOTHING
            continue
        is_so = all(
            is_confirmed(
                difference,
                told_logs,
                (reading.hash_by_number[number], times.get(number)),
                second_block=(header.hash, header.timestamp),
                second_logs=logs,
            )
            for difference in differences
        )
        yield number, Word.CONFIRMS if is_so else Word.DENIES


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
        """Sweep the next range of what is final, and prune; ``True`` if there is more to do at once.

        Raises:
            NodeUnavailable, BlockUnknown: Nothing was compared; call again.
            DatastoreUnavailable: Nothing is known to be written; call again.
            FinalityViolated: Nothing was compared; do not call again.
        """
        # First, so that it goes on while the node is away; a step is short.
        is_more = await sweeping.prune(self._pool, self._chain_id)
        return await self._compare_next() or is_more

    async def _compare_next(self) -> bool:
        """Compare the next range; ``True`` if there is another one.

        While the follower has blocks to catch up with, it has the node for itself.
        """
        at = await sweeping.position(self._pool, self._chain_id)
        try:
            if self._halted_at is not None:
                await self._examiner.require_final()
                await pinning.clear_halt(self._pool, self._chain_id, self._halted_at)
                self._halted_at = None
            if at.swept >= at.finalized or at.head - at.cursor > BLOCKS_A_COMMIT:
                self._standstill.moved()  # a lag is told as one
                return False
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
            self._standstill.waits(at.swept, str(error))
            log.debug("sweep.tick_repeated", reason=str(error))
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
