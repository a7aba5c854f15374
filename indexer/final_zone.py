"""Read blocks that are final: their logs by range, several ranges in flight, given one after the other.

One reader for the follower that catches up and for ``backfill``.  A final block cannot leave the chain, so an answer by
number is of the one branch there is; the header of each range's first block proves that it follows the range before.

Memory is bounded whatever the range: one range is committed, one is ready, one is prepared, ``READ_AHEAD`` are in
flight, and nothing is asked for before there is room.  So a slow database slows the reading down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

from datastore.rows import Block, BlockRef
from indexer.filters import by_address_is_cheaper
from indexer.observation import Observation, Sources
from indexer.ranges import RangeSize, next_range
from node.blocks import Header, Log, merge_logs
from node.errors import NodeAnswerInvalid, NodeRefused, RangeLate, RangeRefused
from node.inconsistency import Inconsistency
from node.node import DEFAULT_MAX_FILTER_ADDRESSES, Node
from node.refusals import Refusal

T = TypeVar("T")

READ_AHEAD: Final = 2
LOGS_A_SLICE: Final = 100
RANGES_A_TURN: Final = 16
"""Bounds a turn, so that a process which shall stop need not wait for the whole chain."""

TURN_SECONDS: Final = 120.0
"""A turn ends after so long, with what it has prepared: a slow endpoint must not look like a part that stands still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalRange:
    """What was read of the blocks from ``first`` to the last of ``blocks``.

    ``parent_hash`` is the first block's.  ``blocks`` are those to store, ascending: each that holds a log, and the
    last.  ``logs`` are in chain order.
    """

    first: int
    parent_hash: bytes
    blocks: Sequence[Block]
    logs: Sequence[Log]

    @property
    def parent(self) -> BlockRef:
        """The block before the first one."""
        return BlockRef(number=self.first - 1, hash=self.parent_hash)

    @property
    def last(self) -> BlockRef:
        """The last block."""
        return BlockRef(number=self.blocks[-1].number, hash=self.blocks[-1].hash)

    def timestamp_by_block(self) -> dict[int, int]:
        """The time of each block that holds a log."""
        return {block.number: block.timestamp for block in self.blocks}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRange:
    """A range and what it says; ``observation`` goes on where the range before ended."""

    read: FinalRange
    observation: Observation


Next: TypeAlias = Callable[[], Awaitable[ObservedRange | None]]
"""Gives the next range, in order; ``None`` after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a node said of the blocks ``first`` to ``last``; of these baskets only, or (``None``) of everybody."""

    first: int
    last: int
    headers: dict[int, Header]
    logs: Sequence[Log]
    baskets: Mapping[bytes, bytes] | None


