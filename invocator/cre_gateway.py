"""One HTTP call to CRE's gateway, and what is known for certain about it (cre.md §1.1, hard cases 75, 84 and 88).

Each call has a connection of its own.  A connection that is kept alive may be dead by the time of the next call, and
then nobody can tell whether the request was read; with a fresh one, "never connected" is a fact.  At one trigger a
minute the handshake costs nothing.  No redirects, no retries, no proxy from the environment, no cookies, no
decompression, and an answer is read up to a bound.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from yarl import URL

from invocator.classification import HttpReply, NeverConnected, NoAnswer, Reply

MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_RETRY_AFTER_SECONDS: Final = 3_600
"""A gateway that names a day must not stop a workflow for a day: it is asked again, and may name it again."""


class GatewayUrlUnusable(ValueError):
    """Do not start: a token must not travel to, or through, just anything.  Never shows the URL."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CreGateway:
    """The gateway behind ``url``.  Holds no connection, so there is nothing to close."""

    url: URL

    @classmethod
    def at(cls, url: str) -> CreGateway:
        """The gateway at ``url``.

        Raises:
            GatewayUrlUnusable: Do not start.
        """
        try:
            parsed = URL(url)
        except ValueError:
            raise GatewayUrlUnusable("the gateway URL is no URL") from None  # its text may hold a password
        if parsed.user is not None or parsed.password is not None:
            raise GatewayUrlUnusable("the gateway URL must not hold a user or password; the token is the authorization")
        if not parsed.host or parsed.scheme not in {"https", "http"}:
            raise GatewayUrlUnusable("the gateway URL must be https://host/")
        if parsed.scheme == "http" and not _is_loopback(parsed.host):
            raise GatewayUrlUnusable("the gateway URL must be https, except on this machine's loopback")
        return cls(url=parsed)

    def __repr__(self) -> str:
        return f"CreGateway(host={self.url.host})"

    async def post(self, body: bytes, token: str, timeout_seconds: float) -> Reply:
        """Send ``body`` once.

        Cancelling closes the connection; whether the request was read is then unknown, as after any `NoAnswer`.

        Args:
            body: The frozen request.
            token: Fresh for this call.
            timeout_seconds: For everything from the name's resolution to the answer's last byte.
        """
        progress = _Progress()
        try:
            async with (
                _session(progress, timeout_seconds) as session,
                session.post(self.url, data=body, headers=_headers(token), allow_redirects=False) as response,
            ):
                return await _reply(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The class says enough; the text of some of them repeats the URL or the answer.
            reason = "timed out" if isinstance(error, TimeoutError) else type(error).__name__
            return NoAnswer(reason=reason) if progress.connected else NeverConnected(reason=reason)


@dataclass(slots=True)
class _Progress:
    """How far one call got; the only thing here that changes."""

    connected: bool = False


def _session(progress: _Progress, timeout_seconds: float) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()

    # Called when the TLS handshake is done and before the first byte of the request is written.
    async def connected(*_: object) -> None:
        progress.connected = True

    trace.on_connection_create_end.append(connected)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        auto_decompress=False,
        trust_env=False,
    )


def _headers(token: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Accept-Encoding": "identity", "Authorization": f"Bearer {token}"}


async def _reply(response: aiohttp.ClientResponse) -> HttpReply:
    body, began_at = bytearray(), time.monotonic()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            break
    return HttpReply(
        status=response.status,
        body=bytes(body[:MAX_ANSWER_BYTES]),
        truncated=len(body) > MAX_ANSWER_BYTES,
        server_date=_unix_seconds(response.headers.get("Date", "")),
        read_seconds=time.monotonic() - began_at,
        retry_after_seconds=_delay_seconds(response.headers.get("Retry-After", "")),
    )


def _unix_seconds(date: str) -> int | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return None
    # HTTP dates are UTC whatever their zone claims; a naive one would be taken for local time.
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _delay_seconds(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    return min(int(text[:9]), _MAX_RETRY_AFTER_SECONDS)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
