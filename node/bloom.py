"""The bloom of a header, as evidence of which logs its block has.  Pure (Yellow Paper, section 4.3.1).

A true bloom may say "maybe" without reason, never "no" without reason.  Some chains and proxies leave it empty, or
full: so it counts as evidence only after it has proven itself, and never again after it was caught.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from eth_hash.auto import keccak

from node.blocks import BLOOM_BYTES, Log, LogFilter

BLOCKS_TO_PROVE: Final = 3
"""Blocks with logs whose bloom was exactly that of all their logs."""

BLOCKS_A_FALSE_HIT: Final = 4
"""Read near the head, they pay for the receipts of one block whose bloom admitted what it does not have."""
MOST_FALSE_HITS: Final = 16
"""In a row, before the answer stands and the sweep after finality looks again."""

_BLOOM_BITS: Final = 8 * BLOOM_BYTES
_FULL: Final = b"\xff" * BLOOM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class BloomTrust:
    """Whether the blooms of one endpoint are evidence."""

    proofs: int = 0
    was_caught: bool = False
    credit: int = BLOCKS_A_FALSE_HIT * MOST_FALSE_HITS
    """In blocks.  True hits cost none, so what an endpoint leaves out is looked for as long as it leaves it out."""

    @property
    def is_proven(self) -> bool:
        """Its "no" needs no question, and its "maybe" needs an answer."""
        return not self.was_caught and self.proofs >= BLOCKS_TO_PROVE

    @property
    def is_on_trial(self) -> bool:
        """It is worth comparing whole blocks."""
        return not self.was_caught and self.proofs < BLOCKS_TO_PROVE

    @property
    def is_worth_receipts(self) -> bool:
        """Its "maybe" was not wrong too often of late."""
        return self.credit >= BLOCKS_A_FALSE_HIT

    def read_block(self) -> BloomTrust:
        """A block near the head is read by it."""
        return replace(self, credit=min(self.credit + 1, BLOCKS_A_FALSE_HIT * MOST_FALSE_HITS))

    def was_wrong(self) -> BloomTrust:
        """Receipts were asked for, and the answer was right without them."""
        return replace(self, credit=self.credit - BLOCKS_A_FALSE_HIT)

    def agreed(self) -> BloomTrust:
        """A block with logs had exactly their bloom."""
        return replace(self, proofs=self.proofs + 1)

    def caught(self) -> BloomTrust:
        """A block has a log that its bloom denies, or a bloom that its logs do not make."""
        return replace(self, was_caught=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Logs whose absence receipts must prove, where a bloom admits them and the answer has none.

    Attributes:
        wanted: The logs.
        beside: Other logs that a block with them always has.  The more values a guess names, the rarer it is wrong.
    """

    wanted: LogFilter
    beside: tuple[LogFilter, ...] = ()

    def is_open(self, bloom: bytes, logs: Iterable[Log]) -> bool:
        """Whether the bloom admits such a log, and ``logs`` have none."""
        return all(bloom_admits(bloom, each) for each in (self.wanted, *self.beside)) and not any(
            self.wanted.matches(log) for log in logs
        )


def bloom_contains(bloom: bytes, value: bytes) -> bool:
    """Whether a block's bloom admits ``value``, an address or a topic; it may be wrong only by saying yes."""
    return all(bloom[position] & mask for position, mask in _bloom_bits(value))


def bloom_admits(bloom: bytes, wanted: LogFilter) -> bool:
    """Whether a block with this bloom may have a log that matches ``wanted``."""
    return (not wanted.addresses or any(bloom_contains(bloom, address) for address in wanted.addresses)) and all(
        position is None or any(bloom_contains(bloom, topic) for topic in position) for position in wanted.topics
    )


def bloom_admits_log(bloom: bytes, log: Log) -> bool:
    """Whether a block with this bloom may have this log."""
    return all(bloom_contains(bloom, value) for value in (log.address, *log.topics))


def bloom_is_explained(bloom: bytes, logs: Iterable[Log]) -> bool:
    """Whether these logs set every bit of a block's bloom, so that none of it speaks for a log that is not among them.

    A full bloom speaks for nothing.  That logs set more bits than the block's bloom has is no lack of logs: those of
    some chains' system transactions are not in it.
    """
    unexplained = int.from_bytes(bloom) & ~int.from_bytes(bloom_of(logs))
    return not unexplained or bloom == _FULL


def bloom_of(logs: Iterable[Log]) -> bytes:
    """The bloom of a block that has exactly these logs."""
    bloom = bytearray(BLOOM_BYTES)
    for value in {value for log in logs for value in (log.address, *log.topics)}:
        for position, mask in _bloom_bits(value):
            bloom[position] |= mask
    return bytes(bloom)


@lru_cache(maxsize=65_536)
def _bloom_bits(value: bytes) -> tuple[tuple[int, int], ...]:
    """Position of the byte and mask in it, for each of the three bits."""
    digest = keccak(value)
    bits = (int.from_bytes(digest[start : start + 2]) % _BLOOM_BITS for start in (0, 2, 4))
    return tuple((BLOOM_BYTES - 1 - bit // 8, 1 << bit % 8) for bit in bits)
