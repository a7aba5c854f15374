"""Hear of new heads sooner than polling does.  A wake-up and nothing else: what is said here is not believed.

Polling stays the truth (hard case 29): a socket that is dead, silent, of another chain or full of lies costs nothing
but the time that it could have saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from node.errors import NodeUnavailable

LEAST_WAKE_SECONDS: Final = 0.05
"""However much is said, a tick is not woken more often than this."""

_NAME: Final = "websocket"
_SUBSCRIBE: Final = '{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}'
_OPEN_SECONDS: Final = 10.0
_PING_SECONDS: Final = 20.0  # a half-open socket is noticed after at most two of these
_MAX_MESSAGE_BYTES: Final = 1_000_000

# The library would write the URL's path, and so the key of an account, at level debug.
_SILENT: Final = logging.getLogger(f"{__name__}.silent")
_SILENT.setLevel(logging.CRITICAL + 1)


class _Direct(connect):
    """A connection to the address that was configured, and no other."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def hear_heads(url: str, *, wake: Callable[[], object], clock: Callable[[], float]) -> None:
    """Subscribe to new heads, and call ``wake`` at each until the connection ends.

    Args:
        url: ``ws`` or ``wss``; it may hold a key, and appears in no message.
        wake: Called at most every ``LEAST_WAKE_SECONDS``.
        clock: Seconds that never go back.

    Raises:
        NodeUnavailable: The connection ended, or never began; connect again later.
    """
    woken_at = float("-inf")
    try:
        async with _Direct(
            url,
            open_timeout=_OPEN_SECONDS,
            ping_interval=_PING_SECONDS,
            ping_timeout=_PING_SECONDS,
            close_timeout=1,
            max_size=_MAX_MESSAGE_BYTES,
            proxy=None,
            logger=_SILENT,
        ) as connection:
            await connection.send(_SUBSCRIBE)
            async for message in connection:
                if _is_refusal(parsed := _parsed(message)):
                    raise _ended("the subscription is refused")
                if parsed.get("method") == "eth_subscription" and clock() - woken_at >= LEAST_WAKE_SECONDS:
                    woken_at = clock()
                    wake()
    except (WebSocketException, OSError, ValueError) as error:
        # The class says enough; the text of some of them repeats the URL, so it is not chained either.
        raise _ended(type(error).__name__) from None
    raise _ended("the server closed the connection")


def _parsed(message: str | bytes) -> dict[str, object]:
    try:
        parsed = orjson.loads(message)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _is_refusal(message: dict[str, object]) -> bool:
    return message.get("id") == 1 and "error" in message


def _ended(reason: str) -> NodeUnavailable:
    return NodeUnavailable(_NAME, "eth_subscribe", reason)
