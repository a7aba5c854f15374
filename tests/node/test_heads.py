"""A WebSocket wakes, and whatever else it does costs nothing."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from node.errors import NodeUnavailable
from node.heads import LEAST_WAKE_SECONDS, hear_heads
from service.supervision import Companion, Part, Stop, Supervisor

KEY = "s3cr3t-k3y-0f-an-acc0unt"
HEAD = json.dumps({"jsonrpc": "2.0", "method": "eth_subscription", "params": {"subscription": "0x1", "result": {}}})
SUBSCRIBED = json.dumps({"jsonrpc": "2.0", "id": 1, "result": "0x1"})

Talk = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    async with serve(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/v3/{KEY}"


class Clock:
    """Moves on at every look, by more than the shortest pause between two wakes, or not at all."""

    def __init__(self, step: float = LEAST_WAKE_SECONDS) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


async def heard(url: str, clock: Callable[[], float]) -> tuple[int, NodeUnavailable]:
    """How often we were woken until the connection ended, and how it ended."""
    wakes: list[None] = []
    with pytest.raises(NodeUnavailable) as caught:
        await hear_heads(url, wake=lambda: wakes.append(None), clock=clock)
    return len(wakes), caught.value


async def test_each_new_head_wakes_and_nothing_else_does() -> None:
    subscriptions: list[object] = []

    async def talk(connection: ServerConnection) -> None:
        subscriptions.append(json.loads(await connection.recv()))
        for message in (SUBSCRIBED, HEAD, "not json", "[" * 10_000, "[]", '{"method":"other"}', b"\x00", HEAD):
            await connection.send(message)

    async with talking(talk) as url:
        wakes, error = await heard(url, Clock())
    assert (wakes, error.reason) == (2, "the server closed the connection")
    assert subscriptions == [{"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]}]


async def test_a_flood_of_heads_wakes_once_in_a_while() -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        for _ in range(100):
            await connection.send(HEAD)

    async with talking(talk) as url:
        assert (await heard(url, Clock(0.0)))[0] == 1


async def refuse(connection: ServerConnection) -> None:
    await connection.send(json.dumps({"id": 1, "error": {"code": -32601, "message": f"no {KEY}"}}))
    await connection.wait_closed()


async def shout(connection: ServerConnection) -> None:
    await connection.send("x" * 2_000_000)
    await connection.wait_closed()


async def die(connection: ServerConnection) -> None:
    connection.transport.abort()


@pytest.mark.parametrize("talk", [refuse, shout, die])
async def test_a_connection_that_is_of_no_use_ends_without_a_wake_and_without_the_key(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    """Hard cases 29, 110."""
    caplog.set_level(logging.DEBUG)
    async with talking(talk) as url:
        wakes, error = await heard(url, Clock())
    assert wakes == 0
    assert KEY not in f"{error} {error.__cause__!r}"
    assert KEY not in "".join(record.getMessage() for record in caplog.records if not _is_servers(record))


def _is_servers(record: logging.LogRecord) -> bool:
    return record.name.startswith(("websockets.server", "asyncio"))


async def test_nobody_there_and_no_websocket_there_is_unavailable() -> None:
    async def answer(_: ServerConnection, __: Request) -> Response:
        return Response(302, "Found", Headers({"Location": f"ws://127.0.0.1:1/{KEY}"}))

    async def talk(_: ServerConnection) -> None:
        raise AssertionError("nobody gets here")

    async with serve(talk, "127.0.0.1", 0, process_request=answer) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/{KEY}"
        assert (await heard(url, Clock()))[1].reason == "InvalidStatus"  # the redirect is not followed
    _, error = await heard(url, Clock())
    assert error.reason in {"ConnectionRefusedError", "OSError"}


async def test_the_supervisor_connects_again_and_the_part_ticks_at_a_new_head() -> None:
    """Hard case 29: as it is wired; the first connection dies, the second one wakes the part."""
    connections: list[None] = []
    ticks: list[None] = []
    stop = Stop()

    async def talk(connection: ServerConnection) -> None:
        connections.append(None)
        if len(connections) == 1:
            connection.transport.abort()
            return
        await connection.send(HEAD)
        await connection.wait_closed()

    async def tick() -> bool:
        ticks.append(None)
        if len(ticks) == 2:
            stop.ask()
        return False

    async with talking(talk) as url:
        part = Part(name="indexer", tick=tick, pause_seconds=1e6, wake=asyncio.Event())

        async def wait(event: asyncio.Event, seconds: float) -> None:
            if seconds > 1e5:  # the part's pause: only a wake ends it; a back-off is over at once
                await event.wait()

        heads = Companion(
            name="heads",
            run=lambda: hear_heads(url, wake=part.wake.set, clock=Clock()),
            forgives=(NodeUnavailable,),
        )
        assert await Supervisor([part], [heads], stop=stop, wait=wait).run() == 0
    assert (len(connections), len(ticks)) == (2, 2)
