"""Read blocks that are final: their logs by range, several ranges in flight, given one after the other.

One reader for the follower that catches up and for ``backfill``.  A final block cannot leave the chain, so an answer by
number is of the one branch there is; the header of each range's first block proves that it follows the range before.

Memory is bounded whatever the range: one range is committed, one is ready, one is prepared, ``READ_AHEAD`` are in
flight, and nothing is asked for before there is room.  So a slow database slows the reading down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from datastore.rows import Block
from indexer.observation import Sources
from indexer.ranges import RangeSize, next_range
from node.blocks import Header, Log
from node.errors import NodeAnswerInvalid, RangeRefused
from node.node import Node

T = TypeVar("T")

READ_AHEAD: Final = 2
RANGES_A_TURN: Final = 16
"""Bounds a turn, so that a process which shall stop need not wait for the whole chain."""


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

    def timestamp_by_block(self) -> dict[int, int]:
        """The time of each block that holds a log."""
        return {block.number: block.timestamp for block in self.blocks}


Next: TypeAlias = Callable[[], Awaitable[FinalRange | None]]
"""Gives the next range, in order; ``None`` after the last one."""


class FinalZone:
    """Reads final ranges, as large as their logs and the node allow."""

    def __init__(self, node: Node, sources: Sources, *, max_range_blocks: int) -> None:
        self._node = node
        self._filters = sources.filters()
        self._size = RangeSize.at_first(max_range_blocks)
        self._is_tuned = False

    @asynccontextmanager
    async def reading(self, after: int, up_to: int) -> AsyncIterator[Next]:
        """Read the blocks above ``after`` up to ``up_to``, which must be final.

        What is given raises:
            NodeUnavailable: Begin again.
            NodeAnswerInvalid: The answers contradict each other; begin again.
            BlockUnknown: The node is behind its own word; begin again.
        """
        ahead: deque[tuple[int, int, asyncio.Task[FinalRange]]] = deque()
        loop = asyncio.get_running_loop()
        asked = after

        def ask() -> None:
            nonlocal asked
            while asked < up_to and len(ahead) < (READ_AHEAD if self._is_tuned else 1):
                first, last = next_range(asked, up_to, self._size)
                # Not a part's own task: it ends with this block.
                ahead.append((first, last, loop.create_task(self._read(first, last))))
                asked = last

        async def drop() -> None:
            for _, _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in ahead), return_exceptions=True)
            ahead.clear()

        async def give() -> FinalRange | None:
            nonlocal asked
            while True:
                ask()
                if not ahead:
                    return None
                first, last, task = ahead[0]
                try:
                    read = await task
                except RangeRefused:
                    self._size, self._is_tuned = self._size.refused(), False
                    await drop()
                    asked = first - 1
                    continue
                ahead.popleft()
                self._size = self._size.answered(blocks=last - first + 1, logs=len(read.logs))
                self._is_tuned = True
                ask()
                return read

        try:
            yield give
        finally:
            await drop()

    async def _read(self, first: int, last: int) -> FinalRange:
        headers = await self._node.headers_by_number(sorted({first, last}))
        try:
            logs = await self._node.logs_in_range(first, last, self._filters)
        except RangeRefused:
            if first < last:
                raise
            logs = await self._node.logs_in_block(headers[first].hash, self._filters)
        known = dict(headers)
        missing = sorted({entry.block_number for entry in logs if entry.block_timestamp is None} - set(known))
        if missing:
            known |= await self._node.headers_by_number(missing)
        return FinalRange(
            first=first, parent_hash=headers[first].parent_hash, blocks=_blocks(known, logs, last), logs=logs
        )


async def overlapped(
    prepare: Callable[[], Awaitable[T | None]], commit: Callable[[T], Awaitable[None]], *, turns: int = RANGES_A_TURN
) -> None:
    """Prepare what follows while the database commits what is prepared: each at most ``turns`` times, in order.

    What either raises is raised, after both have ended.  ``None`` is the end of what can be prepared.
    """
    ready: asyncio.Queue[T | Exception | None] = asyncio.Queue(maxsize=1)

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
        await ready.put(None)

    preparing = asyncio.get_running_loop().create_task(prepare_all())  # not a part's own task: it ends in here
    try:
        while (prepared := await ready.get()) is not None:
            if isinstance(prepared, Exception):
                raise prepared
            await commit(prepared)
    finally:
        preparing.cancel()
        await asyncio.gather(preparing, return_exceptions=True)


def _blocks(known: dict[int, Header], logs: Sequence[Log], last: int) -> list[Block]:
    """The blocks to store, checked against their logs."""
    blocks: dict[int, Block] = {}
    for entry in logs:
        if entry.block_number in blocks:
            continue  # its logs name one hash: the answer was checked for that
        header = known.get(entry.block_number)
        if header is None:
            blocks[entry.block_number] = Block(
                number=entry.block_number,
                hash=entry.block_hash,
                parent_hash=None,
                timestamp=entry.block_timestamp or 0,  # known: who does not tell it was asked for the header
            )
        elif header.hash == entry.block_hash:
            blocks[entry.block_number] = stored(header)
        else:
            raise contradiction(f"a log of block {entry.block_number} names another block hash than its header")
    blocks[last] = stored(known[last])
    return [blocks[number] for number in sorted(blocks)]


def stored(header: Header) -> Block:
    """A header as a row."""
    return Block(number=header.number, hash=header.hash, parent_hash=header.parent_hash, timestamp=header.timestamp)


def contradiction(reason: str) -> NodeAnswerInvalid:
    """Several answers that cannot all be true."""
    return NodeAnswerInvalid("node", "several answers", reason)
