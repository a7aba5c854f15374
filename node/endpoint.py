"""One URL that speaks JSON-RPC: sends questions, limits answers, and names what went wrong."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import orjson
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from node.blocks import parse_bytes
from node.errors import (
    BlockUnknown,
    CallReverted,
    HistoryPruned,
    MethodUnsupported,
    NodeAnswerInvalid,
    NodeFailure,
    NodeRateLimited,
    NodeTimedOut,
    NodeUnavailable,
    RangeRefused,
)
from node.refusals import Outcome, classify_rpc_error, retry_after_seconds

if TYPE_CHECKING:
    from node.provider import TransportedProvider

T = TypeVar("T")
Block: TypeAlias = bytes | int | str  # a hash, a number or a tag
Params: TypeAlias = Sequence[object]
Observe: TypeAlias = Callable[[str, str, Outcome, float], None]  # endpoint, method, outcome, seconds

CONNECTION_ATTEMPTS: Final = 3
RETRY_WAIT_MAX_SECONDS: Final = 0.5
MAX_CONNECTIONS: Final = 32
_HTTP_OK: Final = 200
_SHOWN_CHARACTERS: Final = 200
_SECRET_MIN_CHARACTERS: Final = 6
_UNAVAILABLE_BY_OUTCOME: Final[Mapping[Outcome, type[NodeUnavailable]]] = {
    kind.outcome: kind for kind in (NodeUnavailable, NodeTimedOut, NodeRateLimited, HistoryPruned, MethodUnsupported)
}


class _ConnectionFailed(NodeUnavailable):
    """The connection broke before the answer was complete: the one failure that is worth another try at once."""


class RpcEndpoint:
    """Asks one URL, which appears in no error, log or metric: ``name`` stands for it there.

    Every question is a read and may be asked twice.  A connection that breaks is tried again, shortly and few times;
    anything else is the caller's to repeat.  After a ``Retry-After`` nothing is sent before that time has passed.
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
            request_timeout_seconds: For one try as a whole, from connecting to the answer's last byte.
            max_answer_bytes: Of an answer's body, unpacked.
            observe: Told about every question and every batch.
            clock: Seconds that never go back.
        """
        self.name = name
        self._url = url
        self._secrets = _secrets_of(url)
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_seconds)
        self._max_answer_bytes = max_answer_bytes
        self._observe = observe
        self._clock = clock
        self._silent_until = float("-inf")
        self._session: aiohttp.ClientSession | None = None
        self._provider: TransportedProvider | None = None

    async def ask(self, method: str, params: Params, parse: Callable[[Any], T], *, block: Block = "latest") -> T:
        """Ask one question and read its result with ``parse``; ``block`` is the one that it is about, for the error.

        Raises:
            NodeUnavailable: Call again later; its narrower forms say more.
            RangeRefused: Ask for less.
            BlockUnknown: Read the tip again.
            CallReverted: The contract refused the call.
        """
        started, outcome = self._clock(), Outcome.UNAVAILABLE
        try:
            answer = await self._retrying(lambda provider: provider.make_request(_rpc(method), params))
            result = self._result(answer, parse, block)
            outcome = Outcome.OK
        except NodeFailure as failure:
            outcome = failure.outcome
            raise
        finally:
            self._observe(self.name, method, outcome, self._clock() - started)
        return result

    async def ask_many(
        self, method: str, many: Sequence[Params], parse: Callable[[Any], T], *, block: Block = "latest"
    ) -> list[T | NodeFailure]:
        """Ask one question with several parameters in one batch; each outcome stands for itself (hard case 25).

        Raises:
            NodeUnavailable: The batch as a whole had no answer; its narrower forms say more.
            RangeRefused: The batch as a whole is too much.
        """
        requests = [(_rpc(method), params) for params in many]
        started, outcome = self._clock(), Outcome.UNAVAILABLE
        results: list[T | NodeFailure] = []
        try:
            for answer in await self._retrying(lambda provider: provider.make_batch_request(requests)):
                try:
                    results.append(self._result(answer, parse, block))
                except NodeFailure as failure:
                    results.append(failure)
            outcome = next((result.outcome for result in results if isinstance(result, NodeFailure)), Outcome.OK)
        except NodeFailure as failure:
            outcome = failure.outcome
            raise
        finally:
            self._observe(self.name, method, outcome, self._clock() - started)
        return results

    async def close(self) -> None:
        """Close the connections; a later question would open new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _retrying(self, send: Callable[[TransportedProvider], Awaitable[T]]) -> T:
        if self._provider is None:
            from node.provider import TransportedProvider  # noqa: PLC0415 - web3 takes a second to import

            self._provider = TransportedProvider(self.name, self._post)
        provider = self._provider
        try:
            return await AsyncRetrying(
                retry=retry_if_exception_type(_ConnectionFailed),
                stop=stop_after_attempt(CONNECTION_ATTEMPTS),
                wait=wait_random_exponential(multiplier=RETRY_WAIT_MAX_SECONDS / 4, max=RETRY_WAIT_MAX_SECONDS),
                reraise=True,
            )(send, provider)
        except orjson.JSONDecodeError:
            raise NodeAnswerInvalid("the answer is not JSON", endpoint=self.name) from None

    async def _post(self, body: bytes) -> bytes:
        """Send a request's body and give the answer's; also the only place that sees the URL."""
        wait_seconds = self._silent_until - self._clock()
        if wait_seconds > 0:
            raise NodeRateLimited(
                "it asked for a pause that is not over", endpoint=self.name, retry_after_seconds=wait_seconds
            )
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                answer = await self._body(response)
        # aiohttp's own words may hold the URL, so they are neither repeated nor chained.
        except TimeoutError:
            seconds = self._timeout.total
            raise NodeTimedOut(f"no complete answer within {seconds:g} seconds", endpoint=self.name) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _ConnectionFailed(f"the connection failed ({type(error).__name__})", endpoint=self.name) from None
        if response.status != _HTTP_OK:
            raise self._refusal(response, answer)
        return answer

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        answer = bytearray()
        async for chunk in response.content.iter_any():
            answer += chunk
            if len(answer) > self._max_answer_bytes:
                response.close()  # the connection is of no more use: the rest of the answer is still coming
                raise RangeRefused(f"the answer exceeds {self._max_answer_bytes} bytes", endpoint=self.name)
        return bytes(answer)

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> NodeFailure:
        """Name an answer whose status is not 200; an error object in its body says more than the status."""
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        code, message, _ = _error_members(answer.get("error") if isinstance(answer, dict) else None)
        pause = retry_after_seconds(response.headers.get("Retry-After"), response.headers.get("Date"))
        if pause is not None:
            self._silent_until = self._clock() + pause
        outcome = classify_rpc_error(code, message, response.status)
        return self._failure(outcome, f"HTTP {response.status}: {message}", "latest", retry_after=pause)

    def _result(self, answer: Mapping[str, Any], parse: Callable[[Any], T], block: Block) -> T:
        if answer.get("error") is not None:
            code, message, data = _error_members(answer["error"])
            raise self._failure(
                classify_rpc_error(code, message), message or "an error without words", block, data=data
            )
        if "result" not in answer:
            raise NodeAnswerInvalid("the answer holds no result for the question", endpoint=self.name)
        try:
            return parse(answer["result"])
        except NodeAnswerInvalid as error:
            raise NodeAnswerInvalid(error.reason, endpoint=self.name) from error

    def _failure(
        self, outcome: Outcome, reason: str, block: Block, *, data: object = None, retry_after: float | None = None
    ) -> NodeFailure:
        shown = self._without_secrets(reason)
        match outcome:
            case Outcome.RANGE_REFUSED:
                return RangeRefused(shown, endpoint=self.name)
            case Outcome.BLOCK_UNKNOWN:
                return BlockUnknown(block, endpoint=self.name)
            case Outcome.REVERTED:
                return CallReverted(shown, endpoint=self.name, output=_revert_output(data))
        kind = _UNAVAILABLE_BY_OUTCOME[outcome]
        return kind(shown, endpoint=self.name, retry_after_seconds=retry_after)

    def _without_secrets(self, words: str) -> str:
        # Endpoints like to repeat the URL, key and all, when they refuse it.
        for secret in self._secrets:
            words = words.replace(secret, "…")
        return "".join(character if character.isprintable() else " " for character in words[:_SHOWN_CHARACTERS])


def _rpc(method: str) -> Any:
    return method  # web3's RPCEndpoint is a str to the type checker only, and importing it takes a second


def _error_members(error: object) -> tuple[int | None, str, object]:
    """Give code, message and data of an error object, whatever it is."""
    if not isinstance(error, dict):
        return None, error if isinstance(error, str) else "", None
    code, message = error.get("code"), error.get("message")
    return code if type(code) is int else None, message if isinstance(message, str) else "", error.get("data")


def _revert_output(data: object) -> bytes:
    if isinstance(data, dict):  # some put an object around it
        data = data.get("data")
    try:
        return parse_bytes(data)
    except NodeAnswerInvalid:
        return b""


def _secrets_of(url: str) -> tuple[str, ...]:
    """Give the parts of a URL that may be a key, the whole first, so that no part of a longer one stays behind."""
    parts = urlsplit(url)
    named = [parts.username, parts.password, *parts.path.split("/"), *(value for _, value in parse_qsl(parts.query))]
    return (
        url,
        *sorted({part for part in named if part and len(part) >= _SECRET_MIN_CHARACTERS}, key=len, reverse=True),
    )
