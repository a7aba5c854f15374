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
from node.capabilities import Capabilities
from node.errors import (
    AnswerLate,
    AnswerTooMuch,
    NodeAnswerInvalid,
    NodeError,
    NodeRefused,
    NodeUnavailable,
    RangeRefused,
)
from node.exchange import AnswerTooLarge, AnswerUnreadable, HttpExchange, HttpRefused
from node.inconsistency import Inconsistency
from node.refusals import CANNOT, Refusal, classify_rpc_error

if TYPE_CHECKING:
    from node.provider import BoundedHTTPProvider

T = TypeVar("T")

GET_LOGS: Final = "eth_getLogs"
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
        headers: Mapping[str, str] | None = None,
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
            headers: Sent with each question; their values are keys, and appear in no error either.
            clock: Seconds that never go back.
        """
        self.name = name
        self._exchange = HttpExchange(
            url,
            request_timeout_seconds=request_timeout_seconds,
            max_answer_bytes=max_answer_bytes,
            headers=headers or {},
        )
        self.capabilities = Capabilities()
        self._request_timeout_seconds = request_timeout_seconds
        self._observe = observe
        self.clock = clock
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

    async def batch(
        self,
        method: str,
        questions: Sequence[Sequence[object]],
        parse: Callable[[object], T],
        *,
        at_most: int | None = None,
    ) -> list[T]:
        """Ask one question with several parameters in few exchanges; the results are in the order of ``questions``.

        What a batch leaves unanswered is asked again, the first of it alone: either that says what is wrong, or the
        batch was too large for this endpoint, and from then on smaller ones are asked.  So a missing item fails only
        itself, and of two exchanges one brings an answer.

        Args:
            method: Of each question.
            questions: The parameters of each.
            parse: Reads each result.
            at_most: Questions in one exchange, where fewer are wanted than this endpoint takes.

        Raises:
            NodeUnavailable: A question had no usable answer; nothing is to be taken from the others either.
            RangeRefused: Ask for less.
        """
        found: dict[int, T] = {}
        waiting = list(range(len(questions)))
        limit = at_most or len(questions)
        while waiting:
            some = waiting[: min(limit, self.capabilities.batch_at(self.clock()))]
            if len(some) > 1:
                answers = await self._batch(method, [questions[place] for place in some], parse)
                found |= {place: answer[0] for place, answer in zip(some, answers, strict=True) if answer is not None}
            missing = [place for place in some if place not in found]
            if missing:
                found[missing[0]] = await self.call(method, questions[missing[0]], parse)
            if len(some) > 1 and len(missing) == len(some):
                limit = len(some) // 2
                self.refused_batch(len(some))
            elif not missing:
                self.capabilities = self.capabilities.answered_batch(len(some))
            waiting = [*missing[1:], *waiting[len(some) :]]
        return [found[place] for place in range(len(questions))]

    def refused_batch(self, questions: int) -> None:
        """From now on ask fewer than this at once."""
        self.capabilities = self.capabilities.refused_batch(questions, self.clock())

    async def close(self) -> None:
        """Close the connections; a later question would open new ones."""
        await self._exchange.close()

    async def _batch(
        self, method: str, questions: Sequence[Sequence[object]], parse: Callable[[object], T]
    ) -> list[tuple[T] | None]:
        """What was answered of one batch: nothing, where it may be about the batch that the endpoint refused."""

        async def ask(provider: BoundedHTTPProvider) -> list[tuple[T] | None]:
            answers = await provider.make_batch_request([(method, question) for question in questions])
            if not isinstance(answers, list):
                self._result(method, answers, _no_batch)
                return []
            return [self._item(method, answer, parse) for answer in answers]

        nothing: list[tuple[T] | None] = [None] * len(questions)
        try:
            return await self._observed(method, ask)
        except AnswerLate:
            self.refused_batch(len(questions))
            raise
        except (NodeAnswerInvalid, RangeRefused):
            raise
        except NodeRefused as refused:
            if refused.refusal not in CANNOT:
                raise
        except NodeUnavailable as error:  # too much to say; or the connection, which some servers drop instead
            if error.retry_after_seconds is not None:
                raise
        return nothing

    def _item(self, method: str, answer: Mapping[str, object], parse: Callable[[object], T]) -> tuple[T] | None:
        """One answer of a batch; ``None`` if there is none, or it may be about the batch and not the question."""
        if not answer:
            return None
        try:
            return (self._result(method, answer, parse),)
        except AnswerTooMuch:
            return None
        except NodeRefused as refused:
            if refused.refusal not in CANNOT:
                raise
            return None

    async def _observed(self, method: str, ask: Callable[[BoundedHTTPProvider], Awaitable[T]]) -> T:
        if (silent := self._silent_until - self.clock()) > 0:
            raise NodeUnavailable(self.name, method, "the endpoint asked to be left alone", retry_after_seconds=silent)
        started, outcome = self.clock(), Outcome.UNAVAILABLE
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
            self._observe(self.name, method, outcome, self.clock() - started)
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
            raise AnswerLate(self.name, method, f"no answer in {self._request_timeout_seconds:g} s") from None
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
            self._silent_until = self.clock() + retry_after_seconds
        return NodeRefused(
            self.name,
            method,
            reason,
            refusal=refusal,
            revert_data=_revert_data(error.get("data")),
            retry_after_seconds=retry_after_seconds,
        )

    def _too_much(self, method: str, reason: str) -> NodeError:
        return (RangeRefused if method == GET_LOGS else AnswerTooMuch)(self.name, method, reason)


def _no_batch(_: object) -> object:
    raise Malformed("one result instead of a batch")


def _revert_data(value: object) -> bytes:
    try:
        return parse_octets(value)
    except Malformed:
        return b""
