"""What an endpoint means when it refuses.  Pure.

The protocol does not say how, so every node and provider has its own words; the table has those that were seen.  Its
order matters: the first line that matches decides.  A hint in the text ("try this range") is never read: it may be
useless or hostile (hard cases 22, 23).
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

MAX_RETRY_AFTER_SECONDS: Final = 300.0
"""However long an endpoint asks us to stay away, it is tried again after this."""

_JUDGED_CHARACTERS: Final = 500


class Refusal(StrEnum):
    """Why an endpoint did not answer."""

    TOO_MUCH = "too_much"
    RATE_LIMITED = "rate_limited"
    BLOCK_UNKNOWN = "block_unknown"
    PRUNED = "pruned"
    REVERTED = "reverted"
    UNSUPPORTED = "unsupported"
    INVALID_REQUEST = "invalid_request"
    OUT_OF_ORDER = "out_of_order"


CANNOT: Final = frozenset({Refusal.UNSUPPORTED, Refusal.INVALID_REQUEST, Refusal.OUT_OF_ORDER})
"""It may be this question that the endpoint never answers: the same is asked in another way, where there is one."""

_BY_CODE: Final = {
    3: Refusal.REVERTED,  # geth and those who follow it
    429: Refusal.RATE_LIMITED,  # Alchemy, of one question of a batch
    4444: Refusal.PRUNED,  # EIP-4444
    -39001: Refusal.BLOCK_UNKNOWN,  # the execution API
    -32601: Refusal.UNSUPPORTED,  # JSON-RPC: method not found
    -32004: Refusal.UNSUPPORTED,  # EIP-1474: method not supported
}

_BY_WORDS: Final = tuple(
    (re.compile(words, re.IGNORECASE), refusal)
    for words, refusal in (
        # Infura, Alchemy, QuickNode, public nodes
        (
            r"rate.?limit|too many requests|requests? (count|limit)|per second|compute units|throughput|quota|credits",
            Refusal.RATE_LIMITED,
        ),
        (r"capacity", Refusal.RATE_LIMITED),
        # geth: the end is before the start, or after the head; proxyd, besu, anvil: a backend that lags
        (
            r"beyond (current |the )?head|block ?(is )?out ?of ?range|not (yet )?(imported|available yet)",
            Refusal.BLOCK_UNKNOWN,
        ),
        (r"invalid block range", Refusal.OUT_OF_ORDER),
        # Alchemy, geth, reth, besu, BSC and Infura, Ankr, Chainstack, Moonbeam
        (r"(response|result|answer).{0,30}(size|too (big|large)|exceed)|exceed.{0,30}(size|result)", Refusal.TOO_MUCH),
        (r"block.?range|range.{0,30}(too|large|wide|exceed|limit|not supported|maximum)", Refusal.TOO_MUCH),
        # Infura, nethermind, Avalanche, QuickNode, Cronos, erigon; geth of addresses and topics
        (r"more than \d+ (results|logs)|too many (results|logs|blocks|topics|addresses)", Refusal.TOO_MUCH),
        (
            r"limited to|exceeds? (the )?max|exceeds? limit|limit exceeded|blocks distance|maximum is set",
            Refusal.TOO_MUCH,
        ),
        # geth (-32002), nethermind, Alchemy, proxies: the same question about fewer blocks may be answered
        (r"time.?out|timed out|deadline exceeded|cancell?ed", Refusal.TOO_MUCH),
        # erigon, geth, nethermind, providers without archive
        (r"prun|archive|missing trie node|data before .* not available|receipts? not available", Refusal.PRUNED),
        (
            r"unknown block|resource not found|(block|header).{0,80}(not found|not be found|does not exist)",
            Refusal.BLOCK_UNKNOWN,
        ),
        (r"revert|invalid opcode|out of gas|vm execution error", Refusal.REVERTED),
        (r"not supported|unsupported|not available|does not exist|unknown method", Refusal.UNSUPPORTED),
    )
)

_BY_HTTP_STATUS: Final = {
    400: Refusal.INVALID_REQUEST,
    404: Refusal.OUT_OF_ORDER,
    408: Refusal.TOO_MUCH,
    413: Refusal.TOO_MUCH,
    429: Refusal.RATE_LIMITED,
    504: Refusal.TOO_MUCH,
    524: Refusal.TOO_MUCH,  # Cloudflare: the server behind it took too long
}

_INVALID_REQUEST_CODES: Final = frozenset({-32600, -32602})


def classify_rpc_error(code: int | None, message: str, http_status: int) -> Refusal:
    """Name the refusal; what nobody knows is ``OUT_OF_ORDER``.

    Args:
        code: Of the JSON-RPC error; ``None`` where there was none.
        message: Its text, or empty.  Only the start is judged.
        http_status: 200 for most.
    """
    if code in _BY_CODE:
        return _BY_CODE[code]
    start = message[:_JUDGED_CHARACTERS]
    for words, refusal in _BY_WORDS:
        if words.search(start):
            return refusal
    if code in _INVALID_REQUEST_CODES:
        return Refusal.INVALID_REQUEST
    return _BY_HTTP_STATUS.get(http_status, Refusal.OUT_OF_ORDER)


def retry_after_seconds(retry_after: str | None, date: str | None) -> float | None:
    """How long to stay away, from the headers ``Retry-After`` and ``Date``; ``None`` where they do not say.

    A moment is measured against the server's own clock, so ours does not matter.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(min(int(retry_after), MAX_RETRY_AFTER_SECONDS))  # a huge int is no float
    except ValueError:
        try:
            if date is None:
                return None
            seconds = (parsedate_to_datetime(retry_after) - parsedate_to_datetime(date)).total_seconds()
        # TypeError: one of the two has a time zone and the other has none.  OverflowError: a year with twenty digits.
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
