"""A JSON-RPC node that can be made to lie: real HTTP, the real protocol, a chain in memory, a count of what it saw."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeAlias

from aiohttp import web
from eth_hash.auto import keccak

FACTORY = b"\xfa" * 20
CODE = b"\x60\x01"
CHAIN_ID = 31337
BLOCK_SECONDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A log as a contract emits it; each is its own transaction."""

    address: bytes
    topics: tuple[bytes, ...] = ()
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInBlock:
    number: int
    hash: bytes
    parent_hash: bytes
    emitted: tuple[Emitted, ...] = ()

    def header(self) -> dict[str, object]:
        return {
            "number": hex(self.number),
            "hash": to_hex(self.hash),
            "parentHash": to_hex(self.parent_hash),
            "timestamp": hex(1_700_000_000 + BLOCK_SECONDS * self.number),
            "logsBloom": to_hex(bloom(self.emitted)),
            "transactions": [to_hex(self.tx_hash(index)) for index in range(len(self.emitted))],
        }

    def tx_hash(self, index: int) -> bytes:
        # A transaction keeps its hash wherever it is mined.
        return sha256(repr(self.emitted[index]).encode()).digest()

    def log(self, index: int) -> dict[str, object]:
        emitted = self.emitted[index]
        return {
            "address": to_hex(emitted.address),
            "topics": [to_hex(topic) for topic in emitted.topics],
            "data": to_hex(emitted.data),
            "blockHash": to_hex(self.hash),
            "blockNumber": hex(self.number),
            "transactionHash": to_hex(self.tx_hash(index)),
            "transactionIndex": hex(index),
            "logIndex": hex(index),
            "removed": False,
        }

    def receipts(self) -> list[dict[str, object]]:
        return [
            {
                "transactionHash": to_hex(self.tx_hash(index)),
                "transactionIndex": hex(index),
                "status": "0x1",
                "blockHash": to_hex(self.hash),
                "blockNumber": hex(self.number),
                "logs": [self.log(index)],
            }
            for index in range(len(self.emitted))
        ]


Chain: TypeAlias = tuple[StandInBlock, ...]
"""Blocks from number 0 on, each the parent of the next."""


def genesis(name: str = "main") -> Chain:
    return (StandInBlock(number=0, hash=sha256(name.encode()).digest(), parent_hash=bytes(32)),)


def mined(chain: Chain, *blocks: Sequence[Emitted], fork: str = "") -> Chain:
    """``chain`` and a block on top for each of ``blocks``; another ``fork`` gives other hashes."""
    for emitted in blocks:
        parent = chain[-1]
        seed = repr((parent.hash, tuple(emitted), fork)).encode()
        block = StandInBlock(
            number=parent.number + 1, hash=sha256(seed).digest(), parent_hash=parent.hash, emitted=tuple(emitted)
        )
        chain = (*chain, block)
    return chain


def bloom(emitted: Sequence[Emitted]) -> bytes:
    """As the Yellow Paper has it, written apart from the code under test."""
    bits = 0
    for log in emitted:
        for value in (log.address, *log.topics):
            digest = keccak(value)
            for start in (0, 2, 4):
                bits |= 1 << (int.from_bytes(digest[start : start + 2], "big") & 2047)
    return bits.to_bytes(256, "big")


def to_hex(octets: bytes) -> str:
    return "0x" + octets.hex()


class RpcError(Exception):
    """What the node refuses with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message}


Tamper: TypeAlias = Callable[[list[Any], Any], object]
"""From a question's parameters and its honest result to what is answered; may raise ``RpcError``."""

