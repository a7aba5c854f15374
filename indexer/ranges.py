"""How many blocks to ask for at once.  Pure.

The first answer tells how dense the chain is, and from then on a range holds about ``LOGS_A_RANGE`` logs.  A refusal
halves it, and after the first one it grows by a quarter only; what a provider's error text suggests is never used for
control (hard cases 22 and 23).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

FIRST_RANGE_BLOCKS: Final = 128
"""What is asked for before anything is known; the answer is small enough even where every block is full of logs."""

LOGS_A_RANGE: Final = 15_000
"""About so many logs are read and committed at once: 11 MB of JSON, 45 MB of memory while they are parsed."""

_LARGEST_STEP: Final = 4
_LATE_DIVISOR: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSize:
    """The size of the next range, at most ``ceiling`` and at least one block."""

    blocks: int
    ceiling: int
    was_refused: bool = False

    @classmethod
    def at_first(cls, ceiling: int) -> RangeSize:
        """Before the first answer."""
        return cls(blocks=min(FIRST_RANGE_BLOCKS, ceiling), ceiling=ceiling)

    def refused(self, blocks: int, *, is_late: bool = False) -> RangeSize:
        """Ask for half of what was refused, and for an eighth of what was not answered in time.

        Each time-out costs half a minute: an endpoint that hangs at any range shall be found out at one block soon.
        """
        divisor = _LATE_DIVISOR if is_late else 2
        return replace(self, blocks=max(1, min(self.blocks, blocks) // divisor), was_refused=True)

    def answered(self, *, blocks: int, logs: int) -> RangeSize:
        """After an answer of ``logs`` logs in ``blocks`` blocks, as many blocks as hold enough of them."""
        grown = self.blocks + max(1, self.blocks // 4) if self.was_refused else self.blocks * _LARGEST_STEP
        enough = blocks * LOGS_A_RANGE // logs if logs else grown
        return replace(self, blocks=max(1, min(self.ceiling, grown, enough)))


def next_range(cursor: int, last: int, size: RangeSize) -> tuple[int, int]:
    """The range that follows ``cursor``, up to ``last``; both ends included.  ``last`` must be above ``cursor``."""
    return cursor + 1, min(last, cursor + size.blocks)
