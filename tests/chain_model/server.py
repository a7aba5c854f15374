"""Modelled nodes behind a real socket, speaking JSON-RPC over HTTP; one server for all of them, a path for each."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeAlias

import orjson
from aiohttp import web

from tests.chain_model.faults import UNTOUCHED, Fault, Question, twisted
from tests.chain_model.rpc import HonestNode, Json, Refused

_SHARE: Final = 0.6
"""How many of the answers that a fault could spoil it does spoil."""

Exchange: TypeAlias = Callable[["Endpoint", web.BaseRequest, "Json"], Awaitable[web.Response]]


class Endpoint:
    """One node as the daemon meets it; ``faults`` are those in force, with how many answers each may spoil."""

    def __init__(self, node: HonestNode, *, place: int, injected: Counter[Fault]) -> None:
        self.node = node
        self.place = place
        self.faults: dict[Fault, float] = {}
        self.asked: Counter[str] = Counter()
        self.dice = random.Random(0)  # noqa: S311 - a model's dice
        self._injected = injected
        self._healed = asyncio.Event()
        self._transports: set[asyncio.Transport] = set()
        self._exchanges_to_pause: int | None = None
        self._is_paused = asyncio.Event()
        self._goes_on = asyncio.Event()

    def pause_after(self, exchanges: int) -> asyncio.Event:
        """Answer so many exchanges, then hold the next answer back until ``go_on``; the event is set when it waits."""
        self._exchanges_to_pause = exchanges
        return self._is_paused

    def go_on(self) -> None:
        """Give the answer that was held back, which is of the moment of its question."""
        self._goes_on.set()

    def fail(self, fault: Fault, *, times: int | None, seed: int) -> None:
        """Begin to fail: now and then, so many times; or (``None``) at every answer until healed."""
        self.faults[fault] = math.inf if times is None else times
        self.dice = random.Random(seed)  # noqa: S311 - a model's dice
        if fault is Fault.OTHER_CHAIN:  # other servers than before
            for transport in self._transports:
                transport.close()

    def heal(self) -> None:
        """Be honest again."""
        self.faults.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def respond(self, request: web.BaseRequest) -> web.Response:
        if request.transport is not None:
            self._transports.add(request.transport)
        question = orjson.loads(await request.read())
        for fault in tuple(self.faults):
            exchange = _EXCHANGES.get(fault)
            if exchange is not None and self._strikes(fault):
                return await exchange(self, request, question)
        response = _json(self.answer(question))
        if self._exchanges_to_pause is not None:
            self._exchanges_to_pause -= 1
            if self._exchanges_to_pause < 0:
                self._exchanges_to_pause = None
                self._is_paused.set()
                await self._goes_on.wait()
        if Fault.OTHER_CHAIN in self.faults:
            response.force_close()
        return response

    def answer(self, question: Json) -> Json:
        """The body for a question or a batch of them."""
        if not isinstance(question, list):
            return self._answered(question)
        answers = [self._answered(one) for one in question]
        if len(answers) > 1 and Fault.BATCH_SHUFFLED in self.faults and self._strikes(Fault.BATCH_SHUFFLED):
            self.dice.shuffle(answers)
        if len(answers) > 1 and Fault.BATCH_PARTIAL in self.faults and self._strikes(Fault.BATCH_PARTIAL):
            del answers[self.dice.randrange(len(answers))]
        return answers

    async def stall(self) -> None:
        """Say nothing until healed."""
        await self._healed.wait()

    def _strikes(self, fault: Fault) -> bool:
        """Whether a fault spoils what is before it; counted."""
        if not self._may_strike(fault):
            return False
        self._spent(fault)
        return True

    def _may_strike(self, fault: Fault) -> bool:
        left = self.faults.get(fault, 0)
        return left == math.inf or (left > 0 and (fault is Fault.OTHER_CHAIN or self.dice.random() < _SHARE))

    def _spent(self, fault: Fault) -> None:
        self._injected[fault] += 1
        self.faults[fault] -= 1
        if self.faults[fault] == 0:
            del self.faults[fault]

    def _answered(self, question: Json) -> Json:
        if not isinstance(question, dict) or not isinstance(question.get("params"), list):
            return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "invalid request"}}
        made: dict[str, Json] = {"jsonrpc": "2.0", "id": question["id"]}
        try:
            return made | {"result": self._result(str(question["method"]), question["params"])}
        except Refused as refused:
            return made | {"error": {"code": refused.code, "message": refused.message}}

    def _result(self, method: str, params: Json) -> Json:
        self.asked[method] += 1
        question = Question(
            node=self.node,
            method=method,
            params=params if isinstance(params, list) else [],
            place=self.place,
            dice=self.dice,
        )
        for fault in tuple(self.faults):
            if not self._may_strike(fault):
                continue
            try:
                answer = twisted(fault, question)
            except Refused:
                self._spent(fault)
                raise
            if answer is not UNTOUCHED:
                self._spent(fault)
                return answer
        return question.honest()


def _json(body: Json) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


async def _too_many(endpoint: Endpoint, _request: web.BaseRequest, _question: Json) -> web.Response:
    headers = endpoint.dice.choice([{}, {"Retry-After": "3"}, {"Retry-After": "soon"}])
    return web.Response(status=429, text="slow down", headers=headers)


async def _server_error(endpoint: Endpoint, _request: web.BaseRequest, _question: Json) -> web.Response:
    return web.Response(status=endpoint.dice.choice([500, 502, 503, 504]), text="<h1>Bad Gateway</h1>")


async def _html(_endpoint: Endpoint, _request: web.BaseRequest, _question: Json) -> web.Response:
    return web.Response(text="<html>Checking your browser</html>", content_type="text/html")


async def _json_cut(endpoint: Endpoint, _request: web.BaseRequest, question: Json) -> web.Response:
    whole = orjson.dumps(endpoint.answer(question))
    return web.Response(body=whole[: len(whole) // 2], content_type="application/json")


async def _redirect(_endpoint: Endpoint, _request: web.BaseRequest, _question: Json) -> web.Response:
    return web.Response(status=302, headers={"Location": "/0"})


async def _hung(endpoint: Endpoint, request: web.BaseRequest, _question: Json) -> web.Response:
    await endpoint.stall()
    return await _connection_lost(endpoint, request, None)


async def _connection_lost(_endpoint: Endpoint, request: web.BaseRequest, _question: Json) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _id_of_another(endpoint: Endpoint, _request: web.BaseRequest, question: Json) -> web.Response:
    body = endpoint.answer(question)
    for answer in body if isinstance(body, list) else [body]:
        if isinstance(answer, dict):
            answer["id"] = 999_999
    return _json(body)


_EXCHANGES: Final[dict[Fault, Exchange]] = {
    Fault.TOO_MANY_REQUESTS: _too_many,
    Fault.SERVER_ERROR: _server_error,
    Fault.HTML: _html,
    Fault.JSON_CUT: _json_cut,
    Fault.REDIRECT: _redirect,
    Fault.HUNG: _hung,
    Fault.CONNECTION_LOST: _connection_lost,
    Fault.ID_OF_ANOTHER_QUESTION: _id_of_another,
}


class Server:
    """Serves the endpoints of one history after the other; ``endpoints`` is replaced, the socket stays."""

    def __init__(self) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self.port = 0
        self._runner = web.ServerRunner(web.Server(self._respond, access_log=None))

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
        place = int(request.path[1:])
        if place >= len(self.endpoints):  # of a history that has ended
            return web.Response(status=404)
        return await self.endpoints[place].respond(request)
