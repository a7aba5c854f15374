"""What an endpoint means when it refuses.  Pure.

JSON-RPC has no agreed errors for what matters most here ("ask for less"), so the words are recognised; the numbers in
them are never used (hard case 23).  A form that is not in the table is ``UNAVAILABLE``: call again later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

RETRY_AFTER_MAX_SECONDS: Final = 3600.0


class Outcome(StrEnum):
    """How a question ended; also the closed set of a metric's label."""

    OK = "ok"
    RANGE_REFUSED = "range_refused"
    BLOCK_UNKNOWN = "block_unknown"
    HISTORY_PRUNED = "history_pruned"
    REVERTED = "reverted"
    UNSUPPORTED = "unsupported"
    RATE_LIMITED = "rate_limited"
    TIMED_OUT = "timed_out"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"


_OUTCOME_BY_CODE: Final[Mapping[int, Outcome]] = {
    3: Outcome.REVERTED,  # geth and those that follow it
    -32015: Outcome.REVERTED,  # parity's "VM execution error"
    4444: Outcome.HISTORY_PRUNED,  # EIP-4444
    -39001: Outcome.BLOCK_UNKNOWN,  # the execution API's "unknown block"
    -32001: Outcome.BLOCK_UNKNOWN,  # EIP-1474's "resource not found"
    -32008: Outcome.RANGE_REFUSED,  # jsonrpsee's "response is too big" (reth)
    -32614: Outcome.RANGE_REFUSED,  # QuickNode
    -32601: Outcome.UNSUPPORTED,
    -32602: Outcome.UNSUPPORTED,
    -32004: Outcome.UNSUPPORTED,  # EIP-1474's "method not supported"
    -32005: Outcome.RATE_LIMITED,  # EIP-1474's "limit exceeded"; Infura also uses it for ranges, by the words below
    429: Outcome.RATE_LIMITED,
}
_OUTCOME_BY_STATUS: Final[Mapping[int, Outcome]] = {
    408: Outcome.TIMED_OUT,
    413: Outcome.RANGE_REFUSED,
    429: Outcome.RATE_LIMITED,
    504: Outcome.TIMED_OUT,
    524: Outcome.TIMED_OUT,  # Cloudflare waited for the origin
}
# The first that matches counts.  Beside each, whose words they are.
_OUTCOME_BY_WORDS: Final[tuple[tuple[re.Pattern[str], Outcome], ...]] = tuple(
    (re.compile(words, re.IGNORECASE), outcome)
    for words, outcome in (
        (r"execution reverted|vm execution error|always failing transaction", Outcome.REVERTED),
        (r"more than [\d,]+ (results|logs)", Outcome.RANGE_REFUSED),  # geth, Infura
        (r"(max|maximum|exceeds?|exceeded) [\w ]*(block )?range", Outcome.RANGE_REFUSED),  # reth, besu, bsc, PublicNode
        (r"range[\w ]* (limit|exceed|exceeds|exceeded|limited)\b", Outcome.RANGE_REFUSED),  # erigon, Chainstack
        (r"range (is )?too (large|wide|big)", Outcome.RANGE_REFUSED),  # Ankr, Base
        (
            r"(limited to|up to) (a|an) [\d,]+K?( blocks?)? range",
            Outcome.RANGE_REFUSED,
        ),  # QuickNode, Alchemy's free tier
        (r"ranges? over [\d,]+ blocks", Outcome.RANGE_REFUSED),  # dRPC
        (r"max(imum)? results|too many (logs|results)|max logs", Outcome.RANGE_REFUSED),  # reth, nethermind, besu
        (
            r"(response|result)( size)?[\w ]* (exceeded|too (big|large)|greater than)",
            Outcome.RANGE_REFUSED,
        ),  # Alchemy, proxyd
        (r"(too many|max|maximum) (addresses|topics)", Outcome.RANGE_REFUSED),  # geth
        (r"pruned|missing trie node|archive node|histor(y|ical)[\w ]* (not|un)\s?available", Outcome.HISTORY_PRUNED),
        (r"(block|header)[\w ]*( (with|for) [\w ]+)?not found|unknown block|blocknotfound", Outcome.BLOCK_UNKNOWN),
        (r"rate.?limit|too many requests|rate exceeded|request count exceeded", Outcome.RATE_LIMITED),
        (r"compute units|capacity exceeded|quota|credits|limit exceeded", Outcome.RATE_LIMITED),
        (r"time[d ]?-?out|deadline exceeded|took too long", Outcome.TIMED_OUT),  # geth, erigon, Alchemy
        (r"not supported|unsupported|does not exist|not available", Outcome.UNSUPPORTED),
    )
)


def classify_rpc_error(code: int | None, message: str, http_status: int = 200) -> Outcome:
    """Say what an error answer means; never ``OK``.

    Args:
        code: The JSON-RPC error's code, ``None`` if the body held none.
        message: Its message, of any length and honesty.
        http_status: The status that it came under.
    """
    for words, outcome in _OUTCOME_BY_WORDS:
        if words.search(message[:1000]):
            return outcome
    if code is not None and code in _OUTCOME_BY_CODE:
        return _OUTCOME_BY_CODE[code]
    return _OUTCOME_BY_STATUS.get(http_status, Outcome.UNAVAILABLE)


def retry_after_seconds(retry_after: str | None, date: str | None) -> float | None:
    """Read a ``Retry-After`` header, seconds or a date (RFC 9110 §10.2.3), at most an hour.

    A date is compared with the server's own ``Date``, so that a wrong clock on either side does not matter.
    """
    if retry_after is None:
        return None
    if retry_after.strip().isascii() and retry_after.strip().isdigit():
        return min(float(retry_after), RETRY_AFTER_MAX_SECONDS)
    until, now = _http_date(retry_after), _http_date(date or "")
    if until is None or now is None:
        return None
    return min(max(0.0, (until - now) / timedelta(seconds=1)), RETRY_AFTER_MAX_SECONDS)


def _http_date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else None
