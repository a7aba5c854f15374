"""A JSON-RPC server of a provider's making: it passes questions on to a real node, and has limits of its own.

A profile holds the form of a provider's refusals: HTTP status, error code, and whether a batch is refused as one
object, for each question, for the first one only, or by a connection that ends.  The limits are scaled down, so that a
short chain meets them.  With ``says`` of false the refusals hold no word: none may be needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import aiohttp
import orjson
from aiohttp import web

Json: TypeAlias = Any
Question: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Says:
    """How something is refused."""

    code: int
    message: str
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """``None`` is no limit."""

    name: str
    range_blocks: int | None = None
    range_refusal: Says = Says(code=-32000, message="block range is too wide")
    most_logs: int | None = None
    logs_refusal: Says = Says(code=-32005, message="more than 10 results")
    batch: int | None = None
    batch_refusal: Says = Says(code=-32600, message="batch too large")
    batch_form: Literal["one", "each", "first", "drop"] = "one"
    questions_a_second: int | None = None
    rate_refusal: Says = Says(code=-32005, message="request rate exceeded", status=429)
    rate_form: Literal["http", "item"] = "http"
    needs_address: Says | None = None
    no_hash_filter: Says | None = None
    no_logs: Says | None = None
    no_methods: dict[str, Says] = field(default_factory=dict)
    no_finalized: Says | None = None
    most_addresses: int | None = None
    tells_time: bool = True


UNKNOWN_METHOD: Final = Says(code=-32601, message="the method does not exist")

PROFILES: Final = (
    Profile(name="anvil"),
    Profile(name="geth", batch=10, batch_form="first", most_addresses=1_000),
    Profile(
        name="erigon",
        batch=10,
        batch_refusal=Says(code=-32000, message="batch limit 10 exceeded"),
        range_blocks=20,
        range_refusal=Says(code=-32602, message="block range exceeds the server's limit"),
        most_logs=6,
        logs_refusal=Says(code=-32602, message="too many logs"),
    ),
    Profile(name="erigon_that_drops", batch=10, batch_form="drop"),
    Profile(
        name="reth",
        range_blocks=30,
        range_refusal=Says(code=-32602, message="query exceeds max block range 30"),
        most_logs=6,
        logs_refusal=Says(code=-32602, message="query exceeds max results 6, retry with the range 1-60"),
    ),
    Profile(
        name="nethermind",
        most_logs=6,
        logs_refusal=Says(code=-32005, message="too many logs"),
        batch=8,
        batch_refusal=Says(code=-32005, message="batch size limit exceeded", status=413),
    ),
    Profile(
        name="besu",
        range_blocks=25,
        range_refusal=Says(code=-32000, message="requested range exceeds maximum range limit"),
        batch=12,
        batch_refusal=Says(code=-32600, message="number of requests in batch exceeds the maximum"),
        tells_time=False,
    ),
    Profile(
        name="infura",
        range_blocks=40,
        range_refusal=Says(code=-32602, message="range 100 exceeds limit of 40"),
        most_logs=8,
        questions_a_second=30,
        rate_refusal=Says(code=-32005, message="project ID request rate exceeded", status=429),
        tells_time=False,
    ),
    Profile(
        name="alchemy",
        range_blocks=10,
        range_refusal=Says(code=-32600, message="up to a 10 block range", status=400),
        questions_a_second=25,
        rate_refusal=Says(code=429, message="exceeded its compute units per second capacity"),
        rate_form="item",
    ),
    Profile(
        name="quicknode",
        range_blocks=5,
        range_refusal=Says(code=-32614, message="limited to a 5 range", status=413),
        questions_a_second=20,
        no_methods={"eth_getBlockReceipts": UNKNOWN_METHOD},
        tells_time=False,
    ),
    Profile(
        name="publicnode",
        needs_address=Says(code=-32701, message="please specify an address in your request"),
        most_addresses=100,
    ),
    Profile(
        name="drpc",
        batch=3,
        batch_refusal=Says(code=31, message="batch of more than 3 requests", status=500),
        batch_form="each",
        range_blocks=15,
        range_refusal=Says(code=35, message="ranges over 15 blocks are not for you", status=400),
        tells_time=False,
    ),
    Profile(
        name="one_without_anything",
        batch=1,
        range_blocks=10,
        range_refusal=Says(code=-32000, message="no"),
        needs_address=Says(code=-32000, message="no"),
        no_hash_filter=Says(code=-32602, message="invalid argument 0: unknown field blockHash"),
        no_methods={"eth_getBlockReceipts": UNKNOWN_METHOD},
        no_finalized=Says(code=-32602, message="hex string without 0x prefix"),
    ),
    Profile(
        name="one_that_gives_no_logs",
        no_logs=Says(code=-32005, message="limit exceeded"),
        no_finalized=Says(code=-39001, message="unknown block"),
    ),
)


class _Refused(Exception):
    def __init__(self, says: Says) -> None:
        self.says = says


class ProviderProxy:
    """Stands before a node; ``url`` is its own.  ``clock`` is what its rate limit counts by."""

    def __init__(self, profile: Profile, upstream: str, *, clock: Callable[[], float], says: bool = True) -> None:
        self.profile = profile
        self.url = ""
        self.exchanges = 0
        self.asked: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self._upstream = upstream
        self._clock = clock
        self._says = says
        self._asked_at: list[float] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ProviderProxy]:
        async with aiohttp.ClientSession() as self._session:
            application = web.Application(client_max_size=10_000_000)
            application.router.add_post("/", self._handle)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.exchanges += 1
        self.headers.append(dict(request.headers))
        question: Json = await request.json()
        if not isinstance(question, list):
            return _json(*await self._answered(question))
        if self.profile.batch is not None and len(question) > self.profile.batch:
            self.refusals["batch"] += 1
            return self._refused_batch(request, question)
        answers = [await self._answered(each) for each in question]
        if any(status == 429 for _, status in answers):
            return _json(self._error(None, self.profile.rate_refusal), 429)
        return _json([answer for answer, _ in answers], 200)

    def _refused_batch(self, request: web.Request, questions: list[Question]) -> web.StreamResponse:
        says = self.profile.batch_refusal
        match self.profile.batch_form:
            case "one":
                return _json(self._error(None, says), says.status)
            case "each":
                return _json([self._error(each["id"], says) for each in questions], says.status)
            case "first":
                return _json([self._error(questions[0]["id"], says)], says.status)
            case "drop":
                assert request.transport is not None
                request.transport.close()
                return web.Response()

    async def _answered(self, question: Question) -> tuple[Json, int]:
        try:
            self._count()
            self._refuse(question)
            async with self._session.post(self._upstream, json=question) as response:
                answer: Json = orjson.loads(await response.read())
            self.asked[question["method"]] += 1
            if question["method"] == "eth_getLogs" and "result" in answer:
                self._cut(answer["result"])
        except _Refused as refused:
            is_http = refused.says is not self.profile.rate_refusal or self.profile.rate_form == "http"
            return self._error(question["id"], refused.says), refused.says.status if is_http else 200
        return answer, 200

    def _count(self) -> None:
        """Each question counts, also in a batch."""
        limit, now = self.profile.questions_a_second, self._clock()
        self._asked_at = [at for at in self._asked_at if now - at < 1]
        if limit is not None and len(self._asked_at) >= limit:
            self.refusals["rate"] += 1
            raise _Refused(self.profile.rate_refusal)
        self._asked_at.append(now)

    def _refuse(self, question: Question) -> None:
        profile, method, params = self.profile, question["method"], question["params"]
        refused = profile.no_methods.get(method)
        if method == "eth_getBlockByNumber" and params[0] in {"finalized", "safe"}:
            refused = profile.no_finalized
        if method == "eth_getLogs":
            refused = self._refused_logs(params[0])
        if refused is not None:
            self.refusals[method] += 1
            raise _Refused(refused)

    def _refused_logs(self, wanted: dict[str, Any]) -> Says | None:
        profile = self.profile
        if profile.no_logs is not None:
            return profile.no_logs
        if profile.no_hash_filter is not None and "blockHash" in wanted:
            return profile.no_hash_filter
        if profile.needs_address is not None and not wanted.get("address"):
            return profile.needs_address
        if profile.most_addresses is not None and len(wanted.get("address", [])) > profile.most_addresses:
            return Says(code=-32602, message="too many addresses")
        if profile.range_blocks is not None and "fromBlock" in wanted:
            blocks = int(wanted["toBlock"], 16) - int(wanted["fromBlock"], 16) + 1
            return profile.range_refusal if blocks > profile.range_blocks else None
        return None

    def _cut(self, logs: list[dict[str, Any]]) -> None:
        if self.profile.most_logs is not None and len(logs) > self.profile.most_logs:
            self.refusals["logs"] += 1
            raise _Refused(self.profile.logs_refusal)
        if not self.profile.tells_time:
            for log in logs:
                log.pop("blockTimestamp", None)

    def _error(self, number: object, says: Says) -> dict[str, Any]:
        message = says.message if self._says else ""
        return {"jsonrpc": "2.0", "id": number, "error": {"code": says.code, "message": message}}


def _json(answer: Json, status: int) -> web.Response:
    return web.Response(body=orjson.dumps(answer), status=status, content_type="application/json")
