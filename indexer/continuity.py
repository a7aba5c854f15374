"""What a branch of headers means for the blocks that we hold.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias


class Linked(Protocol):
    """A block with its place in the chain."""

    @property
    def number(self) -> int:
        """Height."""

    @property
    def hash(self) -> bytes:
        """32 bytes."""

    @property
    def parent_hash(self) -> bytes | None:
        """32 bytes; ``None`` where it was never needed (a final block)."""


@dataclass(frozen=True, slots=True)
class AlreadyHeld:
    """The branch ends in a block that we hold: the node is not ahead of us.  A lower number is not a reorg."""


@dataclass(frozen=True, slots=True)
class NeedsParent:
    """The branch does not reach what we hold; prepend the block with this hash and judge again."""

    block_hash: bytes


@dataclass(frozen=True, slots=True)
class Extends:
    """The branch follows our tip."""


@dataclass(frozen=True, slots=True)
class Reorg:
    """The branch leaves ours after ``ancestor_number``; the blocks above it are orphaned."""

    ancestor_number: int
    ancestor_hash: bytes


@dataclass(frozen=True, slots=True)
class LeavesFinality:
    """The branch leaves ours at or below the lowest block that we hold: finalized history would change."""

    lowest_number: int


Verdict: TypeAlias = AlreadyHeld | NeedsParent | Extends | Reorg | LeavesFinality


def judge(held: Sequence[Linked], branch: Sequence[Linked]) -> Verdict:
    """Compare a branch with what is held.

    Args:
        held: Our canonical blocks, ascending, from the last finalized one (or the first one) to the tip; not empty.
        branch: Headers, ascending, each the parent of the next; not empty.
    """
    first = branch[0]
    if any(block.hash == branch[-1].hash for block in held):
        return AlreadyHeld()
    if first.parent_hash is None:
        raise ValueError("a branch is made of whole headers")
    if first.parent_hash == held[-1].hash:
        return Extends()
    for block in reversed(held):
        if block.hash == first.parent_hash:
            return Reorg(ancestor_number=block.number, ancestor_hash=block.hash)
    if first.number <= held[0].number + 1:
        return LeavesFinality(lowest_number=held[0].number)
    return NeedsParent(first.parent_hash)


def is_linked(headers: Sequence[Linked]) -> bool:
    """Whether each header is the parent of the next one."""
    return all(
        child.parent_hash == parent.hash and child.number == parent.number + 1 for parent, child in pairwise(headers)
    )
