"""A chain of our own making behind the real protocol: it counts what it was asked, and can refuse and tire."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web
from eth_abi.abi import encode

from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.observation import Sources
from node.endpoint import RpcEndpoint
from node.node import Node

CATALOG = EventCatalog(load_abis(Path(__file__).parents[2] / "abi"))
FACTORY, FORWARDER, USER = b"\xfa" * 20, b"\xf0" * 20, b"\x11" * 20
SOURCES = Sources(chain_id=1, factory=FACTORY, forwarder=FORWARDER, catalog=CATALOG, secret=bytes(range(32)))
# The token's form; the factory's has another topic0.
(TOKEN_FORM, *_) = (form for form in CATALOG.mint_requested_topics0 if form in CATALOG._token_forms)


def token(number: int) -> bytes:
    return b"\x70" + number.to_bytes(19, "big")


def consumer(number: int) -> bytes:
    return b"\xc0" + number.to_bytes(19, "big")


def hash_of(*parts: object) -> bytes:
    return sha256(repr(parts).encode()).digest()


def _word(address: bytes) -> bytes:
    return bytes(12) + address


@dataclass(kw_only=True)
class Ledger:
    """Blocks 1 to ``height``; ``logs`` by block number, as (address, topics, data).

    ``log_times`` is what the logs of a block say of its time; the others say nothing.
    """

    height: int
    most_logs: int = 10**9
    logs: dict[int, list[tuple[bytes, list[bytes], bytes]]] = field(default_factory=dict)
    log_times: dict[int, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    sent_logs: int = 0
    at_once: int = 0
    most_at_once: int = 0

    def basket(self, block: int, number: int) -> None:
        data = encode(["address", "string", "string"], [consumer(number), "Basket", "B"])
        topics = [CATALOG.basket_created_topic0, _word(USER), _word(USER), _word(token(number))]
        self.logs.setdefault(block, []).append((FACTORY, topics, data))

    def request(self, block: int, number: int, bank: str, *, emitter: bytes | None = None) -> None:
        topics = [TOKEN_FORM, _word(USER), _word(USER), bank.encode().ljust(32, b"\0")]
        data = (10**18).to_bytes(32, "big")
        self.logs.setdefault(block, []).append((emitter or token(number), topics, data))

    def block_hash(self, number: int) -> bytes:
        return hash_of("block", number)

    def _number(self, block_hash: str) -> int:
        return next(n for n in range(self.height + 1) if "0x" + self.block_hash(n).hex() == block_hash)

    def _header(self, number: int) -> dict[str, object] | None:
        if number > self.height:
            return None
        return {
            "number": hex(number),
            "hash": "0x" + self.block_hash(number).hex(),
            "parentHash": "0x" + self.block_hash(number - 1).hex(),
            "timestamp": hex(1_700_000_000 + number),
            "logsBloom": "0x" + "00" * 256,
            "transactions": [
                "0x" + hash_of("tx", number, index).hex() for index in range(len(self.logs.get(number, [])))
            ],
        }

    def _logs(self, wanted: Mapping[str, Any]) -> list[dict[str, object]]:
        if "blockHash" in wanted:
            numbers = [self._number(wanted["blockHash"])]
        else:
            first, last = int(wanted["fromBlock"], 16), int(wanted["toBlock"], 16)
            self.ranges.append((first, last))
            numbers = list(range(first, last + 1))
        addresses, topics0 = wanted.get("address"), wanted["topics"][0]
        return [
            self._log(number, index)
            for number in numbers
            for index, (address, topics, _) in enumerate(self.logs.get(number, []))
            if (addresses is None or "0x" + address.hex() in addresses) and "0x" + topics[0].hex() in topics0
        ]

    def _log(self, number: int, index: int) -> dict[str, object]:
        address, topics, data = self.logs[number][index]
        return {
            "address": "0x" + address.hex(),
            "topics": ["0x" + topic.hex() for topic in topics],
            "data": "0x" + data.hex(),
            "blockHash": "0x" + self.block_hash(number).hex(),
            "blockNumber": hex(number),
            "transactionHash": "0x" + hash_of("tx", number, index).hex(),
            "transactionIndex": hex(index),
            "logIndex": hex(index),
            "removed": False,
            "blockTimestamp": hex(self.log_times[number]) if number in self.log_times else None,
        }

    def _receipts(self, number: int) -> list[dict[str, object]]:
        logs = [self._log(number, index) for index in range(len(self.logs.get(number, [])))]
        return [
            {name: log[name] for name in ("transactionHash", "transactionIndex", "blockHash", "blockNumber")}
            | {"status": "0x1", "logs": [log]}
            for log in logs
        ]

    def _answer(self, question: Mapping[str, Any]) -> dict[str, object]:
        self.asked[question["method"]] += 1
        answer: dict[str, object] = {"jsonrpc": "2.0", "id": question["id"]}
        if question["method"] == "eth_getBlockByNumber":
            number = question["params"][0]
            return answer | {"result": self._header(self.height if number == "latest" else int(number, 16))}
        if question["method"] == "eth_getBlockByHash":
            return answer | {"result": self._header(self._number(question["params"][0]))}
        if question["method"] == "eth_getBlockReceipts":
            return answer | {"result": self._receipts(self._number(question["params"][0]))}
        logs = self._logs(question["params"][0])
        if len(logs) > self.most_logs:
            return answer | {"error": {"code": -32005, "message": "query returned more than 10000 results"}}
        self.sent_logs += len(logs)
        return answer | {"result": logs}

    async def _handle(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            question = await request.json()
            for _ in range(20):
                await asyncio.sleep(0)  # noqa: TID251 - a node takes its time: others may ask meanwhile
            if isinstance(question, list):
                return web.json_response([self._answer(each) for each in question])
            return web.json_response(self._answer(question))
        finally:
            self.at_once -= 1

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Node]:
        app = web.Application()
        app.router.add_post("/", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        endpoint = RpcEndpoint(
            "ledger",
            f"http://{host}:{port}/",
            request_timeout_seconds=10,
            max_answer_bytes=10**8,
            observe=lambda *_: None,
        )
        node = Node([endpoint])
        try:
            yield node
        finally:
            await node.close()
            await runner.cleanup()
