"""One HTTP exchange of JSON, bounded in time and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import orjson

from node.refusals import retry_after_seconds

_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": "bskt"}
_OK: Final = 200
_SECRET_MIN_CHARACTERS: Final = 6
_KEEP_ALIVE_SECONDS: Final = 60.0  # longer than the pause between two looks at a slow chain: see `connections`


class AnswerTooLarge(Exception):
    """The answer has more bytes than we take; it was not read to its end."""


class AnswerUnreadable(Exception):
    """What came back is no answer to what was asked."""


class HttpRefused(Exception):
    """The status is not 200; ``answer`` is the JSON that came with it, ``None`` where it was something else."""

    def __init__(self, status: int, answer: object, retry_after_seconds: float | None) -> None:
        self.status = status
        self.answer = answer
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"HTTP status {status}")


class HttpExchange:
    """One URL with its kept-alive connections.  ``close`` when done.

    ``connections`` counts those that were ever opened: a new one may lead to another server (hard case 27).
    """

    def __init__(
        self, url: str, *, request_timeout_seconds: float, max_answer_bytes: int, headers: Mapping[str, str]
    ) -> None:
        self._url = url
        self._headers = {**_HEADERS, **headers}
        parts = urlsplit(url)
        pieces = [parts.username, parts.password, *parts.path.split("/"), *dict(parse_qsl(parts.query)).values()]
        # An authorization is a scheme and a key.
        pieces += [part for value in headers.values() for part in (value, *value.split())]
        self._secrets = [url, *(piece for piece in pieces if piece and len(piece) >= _SECRET_MIN_CHARACTERS)]
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_seconds)
        self._max_answer_bytes = max_answer_bytes
        self._session: aiohttp.ClientSession | None = None
        self.connections = 0

    async def post(self, question: object) -> object:
        """Send JSON and read JSON.  Nothing is repeated, no redirect followed, no content type believed.

        Raises:
            HttpRefused: The status is not 200.
            AnswerTooLarge: Ask for less.
            AnswerUnreadable: The answer is not JSON.
            TimeoutError: The answer was not there, whole, in time (hard case 28).
            aiohttp.ClientError: The connection failed.
        """
        if self._session is None:  # made here, because a session belongs to the running loop
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(self._connected)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(keepalive_timeout=_KEEP_ALIVE_SECONDS),
                timeout=self._timeout,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[trace],
            )
        async with self._session.post(self._url, data=orjson.dumps(question), allow_redirects=False) as response:
            content = await self._read(response)
            try:
                answer: object = orjson.loads(content)
            except orjson.JSONDecodeError as error:
                if response.status == _OK:
                    raise AnswerUnreadable("not JSON") from error
                answer = None
            if response.status != _OK:
                headers = response.headers
                wait = retry_after_seconds(headers.get("Retry-After"), headers.get("Date"))
                raise HttpRefused(response.status, answer, wait)
            return answer

    def redacted(self, text: str) -> str:
        """``text`` on one line, without controls and without any part of URL or headers that may be a key."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return "".join(character if character.isprintable() else " " for character in text)

    async def close(self) -> None:
        """Close the connections; a later question opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _connected(self, *_: object) -> None:
        self.connections += 1

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        # Counted after decompression: a small compressed body can hold gigabytes.
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_answer_bytes:
                raise AnswerTooLarge(f"more than {self._max_answer_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)