class FinalZone:
    """Reads final ranges, as large as their logs and the node allow; each of one endpoint."""

    def __init__(self, *, max_range_blocks: int) -> None:
        self._size = RangeSize.at_first(max_range_blocks)
        self._is_tuned = False
        self._foreign_logs = 0

    async def read(
        self,
        node: Node,
        sources: Sources,
        after: int,
        up_to: int,
        *,
        head: Header,
        consumer_by_token: Mapping[bytes, bytes],
    ) -> FinalRange:
        """The range that follows block ``after`` and ends at ``up_to`` at the latest, which must be final.

        ``node`` should be one endpoint's, and ``head`` its newest block: headers and logs must fit together.  The last
        block is the anchor of what follows, and final once it is stored, so it is not taken from a single answer: the
        block after it must name it as its parent (a server behind the endpoint may be on another branch, hard case 26).
        ``consumer_by_token`` has the baskets that were announced up to ``after`` by any factory of ``sources``.

        Raises:
            NodeUnavailable: Call again.
            NodeAnswerInvalid: The answers contradict each other; call again.
            BlockUnknown: The node is behind its own word; call again.
        """
        while True:
            first, last = next_range(after, up_to, self._size)
            try:
                answer = await _ask(
                    node,
                    sources,
                    first,
                    last,
                    head=head,
                    known=consumer_by_token,
                    address_first=False,
                    with_first=True,
                )
            except RangeRefused as refused:
                self._refused(first, last, refused)
            else:
                self._size = self._size.answered(blocks=last - first + 1, logs=len(answer.logs))
                return await _whole(node, sources, answer, answer.logs)

    @asynccontextmanager
    async def reading(
        self,
        node: Node,
        sources: Sources,
        after: int,
        up_to: int,
        *,
        head: Header,
        consumer_by_token: Mapping[bytes, bytes],
        up_to_hash: bytes | None = None,
    ) -> AsyncIterator[Next]:
        """Read the blocks above ``after`` up to ``up_to``, which must be final, several ranges ahead.

        Args:
            node: Of one endpoint, as with ``read``.
            sources: Who is believed.
            after: The block before the first one.
            up_to: The last block; above ``after``, or there is nothing to read.
            head: The endpoint's newest block, as with ``read``.
            consumer_by_token: The baskets that were announced up to ``after``.
            up_to_hash: Of the last block, where it is known: what is read must be of its branch.

        What is given raises what ``read`` does; begin again then.
        """
        ahead: deque[tuple[int, int, asyncio.Task[_Answer]]] = deque()
        loop = asyncio.get_running_loop()
        asked, known = after, consumer_by_token
        final = None if up_to_hash is None else BlockRef(number=up_to, hash=up_to_hash)
        told_with: dict[int, Header] = {}  # the first block of a range is told with the range before
        self._foreign_logs = 0  # strangers may have stopped: each reading begins by topic

        def ask() -> None:
            nonlocal asked
            while asked < up_to and len(ahead) < (READ_AHEAD if self._is_tuned else 1):
                first, last = next_range(asked, up_to, self._size)
                is_cheaper = by_address_is_cheaper(
                    baskets=len(known),
                    foreign_logs=self._foreign_logs,
                    max_filter_addresses=DEFAULT_MAX_FILTER_ADDRESSES,
                )
                # Not a part's own task: it ends with this reading.
                asking = _ask(
                    node,
                    sources,
                    first,
                    last,
                    head=head,
                    known=known,
                    address_first=is_cheaper,
                    with_first=asked == after,
                    final=final,
                )
                ahead.append((first, last, loop.create_task(asking)))
                asked = last

        async def drop() -> None:
            for *_, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for *_, task in ahead), return_exceptions=True)
            ahead.clear()

        async def give() -> ObservedRange | None:
            nonlocal asked, known, told_with
            while True:
                ask()
                if not ahead:
                    return None
                first, last, task = ahead[0]
                try:
                    with self._slowed_down():
                        answer = await task
                        ahead.popleft()
                        self._size = self._size.answered(blocks=answer.last - first + 1, logs=len(answer.logs))
                        self._is_tuned = True
                        ask()
                        logs = await _with_born(node, sources, answer, known)
                        read = await _whole(node, sources, replace(answer, headers=answer.headers | told_with), logs)
                except RangeRefused as refused:
                    self._refused(first, last, refused)
                    await drop()
                    asked = first - 1
                    continue
                told_with = {number: header for number, header in answer.headers.items() if number == answer.last + 1}
                observation = await _observed(sources, read, known)
                if answer.baskets is None:
                    self._foreign_logs = observation.observed.foreign.total()
                known = observation.consumer_by_token
                return ObservedRange(read=read, observation=observation)

        try:
            yield give
        finally:
            await drop()

    def _refused(self, first: int, last: int, refused: RangeRefused) -> None:
        self._size = self._size.refused(last - first + 1, is_late=isinstance(refused, RangeLate))
        self._is_tuned = False

    @contextmanager
    def _slowed_down(self) -> Iterator[None]:
        """A range may need more questions than are allowed at once: after such a refusal, ask for fewer blocks."""
        try:
            yield
        except NodeRefused as refused:
            if refused.refusal is Refusal.RATE_LIMITED:
                self._size = self._size.refused(self._size.blocks)
            raise


async def _ask(
    node: Node,
    sources: Sources,
    first: int,
    last: int,
    *,
    head: Header,
    known: Mapping[bytes, bytes],
    address_first: bool,
    with_first: bool,
    final: BlockRef | None = None,
) -> _Answer:
    wanted = {last, min(last + 1, head.number)} | ({first} if with_first else set())
    if with_first and final is not None:
        wanted.add(final.number)  # before the first block is called final, not after the last one
    headers = await node.headers_by_number(sorted(wanted))
    _require_anchor(node, headers, last, head)
    if final is not None and final.number in headers and headers[final.number].hash != final.hash:
        raise contradiction(node, f"the finalized block {final.number} is not on the branch that is told by number")
    answer = await node.final_logs(
        first,
        last,
        sources.filters(),
        sources.by_address(known),
        last_hash=headers[last].hash,
        address_first=address_first,
    )
    return _Answer(
        first=first,
        last=last,
        headers=headers,
        logs=answer.logs,
        baskets=known if answer.of_known_only else None,
    )


async def _observed(sources: Sources, read: FinalRange, known: Mapping[bytes, bytes]) -> Observation:
    observation = Observation(sources, known)
    timestamp_by_block = read.timestamp_by_block()
    for start in range(0, len(read.logs), LOGS_A_SLICE):
        observation.read(read.logs[start : start + LOGS_A_SLICE], timestamp_by_block)
        # Whatever else is ready, above all the commit of the range before, goes first.
        await asyncio.sleep(0)  # noqa: TID251 - gives way, does not wait
    return observation


