"""What can go wrong with a node, named by what the caller should do then.

No message ever holds a URL: its path, query or user part may be the key to a paid account.
"""

from __future__ import annotations

from typing import ClassVar

from node.refusals import Outcome


class NodeFailure(Exception):
    """No result; what to do is in the class below it.  ``endpoint`` is the name of the one that was asked, if any."""

    outcome: ClassVar[Outcome] = Outcome.UNAVAILABLE

    def __init__(self, reason: str, *, endpoint: str | None = None) -> None:
        self.reason = reason
        self.endpoint = endpoint
        super().__init__(reason if endpoint is None else f"{endpoint}: {reason}")


class NodeUnavailable(NodeFailure):
    """Nothing is known: call again later, not before ``retry_after_seconds`` have passed if it is given."""

    def __init__(self, reason: str, *, endpoint: str | None = None, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(reason, endpoint=endpoint)


class NodeAnswerInvalid(NodeUnavailable):
    """The endpoint lies or is broken: take nothing from this answer, and ask again later or elsewhere."""

    outcome = Outcome.INVALID


class NodeTimedOut(NodeUnavailable):
    """No answer in time: call again later, or ask for less."""

    outcome = Outcome.TIMED_OUT


class NodeRateLimited(NodeUnavailable):
    """We ask too much of this endpoint: call again later, and less often."""

    outcome = Outcome.RATE_LIMITED


class HistoryPruned(NodeUnavailable):
    """The endpoint has thrown this part of the chain away: another one is needed (hard case 34)."""

    outcome = Outcome.HISTORY_PRUNED


class MethodUnsupported(NodeUnavailable):
    """The endpoint does not know this method, or not with these parameters: do without it, or ask another one."""

    outcome = Outcome.UNSUPPORTED


class RangeRefused(NodeFailure):
    """Too many blocks or logs for one question: ask for less.

    What the endpoint suggests instead is deliberately not offered: it may be useless or hostile (hard case 23).
    """

    outcome = Outcome.RANGE_REFUSED


class BlockUnknown(NodeFailure):
    """The node does not (any longer, or yet) know this block: read the tip again, then decide again."""

    outcome = Outcome.BLOCK_UNKNOWN

    def __init__(self, block: bytes | int | str, *, endpoint: str | None = None) -> None:
        self.block = block
        name = f"0x{block.hex()}" if isinstance(block, bytes) else str(block)
        super().__init__(f"block {name} is unknown", endpoint=endpoint)


class CallReverted(NodeFailure):
    """The contract refused the call, and will again in the same block.  ``output`` is its revert data."""

    outcome = Outcome.REVERTED

    def __init__(self, reason: str, *, endpoint: str | None = None, output: bytes = b"") -> None:
        self.output = output
        super().__init__(reason, endpoint=endpoint)


class ChainMismatch(Exception):
    """The endpoint follows another chain than the one that is pinned: stop using it."""

    def __init__(self, what: str, *, expected: str, actual: str) -> None:
        self.what = what
        self.expected = expected
        self.actual = actual
        super().__init__(f"{what} is {actual} where {expected} is pinned: this is another chain")
