"""What one call knows for certain, against real servers that misbehave."""

import asyncio
import dataclasses
import gzip
import json
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from datastore.identity import execution_id_candidates
from datastore.mint_amount import amount_text, predicted_wei
from invocator.classification import (
    Accepted,
    Answer,
    Code,
    HttpReply,
    InstanceRefused,
    NeverConnected,
    NoAnswer,
    Outcome,
    Reply,
    classify,
)
from invocator.cre_gateway import MAX_ANSWER_BYTES, CreGateway, GatewayUrlUnusable
from invocator.payload import MintOrder, request_body
from invocator.signing import Signer, signed_token
from service.demo.cre_stand_in import CreStandIn, RateLimit, Workflow, faults

BODY = b'{"id":"1","jsonrpc":"2.0","method":"workflows.execute","params":{}}'
TOKEN = "header.payload.signature"
PLENTY_SECONDS = 20
SHORT_SECONDS = 1

SIGNER = Signer.from_text(json.loads(Path(__file__).with_name("vectors.json").read_text())["private_key"])
ORDER = MintOrder(
    nonce=uuid.UUID("01234567-89ab-8cde-9012-3456789abcde"),
    workflow_id=bytes.fromhex("00da21b8b3e117e31f3a3e8a0795225cbde6c00283a84395117669691f2b7856"),
    beneficiary=b"\xee" * 20,
    amount_wei=1_100_000_000_000_000_000,
    decimals=18,
    expected_reference=b"<DEPOSIT & 1>".ljust(32, b"\0"),
    token=b"\xaa" * 20,
    consumer=b"\xc0" * 20,
    symbol="\u20acUR",
    block_timestamp=1_770_076_800,
    currency="USD",
)
FROZEN = request_body(ORDER)
EXECUTION_IDS = dict(
    zip(("legacy", "trigger_index"), execution_id_candidates(ORDER.workflow_id, ORDER.nonce.hex), strict=True)
)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/", handler)
    async with TestServer(application) as server:
        yield str(server.make_url("/"))


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """A server that speaks raw bytes, or does not speak; on leaving, every conversation has ended."""
    conversations: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(ended := asyncio.Event())
        with suppress(ConnectionError):
            await talk(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for conversation in conversations:
            await conversation.wait()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(len(BODY))


async def post(url: str, timeout_seconds: float = PLENTY_SECONDS) -> Reply:
    return await CreGateway.at(url).post(BODY, TOKEN, timeout_seconds)


async def test_the_request_is_sent_as_it_is_with_its_token() -> None:
    seen: list[tuple[bytes, str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.read(), request.headers["Authorization"], request.headers["Content-Type"]))
        return web.Response(body=b"{}", content_type="application/jsonrpc")

    async with answering(handler) as url:
        reply = await post(url)

    assert seen == [(BODY, f"Bearer {TOKEN}", "application/json")]
    assert isinstance(reply, HttpReply)
    assert (reply.status, reply.body, reply.truncated) == (200, b"{}", False)


@pytest.mark.parametrize("status", [201, 400, 403, 409, 429, 500, 503])
async def test_any_status_is_a_reply(status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=b"x")

    async with answering(handler) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert (reply.status, reply.body) == (status, b"x")


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Thu, 01 Jan 2026 00:00:00 GMT", 1_767_225_600),
        ("Thu, 01 Jan 2026 00:00:00 -0000", 1_767_225_600),
        ("yesterday", None),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
    ],
)
async def test_the_gateways_clock_is_read_where_it_makes_sense(date: str, seconds: int | None) -> None:
    """Hard case 82."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(headers={"Date": date})

    async with answering(handler) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert reply.server_date == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("90", 90), ("9" * 5000, 3_600), ("-1", None), ("\u00b2", None), ("soon", None), ("", None)],
)
async def test_a_retry_after_is_read_where_it_makes_sense(header: str, seconds: int | None) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": header})

    async with answering(handler) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert reply.retry_after_seconds == seconds


async def test_a_redirect_is_not_followed() -> None:
    """Hard cases 84 and 114."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with answering(handler) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert reply.status == 307
    assert asked == ["/"]


