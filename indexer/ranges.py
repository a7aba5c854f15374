"""How many blocks to ask for at once.  Pure.

A refusal halves the range, an answer lets it grow again; what a provider's error text suggests is never used for
control (hard cases 22 and 23).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSize:
    """The size of the next range, at most ``ceiling`` and at least one block."""

    blocks: int
    ceiling: int

    def refused(self) -> RangeSize:
        """Ask for half."""
        return RangeSize(blocks=max(1, self.blocks // 2), ceiling=self.ceiling)

    def answered(self) -> RangeSize:
        """Grow by a quarter, at least by one block."""
        return RangeSize(blocks=min(self.ceiling, self.blocks + max(1, self.blocks // 4)), ceiling=self.ceiling)


def next_range(cursor: int, last: int, size: RangeSize) -> tuple[int, int]:
    """The range that follows ``cursor``, up to ``last``; both ends included.  ``last`` must be above ``cursor``."""
    return cursor + 1, min(last, cursor + size.blocks)
