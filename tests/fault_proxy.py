"""A TCP relay that breaks on request, to stand between the daemon and a server that it talks to.

It knows nothing of what it carries, so that a fault may strike anywhere: in a handshake, in the middle of a COMMIT,
between a request and its answer.
"""

import asyncio
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import urlsplit

from service.supervision import wait

_CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Let so many bytes through, counted from now over all connections and both directions; then reset them all.

    It strikes once: connections that are made afterwards are well.
    """

    after_bytes: int


@dataclass(frozen=True, slots=True)
class BlackHole:
    """Take connections and bytes, and pass nothing on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """Keep each piece of a stream for so long."""

    seconds: float


Fault: TypeAlias = Cut | BlackHole | Delay


def any_fault(chance: random.Random) -> Fault:
    """One of all kinds."""
    cut = Cut(after_bytes=chance.choice((0, 1, 7, 100, chance.randrange(20_000))))
    return chance.choice((cut, BlackHole(), Delay(seconds=chance.uniform(0.01, 0.5))))


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL that names both."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError("a URL without host or port")
    return parts.hostname, parts.port


class _Severed(Exception):
    """This connection is over, in both directions."""


class FaultProxy:
    """``async with FaultProxy(host, port) as proxy``, then connect to ``proxy.port`` of loopback instead."""

    def __init__(self, host: str, port: int) -> None:
        """Relay to this server, which need not be there yet, and may come and go."""
        self.upstream = (host, port)
        self.port = 0
        self.resets = 0
        self._fault: Fault | None = None
        self._bytes_left = 0
        self._changed = asyncio.Event()
        self._transports: set[asyncio.WriteTransport] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.lift()
        while self._transports:
            self.reset()
            await asyncio.sleep(0)  # noqa: TID251 - no pause: the relays get their turn to end
        await self._server.wait_closed()

    def strike(self, fault: Fault) -> None:
        """Let something go wrong from now on, instead of what went wrong before."""
        self._bytes_left = fault.after_bytes if isinstance(fault, Cut) else 0
        self._become(fault)

    def lift(self) -> None:
        """Let everything go well from now on; what a black hole or a delay holds is passed on."""
        self._become(None)

    def reset(self) -> None:
        """Reset every connection of this moment."""
        self.resets += len(self._transports) // 2
        for transport in tuple(self._transports):
            transport.abort()

    def _become(self, fault: Fault | None) -> None:
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer.transport, up_writer.transport}
        self._transports |= ends
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, up_writer))
                pumps.create_task(self._pump(up_reader, writer))
        except* (OSError, _Severed):
            pass
        finally:
            self._transports -= ends
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            passed = await self._struck(chunk)
            writer.write(passed)
            await writer.drain()
            if len(passed) < len(chunk):
                self.lift()
                self.reset()
                raise _Severed
        writer.write_eof()

    async def _struck(self, chunk: bytes) -> bytes:
        """What of a piece may pass now, after however long the present fault keeps it."""
        while isinstance(self._fault, BlackHole):
            await self._changed.wait()
        if isinstance(self._fault, Delay):
            await wait(self._changed, self._fault.seconds)
        if isinstance(self._fault, Cut):
            chunk, self._bytes_left = chunk[: self._bytes_left], max(0, self._bytes_left - len(chunk))
        return chunk