Interfere: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Instead of an answer; ``None`` lets the honest one pass."""


@dataclass(slots=True, kw_only=True)
class RpcStandIn:
    """Change any field while it runs.

    ``seen`` counts questions by method, ``exchanges`` counts HTTP requests, ``asked`` has every question in order.
    """

    chain: Chain
    chain_id: int = CHAIN_ID
    code: bytes = CODE
    finalized: int = 0
    safe: int = 0
    orphans: Chain = ()
    tampers: dict[str, Tamper] = field(default_factory=dict)
    interfere: Interfere | None = None
    seen: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, list[Any]]] = field(default_factory=list)
    exchanges: int = 0
    connections: set[object] = field(default_factory=set)
    url: str = ""

    @property
    def head(self) -> StandInBlock:
        return self.chain[-1]

    def forget(self) -> None:
        self.seen.clear()
        self.asked.clear()
        self.exchanges = 0

    def drop_connections(self) -> None:
        """As a server does that is restarted, or had a client wait too long."""
        for transport in self.connections:
            assert isinstance(transport, asyncio.Transport)
            transport.close()
        self.connections.clear()

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[RpcStandIn]:
        application = web.Application(client_max_size=10_000_000)
        application.router.add_post("/", self._handle)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.exchanges += 1
        self.connections.add(request.transport)
        question = await request.json()
        if self.interfere is not None and (answer := await self.interfere(request)) is not None:
            return answer
        if isinstance(question, list):
            return web.json_response([self._answer(each) for each in question])
        return web.json_response(self._answer(question))

    def _answer(self, question: dict[str, Any]) -> dict[str, object]:
        method, params = question["method"], question["params"]
        self.seen[method] += 1
        self.asked.append((method, params))
        answer: dict[str, object] = {"jsonrpc": "2.0", "id": question["id"]}
        try:
            result = self._result(method, params)
            if tamper := self.tampers.get(method):
                result = tamper(params, result)
        except RpcError as refused:
            return answer | {"error": refused.error}
        return answer | {"result": result}

    def _result(self, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_chainId":
                return hex(self.chain_id)
            case "eth_getCode":
                return to_hex(self.code)
            case "eth_getBlockByNumber":
                block = self._by_number(params[0])
            case "eth_getBlockByHash":
                block = self._by_hash(params[0])
            case "eth_getBlockReceipts":
                block = self._by_hash(params[0])
                return None if block is None else block.receipts()
            case "eth_getTransactionReceipt":
                receipts = (receipt for each in self.chain for receipt in each.receipts())
                return next((receipt for receipt in receipts if receipt["transactionHash"] == params[0]), None)
            case "eth_getLogs":
                return self._logs(params[0])
            case _:
                raise RpcError(-32601, f"the method {method} does not exist/is not available")
        return None if block is None else block.header()

    def _by_number(self, name: str) -> StandInBlock | None:
        tags = {"latest": self.head.number, "finalized": self.finalized, "safe": self.safe, "earliest": 0}
        number = tags[name] if name in tags else int(name, 16)
        return self.chain[number] if number < len(self.chain) else None

    def _by_hash(self, name: str) -> StandInBlock | None:
        return next((block for block in (*self.chain, *self.orphans) if to_hex(block.hash) == name), None)

    def _logs(self, wanted: dict[str, Any]) -> list[dict[str, object]]:
        if "blockHash" in wanted:
            block = self._by_hash(wanted["blockHash"])
            if block is None:
                raise RpcError(-32000, "unknown block")
            blocks: Sequence[StandInBlock] = (block,)
        else:
            # Beyond the head there is nothing, and nobody says so: what makes a lagging node dangerous.
            blocks = self.chain[int(wanted["fromBlock"], 16) : int(wanted["toBlock"], 16) + 1]
        return [
            block.log(index)
            for block in blocks
            for index, emitted in enumerate(block.emitted)
            if _matches(emitted, wanted)
        ]


def _matches(emitted: Emitted, wanted: dict[str, Any]) -> bool:
    addresses = wanted.get("address")
    if addresses and to_hex(emitted.address) not in addresses:
        return False
    positions = wanted.get("topics", [])
    if len(positions) > len(emitted.topics):
        return False
    topics = [to_hex(topic) for topic in emitted.topics]
    return all(position is None or topic in position for position, topic in zip(positions, topics, strict=False))


# What goes wrong with HTTP.


def refused(status: int, headers: dict[str, str] | None = None, text: str = "") -> Interfere:
    async def interfere(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, text=text)

    return interfere


def said(text: str) -> Interfere:
    async def interfere(_: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="text/html")

    return interfere


async def hung(request: web.Request) -> web.StreamResponse:
    """The head of an answer, and then nothing more: the body hangs until the client gives up."""
    response = web.StreamResponse()
    response.content_length = 1_000
    await response.prepare(request)
    await response.write(b"{")
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await gone  # cancelled when the client closes, or with the server
    return response


async def huge(request: web.Request) -> web.StreamResponse:
    """An answer without an end."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)
