"""One endpoint against servers that do what broken, overloaded and hostile ones do."""

import asyncio
import gzip
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from node.blocks import Malformed, parse_hash, parse_quantity
from node.capabilities import MAX_BATCH, RELEARN_SECONDS
from node.endpoint import GET_LOGS, Outcome, RpcEndpoint
from node.errors import AnswerLate, NodeAnswerInvalid, NodeError, NodeRefused, NodeUnavailable, RangeRefused
from node.refusals import Refusal

KEY = "s3cr3t-k3y-0f-an-acc0unt"
TIMEOUT_SECONDS = 0.3
MAX_ANSWER_BYTES = 100_000

Reply = Callable[[Any, asyncio.StreamWriter], Awaitable[None]]


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def answer(request: Any, **members: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": request["id"], **members}


def always(raw: bytes) -> Reply:
    async def reply(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return reply


def with_json(make: Callable[[Any], object]) -> Reply:
    async def reply(request: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http(orjson.dumps(make(request))))

    return reply


def with_error(code: int, message: str, data: object = None) -> Reply:
    return with_json(lambda request: answer(request, error={"code": code, "message": message, "data": data}))


class Server:
    """Speaks HTTP as far as a test needs: reads a request, then does what ``reply`` does to the connection."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.connections = 0
        self.requests: list[Any] = []
        self.heads: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://user:{KEY}-password@127.0.0.1:{self.port}/v3/{KEY}?token={KEY}"

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                self.heads.append(head)
                size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                self.requests.append(orjson.loads(await reader.readexactly(size)))
                await self._reply(self.requests[-1], writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Observed:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def __call__(self, endpoint: str, method: str, outcome: Outcome, seconds: float) -> None:
        assert endpoint == "first"
        assert method.startswith("eth_")
        assert Outcome(outcome) is outcome
        assert seconds >= 0
        self.outcomes.append(outcome)


@asynccontextmanager
async def served(
    reply: Reply, clock: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[tuple[RpcEndpoint, Server, Observed]]:
    """An endpoint, the server that it asks, and what was observed of it."""
    server, observed = Server(reply), Observed()
    listener = await asyncio.start_server(server.serve_connection, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    endpoint = RpcEndpoint(
        "first",
        server.url,
        request_timeout_seconds=TIMEOUT_SECONDS,
        max_answer_bytes=MAX_ANSWER_BYTES,
        observe=observed,
        clock=clock,
    )
    try:
        yield endpoint, server, observed
    finally:
        await endpoint.close()
        listener.close()


async def ask(endpoint: RpcEndpoint, method: str = "eth_blockNumber") -> int:
    return await endpoint.call(method, [], parse_quantity)


async def test_many_questions_share_one_connection() -> None:
    async with served(with_json(lambda request: answer(request, result="0x10"))) as (endpoint, server, observed):
        assert [await ask(endpoint) for _ in range(5)] == [16] * 5
        assert server.connections == 1
        assert observed.outcomes == [Outcome.OK] * 5


async def test_a_pause_that_the_endpoint_asks_for_is_kept() -> None:
    """Hard case 24."""
    now = [100.0]
    refusal = http(b"slow down", status="429 Too Many Requests", headers="Retry-After: 7\r\n")
    async with served(always(refusal), lambda: now[0]) as (endpoint, server, observed):
        with pytest.raises(NodeRefused) as first:
            await ask(endpoint)
        assert first.value.refusal is Refusal.RATE_LIMITED
        assert first.value.retry_after_seconds == 7
        now[0] += 6
        with pytest.raises(NodeUnavailable) as second:
            await ask(endpoint)
        assert second.value.retry_after_seconds == 1
        assert len(server.requests) == 1
        now[0] += 1
        with pytest.raises(NodeRefused):
            await ask(endpoint)
        assert len(server.requests) == 2
        assert observed.outcomes == [Outcome.REFUSED] * 2


@pytest.mark.parametrize(
    ("raw", "kind", "outcome"),
    [
        (http(b"<html>oops</html>", status="500 Internal Server Error"), NodeUnavailable, Outcome.REFUSED),
        (http(b"", status="401 Unauthorized"), NodeUnavailable, Outcome.REFUSED),
        (
            http(b"", status="302 Found", headers="Location: http://127.0.0.1:1/\r\n"),
            NodeUnavailable,
            Outcome.REFUSED,
        ),
        (http(b"<html>captive portal</html>"), NodeAnswerInvalid, Outcome.INVALID),
        (http(b""), NodeAnswerInvalid, Outcome.INVALID),
        (http(b"null"), NodeAnswerInvalid, Outcome.INVALID),
        (http(b"[]"), NodeAnswerInvalid, Outcome.INVALID),
        (http(b'{"jsonrpc":"2.0","id":987654,"result":"0x1"}'), NodeAnswerInvalid, Outcome.INVALID),
        (http(b"[" * 50_000), NodeAnswerInvalid, Outcome.INVALID),
    ],
)
async def test_what_is_no_answer_is_named_so(raw: bytes, kind: type[NodeError], outcome: str) -> None:
    """Hard cases 30, 114: HTML, redirects (not followed), other ids, depth bombs."""
    async with served(always(raw)) as (endpoint, server, observed):
        with pytest.raises(kind):
            await ask(endpoint)
        assert observed.outcomes == [outcome]
        assert len(server.requests) == 1


@pytest.mark.parametrize("result", [None, 16, True, "16", ["0x10"], {"a": 1}, "0x" + "1" * 40])
async def test_a_result_of_another_type_is_invalid(result: object) -> None:
    """Hard case 30."""
    async with served(with_json(lambda request: answer(request, result=result))) as (endpoint, _, observed):
        with pytest.raises(NodeAnswerInvalid):
            await ask(endpoint)
        assert observed.outcomes == [Outcome.INVALID]


async def hang(_: Any, writer: asyncio.StreamWriter) -> None:
    """Half-open: the request is taken and nothing ever comes."""
    await writer.drain()


async def trickle(_: Any, writer: asyncio.StreamWriter) -> None:
    """Slow loris: there is always one more byte soon."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.02)


@pytest.mark.parametrize("reply", [hang, trickle])
async def test_an_answer_that_never_ends_is_given_up_in_time(reply: Reply) -> None:
    """Hard case 28."""
    async with served(reply) as (endpoint, server, observed):
        with pytest.raises(NodeUnavailable):
            await ask(endpoint)
        with pytest.raises(AnswerLate):
            await ask(endpoint, GET_LOGS)
        assert len(server.requests) == 2
        assert observed.outcomes == [Outcome.UNAVAILABLE] * 2


async def flood(_: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


BOMB = http(gzip.compress(b" " * 50_000_000), headers="Content-Encoding: gzip\r\n")


@pytest.mark.parametrize("reply", [flood, always(BOMB)])
async def test_an_answer_that_is_too_large_is_not_read_to_its_end(reply: Reply) -> None:
    """Hard case 30: also if it is small before it is unpacked."""
    async with served(reply) as (endpoint, _, _observed):
        with pytest.raises(NodeUnavailable, match="larger than we take"):
            await ask(endpoint)
        with pytest.raises(RangeRefused, match="larger than we take"):
            await ask(endpoint, GET_LOGS)


async def test_a_connection_that_breaks_is_tried_again() -> None:
    broken = [True]

    async def reply(request: Any, writer: asyncio.StreamWriter) -> None:
        if broken.pop():
            writer.transport.abort()
        else:
            writer.write(http(orjson.dumps(answer(request, result="0x10"))))

    broken.insert(0, False)
    async with served(reply) as (endpoint, server, observed):
        assert await ask(endpoint) == 16
        assert len(server.requests) == 2
        assert observed.outcomes == [Outcome.OK]


async def test_a_connection_that_always_breaks_is_tried_few_times() -> None:
    async def reply(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
        await writer.drain()
        writer.close()

    async with served(reply) as (endpoint, server, observed):
        with pytest.raises(NodeUnavailable, match="ClientPayloadError"):
            await ask(endpoint)
        assert len(server.requests) == 3
        assert observed.outcomes == [Outcome.UNAVAILABLE]


async def test_nobody_listening_is_unavailable() -> None:
    async with served(hang) as (_, server, _observed):
        port = server.port
    url, observed = f"http://127.0.0.1:{port}/{KEY}", Observed()
    endpoint = RpcEndpoint("first", url, request_timeout_seconds=1, max_answer_bytes=10, observe=observed)
    with pytest.raises(NodeUnavailable) as caught:
        await ask(endpoint)
    await endpoint.close()
    assert KEY not in "".join(traceback.format_exception(caught.value))


async def test_an_error_keeps_its_meaning_and_its_revert_data() -> None:
    async with served(with_error(3, "execution reverted", "0x08c379a0")) as (endpoint, _, observed):
        with pytest.raises(NodeRefused) as caught:
            await ask(endpoint, "eth_call")
        assert (caught.value.refusal, caught.value.revert_data) == (Refusal.REVERTED, bytes.fromhex("08c379a0"))
        assert observed.outcomes == [Outcome.REFUSED]


async def test_ask_for_less_is_said_of_logs_only() -> None:
    """Hard case 22; the range that the text suggests is not looked at (hard case 23)."""
    async with served(with_error(-32005, "query returned more than 10000 results, try 0x0-0xff")) as (endpoint, _, _o):
        with pytest.raises(RangeRefused):
            await ask(endpoint, GET_LOGS)
        with pytest.raises(NodeUnavailable):
            await ask(endpoint, "eth_call")


async def test_an_error_in_the_body_says_more_than_the_status() -> None:
    body = b'{"id":null,"error":{"code":-32602,"message":"Log response size exceeded."}}'
    async with served(always(http(body, status="400 Bad Request"))) as (endpoint, _, _observed):
        with pytest.raises(RangeRefused):
            await ask(endpoint, GET_LOGS)


QUESTIONS = [[hex(number)] for number in range(4)]


def echoed(request: Any) -> dict[str, object]:
    return answer(request, result=request["params"][0])


async def test_a_batch_is_paired_by_id_whatever_its_order() -> None:
    """Hard case 25."""
    async with served(with_json(lambda requests: [echoed(r) for r in reversed(requests)])) as (endpoint, server, seen):
        assert await endpoint.batch("eth_x", QUESTIONS, parse_quantity) == [0, 1, 2, 3]
        assert len(server.requests) == 1
        assert seen.outcomes == [Outcome.OK]


async def test_what_a_batch_leaves_out_is_asked_again_alone() -> None:
    """Hard case 25."""

    def partial(requests: Any) -> object:
        return (
            [echoed(r) for r in requests if r["params"][0] != "0x2"] if isinstance(requests, list) else echoed(requests)
        )

    async with served(with_json(partial)) as (endpoint, server, _):
        assert await endpoint.batch("eth_x", QUESTIONS, parse_quantity) == [0, 1, 2, 3]
        assert len(server.requests) == 2
        assert server.requests[1]["params"] == ["0x2"]


async def test_a_single_question_is_no_batch_and_many_are_several() -> None:
    def either(requests: Any) -> object:
        return [echoed(r) for r in requests] if isinstance(requests, list) else echoed(requests)

    async with served(with_json(either)) as (endpoint, server, _):
        assert await endpoint.batch("eth_x", [], parse_quantity) == []
        assert await endpoint.batch("eth_x", [["0x7"]], parse_quantity) == [7]
        assert isinstance(server.requests[0], dict)
        many = [[hex(number)] for number in range(MAX_BATCH + 1)]
        assert await endpoint.batch("eth_x", many, parse_quantity) == list(range(MAX_BATCH + 1))
        assert [len(request) for request in server.requests[1:2]] == [MAX_BATCH]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda requests: [echoed(requests[0]), echoed(requests[0])],
        lambda requests: [echoed(r) | {"id": 10**9} for r in requests],
        lambda requests: [echoed(r) | {"id": [r["id"]]} for r in requests],
        lambda requests: [None for _ in requests],
        lambda requests: echoed(requests[0]),
        lambda requests: [answer(r, result=None) for r in requests],
        lambda _: "no",
    ],
)
async def test_a_batch_with_answers_that_belong_to_nothing_is_invalid(spoil: Callable[[Any], object]) -> None:
    """Hard case 25."""
    async with served(with_json(spoil)) as (endpoint, _, observed):
        with pytest.raises(NodeAnswerInvalid):
            await endpoint.batch("eth_x", QUESTIONS, parse_quantity)
        assert observed.outcomes == [Outcome.INVALID]


async def test_a_batch_that_is_refused_as_a_whole_is_refused_once() -> None:
    refusal = {"jsonrpc": "2.0", "id": None, "error": {"code": 429, "message": "Too many requests"}}
    async with served(with_json(lambda _: refusal)) as (endpoint, server, _):
        with pytest.raises(NodeRefused) as caught:
            await endpoint.batch("eth_x", QUESTIONS, parse_quantity)
        assert caught.value.refusal is Refusal.RATE_LIMITED
        assert len(server.requests) == 1


def at_most(limit: int, *, form: str) -> Callable[[Any], object]:
    """An endpoint that refuses larger batches, in its own form and without a word."""
    error = {"code": -32000, "message": ""}

    def reply(requests: Any) -> object:
        if not isinstance(requests, list):
            return echoed(requests)
        if len(requests) <= limit:
            return [echoed(r) for r in requests]
        match form:
            case "one":
                return {"jsonrpc": "2.0", "id": None, "error": error}
            case "each":
                return [{"jsonrpc": "2.0", "id": r["id"], "error": error} for r in requests]
            case _:
                return [{"jsonrpc": "2.0", "id": requests[0]["id"], "error": error}]

    return reply


@pytest.mark.parametrize("form", ["one", "each", "first"])
@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_a_batch_that_is_too_large_is_halved_and_the_next_one_is_as_small(form: str, limit: int) -> None:
    many = [[hex(number)] for number in range(64)]
    async with served(with_json(at_most(limit, form=form))) as (endpoint, server, _):
        assert await endpoint.batch("eth_x", many, parse_quantity) == list(range(64))
        assert limit / 2 <= endpoint.capabilities.batch_at(0.0) <= limit
        refused = [each for each in server.requests if isinstance(each, list) and len(each) > limit]
        assert len(refused) <= 6  # halved, not tried one by one
        server.requests.clear()
        assert await endpoint.batch("eth_x", many, parse_quantity) == list(range(64))
        assert not [each for each in server.requests if isinstance(each, list) and len(each) > limit]


async def test_a_batch_is_doubled_again_when_its_refusal_is_long_ago() -> None:
    now, limit = [0.0], [3]
    many = [[hex(number)] for number in range(64)]

    def reply(requests: Any) -> object:
        return at_most(limit[0], form="each")(requests)

    async with served(with_json(reply), lambda: now[0]) as (endpoint, *_):
        await endpoint.batch("eth_x", many, parse_quantity)
        assert endpoint.capabilities.batch_at(now[0]) == 2
        limit[0], now[0] = 100, RELEARN_SECONDS
        await endpoint.batch("eth_x", many, parse_quantity)
        assert endpoint.capabilities.batch_at(now[0]) > 16


async def test_a_batch_of_an_endpoint_that_is_out_of_order_costs_one_more_question() -> None:
    async with served(always(http(b"", status="500 Internal Server Error"))) as (endpoint, server, _):
        with pytest.raises(NodeRefused):
            await endpoint.batch("eth_x", QUESTIONS, parse_quantity)
        assert len(server.requests) == 2
        assert endpoint.capabilities.batch_at(0.0) == MAX_BATCH


async def test_what_a_question_of_a_batch_is_refused_for_is_said_at_once() -> None:
    def reverts(requests: Any) -> object:
        return [{"jsonrpc": "2.0", "id": r["id"], "error": {"code": 3, "message": "reverted"}} for r in requests]

    async with served(with_json(reverts)) as (endpoint, server, _):
        with pytest.raises(NodeRefused) as caught:
            await endpoint.batch("eth_x", QUESTIONS, parse_quantity)
        assert (caught.value.refusal, len(server.requests)) == (Refusal.REVERTED, 1)


async def test_a_batch_that_is_not_answered_in_time_is_smaller_next_time() -> None:
    async with served(hang) as (endpoint, server, _):
        with pytest.raises(AnswerLate):
            await endpoint.batch("eth_x", QUESTIONS, parse_quantity)
        assert len(server.requests) == 1
        assert endpoint.capabilities.batch_at(0.0) == len(QUESTIONS) // 2


async def test_headers_are_sent_with_each_question_and_their_values_appear_in_no_error() -> None:
    async with served(with_error(-32000, "who is canary-0123456789, Token canary-0123456789?")) as (_, server, _):
        endpoint = RpcEndpoint(
            "first",
            server.url,
            request_timeout_seconds=1,
            max_answer_bytes=10_000,
            observe=lambda *_: None,
            headers={"X-Api-Key": "Token canary-0123456789", "X-Team": "mint"},
        )
        try:
            with pytest.raises(NodeUnavailable) as caught:
                await ask(endpoint)
        finally:
            await endpoint.close()
        assert "who is" in str(caught.value)
        assert "canary" not in str(caught.value)
        assert b"x-api-key: token canary-0123456789" in server.heads[0]
        assert b"x-team: mint" in server.heads[0]


@pytest.mark.parametrize(
    "reply",
    [
        with_error(-32000, f"project {KEY} at /v3/{KEY}?token={KEY} is not allowed\x1b[2J"),
        always(http(orjson.dumps({"id": None, "error": {"message": KEY}}), status="403 Forbidden")),
        always(http(KEY.encode())),
        always(b"HTTP/9.9 not http at all\r\n\r\n"),
        hang,
    ],
)
async def test_no_error_and_no_log_line_holds_the_key_of_the_account(
    reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    """Hard case 110."""
    caplog.set_level(logging.DEBUG)
    async with served(reply) as (endpoint, _, _observed):
        with pytest.raises(NodeError) as caught:
            await ask(endpoint)
        for text in (repr(endpoint), "".join(traceback.format_exception(caught.value)), caplog.text):
            assert KEY not in text
        assert "\x1b" not in str(caught.value)


async def test_a_parser_that_refuses_makes_the_answer_invalid() -> None:
    async with served(with_json(lambda request: answer(request, result="0x12"))) as (endpoint, _, _observed):
        with pytest.raises(NodeAnswerInvalid) as caught:
            await endpoint.call("eth_x", [], parse_hash)
        assert isinstance(caught.value.__cause__, Malformed)
