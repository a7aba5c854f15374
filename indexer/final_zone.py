"""Read blocks that are final: their logs by range, and of their headers only what the rows need.

One reader for the follower that catches up and for ``backfill``.  A final block cannot leave the chain, so an answer by
number is of the one branch there is; the last header of each range is stored as the anchor of the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datastore.rows import Block
from indexer.observation import Sources
from indexer.ranges import RangeSize, next_range
from node.blocks import Header, Log
from node.errors import NodeAnswerInvalid, RangeRefused
from node.inconsistency import Inconsistency
from node.node import Node


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


class FinalZone:
    """Reads final ranges, as large as the node lets us; each of one endpoint."""

    def __init__(self, sources: Sources, *, max_range_blocks: int) -> None:
        self._filters = sources.filters()
        self._size = RangeSize(blocks=max_range_blocks, ceiling=max_range_blocks)

    async def read(self, node: Node, after: int, up_to: int, *, head: Header) -> FinalRange:
        """The range that follows block ``after`` and ends at ``up_to`` at the latest, which must be final.

        ``node`` should be one endpoint's, and ``head`` its newest block: headers and logs must fit together.  The last
        block is the anchor of what follows, and final once it is stored, so it is not taken from a single answer: the
        block after it must name it as its parent (a server behind the endpoint may be on another branch, hard case 26).

        Raises:
            NodeUnavailable: Call again.
            NodeAnswerInvalid: The answers contradict each other; call again.
            BlockUnknown: The node is behind its own word; call again.
        """
        while True:
            first, last = next_range(after, up_to, self._size)
            headers = await node.headers_by_number(sorted({first, last, min(last + 1, head.number)}))
            _require_anchor(headers, last, head)
            try:
                logs = await node.logs_in_range(first, last, self._filters)
            except RangeRefused:
                if first < last:
                    self._size = self._size.refused()
                    continue
                logs = await node.logs_in_block(headers[first].hash, self._filters)
            self._size = self._size.answered()
            known = dict(headers)
            missing = sorted({entry.block_number for entry in logs if entry.block_timestamp is None} - set(known))
            if missing:
                known |= await node.headers_by_number(missing)
            return FinalRange(
                first=first, parent_hash=headers[first].parent_hash, blocks=_blocks(known, logs, last), logs=logs
            )


def _require_anchor(headers: Mapping[int, Header], last: int, head: Header) -> None:
    """Check the last block of a range against what is above it."""
    named = headers[last + 1].parent_hash if last < head.number else head.hash
    if headers[last].hash != named:
        raise _contradiction(f"block {last} is not the one that the chain above it is built on")


def _contradiction(reason: str) -> NodeAnswerInvalid:
    return NodeAnswerInvalid("node", "several answers", reason, kind=Inconsistency.OTHER_BLOCK)


def _blocks(known: dict[int, Header], logs: Sequence[Log], last: int) -> list[Block]:
    """The blocks to store, checked against their logs."""
    blocks: dict[int, Block] = {}
    for entry in logs:
        header = known.get(entry.block_number)
        if header is not None and header.hash != entry.block_hash:
            raise _contradiction(f"a log of block {entry.block_number} names another block hash than its header")
        if entry.block_number in blocks:
            continue
        if header is not None:
            blocks[header.number] = stored(header)
        elif entry.block_timestamp is not None:
            blocks[entry.block_number] = Block(
                number=entry.block_number,
                hash=entry.block_hash,
                parent_hash=None,
                timestamp=entry.block_timestamp,
            )
    blocks[last] = stored(known[last])
    return [blocks[number] for number in sorted(blocks)]


def stored(header: Header) -> Block:
    """A header as a row."""
    return Block(number=header.number, hash=header.hash, parent_hash=header.parent_hash, timestamp=header.timestamp)
