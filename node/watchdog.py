"""When a chain that answers is in trouble all the same.  Pure: the clock is handed in.

Two things must move: the head, and the finalized block.  A head that stands still is a node that stopped, a half-open
connection or a chain that halted (hard case 28); finality that stands still is the chain's own trouble, and ours is to
hold and to say so (hard case 12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

MISSED_BLOCKS: Final = 10
"""So many usual block times without a new head are a trouble, where the operator did not say otherwise."""

_RISES_TO_CORRECT: Final = 3
_LEAST_HEAD_SECONDS: Final = 60.0
_MOST_HEAD_SECONDS: Final = 1_800.0
_UNKNOWN_BLOCK_SECONDS: Final = 12.0
_WEIGHT: Final = 0.2
_FASTEST_BLOCK_SECONDS: Final = 0.05
_SLOWEST_BLOCK_SECONDS: Final = 120.0
_LAG_SECONDS: Final = 6.0
_LAG_BLOCKS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the operator says.  ``head_seconds`` of ``None`` follows the chain's own pace; 0 switches a watch off.

    ``needs_finalized`` is whether something waits for the chain's own finalized block, and not for a depth.
    """

    head_seconds: float | None = None
    finality_seconds: float = 3_600.0
    needs_finalized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainWatch:
    """What was seen of a chain through any endpoint; times are seconds of the pool's clock.

    ``block_seconds`` is measured on our clock: what a block says about its own time may be made up (hard case 49).
    """

    head: int | None = None
    head_rose_at: float = -math.inf
    block_seconds: float | None = None
    finalized: int | None = None
    finalized_rose_at: float = -math.inf
    # The highest head below ``head`` since that was told last, and how often it has risen.
    lower: int | None = None
    lower_rises: int = 0

    def saw_head(self, number: int, now: float) -> ChainWatch:
        """A head; only one above all others counts, unless the chain goes on below it: then that one never was."""
        if self.head is None:
            return replace(self, head=number, head_rose_at=now)
        if number < self.head:
            return self._saw_lower_head(number, now)
        if number == self.head:
            return replace(self, lower=None, lower_rises=0)
        measured = (now - self.head_rose_at) / (number - self.head)
        measured = min(_SLOWEST_BLOCK_SECONDS, max(_FASTEST_BLOCK_SECONDS, measured))
        known = self.block_seconds
        return replace(
            self,
            head=number,
            head_rose_at=now,
            lower=None,
            lower_rises=0,
            block_seconds=measured if known is None else known + _WEIGHT * (measured - known),
        )

    def _saw_lower_head(self, number: int, now: float) -> ChainWatch:
        """A backend that is behind, or a chain that is followed again after one answer that was made up."""
        if self.lower is None:
            return replace(self, lower=number)
        if number <= self.lower:
            return self
        if self.lower_rises + 1 < _RISES_TO_CORRECT:
            return replace(self, lower=number, lower_rises=self.lower_rises + 1)
        return replace(self, head=number, head_rose_at=now, lower=None, lower_rises=0)

    def saw_finalized(self, number: int, now: float) -> ChainWatch:
        """A finalized block; only one above all others counts."""
        if self.finalized is not None and number <= self.finalized:
            return self
        return replace(self, finalized=number, finalized_rose_at=now)

    def head_limit_seconds(self, limits: Limits) -> float:
        """How long a head may stand still; infinite where nobody wants to know."""
        if limits.head_seconds is not None:
            return limits.head_seconds or math.inf
        usual = MISSED_BLOCKS * (self.block_seconds or _UNKNOWN_BLOCK_SECONDS)
        return min(_MOST_HEAD_SECONDS, max(_LEAST_HEAD_SECONDS, usual))

    def lag_blocks(self) -> int:
        """How far one endpoint may be behind another without being called lagging: seconds, as blocks."""
        return max(_LAG_BLOCKS, math.ceil(_LAG_SECONDS / (self.block_seconds or _UNKNOWN_BLOCK_SECONDS)))

    def troubles(self, limits: Limits, now: float) -> tuple[str, ...]:
        """A sentence for each thing that stands still; none before anything was seen."""
        found = []
        stands_seconds, limit = now - self.head_rose_at, self.head_limit_seconds(limits)
        if self.head is not None and stands_seconds > limit:
            found.append(f"node: no new head after block {self.head} for {stands_seconds:.0f} s (limit {limit:.0f} s)")
        # A chain without new blocks finalizes nothing new: that is one trouble, not two.
        elif self.head is not None and self.finalized is not None and limits.finality_seconds:
            stands_seconds = now - self.finalized_rose_at
            if stands_seconds > limits.finality_seconds and self.head > self.finalized:
                found.append(
                    f"chain: finality has stood at block {self.finalized} for {stands_seconds:.0f} s"
                    f" (limit {limits.finality_seconds:.0f} s); what waits for it is held"
                )
        return tuple(found)