async def _with_born(node: Node, sources: Sources, answer: _Answer, known: Mapping[bytes, bytes]) -> Sequence[Log]:
    """The answer's logs, and those of the baskets that were made between it and the range that was read before."""
    asked = answer.baskets or {}
    born = {token: consumer for token, consumer in known.items() if token not in asked}
    if answer.baskets is None or not born:
        return answer.logs
    more = await node.logs_in_range(answer.first, answer.last, sources.filters_of(born))
    return merge_logs((tuple(answer.logs), more))


def _require_anchor(node: Node, headers: Mapping[int, Header], last: int, head: Header) -> None:
    """Check the last block of a range against what is above it."""
    named = headers[last + 1].parent_hash if last < head.number else head.hash
    if headers[last].hash != named:
        raise contradiction(node, f"block {last} is not the one that the chain above it is built on")


async def _whole(node: Node, sources: Sources, answer: _Answer, logs: Sequence[Log]) -> FinalRange:
    """The answer with the time of each of its blocks: of one with a request by its header, for the payload says it.

    A stranger's request costs its block's header, too: at most one a block, asked in one batch for the range.
    """
    headers, requests = answer.headers, sources.catalog.mint_requested_topics0
    missing = sorted(
        {log.block_number for log in logs if log.block_timestamp is None or (log.topics and log.topics[0] in requests)}
        - set(headers)
    )
    if missing:
        headers = {**headers, **await node.headers_by_number(missing)}
    return FinalRange(
        first=answer.first,
        parent_hash=headers[answer.first].parent_hash,
        blocks=_blocks(node, headers, logs, answer.last),
        logs=logs,
    )


async def overlapped(
    prepare: Callable[[], Awaitable[T | None]], commit: Callable[[T], Awaitable[None]], *, turns: int = RANGES_A_TURN
) -> None:
    """Prepare what follows while the database commits what is prepared: each at most ``turns`` times, in order.

    Nothing more is begun after ``TURN_SECONDS``.

    What either raises is raised, after both have ended.  ``None`` is the end of what can be prepared.
    """
    ready: asyncio.Queue[T | Exception | None] = asyncio.Queue(maxsize=1)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def prepare_all() -> None:
        for _ in range(turns):
            prepared: T | Exception | None
            try:
                prepared = await prepare()
            except Exception as error:  # noqa: BLE001 - raised below, in its turn
                prepared = error
            await ready.put(prepared)
            if prepared is None or isinstance(prepared, Exception):
                return
            if loop.time() - began > TURN_SECONDS:
                break
        await ready.put(None)

    preparing = loop.create_task(prepare_all())  # not a part's own task: it ends in here
    try:
        while (prepared := await ready.get()) is not None:
            if isinstance(prepared, Exception):
                raise prepared
            await commit(prepared)
    finally:
        preparing.cancel()
        await asyncio.gather(preparing, return_exceptions=True)


def _blocks(node: Node, known: Mapping[int, Header], logs: Sequence[Log], last: int) -> list[Block]:
    """The blocks to store, checked against their logs."""
    blocks: dict[int, Block] = {}
    for entry in logs:
        block = blocks.get(entry.block_number)  # its logs name one hash: the answer was checked for that
        if block is None:
            block = blocks[entry.block_number] = _block_of(node, entry, known.get(entry.block_number))
        if entry.block_timestamp not in {None, block.timestamp}:
            raise node.contradiction(
                Inconsistency.BLOCK_TIME, f"a log of block {entry.block_number} names another time"
            )
    blocks[last] = stored(known[last])
    if len({block.hash for block in blocks.values()}) < len(blocks):
        raise contradiction(node, "one hash is told of blocks at two heights")
    return [blocks[number] for number in sorted(blocks)]


def _block_of(node: Node, entry: Log, header: Header | None) -> Block:
    if header is None:
        return Block(
            number=entry.block_number,
            hash=entry.block_hash,
            parent_hash=None,
            timestamp=entry.block_timestamp or 0,  # never 0: for a log that names no time the header was asked for
        )
    if header.hash != entry.block_hash:
        raise contradiction(node, f"a log of block {entry.block_number} names another block hash than its header")
    return stored(header)


def stored(header: Header) -> Block:
    """A header as a row."""
    return Block(number=header.number, hash=header.hash, parent_hash=header.parent_hash, timestamp=header.timestamp)


def contradiction(node: Node, reason: str) -> NodeAnswerInvalid:
    """Several answers of a session's endpoint that cannot all be true."""
    return node.contradiction(Inconsistency.OTHER_BLOCK, reason)
