"""The relay that the kill loop breaks connections with, held against a server that answers what it hears."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fault_proxy import BlackHole, Cut, Delay, FaultProxy


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while heard := await reader.read(65_536):
            writer.write(heard)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with echo() as port, FaultProxy("127.0.0.1", port) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, text: bytes) -> bytes:
        self.writer.write(text)
        return await self.reader.readexactly(len(text))


@asynccontextmanager
async def client_of(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def test_a_relay_without_a_fault_passes_everything_and_ends_with_either_side(proxy: FaultProxy) -> None:
    text = bytes(range(256)) * 4_096
    async with client_of(proxy) as client:
        assert await client.says(text) == text
        client.writer.write_eof()
        assert await client.reader.read() == b""


async def test_a_cut_lets_its_bytes_through_resets_every_connection_and_strikes_once(proxy: FaultProxy) -> None:
    async with client_of(proxy) as client, client_of(proxy) as other:
        assert await other.says(b"ready") == b"ready"
        proxy.strike(Cut(after_bytes=4 + 3))  # the question, and three bytes of its answer
        client.writer.write(b"ping")
        assert await client.reader.read(3) in {b"pin", b""}  # a reset may overtake what was sent before it
        for each in (client, other):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await each.says(b"more")
    assert proxy.resets == 2
    async with client_of(proxy) as again:
        assert await again.says(b"ping") == b"ping"


async def test_a_black_hole_answers_nothing_and_gives_back_what_it_took(proxy: FaultProxy) -> None:
    async with client_of(proxy) as client:
        proxy.strike(BlackHole())
        client.writer.write(b"ping")
        async with client_of(proxy) as late:
            late.writer.write(b"pong")
            for each in (client, late):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await each.reader.read(1)
            proxy.lift()
            assert await client.reader.readexactly(4) == b"ping"
            assert await late.reader.readexactly(4) == b"pong"


async def test_a_delay_keeps_what_passes_until_it_is_lifted(proxy: FaultProxy) -> None:
    async with client_of(proxy) as client:
        proxy.strike(Delay(seconds=3_600))
        client.writer.write(b"ping")
        proxy.lift()
        assert await client.reader.readexactly(4) == b"ping"
        proxy.strike(Delay(seconds=0.001))
        assert await client.says(b"pong") == b"pong"


async def test_a_server_that_is_not_there_resets_the_client_and_may_come_later(proxy: FaultProxy) -> None:
    upstream = proxy.upstream
    proxy.upstream = ("127.0.0.1", 1)
    async with client_of(proxy) as client:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.says(b"ping")
    proxy.upstream = upstream
    async with client_of(proxy) as client:
        assert await client.says(b"ping") == b"ping"
