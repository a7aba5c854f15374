"""One HTTP exchange with a JSON-RPC endpoint: a web3 provider that is bounded in time and size.

web3's own ``AsyncHTTPProvider`` reads answers of any size, repeats refused requests on its own, logs the URL with the
account's key, and returns batches by position, so that a missing item shifts all that follow.

This module imports web3, which takes a second: import it only where a provider is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeGuard

import aiohttp
import orjson
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCRequest, RPCResponse

from node.refusals import retry_after_seconds

_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": "bskt"}
_OK: Final = 200


class AnswerTooLarge(Exception):
    """The answer has more bytes than we take; it was not read to its end."""


class AnswerUnreadable(Exception):
    """What came back is no JSON-RPC answer to what was asked."""


class HttpRefused(Exception):
    """The answer has another status than 200; ``answer`` is its JSON, ``None`` where it is something else."""

    def __init__(self, status: int, answer: object, retry_after_seconds: float | None) -> None:
        self.status = status
        self.answer = answer
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"HTTP status {status}")


class BoundedHTTPProvider(AsyncJSONBaseProvider):
    """One URL with its kept-alive connections.  ``disconnect`` when done."""

    def __init__(self, url: str, *, request_timeout_seconds: float, max_answer_bytes: int) -> None:
        super().__init__()
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_seconds)
        self._max_answer_bytes = max_answer_bytes
        self._session: aiohttp.ClientSession | None = None

    async def make_request(self, method: RPCEndpoint, params: object) -> RPCResponse:
        """Ask one question.

        Raises:
            HttpRefused: An HTTP status that is not 200.
            AnswerTooLarge: Ask for less.
            AnswerUnreadable: Not JSON, or not the answer to this question.
            TimeoutError: The answer was not there, whole, in time (hard case 28).
            aiohttp.ClientError: The connection failed.
        """
        request = self.form_request(method, params)
        answer = await self._exchange(orjson.dumps(request))
        if not _answers(answer, request):
            raise AnswerUnreadable("not a JSON-RPC answer to this question")
        return answer

    async def make_batch_request(
        self, batch_requests: list[tuple[RPCEndpoint, object]]
    ) -> list[RPCResponse] | RPCResponse:
        """Ask several questions at once; answers are paired by id, an unanswered one is ``{}`` (hard case 25).

        The single answer of an endpoint that refuses the batch as a whole is returned as it is.

        Raises:
            HttpRefused, AnswerTooLarge, AnswerUnreadable, TimeoutError, aiohttp.ClientError: As ``make_request``; it
                is also unreadable if one answer is there twice, or is to a question that was not asked.
        """
        requests = [self.form_request(method, params) for method, params in batch_requests]
        answers = await self._exchange(orjson.dumps(requests))
        if _is_response(answers):
            return answers
        if not isinstance(answers, list):
            raise AnswerUnreadable("not a JSON-RPC answer to a batch")
        unanswered = {request["id"]: request for request in requests}
        by_id: dict[object, RPCResponse] = {}
        for answer in answers:
            request = unanswered.pop(_id(answer), None)
            if request is None or not _answers(answer, request):
                raise AnswerUnreadable("a batch holds an answer to no question, or twice to one")
            by_id[request["id"]] = answer
        return [by_id.get(request["id"], {}) for request in requests]

    async def disconnect(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, body: bytes) -> object:
        if self._session is None:  # made here, because a session belongs to the running loop
            self._session = aiohttp.ClientSession(
                timeout=self._timeout, headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar()
            )
        async with self._session.post(self._url, data=body, allow_redirects=False) as response:
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


def _id(answer: object) -> object:
    number = answer.get("id") if isinstance(answer, Mapping) else None
    return number if type(number) is int else None  # True == 1, and an array is no key


def _is_response(answer: object) -> TypeGuard[RPCResponse]:
    return isinstance(answer, dict) and ("result" in answer) != ("error" in answer)


def _answers(answer: object, request: RPCRequest) -> TypeGuard[RPCResponse]:
    # An endpoint that could not even read the question answers an error with the id null.
    return _is_response(answer) and (_id(answer) == request["id"] or ("error" in answer and answer.get("id") is None))
