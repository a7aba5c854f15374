"""What one endpoint can do, learnt from what it answered and refused.  Pure: the clock is handed in.

Providers limit the same protocol in different ways, and say so in different words.  So the words count for nothing
here: what is lacking is what was refused while another way to the same blocks was answered; a batch is too large where
its first question, asked alone, is answered.  Nothing is learnt for ever: after ``RELEARN_SECONDS`` the refused way is
tried once more, and batches are doubled until one is refused again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

MAX_BATCH: Final = 100
"""Questions in one exchange, where nothing else was learnt; the strictest node by default takes as many."""

RELEARN_SECONDS: Final = 600.0
HANG_SECONDS: Final = 120.0
"""A way that hung is passed over for so long, where there is another: long enough for the next tick to take it."""


class Feature(StrEnum):
    """What not every endpoint has; the name that people and machines see."""

    LOGS_BY_TOPIC = "logs_by_topic"  # logs of any contract, without an address
    LOGS_BY_ADDRESS = "logs_by_address"
    LOGS_BY_HASH = "logs_by_hash"  # logs of one block by its hash
    BLOCK_RECEIPTS = "block_receipts"
    FINALIZED_TAG = "finalized_tag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """One endpoint at one moment; times are seconds of the endpoint's clock.

    ``batch_size`` is the most questions in one exchange, ``batch_refused_at`` when more were refused.  ``lacking`` says
    until when a feature is not asked for.  ``answered_blocks`` is the largest range of logs that it answered, and
    ``refused_blocks`` the smallest that it refused and has not answered since.
    """

    batch_size: int = MAX_BATCH
    batch_refused_at: float = -math.inf
    lacking: Mapping[Feature, float] = field(default_factory=dict)
    answered_blocks: int = 0
    refused_blocks: int | None = None

    def has(self, feature: Feature, now: float) -> bool:
        """Whether to ask for it."""
        return now >= self.lacking.get(feature, -math.inf)

    def without(self, feature: Feature, now: float, *, seconds: float = RELEARN_SECONDS) -> Capabilities:
        """It refused this, and answered the same in another way; or this hung."""
        return replace(self, lacking={**self.lacking, feature: now + seconds})

    def having(self, feature: Feature) -> Capabilities:
        """It answered this."""
        if feature not in self.lacking:
            return self
        return replace(self, lacking={each: until for each, until in self.lacking.items() if each is not feature})

    def batch_at(self, now: float) -> int:
        """How many questions to ask in one exchange; some time after a refusal, twice as many as it took."""
        is_due = now - self.batch_refused_at >= RELEARN_SECONDS
        return min(MAX_BATCH, self.batch_size * 2) if is_due else self.batch_size

    def answered_batch(self, questions: int) -> Capabilities:
        """It took a batch of so many."""
        return self if questions <= self.batch_size else replace(self, batch_size=questions)

    def refused_batch(self, questions: int, now: float) -> Capabilities:
        """So many at once are too many."""
        return replace(self, batch_size=max(1, min(self.batch_size, questions // 2)), batch_refused_at=now)

    def answered_range(self, blocks: int) -> Capabilities:
        """It gave the logs of so many blocks at once."""
        if blocks <= self.answered_blocks and self.refused_blocks is None:
            return self  # most answers
        overcome = self.refused_blocks is not None and blocks >= self.refused_blocks
        return replace(
            self,
            answered_blocks=max(blocks, self.answered_blocks),
            refused_blocks=None if overcome else self.refused_blocks,
        )

    def refused_range(self, blocks: int) -> Capabilities:
        """It refused the logs of so many blocks at once."""
        smallest = blocks if self.refused_blocks is None else min(blocks, self.refused_blocks)
        return replace(self, answered_blocks=min(self.answered_blocks, smallest - 1), refused_blocks=smallest)
