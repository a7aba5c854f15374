"""Errors of the node package, named by what the caller should do.

Messages hold the endpoint's name, never its URL: providers put the key of an account into it.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.inconsistency import Inconsistency
from node.refusals import Refusal


class NodeError(Exception):
    """Root of what this package raises on purpose."""


class NodeUnavailable(NodeError):
    """No answer now.  Nothing is known; call again later, not before ``retry_after_seconds`` where that is given."""

    def __init__(self, endpoint: str, method: str, reason: str, *, retry_after_seconds: float | None = None) -> None:
        self.endpoint = endpoint
        self.method = method
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"endpoint {endpoint}, {method}: {reason}")


class NodeRefused(NodeUnavailable):
    """The endpoint answered with an error; ``refusal`` says what it means, ``revert_data`` what a contract said.

    ``Node`` gives the refusals that are about a block, a call or its history their own names; of the others nothing
    is known, so call again later.
    """

    def __init__(
        self,
        endpoint: str,
        method: str,
        reason: str,
        *,
        refusal: Refusal,
        revert_data: bytes = b"",
        retry_after_seconds: float | None = None,
    ) -> None:
        self.refusal = refusal
        self.revert_data = revert_data
        super().__init__(endpoint, method, reason, retry_after_seconds=retry_after_seconds)


class NodeAnswerInvalid(NodeUnavailable):
    """The endpoint lies or is broken.  Take nothing from the answer; call again later, better another endpoint."""

    def __init__(
        self, endpoint: str, method: str, reason: str, *, kind: Inconsistency = Inconsistency.MALFORMED
    ) -> None:
        self.kind = kind
        super().__init__(endpoint, method, reason)


class BudgetSpent(NodeUnavailable):
    """Our own budget for each endpoint that could be asked is spent.  Nobody's fault: go on when it has filled."""


class AnswerLate(NodeUnavailable):
    """No whole answer in time.  Ask for less where that is possible; else it is the endpoint's fault: ask another."""


class AnswerTooMuch(NodeUnavailable):
    """One answer would hold too much, for the endpoint or for us.  Ask for it in pieces where it has some."""


class HistoryPruned(NodeUnavailable):
    """This endpoint has thrown the block away for good (hard case 34).  Only an archive endpoint can answer."""


class EndpointLags(NodeUnavailable):
    """This endpoint knows only an older chain than the one that is indexed.  Ask another, or the same one later."""


class EndpointOfOtherChain(NodeUnavailable):
    """This endpoint serves another chain (hard case 27).  Ask another; if all do, the settings are wrong."""

    def __init__(self, endpoint: str, mismatch: ChainMismatch) -> None:
        self.mismatch = mismatch
        super().__init__(endpoint, "identity", str(mismatch))


class EndpointOnOtherFork(NodeUnavailable):
    """This endpoint denies a block that is stored as final.  Ask another; if it denies it too, a person must look.

    ``found`` is the hash of its block ``number`` (``None``: it has none); ``expected`` is the one that is stored.
    ``denied_by``: its name, and those of the other endpoints that show the same block at this moment.
    """

    def __init__(
        self, endpoint: str, *, number: int, expected: bytes, found: bytes | None, also: Sequence[str] = ()
    ) -> None:
        self.number = number
        self.expected = expected
        self.found = found
        self.denied_by = (endpoint, *also)
        has = "it has none" if found is None else f"its own is 0x{found.hex()}"
        super().__init__(
            endpoint, "eth_getBlockByNumber", f"it denies our final block {number}, 0x{expected.hex()}: {has}"
        )


class EndpointChanged(NodeUnavailable):
    """The endpoint of this session failed, and another one is at hand.  Start again at once, from the rows."""


class RangeRefused(NodeError):
    """Too many logs at once, for this endpoint or for us.  Ask for less; read a single block in another way."""

    def __init__(self, endpoint: str, method: str, reason: str) -> None:
        self.endpoint = endpoint
        self.method = method
        self.reason = reason
        super().__init__(f"endpoint {endpoint}, {method}: asked for too much at once: {reason}")


class RangeLate(RangeRefused):
    """No answer about so many blocks in time.  Ask for less."""


class BlockUnknown(NodeError):
    """The endpoint does not know the block, no longer or not yet.  Read the tip again and start from there."""

    def __init__(self, endpoint: str, block: bytes | int | str) -> None:
        self.endpoint = endpoint
        self.block = block
        name = "0x" + block.hex() if isinstance(block, bytes) else block
        super().__init__(f"endpoint {endpoint} does not know block {name}")


class CallReverted(NodeError):
    """The contract refused the call; ``revert_data`` is what it said (empty where the node does not tell)."""

    def __init__(self, to: bytes, revert_data: bytes) -> None:
        self.to = to
        self.revert_data = revert_data
        super().__init__(f"the call of 0x{to.hex()} reverted with 0x{revert_data[:100].hex()}")


class ChainMismatch(NodeError):
    """The endpoint serves another chain than the configured one.  Stop: do not call again (hard cases 14, 27)."""

    def __init__(self, endpoint: str, *, what: str, expected: str, found: str) -> None:
        self.endpoint = endpoint
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(
            f"endpoint {endpoint}'s {what} is {found}; this daemon serves {expected}: "
            "check BSKT_RPC_URL and BSKT_CHAIN_ID; a chain that was reset needs a database of its own"
        )
