"""One URL that speaks JSON-RPC: sends questions, limits answers, and names what went wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from node.blocks import Malformed, parse_octets
from node.errors import NodeAnswerInvalid, NodeError, NodeRefused, NodeUnavailable, RangeRefused
from node.exchange import AnswerTooLarge, AnswerUnreadable, HttpExchange, HttpRefused
from node.inconsistency import Inconsistency
from node.refusals import Refusal, classify_rpc_error

if TYPE_CHECKING:
    from node.provider import BoundedHTTPProvider

T = TypeVar("T")

GET_LOGS: Final = "eth_getLogs"
MAX_BATCH: Final = 100
"""Questions in one exchange; providers allow 100 to 1,000."""

_CONNECTION_ATTEMPTS: Final = 3
_REASON_CHARACTERS: Final = 200


class Outcome(StrEnum):
    """How a question ended: the label of its metric."""

    OK = "ok"
    REFUSED = "refused"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"


Observe: TypeAlias = Callable[[str, str, Outcome, float], None]
"""Told of every question and batch: endpoint, method, outcome, seconds."""


class RpcEndpoint:
    """Asks one URL, which appears in no error, log or metric: ``name`` stands for it there.

    Every question is a read and may be asked twice.  A connection that breaks is tried again, at once and few times,
    for a server may have closed one that we kept; anything else is the caller's to repeat.  After a ``Retry-After``
    nothing is sent before that time has passed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        request_timeout_seconds: float,
        max_answer_bytes: int,
        observe: Observe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; the first question opens the connection.

        Args:
            name: For people, and a metric's label.
            url: ``http`` or ``https``; its path, query and user may hold a key.
            request_timeout_seconds: For a question as a whole, from connecting to the answer's last byte, with what is
                tried again.
            max_answer_bytes: Of an answer's body, unpacked.
            observe: Told about every question and every batch.
            clock: Seconds that never go back.
        """
        self.name = name
        self._exchange = HttpExchange(
            url, request_timeout_seconds=request_timeout_seconds, max_answer_bytes=max_answer_bytes
        )
        self._request_timeout_seconds = request_timeout_seconds
        self._observe = observe
        self._clock = clock
        self._silent_until = float("-inf")
        self._provider: BoundedHTTPProvider | None = None

    @property
    def connections(self) -> int:
        """How many connections were ever opened."""
        return self._exchange.connections

    async def call(self, method: str, params: Sequence[object], parse: Callable[[object], T]) -> T:
        """Ask one question and read its result with ``parse``.

        Raises:
            NodeUnavailable: Call again later; ``NodeRefused`` and ``NodeAnswerInvalid`` say more.
            RangeRefused: Ask for less.
        """

        async def ask(provider: BoundedHTTPProvider) -> T:
            return self._result(method, await provider.make_request(method, params), parse)

        return await self._observed(method, ask)

    async def batch(self, method: str, questions: Sequence[Sequence[object]], parse: Callable[[object], T]) -> list[T]:
        """Ask one question with several parameters in few exchanges; the results are in the order of ``questions``.

        What a batch leaves unanswered is asked again alone, so that a missing item fails only itself (hard case 25).

        Raises:
            NodeUnavailable: A question had no usable answer; nothing is to be taken from the others either.
            RangeRefused: Ask for less.
        """
        results: list[T] = []
        for start in range(0, len(questions), MAX_BATCH):
            some = questions[start : start + MAX_BATCH]
            found = await self._batch(method, some, parse) if len(some) > 1 else [None]
            for question, result in zip(some, found, strict=True):
                results.append(await self.call(method, question, parse) if result is None else result[0])
        return results

    async def close(self) -> None:
        """Close the connections; a later question would open new ones."""
        await self._exchange.close()

    async def _batch(
        self, method: str, questions: Sequence[Sequence[object]], parse: Callable[[object], T]
    ) -> list[tuple[T] | None]:
        async def ask(provider: BoundedHTTPProvider) -> list[tuple[T] | None]:
            answers = await provider.make_batch_request([(method, question) for question in questions])
            if not isinstance(answers, list):
                self._result(method, answers, _no_batch)
                return []
            return [(self._result(method, answer, parse),) if answer else None for answer in answers]

        return await self._observed(method, ask)

    async def _observed(self, method: str, ask: Callable[[BoundedHTTPProvider], Awaitable[T]]) -> T:
        if (silent := self._silent_until - self._clock()) > 0:
            raise NodeUnavailable(self.name, method, "the endpoint asked to be left alone", retry_after_seconds=silent)
        started, outcome = self._clock(), Outcome.UNAVAILABLE
        try:
            result = await self._retrying(method, ask)
            outcome = Outcome.OK
        except (NodeRefused, RangeRefused):
            outcome = Outcome.REFUSED
            raise
        except NodeAnswerInvalid:
            outcome = Outcome.INVALID
            raise
        finally:
            self._observe(self.name, method, outcome, self._clock() - started)
        return result

    async def _retrying(self, method: str, ask: Callable[[BoundedHTTPProvider], Awaitable[T]]) -> T:
        if self._provider is None:
            from node.provider import BoundedHTTPProvider  # noqa: PLC0415 - web3 takes a second to import

            self._provider = BoundedHTTPProvider(self._exchange)
        provider = self._provider
        try:
            async with asyncio.timeout(self._request_timeout_seconds):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)),
                    stop=stop_after_attempt(_CONNECTION_ATTEMPTS),
                    reraise=True,
                ):
                    with attempt:
                        return await ask(provider)
        except HttpRefused as refused:
            raise self._http_refusal(method, refused) from refused
        except AnswerTooLarge as error:
            raise self._too_much(method, "the answer is larger than we take") from error
        except AnswerUnreadable as error:
            raise NodeAnswerInvalid(self.name, method, str(error)) from error
        except TimeoutError:
            # A range that always takes too long would never be read if less were not asked for.
            raise self._too_much(method, "no answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            # The class says enough; the text of some of them repeats the URL, so it is not chained either.
            raise NodeUnavailable(self.name, method, type(error).__name__) from None
        raise AssertionError("the last attempt returns or raises")

    def _result(self, method: str, answer: Mapping[str, object], parse: Callable[[object], T]) -> T:
        error = answer.get("error")
        if isinstance(error, Mapping):
            raise self._refusal(method, error, 200, None)
        if "result" not in answer:
            raise NodeAnswerInvalid(self.name, method, "neither a result nor an error")
        try:
            return parse(answer["result"])
        except (Malformed, TypeError) as malformed:  # TypeError: an array has no place in a parser's cache
            kind = malformed.kind if isinstance(malformed, Malformed) else Inconsistency.MALFORMED
            raise NodeAnswerInvalid(self.name, method, str(malformed), kind=kind) from malformed

    def _http_refusal(self, method: str, refused: HttpRefused) -> NodeError:
        answer = refused.answer
        error = answer.get("error") if isinstance(answer, Mapping) else None
        return self._refusal(
            method, error if isinstance(error, Mapping) else {}, refused.status, refused.retry_after_seconds
        )

    def _refusal(
        self, method: str, error: Mapping[str, object], http_status: int, retry_after_seconds: float | None
    ) -> NodeError:
        code, message = error.get("code"), error.get("message")
        text = message if isinstance(message, str) else ""
        refusal = classify_rpc_error(code if isinstance(code, int) else None, text, http_status)
        reason = f"{refusal.value} (HTTP {http_status}): {self._exchange.redacted(text)[:_REASON_CHARACTERS]}"
        if refusal is Refusal.TOO_MUCH:
            return self._too_much(method, reason)
        if retry_after_seconds is not None:
            self._silent_until = self._clock() + retry_after_seconds
        return NodeRefused(
            self.name,
            method,
            reason,
            refusal=refusal,
            revert_data=_revert_data(error.get("data")),
            retry_after_seconds=retry_after_seconds,
        )

    def _too_much(self, method: str, reason: str) -> NodeError:
        # Only logs can be asked for in smaller pieces.
        return (RangeRefused if method == GET_LOGS else NodeUnavailable)(self.name, method, reason)


def _no_batch(_: object) -> object:
    raise Malformed("one result instead of a batch")


def _revert_data(value: object) -> bytes:
    try:
        return parse_octets(value)
    except Malformed:
        return b""