@pytest.mark.parametrize(("length", "truncated"), [(MAX_ANSWER_BYTES, False), (MAX_ANSWER_BYTES + 1, True)])
async def test_an_answer_is_read_up_to_its_bound(length: int, truncated: bool) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * length)

    async with answering(handler) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert (len(reply.body), reply.truncated) == (MAX_ANSWER_BYTES, truncated)


async def test_an_endless_answer_is_cut_off() -> None:
    """Hard case 84."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            await writer.drain()

    async with talking(talk) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert (len(reply.body), reply.truncated) == (MAX_ANSWER_BYTES, True)


async def test_a_gzip_bomb_is_never_unpacked() -> None:
    """Hard case 84."""
    bomb = gzip.compress(bytes(10_000_000))

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with answering(handler) as url:
        reply = await post(url)

    assert isinstance(reply, HttpReply)
    assert reply.body == bomb


async def test_an_answer_that_drips_is_no_answer_in_time() -> None:
    """Hard case 75."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await reader.read()

    async with talking(talk) as url:
        assert await post(url, SHORT_SECONDS) == NoAnswer(reason="timed out")


async def test_silence_after_the_request_is_no_answer() -> None:
    """Hard case 75."""
    received = []

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.append(await read_request(reader))
        await reader.read()

    async with talking(talk) as url:
        assert await post(url, SHORT_SECONDS) == NoAnswer(reason="timed out")

    assert received[0].endswith(BODY)


async def test_a_connection_that_closes_after_the_request_is_no_answer() -> None:
    """Hard case 88: and it is asked once only."""
    received = []

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.append(await read_request(reader))

    async with talking(talk) as url:
        assert isinstance(await post(url), NoAnswer)

    assert len(received) == 1


