"""Modelled nodes behind a real socket, speaking JSON-RPC over HTTP; one server for all of them, a path for each."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

import orjson
from aiohttp import web

from tests.chain_model.rpc import HonestNode, Json, Refused


class Endpoint:
    """One node as the daemon meets it; counts what it was asked."""

    def __init__(self, node: HonestNode) -> None:
        self.node = node
        self.asked: Counter[str] = Counter()

    async def respond(self, request: web.BaseRequest) -> web.Response:
        question = orjson.loads(await request.read())
        answer = [self._answer(one) for one in question] if isinstance(question, list) else self._answer(question)
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    def _answer(self, question: dict[str, Json]) -> dict[str, Json]:
        made: dict[str, Json] = {"jsonrpc": "2.0", "id": question["id"]}
        method, params = question["method"], question["params"]
        if not isinstance(method, str) or not isinstance(params, list):
            return made | {"error": {"code": -32600, "message": "invalid request"}}
        self.asked[method] += 1
        try:
            return made | {"result": self.node.answer(method, params)}
        except Refused as refused:
            return made | {"error": {"code": refused.code, "message": refused.message}}


class Server:
    """Serves the endpoints of one history after the other; ``endpoints`` is replaced, the socket stays."""

    def __init__(self) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self._web = web.Server(self._respond, access_log=None)
        self._runner = web.ServerRunner(self._web)
        self.port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}/{number}"

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.endpoints[int(request.path[1:])].respond(request)