async def test_a_connection_that_closes_without_reading_is_no_answer() -> None:
    """The request may have been in its buffer: only an unopened connection is proof."""

    async def talk(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        return

    async with talking(talk) as url:
        assert isinstance(await post(url), NoAnswer)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        b"220 this is a mail server\r\n",
        b"\x00" * 100,
    ],
)
async def test_a_broken_answer_is_no_answer(answer: bytes) -> None:
    """Hard case 84."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    async with talking(talk) as url:
        assert isinstance(await post(url), NoAnswer)


async def test_two_calls_share_no_connection() -> None:
    """A kept connection may be dead, and then nobody can tell whether the request was read."""
    peers = []

    async def handler(request: web.Request) -> web.Response:
        peers.append(request.transport.get_extra_info("peername") if request.transport else None)
        return web.Response()

    async with answering(handler) as url:
        gateway = CreGateway.at(url)
        await gateway.post(BODY, TOKEN, PLENTY_SECONDS)
        await gateway.post(BODY, TOKEN, PLENTY_SECONDS)

    assert len(set(peers)) == 2


async def test_a_refused_connection_was_never_connected() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        reply = await post(f"http://127.0.0.1:{reserved.getsockname()[1]}/")

    assert reply == NeverConnected(reason="ClientConnectorError")


async def test_a_name_without_an_address_was_never_connected() -> None:
    assert isinstance(await post("https://gateway.invalid/"), NeverConnected)


async def test_a_failed_tls_handshake_was_never_connected() -> None:
    received = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1000))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with talking(talk) as url:
        reply = await post(url.replace("http:", "https:"))

    assert isinstance(reply, NeverConnected)
    assert TOKEN.encode() not in received[0]


async def test_a_tls_handshake_without_an_answer_was_never_connected() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with talking(talk) as url:
        reply = await post(url.replace("http:", "https:"), SHORT_SECONDS)

    assert reply == NeverConnected(reason="timed out")


async def test_a_cancelled_call_closes_its_connection() -> None:
    """Hard case 102."""
    closed = asyncio.Event()
    reached = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        reached.set()
        await reader.read()
        closed.set()

    async with talking(talk) as url:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(post(url))
            await reached.wait()
            call.cancel()
        await closed.wait()

    assert call.cancelled()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.example",
        "ftp://gateway.example/",
        "http://gateway.example/",
        "http://169.254.169.254/",
        "http://localhost.example/",
        "http://127.0.0.1.example/",
        "https://",
        "https://user:hunter2@gateway.example/",
        "https://[hunter2/",
        "https://gateway.example:hunter2/",
    ],
)
def test_a_url_that_a_token_must_not_travel_to_is_refused_without_showing_it(url: str) -> None:
    """Hard cases 110 and 114."""
    with pytest.raises(GatewayUrlUnusable) as caught:
        CreGateway.at(url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://01.gateway.example/", "http://127.0.0.1:8080/", "http://[::1]:8080/", "http://localhost/"]
)
def test_https_and_loopback_are_taken(url: str) -> None:
    gateway = CreGateway.at(url + "?key=hunter2")

    assert str(gateway.url).startswith(url)
    assert "hunter2" not in repr(gateway)


# The stand-in shares no code with us: whatever it takes, two readings of the protocol agree on.


@asynccontextmanager
async def standing_in(**options: Any) -> AsyncIterator[CreStandIn]:
    """A CRE that trusts `SIGNER` and runs what it accepts, but sends no report: there is no chain behind it."""
    workflow = Workflow(workflow_id=ORDER.workflow_id, authorized_keys=frozenset({SIGNER.address}))
    options = {"workflows": [workflow], **options}
    async with CreStandIn(rpc_url="http://127.0.0.1:9/", forwarder=b"\xf0" * 20, **options) as cre:
        cre.hold_deliveries()
        yield cre


async def attempt(cre: CreStandIn, timeout_seconds: float = PLENTY_SECONDS, *, late_seconds: int = 0) -> Answer:
    """Send the frozen request once, as each attempt does: the same bytes, and a token of its own."""
    issued_at = int(cre.clock.now()) - late_seconds
    token = signed_token(FROZEN, key=SIGNER, issued_at=issued_at, jti=uuid.uuid4())
    reply = await CreGateway.at(cre.url).post(FROZEN, token, timeout_seconds)
    return classify(reply, request_id=ORDER.nonce.hex, workflow_id=ORDER.workflow_id)


@pytest.mark.parametrize("form", ["legacy", "trigger_index"])
async def test_the_stand_in_accepts_our_request_and_mints_what_was_asked(form: str) -> None:
    """Hard case 83."""
    async with standing_in(execution_id_form=form) as cre:
        answer = await attempt(cre)

    execution_id = EXECUTION_IDS[form]
    assert answer == Accepted(execution_id=execution_id, expected=True)
    (delivery,) = cre.ledger.deliveries
    assert delivery.execution_id == execution_id
    assert (delivery.consumer, delivery.recipient) == (ORDER.consumer, ORDER.beneficiary)
    assert delivery.amount_wei == predicted_wei(amount_text(ORDER.amount_wei)) != ORDER.amount_wei
    assert delivery.bank_reference == ORDER.expected_reference


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (faults.too_many_requests(), Outcome.REFUSED_NOW),
        (faults.conflict(), Outcome.IN_FLIGHT),
        (faults.drop_before_forwarding(), Outcome.UNKNOWN),
        (faults.answer_lost(), Outcome.UNKNOWN),
        (faults.answer_cut_short(), Outcome.UNKNOWN),
        (faults.internal_error(forwards=True), Outcome.UNKNOWN),
        (faults.bad_gateway(forwards=True), Outcome.UNKNOWN),
        (faults.unavailable(forwards=True), Outcome.UNKNOWN),
        (faults.handler_timeout(sticks=False), Outcome.UNKNOWN),
        (faults.html_page(), Outcome.UNKNOWN),
        (faults.truncated_json(), Outcome.UNKNOWN),
        (faults.foreign_id(), Outcome.UNKNOWN),
        (faults.gigantic_body(), Outcome.UNKNOWN),
        (faults.redirect(), Outcome.UNKNOWN),
        (faults.accept_then_drop(), Outcome.ACCEPTED),
    ],
    ids=lambda value: value.name if isinstance(value, faults.Fault) else str(value),
)
async def test_after_each_fault_the_same_bytes_are_accepted_and_run_once_at_most(
    fault: faults.Fault, outcome: Outcome
) -> None:
    """Hard cases 75, 76, 84 and 86."""
    async with standing_in() as cre:
        cre.faults.next(fault)

        assert (await attempt(cre)).outcome is outcome
        assert (await attempt(cre)).outcome is Outcome.ACCEPTED

    assert len(cre.ledger.runs) == (0 if fault.name == "accept_then_drop" else 1)
    assert len(cre.ledger.bodies_of(ORDER.nonce.hex)) == 1
    assert len(cre.ledger.jtis()) == 2


async def test_an_answer_that_never_comes_leaves_the_id_in_flight() -> None:
    """Hard cases 75 and 80."""
    async with standing_in() as cre:
        cre.faults.next(faults.time_out(sticks=True))

        assert (await attempt(cre, SHORT_SECONDS)).outcome is Outcome.UNKNOWN
        assert (await attempt(cre)).outcome is Outcome.IN_FLIGHT

    assert len(cre.ledger.runs) == 1


async def test_a_second_trigger_within_the_minute_is_refused_before_it_is_forwarded() -> None:
    """Hard case 78."""
    async with standing_in(rate_limit=RateLimit(seconds_per_trigger=60)) as cre:
        assert (await attempt(cre)).outcome is Outcome.ACCEPTED
        assert (await attempt(cre)).outcome is Outcome.REFUSED_NOW


@pytest.mark.parametrize(
    ("workflows", "late_seconds", "code"),
    [
        ([], 0, Code.WORKFLOW_NOT_FOUND),
        (
            [Workflow(workflow_id=ORDER.workflow_id, authorized_keys=frozenset({bytes(20)}))],
            0,
            Code.SIGNER_NOT_AUTHORIZED,
        ),
        ([Workflow(workflow_id=ORDER.workflow_id, authorized_keys=frozenset({SIGNER.address}))], 400, Code.CLOCK_OFF),
        ([Workflow(workflow_id=ORDER.workflow_id, authorized_keys=frozenset({SIGNER.address}))], -400, Code.CLOCK_OFF),
    ],
)
async def test_what_is_the_instances_fault_is_told_as_such(
    workflows: list[Workflow], late_seconds: int, code: Code
) -> None:
    """Hard cases 82 and 85."""
    async with standing_in(workflows=workflows) as cre:
        answer = await attempt(cre, late_seconds=late_seconds)

    assert isinstance(answer, InstanceRefused)
    assert answer.code is code
    assert not cre.ledger.runs


async def test_another_body_under_our_id_is_a_conflict() -> None:
    """Hard case 76."""
    async with standing_in() as cre:
        await attempt(cre)
        changed = request_body(dataclasses.replace(ORDER, block_timestamp=ORDER.block_timestamp + 86_400))
        token = signed_token(changed, key=SIGNER, issued_at=int(cre.clock.now()), jti=uuid.uuid4())
        reply = await CreGateway.at(cre.url).post(changed, token, PLENTY_SECONDS)

    answer = classify(reply, request_id=ORDER.nonce.hex, workflow_id=ORDER.workflow_id)
    assert answer.outcome is Outcome.PAYLOAD_CONFLICT
